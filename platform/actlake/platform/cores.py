"""How many cores this process may use: one rule for plans, threads, clusters and the doctor.

The least of three: the cores of the machine, those of the process's affinity (``taskset``, Slurm),
and the quota of every control group around it (Docker's ``--cpus``, a pod's limit, systemd's
CPUQuota).
"""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path


def usable_cores(*, root: Path = Path("/")) -> int:
    """Whole cores, at least one; of a quota of 2.5 cores two.

    Parameters
    ----------
    root
        Where ``proc`` and ``sys`` are.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min([cores, *map(int, _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """Cores that each control group around this process leaves it; none where it has no limit."""
    groups = root / "sys" / "fs" / "cgroup"
    with suppress(OSError):  # another system than Linux
        for line in (root / "proc" / "self" / "cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                yield from _along(groups, path, _second_version)
            elif "cpu" in controllers.split(","):
                yield from _along(groups / controllers, path, _first_version)
                yield from _along(groups / "cpu", path, _first_version)


def _along(mount: Path, path: str, quota_of: Callable[[Path], float]) -> Iterator[float]:
    """The quotas of a group and of those above it.

    In a container the mount is often the group itself, whatever its path says outside.
    """
    inside = Path(path.strip("/"))
    for group in (inside, *inside.parents):
        with suppress(OSError, ValueError):  # not there, or no quota ("max")
            if (cores := quota_of(mount / group)) > 0:
                yield cores


def _second_version(group: Path) -> float:
    quota, period = (group / "cpu.max").read_text(encoding="utf-8").split()
    return int(quota) / int(period)


def _first_version(group: Path) -> float:
    quota = int((group / "cpu.cfs_quota_us").read_text(encoding="utf-8"))  # -1 is none
    return quota / int((group / "cpu.cfs_period_us").read_text(encoding="utf-8"))


def processor_name() -> str:
    """The processor's name where Linux tells it, else nothing: kernels are chosen by it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "")
