"""The fast path: all shards of a local, uncompressed array as one strided NumPy array.

Chunks lie raw in a shard file, in order, a fixed stride apart. So do the shard files, once
they are mapped one after the other into one reserved range of addresses. The whole array is
then ``view[shard, chunk, row]``, and gathering rows from anywhere in it is one call of NumPy,
at the speed of memory, however many files there are.

Shards are mapped when they are first touched. A mapping keeps no file handle open (Python's
own ``mmap`` keeps one each, which ends at the shell's limit of 1,024), which is why the C
library is called directly. Checksums are not checked here unless asked.

Around a page that is touched, the system reads what lies about it: 128 KiB, on some disks 8 MiB.
That is what makes reading in order fast, and it is 2,400 times what is asked where a few rows are
gathered. So each shard is told, when the way it is read changes, which of the two comes.
"""

import ctypes
import mmap
import os
import weakref
from typing import Any

import numpy as np

from actlake.storage.errors import StoreDamaged, StoreError, StoreNotReadable
from actlake.storage.layout import ArraySpec
from actlake.storage.location import Location
from actlake.storage.sealed import crc32c

Array = np.ndarray[Any, Any]
REPAIR_HINT = "hint: `actlake verify` names all that is damaged; --repair computes it again"
_FAILED = ctypes.c_void_p(-1).value
_MAP_FIXED = 0x10  # the same on Linux and macOS; Python's mmap module does not name it


class CannotMap(StoreError):
    """The array must be read through Zarr; the message says why."""


class MappedShards:
    """All shards of one array, addressable as ``view[shard, chunk, row]``.

    Attributes
    ----------
    view
        (shards, chunks per shard, chunk_length, …), read-only. Shards that `touch` has not
        mapped read as zeros: callers touch first.

    Raises
    ------
    CannotMap
        The array is compressed or remote, or the system refuses so large a range.
    """

    def __init__(self, location: Location, spec: ArraySpec) -> None:
        if not spec.is_mappable:
            raise CannotMap(f"{spec.name} is compressed")
        if location.local_path("") is None:
            raise CannotMap(f"{location.url} is not a local folder")
        self._location = location
        self._spec = spec
        largest = spec.chunks_per_shard * spec.chunk_stride + spec.index_bytes
        self._stride = -(-largest // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        self._region = _Region(max(1, spec.num_shards) * self._stride)
        self._mapped = np.zeros(spec.num_shards, bool)
        self._reads_ahead = np.ones(spec.num_shards, bool)  # what the system does untold
        self._checked = np.zeros((spec.num_shards, spec.chunks_per_shard), bool)
        itemsize = spec.numpy_dtype.itemsize
        tail_strides = np.empty(spec.shape[1:], spec.numpy_dtype).strides
        self.view = np.ndarray(
            (spec.num_shards, spec.chunks_per_shard, *spec.chunk_shape),
            spec.numpy_dtype,
            np.asarray(self._region),  # keeps the region alive as long as any view of it
            strides=(
                self._stride,
                spec.chunk_stride,
                tail_strides[0] * spec.shape[1] if tail_strides else itemsize,
                *tail_strides,
            ),
        )
        self.view.flags.writeable = False
        # A row as one item, beginning at any byte: NumPy then copies rows, not elements, which
        # is twice as fast (4,096 rows of 1,152 bytes: 1.3 ms against 2.9).
        region_bytes = spec.num_shards * self._stride
        self._items = np.ndarray(
            (max(0, region_bytes - spec.row_bytes + 1),),
            np.dtype((np.void, spec.row_bytes)),
            np.asarray(self._region),
            strides=(1,),
        )

    def gather(self, shards: Array, chunks: Array, rows: Array) -> Array:
        """``view[shards, chunks, rows]``, copied: (n, …). The shards must have been touched."""
        spec = self._spec
        at = shards * self._stride + chunks * spec.chunk_stride + rows * spec.row_bytes
        gathered: Array = self._items[at].view(spec.numpy_dtype)
        return gathered.reshape(len(at), *spec.shape[1:])

    def touch(self, shards: Array, *, ahead: bool = True) -> None:
        """Map those of `shards` that are not mapped yet.

        Parameters
        ----------
        ahead
            Whether what lies around the rows that are read next is read soon, too; the system
            then reads it ahead.

        Raises
        ------
        StoreDamaged
            A shard's file is missing or has another size than its rows need.
        CannotMap
            The system allows no more mappings.
        """
        if not self._mapped[shards].all():
            for shard in np.unique(shards):
                if not self._mapped[shard]:
                    self._map(int(shard))
        otherwise = self._reads_ahead[shards] != ahead
        for shard in np.unique(shards[otherwise]).tolist() if otherwise.any() else ():
            advice = mmap.MADV_NORMAL if ahead else mmap.MADV_RANDOM
            self._region.advise(shard * self._stride, self._stride, advice)
            self._reads_ahead[shard] = ahead

    def expect(self, shard: int, chunk: int) -> None:
        """Have the system read a chunk ahead, in the background. The shard must be mapped."""
        start = shard * self._stride + chunk * self._spec.chunk_stride
        self._region.advise(start, self._spec.chunk_stride, mmap.MADV_WILLNEED)

    def check(self, shards: Array, chunks: Array) -> None:
        """Check the CRC32C of the chunks ``(shards[i], chunks[i])``, each once.

        Raises
        ------
        StoreDamaged
            A chunk is not what was written.
        """
        unchecked = ~self._checked[shards, chunks]
        if not unchecked.any():
            return
        pairs = np.unique(np.stack([shards[unchecked], chunks[unchecked]], axis=1), axis=0)
        for shard, chunk in pairs.tolist():
            self._check(shard, chunk)

    def _check(self, shard: int, chunk: int) -> None:
        spec = self._spec
        start = shard * self._stride + chunk * spec.chunk_stride
        stored = np.asarray(self._region)[start : start + spec.chunk_stride]
        payload, checksum = stored[:-4], stored[-4:]
        if crc32c(payload) != int.from_bytes(checksum.tobytes(), "little"):
            raise StoreDamaged(
                f"Chunk {chunk} of {spec.shard_key(shard)} in {self._location.url} fails its "
                f"CRC32C\n{REPAIR_HINT}"
            )
        self._checked[shard, chunk] = True

    def _map(self, shard: int) -> None:
        key = self._spec.shard_key(shard)
        path = self._location.local_path(key)
        assert path is not None
        expected = self._spec.shard_bytes(shard)
        assert expected is not None
        try:
            handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError as error:
            raise missing_shard(self._location, self._spec, shard) from error
        except PermissionError as error:
            raise StoreNotReadable(
                f"{key} in {self._location.url} may not be read by this user\n"
                "hint: ask its owner for permission to read"
            ) from error
        try:
            size = os.fstat(handle).st_size
            if size != expected:
                raise StoreDamaged(
                    f"{key} in {self._location.url} has {size:,} bytes; its rows need "
                    f"{expected:,}\n{REPAIR_HINT}"
                )
            self._region.place(handle, size, at=shard * self._stride)
        finally:
            os.close(handle)
        self._mapped[shard] = True


def missing_shard(location: Location, spec: ArraySpec, shard: int) -> StoreDamaged:
    """The error of a committed shard whose file is gone."""
    return StoreDamaged(f"{spec.shard_key(shard)} is missing from {location.url}\n{REPAIR_HINT}")


class _Region:
    """A reserved range of addresses into which files are mapped, read-only."""

    def __init__(self, num_bytes: int) -> None:
        self._num_bytes = num_bytes
        reserve = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        self._base = _mmap(None, num_bytes, reserve, -1)
        unmap = weakref.finalize(self, _LIBC.munmap, self._base, num_bytes)
        # At exit the system unmaps, once no thread runs any more; until then daemon threads read.
        unmap.atexit = False

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return {
            "version": 3,
            "shape": (self._num_bytes,),
            "typestr": "|u1",
            "data": (self._base, True),
        }

    def place(self, handle: int, num_bytes: int, *, at: int) -> None:
        assert at + num_bytes <= self._num_bytes
        _mmap(self._base + at, num_bytes, mmap.MAP_SHARED | _MAP_FIXED, handle)

    def advise(self, start: int, num_bytes: int, advice: int) -> None:
        """Say how these bytes will be read. It is advice: what fails is only slower."""
        first = start // mmap.PAGESIZE * mmap.PAGESIZE
        _LIBC.madvise(self._base + first, start + num_bytes - first, advice)


def _mmap(address: int | None, num_bytes: int, flags: int, handle: int) -> int:
    result = _LIBC.mmap(address, num_bytes, mmap.PROT_READ, flags, handle, 0)
    if result == _FAILED:
        raise CannotMap(
            f"The system cannot map {num_bytes:,} bytes: {os.strerror(ctypes.get_errno())}"
        )
    return int(result)


_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_longlong,
]
_LIBC.madvise.restype = ctypes.c_int
_LIBC.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_LIBC.munmap.restype = ctypes.c_int
_LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
