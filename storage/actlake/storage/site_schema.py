"""What the rows of one site are: announced with the site, and fixed from then on."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self, get_args

import numpy as np

from actlake.storage.block_scales import decode_rows, encode_rows, num_column_blocks
from actlake.storage.dtypes import (
    ACTIVATION_DTYPES,
    ActivationDtype,
    check_activation_dtype,
    numpy_dtype,
)
from actlake.storage.errors import FormatTooNew, InvalidSchema
from actlake.storage.layout import Compression

Array = np.ndarray[Any, Any]
SCALE_DTYPE = "float16"


@dataclass(frozen=True, kw_only=True)
class SiteSchema:
    """How the rows of a site are stored; sites of one store may differ in all of it."""

    dim: int
    """Length of a row, such as the width of the residual stream."""
    dtype: ActivationDtype
    """Element type on disk; of ``int8`` there are scales as well (`block_scales`)."""
    compression: Compression = "none"

    def __post_init__(self) -> None:
        check_activation_dtype(self.dtype)
        if self.dim < 1:
            raise InvalidSchema(f"dim must be at least 1, and is {self.dim}")

    @property
    def has_scales(self) -> bool:
        """Whether rows are codes, each block of them with a scale."""
        return self.dtype == "int8"

    @property
    def value_dtype(self) -> np.dtype[Any]:
        """Element type of the rows as ``store[site]`` gives them."""
        return numpy_dtype("float32" if self.has_scales else self.dtype)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row on disk, with its scales."""
        scales = num_column_blocks(self.dim) if self.has_scales else 0
        scales_bytes = scales * numpy_dtype(SCALE_DTYPE).itemsize
        return self.dim * numpy_dtype(self.dtype).itemsize + scales_bytes

    def encode(self, values: Array) -> tuple[Array, ...]:
        """What is stored of rows (n, dim) of any float type, an array for each of `row_arrays`.

        Values beyond the element type become infinities.
        """
        if self.has_scales:
            return encode_rows(values)
        with np.errstate(over="ignore"):
            return (np.ascontiguousarray(values, numpy_dtype(self.dtype)),)

    def decode(self, stored: tuple[Array, ...]) -> Array:
        """The rows (n, dim) that `encode` has stored, as ``store[site]`` gives them."""
        return decode_rows(*stored) if self.has_scales else stored[0]

    def __str__(self) -> str:
        """As people read it: ``float16 × 576``."""
        zipped = "" if self.compression == "none" else f", {self.compression}"
        return f"{self.dtype} × {self.dim}{zipped}"

    def as_json(self) -> dict[str, Any]:
        """Plain JSON; `from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `as_json` wrote.

        Raises
        ------
        FormatTooNew
            It says something that this version does not know; what, is all of the message.
        """
        if lacking := [name for name in ("dim", "dtype", "compression") if name not in data]:
            raise FormatTooNew(f"no {lacking[0]!r} among its fields")
        dtype, compression = data["dtype"], data["compression"]
        if unknown := sorted(data.keys() - {"dim", "dtype", "compression"}):
            raise FormatTooNew(f"unknown field {unknown[0]!r}")
        if dtype not in ACTIVATION_DTYPES:
            raise FormatTooNew(f"unknown dtype {dtype!r}")
        if compression not in get_args(Compression):
            raise FormatTooNew(f"unknown compression {compression!r}")
        return cls(dim=data["dim"], dtype=dtype, compression=compression)
