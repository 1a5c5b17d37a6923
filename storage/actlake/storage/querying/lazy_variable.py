"""An xarray variable that reads rows when its values are asked for. Needs xarray."""

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray
from xarray.backends import BackendArray
from xarray.core import indexing

Array = np.ndarray[Any, Any]
Take = Callable[[Array], Array]
"""Gives the rows of these numbers, (n, …)."""


def lazy_variable(
    dims: tuple[str, ...],
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    take: Take,
    attrs: dict[str, str],
) -> xarray.Variable:
    """A variable whose rows, along the first of `dims`, come from `take` as `dtype`."""
    rows = indexing.LazilyIndexedArray(_RowsByNumber(shape, dtype, take))
    return xarray.Variable(dims, rows, attrs)


class _RowsByNumber(BackendArray):
    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], take: Take) -> None:
        self.shape = shape
        self.dtype = dtype
        self._take = take

    def __getitem__(self, key: Any) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self._read
        )

    def _read(self, key: tuple[Any, ...]) -> Any:
        rows = key[0]
        numbers = np.arange(*rows.indices(self.shape[0])) if isinstance(rows, slice) else rows
        values = self._take(np.atleast_1d(np.asarray(numbers, np.int64)))
        values = values[(slice(None), *key[1:])].astype(self.dtype, copy=False)
        return values[0] if np.ndim(numbers) == 0 else values
