"""A store, or several as one, as an xarray Dataset with named coordinates. Nothing is loaded.

dimensions   row, dim
variables    one a site: (row, dim); rows of units that are not committed are NaN
coordinates  token (id), position, document_number, char, context, split: (row,)

bfloat16, of which NumPy takes no mean, is given out as float32. A Dataset can be pickled: whoever
reads it opens the files anew.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from actlake.storage.errors import missing_extra
from actlake.storage.querying.parts import Part, parts_of
from actlake.storage.sites import Site

if TYPE_CHECKING:  # both offer it
    from actlake.storage.reading.many import ManyStores
    from actlake.storage.store import ActivationStore

Array = np.ndarray[Any, Any]
Read = Callable[[Part, Array], Array]
"""The values of rows of one store, numbered as in it."""
_MEANING = {
    "token": "token id",
    "position": "place in its context, from 0",
    "document_number": "the document's place in the store, from 0",
    "char": "start character in the document's text; -1 unknown",
    "context": "what the model saw at once",
    "split": "split of the document",
}


def to_xarray(
    store: "ActivationStore | ManyStores", sites: Iterable[str | Site] | None = None
) -> Any:
    """A lazy ``xarray.Dataset`` of the store; see `ActivationStore.to_xarray`."""
    try:
        import xarray

        from actlake.storage.querying.lazy_variable import lazy_variable
    except ModuleNotFoundError as error:
        raise missing_extra("A named dataset", package="xarray", extra="query") from error
    chosen = store.sites if sites is None else tuple(dict.fromkeys(map(store.site, sites)))
    parts = parts_of(store)
    first, rows = parts[0].store, len(store)
    splits = np.array([name for part in parts for name in part.store.schema.splits])
    per_row: dict[str, tuple[Any, Read]] = {
        "token": (np.int32, partial(_tokens, "id")),
        "position": (np.int32, partial(_tokens, "position")),
        "document_number": (np.int64, _documents),
        "char": (np.int32, partial(_tokens, "char")),
        "context": (np.int64, _contexts),
        "split": (splits.dtype, _splits),
    }
    return xarray.Dataset(
        {
            str(site): lazy_variable(
                ("row", "dim"),
                (rows, first.schema_of(site).dim),
                _computable(first[site].dtype),
                _NumberedThrough(parts, partial(_activations, site)),
                {"committed": str(store.coverage(site))},
            )
            for site in chosen
        },
        coords={
            name: lazy_variable(
                ("row",),
                (rows,),
                np.dtype(dtype),
                _NumberedThrough(parts, read),
                {"long_name": _MEANING[name]},
            )
            for name, (dtype, read) in per_row.items()
        },
        attrs={
            "store": store.url,
            "fingerprint": store.fingerprint,
            "model": str(first.provenance.model.get("name", "")),
        },
    )


def _computable(stored: np.dtype[Any]) -> np.dtype[Any]:
    """A type that NumPy computes with, and that holds every value of the stored one."""
    return np.dtype(np.float32) if stored == ml_dtypes.bfloat16 else stored


# What is read, in functions of the module: they can be pickled.


def _activations(site: Site, part: Part, rows: Array) -> Array:
    return part.store[site].take(rows, missing="nan")


def _tokens(name: str, part: Part, rows: Array) -> Array:
    return part.store.tokens[name].take(rows)


def _documents(part: Part, rows: Array) -> Array:
    documents = part.store.tokens["document"].take(rows)
    return np.where(documents < 0, -1, documents + part.first_document)


def _contexts(part: Part, rows: Array) -> Array:
    contexts = part.store.lookup.contexts(rows)
    return np.where(contexts < 0, -1, contexts + part.first_context)


def _splits(part: Part, rows: Array) -> Array:
    return np.array([*part.store.schema.splits, ""])[part.store.lookup.splits(rows)]


@dataclass(frozen=True, slots=True)
class _NumberedThrough:
    """Takes rows of all stores together, in any order."""

    parts: tuple[Part, ...]
    read: Read

    def __call__(self, rows: Array) -> Array:
        if len(self.parts) == 1:
            return self.read(self.parts[0], rows)
        firsts = [part.first_row for part in self.parts]
        which = np.searchsorted(firsts, rows, side="right") - 1
        by_store = np.concatenate(
            [self.read(part, rows[which == part.number] - part.first_row) for part in self.parts]
        )
        taken = np.empty_like(by_store)
        taken[np.argsort(which, kind="stable")] = by_store
        return taken
