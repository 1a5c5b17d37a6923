"""Everything that can go wrong with a store, on one page.

    ActlakeError                    the root of the whole product's errors
    └── StoreError
        ├── StoreNotFound           nothing is stored there            (FileNotFoundError)
        ├── StoreExists             something else is stored there     (FileExistsError)
        ├── StoreMismatch           same path, other contents          (ValueError)
        ├── FormatTooNew            written by a newer actlake         (ValueError)
        ├── InvalidSchema           a size or name that cannot be      (ValueError)
        ├── InvalidSite             a site's name that cannot be read  (ValueError)
        ├── SiteNotStored           no activations of that site        (LookupError)
        ├── RowsNotCommitted        those rows are not there yet       (LookupError)
        ├── RowsReleased            those rows were given up          (LookupError)
        ├── RowsOutOfRange          there are no such rows             (IndexError)
        ├── StoreDamaged            bytes are not what was written     (OSError)
        ├── StoreNotReadable        no permission to read it           (OSError)
        ├── StoreNotWritable        no permission, or no space         (OSError)
        ├── StoreUnreachable        its server does not answer         (OSError)
        ├── AlreadyCommitted        a unit that is there already       (ValueError)
        ├── StoreLocked             another driver is writing          (RuntimeError)
        ├── LeaseLost               another driver has taken over      (RuntimeError)
        ├── KeyTaken                a file that is there, and another  (FileExistsError)
        ├── NonFiniteActivations    overflow, infinity or NaN          (ValueError)
        ├── UnknownSplit            no split of that name              (LookupError)
        ├── EmptySelection          no row is left to read             (LookupError)
        ├── InvalidBatches          batches of such sizes cannot be    (ValueError)
        ├── StateMismatch           a state of other batches           (ValueError)
        ├── InvalidQuery            a search, SQL or predicate in vain (ValueError)
        ├── NotInStore              no such token or document          (LookupError)
        ├── LabelsNotAttached       no labels of that name             (LookupError)
        ├── LabelsMisaligned        labels of what is not in the store (ValueError)
        └── MissingExtra            an optional package is absent      (ImportError)

A message says what happened, what there is, and, after ``hint:``, what to do.
"""

import difflib
import errno
import os
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


class InvalidSite(StoreError, ValueError):
    """A site's written name cannot be read."""


class SiteNotStored(StoreError, LookupError):
    """The store holds no activations of that site."""


class RowsNotCommitted(StoreError, LookupError):
    """Those rows belong to units of work that are not committed yet."""


class RowsReleased(StoreError, LookupError):
    """Those rows were given up on purpose; moments and tokens of them are still there."""


class RowsOutOfRange(StoreError, IndexError):
    """The store has no such rows."""


class StoreDamaged(StoreError, OSError):
    """Bytes of the store are not the bytes that were written."""


class StoreNotReadable(StoreError, OSError):
    """There is something, and it may not be read."""


class StoreNotWritable(StoreError, OSError):
    """The place cannot be written: no permission, or no space left."""


class StoreUnreachable(StoreError, OSError):
    """The server of an object store does not answer, however often it is asked."""


class AlreadyCommitted(StoreError, ValueError):
    """A committed unit would be written or committed a second time."""


class StoreLocked(StoreError, RuntimeError):
    """Another driver holds the store's lease."""


class LeaseLost(StoreError, RuntimeError):
    """The lease was taken over by another driver; nothing more can be committed."""


class KeyTaken(StoreError, FileExistsError):
    """A file would be created where one is already: somebody else was first."""


class NonFiniteActivations(StoreError, ValueError):
    """A unit holds infinities or NaNs and the schema refuses them."""


class UnknownSplit(StoreError, LookupError):
    """The store has no split of that name."""


class EmptySelection(StoreError, LookupError):
    """No committed row passes the split, the exclusion and the predicate."""


class InvalidBatches(StoreError, ValueError):
    """Batches cannot be made with these sizes or names."""


class StateMismatch(StoreError, ValueError):
    """A reader's state belongs to another store, seed or config."""


class InvalidQuery(StoreError, ValueError):
    """A search, an SQL statement or a predicate that cannot be read, or not be worked out."""


class NotInStore(StoreError, LookupError):
    """A token or document by a name that the store does not know."""


class LabelsNotAttached(StoreError, LookupError):
    """No label table of that name is attached to the store."""


class LabelsMisaligned(StoreError, ValueError):
    """Labels whose keys are not documents, characters or rows of the store."""


class MissingExtra(StoreError, ImportError):
    """A package is not installed that comes with an extra of actlake."""


def missing_extra(deed: str, *, package: str, extra: str) -> MissingExtra:
    """The error for a deed that needs a package of an extra."""
    return MissingExtra(
        f'{deed} needs {package}, which is not installed\nhint: pip install "actlake[{extra}]"'
    )


def site_not_stored(
    written: object, stored: object, known: Iterable[object], *, url: str
) -> SiteNotStored:
    """The error for a site, as it was written and under its stored name, that `url` lacks."""
    return SiteNotStored(
        f"No activations of {written} in {url}\n{nearest(stored, known)}; `actlake harvest` adds "
        "sites to a finished store"
    )


def rows_released(site: object, unit: int, *, url: str) -> RowsReleased:
    """The error for rows of a unit that were given up on purpose."""
    return RowsReleased(
        f"The rows of unit {unit} of {site} in {url} were released, on purpose and for good; its "
        "tokens and moments are there\nhint: read other units, or harvest the text again to "
        "another path"
    )


def unknown_split(split: object, known: Iterable[str], *, url: str) -> UnknownSplit:
    """The error for a split that the store, or every store, at `url` lacks."""
    return UnknownSplit(f"There is no split {split!r} in {url}\n{nearest(split, known)}")


def nearest(name: object, known: Iterable[object]) -> str:
    """A hint naming what `name`, of any type, may have been meant to be, or what there is."""
    names = list(map(str, known))
    close = difflib.get_close_matches(str(name), names, n=1)
    if close:
        return f"hint: did you mean {close[0]!r}?"
    return f"hint: there is {', '.join(names) or 'nothing'}"


def in_words(error: OSError) -> str | None:
    """What the system refused, for whoever named the file; None for what only a bug would ask.

    Of places that nothing else puts into words: the folders of results, logs, caches.
    """
    number = error.errno
    if number is None or number not in _HINTS:
        return None
    what = error.filename if error.filename is not None else "A file"
    named = os.fsdecode(what) if isinstance(what, str | bytes | os.PathLike) else "A file"
    return (
        f"{named}: {os.strerror(number)}\n"
        f"hint: {_HINTS[number]}; what is complete is kept, and the same command goes on with it"
    )


_PERMISSION = "this user may not read or write it, or a folder above it: check their permissions"
_HINTS = {
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.EROFS: "the file system is read-only: name another place",
    errno.ENOSPC: "the disk is full: make space, or name another place",
    errno.EDQUOT: "your disk quota is used up: make space, or name another place",
    errno.EFBIG: "no larger files are allowed: see `ulimit -f`",
    errno.EIO: "the disk or the network failed: look at the system's log",
    errno.ENOTDIR: "a part of the path is a file: name another place",
    errno.EISDIR: "it is a folder, where a file was expected",
    errno.ENOENT: "check the path, which is relative to the current folder",
    errno.ENAMETOOLONG: "name a place with a shorter path",
    errno.ELOOP: "its symbolic links lead in a circle",
    errno.EMFILE: "too many files are open: raise `ulimit -n`",
    errno.EEXIST: "a file is where a folder should be: name another place",
}
