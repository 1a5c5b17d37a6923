"""Rows of an array that is remote or compressed, a chunk a request, every CRC32C checked.

Where chunks are not compressed their places follow from the format, so a chunk costs one request
and nothing is asked before; the size that every answer states is compared with the formula. The
index of a compressed shard is fetched once.
"""

from collections import OrderedDict
from collections.abc import Iterable
from threading import Lock
from typing import Any

import numpy as np

from actlake.storage.ahead import request_threads
from actlake.storage.errors import StoreDamaged, StoreNotFound
from actlake.storage.layout import ArraySpec
from actlake.storage.location import Location
from actlake.storage.mapped import REPAIR_HINT, missing_shard
from actlake.storage.sealed import crc32c
from actlake.storage.shards import decode_chunk, read_index

Array = np.ndarray[Any, Any]

# Of arrays of numbers, such as token ids, which never change: they are read again and again,
# a few at a time. Activations are read once an epoch, and may be repaired meanwhile.
KEPT_BYTES = 16 * 2**20


class RangedShards:
    """One array of a store whose chunks are fetched one by one."""

    def __init__(self, location: Location, spec: ArraySpec) -> None:
        self._location = location
        self._spec = spec
        self._indexes: dict[int, Array] = {}
        self._kept: OrderedDict[int, Array] = OrderedDict()
        self._most_kept = KEPT_BYTES // spec.chunk_bytes if len(spec.shape) == 1 else 0
        self._lock = Lock()

    def chunk(self, number: int) -> Array:
        """(chunk_length, …): a chunk, numbered through all shards; read-only.

        Raises
        ------
        StoreDamaged
            It is missing, cut short, or fails its CRC32C, fetched twice.
        """
        with self._lock:
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
        rows = self._fetch(*divmod(number, self._spec.chunks_per_shard))
        if self._most_kept:
            with self._lock:
                self._kept[number] = rows
                while len(self._kept) > self._most_kept:
                    self._kept.popitem(last=False)
        return rows

    def read_into(self, start: int, stop: int, out: Array) -> None:
        """Copy rows ``start <= i < stop`` to `out`."""
        length = self._spec.chunk_length
        pieces = []
        row = start
        while row < stop:
            end = min((row // length + 1) * length, stop)
            pieces.append((row, end))
            row = end

        def copy(piece: tuple[int, int]) -> None:
            first, end = piece
            number = first // length
            rows = self.chunk(number)[first - number * length : end - number * length]
            out[first - start : end - start] = rows

        _run(copy, pieces)

    def gather(self, rows: Array) -> Array:
        """The given rows, (n, …), in the given order; each chunk is fetched once."""
        length = self._spec.chunk_length
        out = np.empty((len(rows), *self._spec.shape[1:]), self._spec.numpy_dtype)
        chunks = rows // length
        order = np.argsort(chunks, kind="stable")
        starts = np.flatnonzero(np.diff(chunks[order], prepend=-1))
        groups = np.split(order, starts[1:]) if len(order) else []

        def copy(places: Array) -> None:
            number = int(chunks[places[0]])
            out[places] = self.chunk(number)[rows[places] - number * length]

        _run(copy, groups)
        return out

    def _fetch(self, shard: int, inner: int) -> Array:
        name = f"Chunk {inner} of {self._spec.shard_key(shard)} in {self._location.url}"
        try:
            payload = self._payload(shard, inner)
            if payload is None:  # once more: it may have been spoilt on its way
                self._indexes.pop(shard, None)
                payload = self._payload(shard, inner)
        except StoreNotFound as error:
            raise missing_shard(self._location, self._spec, shard) from error
        if payload is None:
            raise StoreDamaged(f"{name} fails its CRC32C\n{REPAIR_HINT}")
        try:
            return decode_chunk(self._spec, payload, name=name)
        except StoreDamaged as error:
            raise StoreDamaged(f"{error}\n{REPAIR_HINT}") from error

    def _payload(self, shard: int, inner: int) -> memoryview | None:
        """A chunk's bytes as stored; None where its checksum is wrong."""
        key = self._spec.shard_key(shard)
        start, stop = self._place(shard, inner)
        try:
            data, size = self._location.read_range(key, start, stop)
        except StoreDamaged as error:
            raise StoreDamaged(f"{error}\n{REPAIR_HINT}") from None
        expected = self._spec.shard_bytes(shard)
        if expected is not None and size != expected:
            raise StoreDamaged(
                f"{key} in {self._location.url} has {size:,} bytes; its rows need {expected:,}\n"
                f"{REPAIR_HINT}"
            )
        payload, checksum = data[:-4], data[-4:]
        is_whole = crc32c(payload) == int.from_bytes(checksum, "little")
        return payload if is_whole else None

    def _place(self, shard: int, inner: int) -> tuple[int, int]:
        """Where in its file a chunk begins and ends, its checksum included."""
        if self._spec.is_mappable:
            stride = self._spec.chunk_stride
            return inner * stride, (inner + 1) * stride
        if shard not in self._indexes:
            self._indexes[shard] = self._index(shard)
        offset, length = self._indexes[shard][inner].tolist()
        return offset, offset + length

    def _index(self, shard: int) -> Array:
        key = self._spec.shard_key(shard)
        size = self._location.size(key)
        if size is None:
            raise StoreNotFound(key)
        start = max(0, size - self._spec.index_bytes)
        data, _ = self._location.read_range(key, start, size)
        try:
            return read_index(self._spec, data, name=f"{key} in {self._location.url}")
        except StoreDamaged as error:
            raise StoreDamaged(f"{error}\n{REPAIR_HINT}") from None


def _run(copy: Any, pieces: Iterable[Any]) -> None:
    """All of the calls, in parallel where there are several."""
    pieces = list(pieces)
    if len(pieces) == 1:
        copy(pieces[0])
        return
    for _ in request_threads().map(copy, pieces):
        pass
