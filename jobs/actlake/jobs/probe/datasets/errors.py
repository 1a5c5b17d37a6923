"""Everything the labelled data sets refuse, on one page.

    ActlakeError
    └── DataSetError
        ├── DataSetNotFound     no labelled corpus in that folder, or a damaged one (LookupError)
        ├── DataSetChanged      a file does not hold what it held when this was written (ValueError)
        ├── InvalidDataSet      an option that cannot be, or leaves nothing         (ValueError)
        └── TextNotKept         a store without its text                            (LookupError)

A message says what happened, what there is, and, after ``hint:``, what to do.
"""

from actlake.storage.errors import ActlakeError


class DataSetError(ActlakeError):
    """Something about a labelled data set."""


class DataSetNotFound(DataSetError, LookupError):
    """There is no labelled corpus in that folder, or it cannot be read."""


class DataSetChanged(DataSetError, ValueError):
    """A file of the source is not in the form that is read here."""


class InvalidDataSet(DataSetError, ValueError):
    """An option has a value that cannot be, or leaves no document."""


class TextNotKept(DataSetError, LookupError):
    """Features of words need the text, and the store was made without it."""
