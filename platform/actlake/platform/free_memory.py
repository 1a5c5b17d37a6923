"""How much memory there is to be had, of this machine or of a device."""

from contextlib import suppress
from pathlib import Path


def free_memory(device: str = "cpu") -> int | None:
    """Bytes that can be had without taking them from anybody; None where nobody tells.

    Parameters
    ----------
    device
        ``cpu`` or ``cuda``, as a model's.
    """
    if device.startswith("cuda"):
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    with suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None
