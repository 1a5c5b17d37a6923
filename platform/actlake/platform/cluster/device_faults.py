"""Which of a worker's exceptions say that its accelerator failed, or that its memory is too small.

Neither says that the work is wrong, so both cost the process and not the run: a context of CUDA is
unusable after an error, and what does not fit on one device beside others may fit on the next.
"""

import re
import socket
import sys
from contextlib import suppress

from actlake.platform.cluster.errors import DeviceFailed, DeviceOutOfMemory

_FAILED = re.compile(
    r"(CUDA|HIP|NCCL|cuDNN) error|\b(CUBLAS|CUDNN|CUSOLVER|CUSPARSE|CUFFT)_STATUS_\w+|"
    r"uncorrectable ECC|device-side assert",
    re.IGNORECASE,
)
_OUT_OF_MEMORY = re.compile(
    r"out of memory|_STATUS_ALLOC_FAILED|DefaultCPUAllocator: can't allocate|"
    r"Cannot allocate memory",
    re.IGNORECASE,
)


def device_fault(error: BaseException) -> DeviceFailed | DeviceOutOfMemory | None:
    """The fault of a device that an exception reports, or None where it reports something else.

    PyTorch has classes for some of them (`torch.OutOfMemoryError`, `torch.AcceleratorError`,
    `torch.distributed.DistBackendError`); cuBLAS, cuDNN and the allocator of the CPU raise a bare
    `RuntimeError`, known by its words alone.
    """
    if isinstance(error, DeviceFailed | DeviceOutOfMemory):
        return error
    words = " ".join(str(error).split())[:500]
    of_torch = isinstance(error, _classes_of_torch())
    if not (of_torch or isinstance(error, RuntimeError | MemoryError)):
        return None
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(words):
        return DeviceOutOfMemory(f"Out of memory {_where()}\n{_named(error, words)}")
    if of_torch or _FAILED.search(words):
        return DeviceFailed(
            f"The accelerator failed {_where()}\n{_named(error, words)}\n"
            "hint: `nvidia-smi -q -d ECC,PAGE_RETIREMENT` and the system's log (Xid) on that node "
            "say whether the device is sick; elsewhere the same command goes on"
        )
    return None


def _named(error: BaseException, words: str) -> str:
    return f"{type(error).__name__}: {words}"


def _classes_of_torch() -> tuple[type[BaseException], ...]:
    """Torch's own classes, if this process has torch; what has not been imported raised nothing."""
    torch = sys.modules.get("torch")
    if torch is None:
        return ()
    classes = [torch.OutOfMemoryError, getattr(torch, "AcceleratorError", None)]
    if torch.distributed.is_available():
        classes.append(torch.distributed.DistBackendError)
    return tuple(found for found in classes if found is not None)


def _where() -> str:
    """The machine and device of this process, in words."""
    torch = sys.modules.get("torch")
    name = ""
    if torch is not None and torch.cuda.is_available():
        with suppress(Exception):  # a context that failed may refuse even this
            name = f" ({torch.cuda.get_device_name()})"
    return f"on {socket.gethostname()}{name}"
