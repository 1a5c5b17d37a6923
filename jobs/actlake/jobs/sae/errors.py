"""Everything the work on sparse autoencoders refuses, on one page.

    ActlakeError
    └── SAEError
        ├── InvalidSAE          an architecture, size or option that cannot be     (ValueError)
        ├── InvalidTraining     a training that cannot be                          (ValueError)
        ├── NotEnoughRows       fewer rows than are asked for                      (LookupError)
        ├── DictionaryMismatch  an SAE of another width, hook or architecture      (ValueError)
        ├── NonFiniteLoss       a loss or gradient became NaN or infinite          (ArithmeticError)
        ├── ConfigChanged       a run would go on with another configuration       (ValueError)
        ├── CheckpointDamaged   a checkpoint is not what was written               (OSError)
        └── AlreadyTraining     another process trains into the same folder        (RuntimeError)

A message says what happened, what there is, and, after ``hint:``, what to do.
"""

from actlake.storage.errors import ActlakeError


class SAEError(ActlakeError):
    """Something about sparse autoencoders."""


class InvalidSAE(SAEError, ValueError):
    """A sparse autoencoder cannot have this architecture, these sizes or options."""


class InvalidTraining(SAEError, ValueError):
    """A field of `SAEConfig` has a value that cannot be."""


class NotEnoughRows(SAEError, LookupError):
    """The store has fewer rows than one batch, or than the whole training asks for."""


class DictionaryMismatch(SAEError, ValueError):
    """An SAE that does not read the site, or that we cannot compute."""


class NonFiniteLoss(SAEError, ArithmeticError):
    """A loss or a gradient is NaN or infinite; nothing sensible can follow."""


class ConfigChanged(SAEError, ValueError):
    """The folder holds a run of another configuration, or of another store."""


class CheckpointDamaged(SAEError, OSError):
    """A checkpoint cannot be read, or is of a newer format."""


class AlreadyTraining(SAEError, RuntimeError):
    """Another process is training into this folder."""
