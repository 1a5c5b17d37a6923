"""A store as one xarray Dataset, with named dimensions and coordinates. Nothing is loaded.

dimensions   row, dim
variables    one a site: (row, dim); rows of units that are not committed are NaN
coordinates  token (id), position, document, char, context, split: (row,)
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from actlake.storage.errors import missing_extra
from actlake.storage.sites import Site

if TYPE_CHECKING:  # store.py offers it
    from actlake.storage.store import ActivationStore

Array = np.ndarray[Any, Any]
_MEANING = {
    "token": "token id",
    "position": "place in its context, from 0",
    "document": "ordinal of the document",
    "char": "start character in the document's text; -1 unknown",
    "context": "what the model saw at once",
    "split": "split of the document",
}


def to_xarray(store: "ActivationStore", sites: Iterable[str | Site] | None = None) -> Any:
    """A lazy ``xarray.Dataset`` of the store; see `ActivationStore.to_xarray`."""
    try:
        import xarray
    except ModuleNotFoundError as error:
        raise missing_extra("A named dataset", package="xarray", extra="query") from error
    chosen = store.sites if sites is None else tuple(dict.fromkeys(map(store.site, sites)))
    rows = len(store)
    split_type = np.array(store.schema.splits).dtype
    per_row: dict[str, tuple[np.dtype[Any], Callable[[Array], Array]]] = {
        "token": (np.dtype(np.int32), store.tokens["id"].take),
        "position": (np.dtype(np.int32), store.tokens["position"].take),
        "document": (np.dtype(np.int64), store.tokens["document"].take),
        "char": (np.dtype(np.int32), store.tokens["char"].take),
        "context": (np.dtype(np.int64), store.lookup.contexts),
        "split": (
            split_type,
            lambda numbers: np.array(store.schema.splits)[store.lookup.splits(numbers)],
        ),
    }
    return xarray.Dataset(
        {
            str(site): _lazy(
                ("row", "dim"),
                (rows, store.schema.dim),
                store[site].dtype,
                partial(store[site].take, missing="nan"),
                {"committed": str(store.coverage(site))},
            )
            for site in chosen
        },
        coords={
            name: _lazy(("row",), (rows,), dtype, take, {"long_name": _MEANING[name]})
            for name, (dtype, take) in per_row.items()
        },
        attrs={
            "store": store.url,
            "fingerprint": store.fingerprint,
            "model": str(store.provenance.model.get("name", "")),
        },
    )


def _lazy(
    dims: tuple[str, ...],
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    take: Callable[[Array], Array],
    attrs: dict[str, str],
) -> Any:
    """An xarray Variable that reads rows by `take` when its values are asked for."""
    import xarray
    from xarray.backends import BackendArray
    from xarray.core import indexing

    class RowsByNumber(BackendArray):
        def __init__(self) -> None:
            self.shape = shape
            self.dtype = dtype

        def __getitem__(self, key: Any) -> Any:
            return indexing.explicit_indexing_adapter(
                key, self.shape, indexing.IndexingSupport.OUTER, self._read
            )

        def _read(self, key: tuple[Any, ...]) -> Any:
            numbers = np.arange(*key[0].indices(shape[0])) if isinstance(key[0], slice) else key[0]
            values = take(np.atleast_1d(np.asarray(numbers, np.int64)))
            values = values[(slice(None), *key[1:])]
            return values[0] if np.ndim(numbers) == 0 else values

    return xarray.Variable(dims, indexing.LazilyIndexedArray(RowsByNumber()), attrs)
