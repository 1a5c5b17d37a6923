"""Work on Ray: a session, replicas of staged workers, and a pool that loses no unit.

    class Worker:                                     # plain; tests run it without Ray
        def run(self, unit, send): ...

    with session(ClusterConfig()) as cluster:
        replica = ReplicaSpec(stages=(StageSpec(make=Worker, threads=2),))
        result = run_units(cluster, range(100), replica, replicas=2, on_done=commit)

Ray is imported in this folder and nowhere else; none of its types leaves it.
"""

from actlake.platform.cluster.errors import (
    ClusterError,
    ClusterUnreachable,
    InvalidClusterConfig,
    NotEnoughResources,
    ReplicasKeepDying,
    ReplicaStartFailed,
    WorkerFailed,
)
from actlake.platform.cluster.pool import PoolEvent, PoolResult, UnitTiming, run_units
from actlake.platform.cluster.resources import Placement, Resources, check_demand
from actlake.platform.cluster.session import ClusterConfig, Session, session
from actlake.platform.cluster.stage import (
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
]
