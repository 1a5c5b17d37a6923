from .config import ClusterConfig, ResourcesConfig
from .device_faults import device_fault
from .errors import (
    ClusterError,
    ClusterMismatch,
    ClusterUnreachable,
    DeviceFailed,
    DeviceOutOfMemory,
    InvalidClusterConfig,
    JobExists,
    JobNotFound,
    JobRefused,
    NotEnoughResources,
    ReplicasKeepDying,
    ReplicaStartFailed,
    WorkerFailed,
    WorkStopped,
)
from .gauges import Gauges
from .map_reduce import ARITY, map_reduce
from .pool import PoolEvent, PoolResult, UnitTiming, run_units
from .process_group import Member, run_group
from .resources import Placement, Resources, check_demand
from .session import Session, session
from .stage import (
    Receipt,
    ReplicaSpec,
    Send,
    StageSpec,
    StageWorker,
    Transport,
    run_chain,
)
from .submission import Job, JobServer, Submission
from .worker_plan import (
    WorkerPlan,
    check_device_of_workers,
    joins_cluster,
    plan_workers,
    threads_here,
)

__all__ = [
    "ClusterConfig",
    "Session",
    "session",
    "Resources",
    "ResourcesConfig",
    "Placement",
    "Transport",
    "check_demand",
    "StageWorker",
    "StageSpec",
    "ReplicaSpec",
    "Receipt",
    "Send",
    "run_chain",
    "run_units",
    "map_reduce",
    "Member",
    "run_group",
    "ARITY",
    "PoolEvent",
    "PoolResult",
    "UnitTiming",
    "ClusterError",
    "ClusterUnreachable",
    "DeviceFailed",
    "DeviceOutOfMemory",
    "device_fault",
    "InvalidClusterConfig",
    "NotEnoughResources",
    "ReplicaStartFailed",
    "ReplicasKeepDying",
    "WorkerFailed",
    "WorkStopped",
    "ClusterMismatch",
    "JobExists",
    "JobNotFound",
    "JobRefused",
    "Job",
    "JobServer",
    "Submission",
    "Gauges",
    "WorkerPlan",
    "joins_cluster",
    "plan_workers",
    "threads_here",
    "check_device_of_workers",
]
