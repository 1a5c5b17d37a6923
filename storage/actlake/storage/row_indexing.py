"""What an index of rows means, whatever is read and however."""

import operator
from abc import ABC, abstractmethod
from typing import Any, Literal

import numpy as np

from actlake.storage.errors import RowsOutOfRange

Array = np.ndarray[Any, Any]
Missing = Literal["raise", "nan"]


class IndexedByRow(ABC):
    """Something of (rows, …) that is read when it is indexed.

    ``array[i]``, ``array[a:b]``, ``array[rows]``, ``array[mask]`` and ``array[i, 3]`` give what
    they give of a NumPy array, but that numbers of rows in an array count from 0 only. Whole rows
    are read, whatever part of them is asked for.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """What it is called in messages."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """(rows, …)."""

    @property
    @abstractmethod
    def dtype(self) -> np.dtype[Any]:
        """Element type of what is read."""

    @abstractmethod
    def read(self, start: int, stop: int, *, missing: Missing = "raise") -> Array:
        """Rows ``start <= i < stop``, (stop - start, …)."""

    @abstractmethod
    def take(self, rows: Any) -> Array:
        """The given rows, in the given order, (n, …); rows may repeat."""

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:
        which, *within = self._by_axis(key)
        if isinstance(which, slice):
            start, stop, step = which.indices(len(self))
            if step == 1:
                return self.read(start, max(start, stop))[(slice(None), *within)]
            return self.take(np.arange(start, stop, step))[(slice(None), *within)]
        if _is_number(which):
            return self.take(np.array([_as_row(which, len(self))]))[(0, *within)]
        rows = self.take(self._numbered(which))
        return rows[(np.arange(len(rows)), *within)] if within else rows

    def _by_axis(self, key: Any) -> tuple[Any, ...]:
        """An index by axes, of which the first is given: what ``...`` in front stands for."""
        parts = key if isinstance(key, tuple) else (key,)
        num_axes = sum(part is not None and part is not Ellipsis for part in parts)
        if num_axes > self.ndim:
            raise RowsOutOfRange(
                f"{self.name} is of {self.ndim} axes, {self.shape}; {num_axes} were indexed"
            )
        if parts and parts[0] is not Ellipsis:
            return parts
        return (*[slice(None)] * (self.ndim - num_axes), *parts[1:])

    def _numbered(self, which: Any) -> Array:
        """Numbers of rows, as given or where a mask is true."""
        rows = np.asarray(which)
        if rows.dtype != bool:
            return rows
        if rows.shape != (len(self),):
            raise RowsOutOfRange(
                f"The mask is of shape {rows.shape}; {self.name} has {len(self):,} rows\n"
                "hint: give one boolean a row, or numbers of rows"
            )
        return np.flatnonzero(rows)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        rows: Array = self[:]
        return rows if dtype is None else rows.astype(dtype, copy=False)


def _is_number(key: Any) -> bool:
    """Whether it is one whole number; not a boolean, which Python takes for one."""
    if isinstance(key, np.ndarray):
        return key.ndim == 0 and key.dtype.kind in "iu"
    return isinstance(key, int | np.integer) and not isinstance(key, bool)


def _as_row(key: Any, length: int) -> int:
    row = operator.index(key)
    return row + length if row < 0 else row
