"""Names, shapes, chunks and shards of a store's arrays, as Zarr v3 states them. Pure.

Every array is cut along its first axis only. A *shard* is one file; inside it lie *chunks* of
equal size, one after the other from the first byte, each followed by its CRC32C; an index of
their offsets and lengths ends the file. That is the ``sharding_indexed`` codec of the Zarr v3
specification with the order of chunks fixed, which lets an uncompressed shard be read as one
strided array.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from actlake.storage.dtypes import numpy_dtype
from actlake.storage.extents import Extent, block_extent, num_blocks

MANIFEST = "store.json"
ROWS = "rows.zarr"
Compression = Literal["none", "zstd"]
_CHECKSUM_BYTES = 4
_INDEX_ENTRY_BYTES = 16
_ENDIAN = {"name": "bytes", "configuration": {"endian": "little"}}
_ONE_BYTE = {"name": "bytes"}
_CRC32C = {"name": "crc32c"}
ZSTD_LEVEL = 1


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """One array of the store: everything its ``zarr.json`` says.

    ``shape[0]`` is cut into shards of `shard_length` and these into chunks of `chunk_length`;
    the other axes are never cut.
    """

    name: str
    """Path in the group, such as ``acts/resid_post.6``."""
    shape: tuple[int, ...]
    dtype: str
    """Zarr data type name."""
    shard_length: int
    chunk_length: int
    dimension_names: tuple[str, ...]
    fill_value: int | Literal["NaN"]
    compression: Compression = "none"
    attributes: Mapping[str, Any] = field(default_factory=dict)
    held: tuple[Extent, ...] | None = None
    """Ranges of the first axis that hold anything, sorted; the gaps between them read as the fill
    value. None: all of it."""

    def __post_init__(self) -> None:
        assert self.shard_length % self.chunk_length == 0, (self.shard_length, self.chunk_length)
        assert len(self.shape) == len(self.dimension_names), self.name

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """Element type in memory."""
        return numpy_dtype(self.dtype)

    @property
    def fill(self) -> float | int:
        """The fill value as a number: what rows that are not there read as."""
        return math.nan if self.fill_value == "NaN" else int(self.fill_value)

    @property
    def row_bytes(self) -> int:
        """Bytes of one step along the first axis."""
        return self.numpy_dtype.itemsize * math.prod(self.shape[1:])

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        """Shape of one chunk; the last is padded to it with the fill value."""
        return (self.chunk_length, *self.shape[1:])

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one uncompressed chunk, without its checksum."""
        return self.chunk_length * self.row_bytes

    @property
    def chunk_stride(self) -> int:
        """Bytes from one uncompressed chunk of a shard to the next."""
        return self.chunk_bytes + _CHECKSUM_BYTES

    @property
    def chunks_per_shard(self) -> int:
        """How many chunks a full shard holds, and how many entries its index has."""
        return self.shard_length // self.chunk_length

    @property
    def num_shards(self) -> int:
        """How many shard files the whole array has."""
        return num_blocks(block=self.shard_length, total=self.shape[0])

    @property
    def index_bytes(self) -> int:
        """Bytes of a shard's index, with its checksum."""
        return self.chunks_per_shard * _INDEX_ENTRY_BYTES + _CHECKSUM_BYTES

    @property
    def is_mappable(self) -> bool:
        """Whether a shard can be read as one strided array."""
        return self.compression == "none"

    def shard_extent(self, shard: int) -> Extent:
        """The rows that a shard's file holds; those of the last before a gap may be fewer.

        Where a gap ends within a shard, the file holds that part of it as fill values.
        """
        block = block_extent(shard, block=self.shard_length, total=self.shape[0])
        if self.held is None:
            return block
        return Extent(block.start, max((e.stop for e in self.held_in(block)), default=block.start))

    def held_in(self, rows: Extent) -> list[Extent]:
        """The parts of a range that hold anything, in order; gaps are left out."""
        parts = map(rows.intersect, (rows,) if self.held is None else self.held)
        return [part for part in parts if len(part)]

    def chunks_in_shard(self, shard: int) -> int:
        """How many chunks of the shard hold rows; the others are absent."""
        return num_blocks(block=self.chunk_length, total=len(self.shard_extent(shard)))

    def shard_bytes(self, shard: int) -> int | None:
        """Size of the shard's file; None where compression decides."""
        if self.compression != "none":
            return None
        return self.chunks_in_shard(shard) * self.chunk_stride + self.index_bytes

    def shard_key(self, shard: int) -> str:
        """Key of the shard's file in the store."""
        return f"{self.folder}/c" + f".{shard}" + ".0" * (len(self.shape) - 1)

    @property
    def folder(self) -> str:
        """Where the array's files are in the store, and no others."""
        return f"{ROWS}/{self.name}"

    @property
    def metadata_key(self) -> str:
        """Key of the array's ``zarr.json`` in the store."""
        return f"{self.folder}/zarr.json"

    def metadata(self) -> dict[str, Any]:
        """What ``zarr.json`` says of the array (Zarr v3 core specification)."""
        to_bytes = _ONE_BYTE if self.numpy_dtype.itemsize == 1 else _ENDIAN
        zstd = {"name": "zstd", "configuration": {"level": ZSTD_LEVEL, "checksum": False}}
        squeeze = [] if self.compression == "none" else [zstd]
        sharding = {
            "chunk_shape": list(self.chunk_shape),
            "codecs": [to_bytes, *squeeze, _CRC32C],
            "index_codecs": [_ENDIAN, _CRC32C],
            "index_location": "end",
        }
        shard_shape = [self.shard_length, *self.shape[1:]]
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(self.shape),
            "data_type": self.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard_shape}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            "fill_value": self.fill_value,
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "attributes": dict(self.attributes),
            "dimension_names": list(self.dimension_names),
        }


def group_key(name: str) -> str:
    """Key of a group's ``zarr.json`` in the store; the root group is ``""``."""
    return f"{ROWS}/{name}/zarr.json" if name else f"{ROWS}/zarr.json"


def group_metadata() -> dict[str, Any]:
    """What ``zarr.json`` says of a group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": {}}


def metadata_json(metadata: Mapping[str, Any]) -> bytes:
    """The bytes of a ``zarr.json``; equal metadata, equal bytes."""
    return json.dumps(metadata, indent=2).encode() + b"\n"
