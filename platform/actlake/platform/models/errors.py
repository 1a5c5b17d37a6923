"""Everything that can go wrong with a model, on one page.

    ActlakeError
    └── ModelError
        ├── InvalidModelConfig      a dtype, device or attention that cannot be    (ValueError)
        ├── ModelNotFound           no such folder, file, hub id or revision       (LookupError)
        ├── HubUnreachable          a download is needed and cannot be made        (ConnectionError)
        ├── ModelNotSupported       not a decoder, or needs more than its stream   (ValueError)
        ├── NoTinyModel             no tiny model comes of a family's defaults   (ValueError)
        ├── WeightsMismatch         weights are missing or have another shape      (ValueError)
        ├── SiteNotInModel          the model has no such layer or point           (LookupError)
        ├── VocabularyTooSmall      tokens that the model has no row for           (ValueError)
        ├── ContextTooLong          more tokens than the model has positions for   (ValueError)
        ├── InvalidSplit            layers do not divide among stages like that    (ValueError)
        ├── InvalidIntervention     returned no tensor of the site's shape         (ValueError)
        └── TokenizerNotSupported   no fast tokenizer, so no character offsets     (ValueError)

A message says what happened, what there is, and, after ``hint:``, what to do.
"""

from actlake.storage.errors import ActlakeError


class ModelError(ActlakeError):
    """Something about a model, its weights or its tokenizer."""


class InvalidModelConfig(ModelError, ValueError):
    """A field of `ModelConfig` has a value that cannot be, or cannot be on this machine."""


class ModelNotFound(ModelError, LookupError):
    """There is no such folder, file, hub repository or revision."""


class HubUnreachable(ModelError, ConnectionError):
    """Files have to be downloaded and the hub or package index does not answer."""


class ModelNotSupported(ModelError, ValueError):
    """Not a decoder language model, or one whose blocks need more than the hidden state."""


class NoTinyModel(ModelError, ValueError):
    """The defaults of a family's configuration make no tiny model."""


class WeightsMismatch(ModelError, ValueError):
    """The checkpoint lacks weights the stage needs, or has them in another shape."""


class SiteNotInModel(ModelError, LookupError):
    """The model has no such layer, or its blocks have no such point."""


class VocabularyTooSmall(ModelError, ValueError):
    """A text may hold tokens that the model's embedding or head has no row for."""


class ContextTooLong(ModelError, ValueError):
    """A context has more tokens than the model has positions for."""


class InvalidSplit(ModelError, ValueError):
    """The layers cannot be divided among stages in the way asked for."""


class InvalidIntervention(ModelError, ValueError):
    """A function that changes a site returned something else than a tensor of its shape."""


class TokenizerNotSupported(ModelError, ValueError):
    """The model has no fast tokenizer, which alone knows where in the text a token begins."""
