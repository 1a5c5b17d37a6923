"""What a job computed on, for its record: last bits differ from device to device."""

import platform
from typing import Any

import torch

from actlake.platform.cores import processor_name


def computed_on(
    device: torch.device | str | None, *, threads: int | None, in_model_dtype: Any = None
) -> dict[str, Any]:
    """The device as it was resolved, its name, CUDA's version, threads, and the model's type.

    Parameters
    ----------
    device
        None: workers on a cluster compute, and their own records say on what.
    threads
        Compute threads of each process.
    in_model_dtype
        The dtype in which a model was run for tests in it; None: none was run.
    """
    found: dict[str, Any] = {"device": "of a cluster" if device is None else str(device)}
    if device is not None:
        on_gpu = torch.device(device).type == "cuda"
        found["name"] = torch.cuda.get_device_name(device) if on_gpu else _processor()
    found |= {"cuda": torch.version.cuda, "threads": threads}
    if in_model_dtype is not None:
        found["in_model_dtype"] = str(in_model_dtype).removeprefix("torch.")
    return found


def _processor() -> str:
    """The kind of processor, as the system names it."""
    return processor_name() or platform.processor() or platform.machine()
