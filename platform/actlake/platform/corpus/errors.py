"""Everything that can go wrong with a corpus, on one page.

    ActlakeError
    └── CorpusError
        ├── InvalidCorpusConfig    a size, name or fraction that cannot be       (ValueError)
        ├── CorpusNotFound         no file matches, no such data set             (FileNotFoundError)
        ├── UnknownFormat          a file whose suffix says nothing              (ValueError)
        ├── UnreadableFile         a file that cannot be opened or is cut short  (OSError)
        ├── UndecodableText        not UTF-8, or not a JSON object               (ValueError)
        ├── ColumnMissing          no such column there                          (LookupError)
        ├── InvalidColumn          a value that a column cannot hold             (ValueError)
        ├── DuplicateDocument      one id given to two documents                 (ValueError)
        ├── DocumentTooLong        longer than a context, and that is refused    (ValueError)
        ├── TokenizerUnfit         it lacks a token, or is not a fast one        (ValueError)
        ├── SpecialTokenInText     one is written in a text, and refused         (ValueError)
        ├── CorpusEmpty            no document gave a token                      (ValueError)
        ├── SplitEmpty             a split that is needed has no rows            (ValueError)
        └── MissingExtra           a package that this source needs is absent    (ImportError)

A message says what happened and where, what there is, and, after ``hint:``, what to do.
"""

from actlake.storage.errors import ActlakeError


class CorpusError(ActlakeError):
    """Something about a corpus: its files, its documents, its layout."""


class InvalidCorpusConfig(CorpusError, ValueError):
    """A field of `CorpusConfig` or of one of its parts has a value that cannot be."""


class CorpusNotFound(CorpusError, FileNotFoundError):
    """No file matches the pattern, or there is no such data set."""


class UnknownFormat(CorpusError, ValueError):
    """A file's suffix does not say how to read it."""


class UnreadableFile(CorpusError, OSError):
    """A file cannot be opened, is cut short, or is not what its suffix says."""


class UndecodableText(CorpusError, ValueError):
    """A text is not UTF-8, or a line is not a JSON object."""


class ColumnMissing(CorpusError, LookupError):
    """A row has no column of that name."""


class InvalidColumn(CorpusError, ValueError):
    """A column holds something that is not text, a number, a truth value or nothing."""


class DuplicateDocument(CorpusError, ValueError):
    """Two documents were given one id."""


class DocumentTooLong(CorpusError, ValueError):
    """A document does not fit one context, and `long_documents` is ``refuse``."""


class TokenizerUnfit(CorpusError, ValueError):
    """The tokenizer lacks a token the layout needs, or does not know where tokens begin."""


class SpecialTokenInText(CorpusError, ValueError):
    """A special token is written in a text, and `special_tokens.in_text` is ``refuse``."""


class CorpusEmpty(CorpusError, ValueError):
    """Not one document gave a token."""


class SplitEmpty(CorpusError, ValueError):
    """A split that is needed has no rows."""


class MissingExtra(CorpusError, ImportError):
    """A source needs a package that is not installed."""
