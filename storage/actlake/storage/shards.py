"""One shard file: rows to bytes, bytes to rows, and is it whole. Pure.

Written here rather than through a Zarr library because the order of chunks, the checksum of
the whole file and the moment it reaches the disk are promises of the store; read here only to
verify. Any Zarr v3 reader opens the result.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numcodecs.zstd import Zstd

from actlake.storage.errors import StoreDamaged
from actlake.storage.layout import ZSTD_LEVEL, ArraySpec
from actlake.storage.sealed import crc32c

Buffer = bytes | memoryview
_ABSENT = np.uint64(2**64 - 1)
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True, slots=True, eq=False)
class EncodedShard:
    """A shard file as the buffers to write one after the other; they may view the rows."""

    parts: tuple[Buffer, ...]
    num_bytes: int
    crc32c: int
    """See `shard_crc32c`."""


def encode_shard(spec: ArraySpec, shard: int, rows: np.ndarray[Any, Any]) -> EncodedShard:
    """The file of one shard.

    Parameters
    ----------
    rows
        All rows of the shard, (len(extent), …) in the array's dtype, C-contiguous. Full
        uncompressed chunks are not copied.
    """
    extent = spec.shard_extent(shard)
    assert rows.shape == (len(extent), *spec.shape[1:]), (rows.shape, spec.name, shard)
    assert rows.dtype == spec.numpy_dtype, (rows.dtype, spec.dtype)
    assert rows.flags.c_contiguous, spec.name

    index = np.full((spec.chunks_per_shard, 2), _ABSENT, "<u8")
    parts: list[Buffer] = []
    checksums: list[bytes] = []
    offset = 0
    for number in range(spec.chunks_in_shard(shard)):
        chunk = _encode_chunk(spec, rows[number * spec.chunk_length :][: spec.chunk_length])
        checksum = crc32c(chunk).to_bytes(4, "little")
        index[number] = offset, len(chunk) + len(checksum)
        offset += len(chunk) + len(checksum)
        parts += [chunk, checksum]
        checksums.append(checksum)
    table = index.tobytes()
    parts += [table, crc32c(table).to_bytes(4, "little")]
    return EncodedShard(tuple(parts), sum(map(len, parts)), crc32c(*checksums, table))


def shard_crc32c(spec: ArraySpec, shard: int, data: Buffer, *, name: str) -> int:
    """Say in one number which rows a whole shard file holds.

    CRC32C of the chunks' checksums in order and of the index, without the index's own. (Of the
    file itself it would be the same number for all files: bytes followed by their own CRC
    leave a CRC in a state that does not depend on the bytes.)

    Raises
    ------
    StoreDamaged
        The index is not whole. The chunks are not read; `decode_shard` checks them.
    """
    view = memoryview(data)
    index = read_index(spec, view, name=name)
    ends = [int(index[number].sum()) for number in range(spec.chunks_in_shard(shard))]
    return crc32c(*(view[end - 4 : end] for end in ends), index.tobytes())


def combined_crc32c(checksums: Iterable[int]) -> int:
    """One number for several files, from one of each."""
    return crc32c(*(checksum.to_bytes(4, "little") for checksum in checksums))


def rows_crc32c(checksums: Sequence[int]) -> int:
    """What the ledger says of a unit's rows: of one file its own number, of several theirs."""
    return checksums[0] if len(checksums) == 1 else combined_crc32c(checksums)


def decode_shard(spec: ArraySpec, shard: int, data: Buffer, *, name: str) -> np.ndarray[Any, Any]:
    """The rows of a shard file, every checksum in it checked.

    Raises
    ------
    StoreDamaged
        A checksum or a length is wrong; `name` and the chunk are in the message.
    """
    view = memoryview(data)
    index = read_index(spec, view, name=name)
    extent = spec.shard_extent(shard)
    rows = np.empty((len(extent), *spec.shape[1:]), spec.numpy_dtype)
    for number in range(spec.chunks_in_shard(shard)):
        start, length = (int(value) for value in index[number])
        stored = view[start : start + length] if index[number, 0] != _ABSENT else view[:0]
        payload, checksum = stored[:-4], stored[-4:]
        if len(stored) != length or crc32c(payload) != int.from_bytes(checksum, "little"):
            raise StoreDamaged(f"Chunk {number} of {name} fails its CRC32C")
        target = rows[number * spec.chunk_length :][: spec.chunk_length]
        chunk = decode_chunk(spec, payload, name=f"Chunk {number} of {name}")
        target[:] = chunk[: len(target)]
    return rows


def read_index(spec: ArraySpec, data: Buffer, *, name: str) -> np.ndarray[Any, Any]:
    """A shard's index: (chunks, 2) uint64, offset and length of each chunk.

    Raises
    ------
    StoreDamaged
        The file is too short for an index, or the index fails its checksum.
    """
    tail = memoryview(data)[-spec.index_bytes :]
    table, checksum = tail[:-4], tail[-4:]
    whole = len(tail) == spec.index_bytes and crc32c(table) == int.from_bytes(checksum, "little")
    if not whole:
        raise StoreDamaged(f"The shard index of {name} fails its CRC32C")
    return np.frombuffer(table, "<u8").reshape(spec.chunks_per_shard, 2)


def _encode_chunk(spec: ArraySpec, rows: np.ndarray[Any, Any]) -> Buffer:
    if len(rows) < spec.chunk_length:
        padded = np.full(spec.chunk_shape, spec.fill, spec.numpy_dtype)
        padded[: len(rows)] = rows
        rows = padded
    raw = rows.reshape(-1).view(np.uint8).data
    if spec.compression == "none":
        return raw
    return bytes(Zstd(level=ZSTD_LEVEL).encode(raw))


def decode_chunk(spec: ArraySpec, payload: Buffer, *, name: str) -> np.ndarray[Any, Any]:
    """(chunk_length, …): a chunk's rows, from its bytes without their checksum.

    Raises
    ------
    StoreDamaged
        They are not those of a chunk, whatever their checksum says; `name` is in the message.
    """
    raw = payload if spec.compression == "none" else _decompress(payload, spec.chunk_bytes, name)
    if len(raw) != spec.chunk_bytes:
        raise StoreDamaged(f"{name} holds {len(raw):,} bytes, not {spec.chunk_bytes:,}")
    return np.frombuffer(raw, spec.numpy_dtype).reshape(spec.chunk_shape)


def _decompress(frame: Buffer, num_bytes: int, name: str) -> np.ndarray[Any, Any]:
    """The content of a zstd frame, in memory of the size that it must have and no more."""
    stated = _content_bytes(frame)
    if stated not in (None, num_bytes):
        raise StoreDamaged(f"{name} is a zstd frame of {stated:,} bytes, not {num_bytes:,}")
    content = np.empty(num_bytes, np.uint8)
    try:
        Zstd().decode(bytes(frame), out=content)
    except (RuntimeError, ValueError) as error:  # cut short, or longer than it says
        raise StoreDamaged(f"{name} is no zstd frame of {num_bytes:,} bytes: {error}") from error
    return content


def _content_bytes(frame: Buffer) -> int | None:
    """How large a frame says its content is; None where it does not (RFC 8878, 3.1.1.1)."""
    if frame[:4] != _ZSTD_MAGIC:
        return None
    descriptor = int.from_bytes(frame[4:5], "little")
    is_single_segment = descriptor >> 5 & 1
    start = 5 + (1 - is_single_segment) + (0, 1, 2, 4)[descriptor & 3]
    width = (is_single_segment, 2, 4, 8)[descriptor >> 6]
    if not width:
        return None
    return int.from_bytes(frame[start : start + width], "little") + (256 if width == 2 else 0)
