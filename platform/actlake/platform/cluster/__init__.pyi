from .config import ClusterConfig
from .errors import (
    ClusterError,
    ClusterUnreachable,
    InvalidClusterConfig,
    NotEnoughResources,
    ReplicasKeepDying,
    ReplicaStartFailed,
    WorkerFailed,
    WorkStopped,
)
from .map_reduce import ARITY, map_reduce
from .pool import PoolEvent, PoolResult, UnitTiming, run_units
from .resources import Placement, Resources, check_demand
from .session import Session, session
from .stage import (
    Receipt,
    ReplicaSpec,
    Send,
    StageSpec,
    StageWorker,
    run_chain,
)

__all__ = [
    "ClusterConfig",
    "Session",
    "session",
    "Resources",
    "Placement",
    "check_demand",
    "StageWorker",
    "StageSpec",
    "ReplicaSpec",
    "Receipt",
    "Send",
    "run_chain",
    "run_units",
    "map_reduce",
    "ARITY",
    "PoolEvent",
    "PoolResult",
    "UnitTiming",
    "ClusterError",
    "ClusterUnreachable",
    "InvalidClusterConfig",
    "NotEnoughResources",
    "ReplicaStartFailed",
    "ReplicasKeepDying",
    "WorkerFailed",
    "WorkStopped",
]
