"""The token and context arrays while they are laid down: full shards are written as they fill."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from actlake.storage.dtypes import numpy_dtype
from actlake.storage.extents import num_blocks
from actlake.storage.layout import ArraySpec
from actlake.storage.shards import encode_shard

Array = np.ndarray[Any, Any]
Write = Callable[[str, list[Any]], None]
"""Takes the key of a file, and its bytes in parts."""

COLUMNS: Mapping[str, str] = {
    "tokens/id": "int32",
    "tokens/document": "int64",
    "tokens/position": "int32",
    "tokens/char": "int32",
    "contexts/start": "int64",
    "contexts/split": "int8",
}
"""Name and element type of each array."""
_FILL = -1


class IndexColumn:
    """An array that grows; what does not fill a shard yet waits in memory.

    Parameters
    ----------
    cut
        Elements of a chunk, and of a shard.
    first
        Where its first element stands in the array. What of its shard comes before is a gap.
    less
        What is taken off each value where the values are hashed: what they are counted from.
    """

    def __init__(
        self, write: Write, name: str, cut: tuple[int, int], *, first: int = 0, less: int = 0
    ) -> None:
        self._write = write
        self._name = name
        self._dtype = COLUMNS[name]
        self._cut = cut
        self._less = less
        self._num_written = first // cut[1] * cut[1]
        self._num_waiting = first - self._num_written
        self._waiting = [np.full(self._num_waiting, _FILL, numpy_dtype(self._dtype))]
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Of the values that were appended, little-endian, however they are cut into files."""
        return self._digest.hexdigest()

    def append(self, values: Array) -> None:
        """Add values at the end; the array may be used again at once."""
        values = np.array(values, numpy_dtype(self._dtype))
        self._digest.update((values - values.dtype.type(self._less)).tobytes())
        self._waiting.append(values)
        self._num_waiting += len(values)
        _, shard = self._cut
        if self._num_waiting >= shard:
            joined = np.concatenate(self._waiting)
            full = len(joined) // shard * shard
            for start in range(0, full, shard):
                self._write_shard(joined[start : start + shard])
            self._waiting = [joined[full:].copy()]
            self._num_waiting = len(joined) - full

    def finish(self, spec: ArraySpec) -> None:
        """Write what waits; `spec` is of the finished array."""
        if self._num_waiting:
            self._write_shard(np.concatenate(self._waiting))
        assert self._num_written == spec.shape[0], (self._name, self._num_written, spec.shape)

    def _write_shard(self, values: Array) -> None:
        chunk, shard = self._cut
        number = num_blocks(block=shard, total=self._num_written)
        spec = ArraySpec(
            name=self._name,
            shape=(self._num_written + len(values),),
            dtype=self._dtype,
            shard_length=shard,
            chunk_length=chunk,
            dimension_names=("row",),
            fill_value=_FILL,
        )
        parts = encode_shard(spec, number, np.ascontiguousarray(values)).parts
        self._write(spec.shard_key(number), list(parts))
        self._num_written += len(values)
