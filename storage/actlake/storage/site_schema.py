"""What the rows of one site are: announced with the site, and fixed from then on."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self, get_args

from actlake.storage.dtypes import (
    ACTIVATION_DTYPES,
    ActivationDtype,
    check_activation_dtype,
    numpy_dtype,
)
from actlake.storage.errors import FormatTooNew, InvalidSchema
from actlake.storage.layout import Compression


@dataclass(frozen=True, kw_only=True)
class SiteSchema:
    """How the rows of a site are stored; sites of one store may differ in all of it."""

    dim: int
    """Length of a row, such as the width of the residual stream."""
    dtype: ActivationDtype
    """Element type on disk."""
    compression: Compression = "none"

    def __post_init__(self) -> None:
        check_activation_dtype(self.dtype)
        if self.dim < 1:
            raise InvalidSchema(f"dim must be at least 1, and is {self.dim}")

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.dim * numpy_dtype(self.dtype).itemsize

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
