"""Which Ray to use, as it is written; Ray is not imported."""

from dataclasses import dataclass

from actlake.platform.cluster.errors import InvalidClusterConfig


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Which Ray to use, and how large an embedded one is."""

    address: str | None = None
    """``local`` starts an embedded cluster; ``host:port`` joins a running one. null: what
    `$RAY_ADDRESS` names (Ray sets it inside a submitted job), or ``local``."""

    num_cpus: int | None = None
    """Embedded only: logical CPUs to hand out; null is one per core. It may be more than there
    are: workers reserve CPUs for being placed, and compute with `threads`."""

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
