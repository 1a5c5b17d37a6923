"""The device, dtype and attention a model runs with, decided once, with the reason.

`resolve_device`, `resolve_dtype` and `resolve_attention` turn "auto" into a choice. Both bits
and speed depend on it, so the choice is logged, recorded with the store and never made twice.
"""

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from actlake.platform.models.config import check_device, check_dtype
from actlake.platform.models.errors import InvalidModelConfig

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Resolved(Generic[T]):
    """A choice and why it was made."""

    value: T
    reason: str

    def __str__(self) -> str:
        return f"{self.value} ({self.reason})"


def resolve_device(written: str, *, here: bool = True) -> Resolved[str]:
    """The device for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Parameters
    ----------
    written
        As in `ModelConfig.device`.
    here
        Whether the model is to run on this machine. A driver that has no GPU and starts
        actors that have one says False; a device asked for is then not looked for here.

    Raises
    ------
    InvalidModelConfig
        It is asked for, is to be here, and is not.
    """
    check_device(written)
    if written == "auto":
        if torch.cuda.is_available():
            return Resolved("cuda", f"this machine has {torch.cuda.get_device_name()}")
        return Resolved("cpu", "torch sees no CUDA device here")
    if here and written.startswith("cuda"):
        _require_cuda(written)
    return Resolved(written, "asked for")


def _require_cuda(written: str) -> None:
    if not torch.cuda.is_available():
        raise InvalidModelConfig(
            f"Device {written!r} was asked for and torch {torch.__version__} sees no CUDA device\n"
            f"hint: use device: cpu, or install a CUDA build of torch and check nvidia-smi"
        )
    index = int(written.partition(":")[2] or 0)
    if index >= torch.cuda.device_count():
        raise InvalidModelConfig(
            f"Device {written!r} was asked for and this machine has "
            f"{torch.cuda.device_count()}, counted from cuda:0\n"
            f"hint: use device: cuda"
        )


def resolve_dtype(written: str, device: str) -> Resolved[torch.dtype]:
    """The dtype for ``auto`` or a named one, on a resolved device.

    On CPUs ``auto`` is float32: without bfloat16 instructions a forward pass in bfloat16 was
    measured at a seventh of float32's speed. The store has its own dtype, independent of this.
    """
    check_dtype(written)
    if written != "auto":
        dtype = getattr(torch, written)
        assert isinstance(dtype, torch.dtype)
        return Resolved(dtype, "asked for")
    if device == "cpu":
        return Resolved(torch.float32, "CPUs are fastest in it")
    if not torch.cuda.is_available():
        return Resolved(torch.bfloat16, f"{device} is elsewhere and taken to have it")
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return Resolved(torch.bfloat16, f"{torch.cuda.get_device_name(device)} has bfloat16")
    return Resolved(torch.float32, f"{torch.cuda.get_device_name(device)} has no bfloat16")


def resolve_attention(written: str, family: str, cls: type[Any]) -> Resolved[str]:
    """The attention for ``auto`` or a named one, in a class of transformers.

    Raises
    ------
    InvalidModelConfig
        ``sdpa`` was asked for and the family does not have it.
    """
    has_fused = bool(getattr(cls, "_supports_sdpa", False))
    if written == "sdpa" and not has_fused:
        raise InvalidModelConfig(
            f"Models of the family {family!r} do not run with attention 'sdpa' in transformers\n"
            f"hint: use attention: eager, or auto"
        )
    if written != "auto":
        return Resolved(written, "asked for")
    if has_fused:
        return Resolved("sdpa", "the family has it")
    return Resolved("eager", f"{family} has no fused attention")
