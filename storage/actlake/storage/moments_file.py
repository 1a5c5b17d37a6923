"""A file of moments: of one site, of one unit or of a block of units. To bytes and back. Pure.

The container is safetensors (a length, a JSON header, the arrays), which readers of many languages
open. It is written here, not by the library: its bytes are promised, so they may not depend on a
version of anything.

    count      (splits, 2)        int64
    m2, mean   (splits, 2, dim)   float64
    norm_sum   (splits, 2)        float64

Of the axis of two, 0 are kept rows and 1 those that are excluded by default.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actlake.storage.errors import StoreDamaged
from actlake.storage.moments import Moments
from actlake.storage.sealed import crc32c
from actlake.storage.sites import Site

MOMENTS = "moments"
FAN_OUT = 32
"""How many blocks of one size make one of the next."""
_BLOCKS_PER_FOLDER = 1024
_DTYPES = {"count": "<i8", "m2": "<f8", "mean": "<f8", "norm_sum": "<f8"}
_NAMES_IN_FILE = {"<i8": "I64", "<f8": "F64"}
_LENGTH_BYTES = 8


@dataclass(frozen=True, slots=True, order=True)
class Block:
    """Units that lie side by side, ``number * units <= u < (number + 1) * units``.

    `units` is 1, or a power of `FAN_OUT`. Which units a block holds depends on their numbers
    alone, so what they add up to does not depend on who adds them up, or when.
    """

    units: int
    number: int

    @property
    def start(self) -> int:
        """The first unit."""
        return self.units * self.number

    @property
    def stop(self) -> int:
        """One past the last unit."""
        return self.units * (self.number + 1)

    @property
    def parts(self) -> Iterator["Block"]:
        """The blocks of the next smaller size of which it consists, in order."""
        first = self.number * FAN_OUT
        for number in range(first, first + FAN_OUT):
            yield Block(self.units // FAN_OUT, number)

    @property
    def whole(self) -> "Block":
        """The block of the next larger size that holds it."""
        return Block(self.units * FAN_OUT, self.number // FAN_OUT)

    def key(self, site: Site) -> str:
        """The file of its moments."""
        folder = moments_folder(site, self.units, self.number // _BLOCKS_PER_FOLDER)
        return f"{folder}/{self.number}.safetensors"


def sizes_of_totals(total_units: int) -> Iterator[int]:
    """How many units a total may be of, in a store of so many."""
    size = FAN_OUT
    while size <= total_units:
        yield size
        size *= FAN_OUT


def moments_folder(site: Site, units: int, number: int) -> str:
    """The `number`-th folder of files that are each about so many units."""
    return f"{MOMENTS}/{site}/{units}/{number}"


def moments_folders(site: Site, units: int, *, total_units: int) -> Iterator[str]:
    """All such folders of a store, in order."""
    for number in range(math.ceil(total_units / (units * _BLOCKS_PER_FOLDER))):
        yield moments_folder(site, units, number)


def encode_moments(
    site: Site, block: Block, splits: Sequence[str], groups: Sequence[Moments]
) -> bytes:
    """The file: `groups` are ``2 * split + excluded``, as `row_groups` numbers them."""
    dim = len(groups[0].mean)
    shapes = _shapes(len(splits), dim)
    assert len(groups) == 2 * len(splits), (len(groups), splits)
    body = b"".join(
        np.array([getattr(group, name) for group in groups], dtype).reshape(shapes[name]).tobytes()
        for name, dtype in _DTYPES.items()
    )
    return _header(site, block, splits, dim, crc32c(body)) + body


def decode_moments(
    data: bytes, *, site: Site, block: Block, splits: Sequence[str], dim: int, name: str
) -> list[Moments]:
    """The moments of each group.

    Raises
    ------
    StoreDamaged
        It is not the file of these moments; `name` is in the message.
    """
    shapes = _shapes(len(splits), dim)
    num_bytes = sum(8 * math.prod(shape) for shape in shapes.values())
    body = memoryview(data)[max(0, len(data) - num_bytes) :]
    # All that is not a number follows from what is asked for, so every byte is compared.
    if data[: len(data) - len(body)] != _header(site, block, splits, dim, crc32c(body)):
        raise StoreDamaged(f"{name} fails its CRC32C, or is another file under this name")
    values: dict[str, Any] = {}
    for of, dtype in _DTYPES.items():
        length = math.prod(shapes[of])
        array = np.frombuffer(body, dtype, length)
        values[of] = array.reshape(2 * len(splits), *shapes[of][2:])
        body = body[8 * length :]
    return [
        Moments(int(count), mean, m2, float(norm_sum))
        for count, mean, m2, norm_sum in zip(
            values["count"], values["mean"], values["m2"], values["norm_sum"], strict=True
        )
    ]


def merge_groups(parts: Sequence[Sequence[Moments]]) -> list[Moments]:
    """Group by group, the moments of all parts, added up in their order."""
    total = list(parts[0])
    for part in parts[1:]:
        total = [one.merge(other) for one, other in zip(total, part, strict=True)]
    return total


def _shapes(num_splits: int, dim: int) -> dict[str, tuple[int, ...]]:
    by_group = (num_splits, 2)
    return {"count": by_group, "m2": (*by_group, dim), "mean": (*by_group, dim),
            "norm_sum": by_group}  # fmt: skip


def _header(site: Site, block: Block, splits: Sequence[str], dim: int, checksum: int) -> bytes:
    """The file up to its arrays, which follow in the order of their names."""
    header: dict[str, Any] = {
        "__metadata__": {
            "crc32c": f"{checksum:08x}",
            "site": str(site),
            "splits": json.dumps(list(splits)),
            "units": f"{block.start}-{block.stop}",
        }
    }
    offset = 0
    for name, shape in _shapes(len(splits), dim).items():
        end = offset + 8 * math.prod(shape)
        dtype = _NAMES_IN_FILE[_DTYPES[name]]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text
