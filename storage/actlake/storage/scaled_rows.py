"""The int8 rows of a site, as the numbers that they stand for."""

from typing import Any

import numpy as np

from actlake.storage.arrays import RowArray
from actlake.storage.block_scales import decode_rows
from actlake.storage.recycled_memory import RecycledMemory
from actlake.storage.row_indexing import IndexedByRow, Missing

Array = np.ndarray[Any, Any]

# What batches need again and again; more is not kept from the system.
_MOST_RECYCLED_BYTES = 2**26


class ScaledRows(IndexedByRow):
    """Rows (rows, dim) float32, decoded when they are read; otherwise as a `RowArray`.

    Attributes
    ----------
    codes
        (rows, dim) int8, as stored.
    scales
        (rows, blocks) float16: of each 64 columns.
    """

    def __init__(self, codes: RowArray, scales: RowArray) -> None:
        self.codes = codes
        self.scales = scales
        self._memory = RecycledMemory()

    @property
    def name(self) -> str:
        """Path of the codes in the group, such as ``acts/resid_post.6``."""
        return self.codes.name

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, dim)."""
        return self.codes.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32."""
        return np.dtype(np.float32)

    def __repr__(self) -> str:
        return f"ScaledRows({self.name!r}, {self.shape}, int8 as float32, {self.path})"

    @property
    def path(self) -> str:
        """How rows are read, as `RowArray.path`: ``mapped`` where codes and scales are."""
        return self.codes.path if self.codes.path != "mapped" else self.scales.path

    @property
    def can_be_mapped(self) -> bool:
        """As `RowArray.can_be_mapped`."""
        return self.codes.can_be_mapped and self.scales.can_be_mapped

    def __getstate__(self) -> dict[str, Any]:
        """For another process: its memory is its own."""
        return {"codes": self.codes, "scales": self.scales}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def read(self, start: int, stop: int, *, missing: Missing = "raise") -> Array:
        """As `RowArray.read`."""
        codes = self.codes.read(start, stop, missing=missing)
        return self._decoded(codes, self.scales.read(start, stop, missing=missing))

    def take(
        self,
        rows: Any,
        *,
        missing: Missing = "raise",
        check: bool = False,
        ahead: bool = False,
        out: Array | None = None,
    ) -> Array:
        """As `RowArray.take`; `out` is (n, dim) float32."""
        codes = self.codes.take(rows, missing=missing, check=check, ahead=ahead)
        scales = self.scales.take(rows, missing=missing, check=check, ahead=ahead)
        return self._decoded(codes, scales, out=out)

    def chunk(self, number: int, *, check: bool = False) -> Array:
        """As `RowArray.chunk`, but always a copy."""
        codes = self.codes.chunk(number, check=check)
        return self._decoded(codes, self.scales.chunk(number, check=check))

    def expect(self, start: int, stop: int) -> None:
        """As `RowArray.expect`."""
        self.codes.expect(start, stop)
        self.scales.expect(start, stop)

    def packed(self, start: int, stop: int) -> Array:
        """(n,) items, each the codes of a row and then its scales; rows as in `RowArray.packed`."""
        stored = (array.chunk_or_rows(start, stop) for array in (self.codes, self.scales))
        joined = np.concatenate([part.view(np.uint8) for part in stored], axis=1)
        return joined.reshape(-1).view(np.dtype((np.void, joined.shape[1])))

    def unpacked(self, items: Array) -> Array:
        """(n, dim) float32: the rows that such items are."""
        dim = self.shape[1]
        joined = items.view(np.uint8).reshape(len(items), items.itemsize)
        scales = np.ascontiguousarray(joined[:, dim:]).view(self.scales.dtype)
        return self._decoded(joined[:, :dim].view(np.int8), scales)

    @property
    def num_chunks(self) -> int:
        """Chunks of the whole array."""
        return self.codes.num_chunks

    def _decoded(self, codes: Array, scales: Array, *, out: Array | None = None) -> Array:
        num_bytes = codes.size * self.dtype.itemsize
        if out is None and num_bytes <= _MOST_RECYCLED_BYTES:
            memory = self._memory.empty(num_bytes)
            out = memory.view(self.dtype).reshape(codes.shape)
        return decode_rows(codes, scales, out=out)


SiteRows = RowArray | ScaledRows
"""The rows of a site, whatever their dtype."""
