"""Which Ray to use, as it is written; Ray is not imported."""

import math
from dataclasses import dataclass

from actlake.platform.cluster.errors import InvalidClusterConfig
from actlake.platform.cluster.resources import Resources


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Which Ray to use, and how large an embedded one is."""

    address: str | None = None
    """``local`` starts an embedded cluster; ``host:port`` joins a running one. null: what
    `$RAY_ADDRESS` names (Ray sets it inside a submitted job), or ``local``."""

    num_cpus: int | None = None
    """Embedded only: logical CPUs to hand out; null is one per core that this
    process may use. It may be more than there are: workers reserve CPUs for being placed, and
    compute with `threads`."""

    num_gpus: int | None = None
    """Embedded only: GPUs to hand out; null is all that Ray finds."""

    object_store_mb: int = 256
    """Embedded only: shared memory for what stages send each other, in MiB."""

    worker_output: bool = False
    """Show on this terminal what workers print and log."""

    connect_timeout_s: float = 10.0
    """How long a running cluster may take to accept a connection."""

    def __post_init__(self) -> None:
        for name in ("num_cpus", "object_store_mb", "connect_timeout_s"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise InvalidClusterConfig(f"ClusterConfig.{name} must be positive, not {value}")
        if self.object_store_mb < 80:
            raise InvalidClusterConfig(
                f"ClusterConfig.object_store_mb is {self.object_store_mb}; Ray needs at least 80"
            )


@dataclass(frozen=True, kw_only=True)
class ResourcesConfig:
    """What each worker of a job reserves on the cluster; no result depends on it.

    Reservations are for being placed; Ray holds no process to its CPUs or memory. A process sees
    the GPUs it reserves and no others.
    """

    cpus: float | None = None
    """Logical CPUs of each worker; null: as many as it has compute threads."""

    gpus: float | None = None
    """GPUs of each worker; a fraction shares one, 0 hides them. null: one where the job's device
    is CUDA, or ``auto`` and the cluster has GPUs."""

    memory_mb: int | None = None
    """Main memory of each worker in MiB; null: none is reserved."""

    def __post_init__(self) -> None:
        if self.cpus is not None and not 1e-4 <= self.cpus < math.inf:
            raise InvalidClusterConfig(
                f"resources.cpus must be above 0, and is {self.cpus}\n"
                "hint: a fraction such as 0.5 will do; null is one for each compute thread"
            )
        if self.gpus is not None and not _can_be_gpus(self.gpus):
            raise InvalidClusterConfig(
                f"resources.gpus is {self.gpus}; there can be 0, a fraction of one GPU, or a whole "
                "number of them\nhint: gpus: 1, or gpus: 0.5 for two workers that share one"
            )
        if self.memory_mb is not None and self.memory_mb < 1:
            raise InvalidClusterConfig(
                f"resources.memory_mb must be at least 1, and is {self.memory_mb}\n"
                "hint: leave it out to reserve none"
            )

    def filled(self, derived: Resources) -> Resources:
        """What is asked for here, and what a job has derived where nothing is."""
        return Resources(
            cpus=derived.cpus if self.cpus is None else self.cpus,
            gpus=derived.gpus if self.gpus is None else self.gpus,
            memory_mb=derived.memory_mb if self.memory_mb is None else self.memory_mb,
        )


def _can_be_gpus(gpus: float) -> bool:
    """Ray's rule: a share of one, or whole ones."""
    return gpus == 0 or 1e-4 <= gpus <= 1 or (gpus > 1 and float(gpus).is_integer())
