"""Everything that can go wrong with a store, on one page.

    ActlakeError                    the root of the whole product's errors
    └── StoreError
        ├── StoreNotFound           nothing is stored there            (FileNotFoundError)
        ├── StoreExists             something else is stored there     (FileExistsError)
        ├── StoreMismatch           same path, other contents          (ValueError)
        ├── FormatTooNew            written by a newer actlake         (ValueError)
        ├── InvalidSchema           a size or name that cannot be      (ValueError)
        ├── SiteNotStored           no activations of that site        (LookupError)
        ├── RowsNotCommitted        those rows are not there yet       (LookupError)
        ├── RowsOutOfRange          there are no such rows             (IndexError)
        ├── StoreDamaged            bytes are not what was written     (OSError)
        ├── StoreNotReadable        no permission to read it           (OSError)
        ├── StoreNotWritable        no permission, or no space         (OSError)
        ├── AlreadyCommitted        a unit that is there already       (ValueError)
        ├── StoreLocked             another driver is writing          (RuntimeError)
        ├── LeaseLost               another driver has taken over      (RuntimeError)
        └── NonFiniteActivations    overflow, infinity or NaN          (ValueError)

A message says what happened, what there is, and, after ``hint:``, what to do.
"""

import difflib
from collections.abc import Iterable


class ActlakeError(Exception):
    """Anything actlake refuses, with words for the person who asked."""


class StoreError(ActlakeError):
    """Something about a store."""


class StoreNotFound(StoreError, FileNotFoundError):
    """Nothing is stored at that place."""


class StoreExists(StoreError, FileExistsError):
    """Something that is not this store is already at that place."""


class StoreMismatch(StoreError, ValueError):
    """The store at that place holds other rows than were asked for."""


class FormatTooNew(StoreError, ValueError):
    """The store was written in a format this version does not know."""


class InvalidSchema(StoreError, ValueError):
    """A store cannot be made with these sizes or names."""


class SiteNotStored(StoreError, LookupError):
    """The store holds no activations of that site."""


class RowsNotCommitted(StoreError, LookupError):
    """Those rows belong to units of work that are not committed yet."""


class RowsOutOfRange(StoreError, IndexError):
    """The store has no such rows."""


class StoreDamaged(StoreError, OSError):
    """Bytes of the store are not the bytes that were written."""


class StoreNotReadable(StoreError, OSError):
    """There is something, and it may not be read."""


class StoreNotWritable(StoreError, OSError):
    """The place cannot be written: no permission, or no space left."""


class AlreadyCommitted(StoreError, ValueError):
    """A committed unit would be written or committed a second time."""


class StoreLocked(StoreError, RuntimeError):
    """Another driver holds the store's lease."""


class LeaseLost(StoreError, RuntimeError):
    """The lease was taken over by another driver; nothing more can be committed."""


class NonFiniteActivations(StoreError, ValueError):
    """A unit holds infinities or NaNs and the schema refuses them."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint naming what `name` may have been meant to be, or what there is."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"hint: did you mean {close[0]!r}?"
    return f"hint: there is {', '.join(names) or 'nothing'}"
