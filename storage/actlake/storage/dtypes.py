"""Element types: their names in Zarr, in NumPy, and how bfloat16 gets into both.

The only file that knows encodings, but for what int8 stands for (`actlake.storage.block_scales`).
zarr-python 3.1 has no bfloat16; `BFloat16` adds it under the name that tensorstore, the zarrs
crate and the zarr-extensions registry use, so the files are the same. It is also announced as an
entry point (group ``zarr.data_type``): a Python with actlake installed can open such an array
with zarr alone.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, get_args

import ml_dtypes
import numpy as np
from zarr.core.common import ZarrFormat
from zarr.core.dtype import data_type_registry
from zarr.core.dtype.common import DataTypeValidationError
from zarr.core.dtype.npy.float import BaseFloat

from actlake.storage.block_scales import LARGEST_VALUE
from actlake.storage.errors import InvalidSchema, nearest

FloatDtype = Literal["float16", "bfloat16", "float32"]
FLOAT_DTYPES: tuple[FloatDtype, ...] = get_args(FloatDtype)
ActivationDtype = Literal["float16", "bfloat16", "float32", "int8"]
"""What a site's rows are stored as; int8 with scales, from which they come out as float32."""
ACTIVATION_DTYPES: tuple[ActivationDtype, ...] = get_args(ActivationDtype)

_NUMPY = {
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype("<f4"),
    "float64": np.dtype("<f8"),
    "int8": np.dtype("i1"),
    "int32": np.dtype("<i4"),
    "int64": np.dtype("<i8"),
}
LARGEST_FINITE: dict[ActivationDtype, float] = {
    name: float(ml_dtypes.finfo(_NUMPY[name]).max)  # type: ignore[no-untyped-call]
    for name in FLOAT_DTYPES
}
LARGEST_FINITE["int8"] = LARGEST_VALUE


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The NumPy type of a Zarr data type name; little-endian, as on disk."""
    dtype: np.dtype[Any] = _NUMPY[name]
    return dtype


def check_activation_dtype(name: str) -> None:
    """Refuse a type that activations are not stored in.

    Raises
    ------
    InvalidSchema
        The name is not one of `ACTIVATION_DTYPES`.
    """
    if name not in ACTIVATION_DTYPES:
        raise InvalidSchema(
            f"Activations cannot be stored as {name!r}\n{nearest(name, ACTIVATION_DTYPES)}"
        )


@dataclass(frozen=True, kw_only=True)
class BFloat16(BaseFloat[Any, Any]):
    """Zarr's ``bfloat16``: the upper half of a float32, two bytes, little-endian."""

    dtype_cls: ClassVar[Any] = type(_NUMPY["bfloat16"])
    _zarr_v3_name: ClassVar[str] = "bfloat16"

    @classmethod
    def from_native_dtype(cls, dtype: Any) -> Self:
        """The Zarr type of NumPy's ``ml_dtypes.bfloat16``."""
        if dtype == _NUMPY["bfloat16"]:
            return cls()
        raise DataTypeValidationError(f"{dtype} is not bfloat16")

    def to_native_dtype(self) -> Any:
        """NumPy's ``ml_dtypes.bfloat16``."""
        return _NUMPY["bfloat16"]

    @property
    def item_size(self) -> int:
        """Two bytes."""
        return 2

    def to_json(self, zarr_format: ZarrFormat) -> Any:
        """The name, as it stands in ``zarr.json``; Zarr format 2 has none."""
        if zarr_format == 2:
            raise ValueError("Zarr format 2 has no bfloat16")
        return self._zarr_v3_name


def register_bfloat16() -> None:
    """Teach zarr-python the type; doing it twice is doing it once."""
    if "bfloat16" not in data_type_registry.contents:
        data_type_registry.register("bfloat16", BFloat16)


register_bfloat16()
