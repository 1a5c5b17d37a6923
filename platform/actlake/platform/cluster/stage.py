"""Workers, and how they stand in a chain: what a job hands to the pool.

A **replica** is a chain of stages that does whole units; a **stage** is a worker in a process
of its own. In the model of a harvest, the first stage holds the lower layers and sends hidden
states on; each later stage receives them.

    unit ─► stage 0 .run ──message──► stage 1 .receive ──message──► stage 2 .receive
              │ receipt                 .finish │ receipt            .finish │ receipt
              └────────────────────► driver: [receipt 0, receipt 1, receipt 2] ◄┘

Workers know nothing of Ray; `run_chain` drives the same objects in one process.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from actlake.platform.cluster.errors import InvalidClusterConfig
from actlake.platform.cluster.resources import Placement, Resources

Receipt: TypeAlias = Any
"""What a stage reports about a unit: small (it passes through the driver) and picklable."""

Send: TypeAlias = Callable[[object], None]
"""Hands one message to the next stage; blocks while too many are under way."""

UNIT_TIMEOUT_S = 1800.0
"""How long a replica that holds units may be silent, unless told otherwise: units are meant to
take half a minute, and a first one may have to compile kernels or wait for a disk."""

Transport: TypeAlias = Literal["auto", "object_store", "nccl", "gloo"]
"""How tensors get from stage to stage; see `ReplicaSpec.transport`."""


class StageWorker(Protocol):
    """A plain class that does one stage's part of a unit. Knows nothing of Ray.

    Threads: a stage may be asked for several units at once (`run_units(in_flight=...)`), each
    in a thread of its own, so that writing one overlaps computing the next. The worker locks
    what must not overlap. Of one unit, `receive` is called in the order of sending and never
    twice at once, and `finish` after the last `receive` has returned.

    A message is a tuple or a single value, small but for tensors and arrays. Torch tensors
    arrive as tensors of the receiver's own, on the host or, with a direct transport, on its
    device. NumPy arrays arrive as read-only views of shared memory: copy before changing them,
    and do not keep them longer than needed.

    A unit may be asked for again, of this or another worker, after a crash: doing it twice
    must leave what doing it once leaves.
    """

    def run(self, unit: int, send: Send | None) -> Receipt:
        """First stage: do the whole unit; `send` is None when this is also the last stage.

        Call `send` from one thread at a time.
        """
        ...

    def receive(self, unit: int, message: Any, send: Send | None) -> None:
        """Later stages: do one message's part of the unit; send on what the next stage needs."""
        ...

    def finish(self, unit: int) -> Receipt:
        """Later stages: all messages of the unit were received; complete it."""
        ...


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """How to make one stage's worker, and what its process gets."""

    make: Callable[..., StageWorker]
    """A class or function, importable on the node; called as ``make(**kwargs)`` there."""

    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Small values only: paths, names, configs. Weights and data are loaded by the worker."""

    resources: Resources = field(default_factory=Resources)
    """What is reserved for the process."""

    threads: int = 1
    """Compute threads of the process (OpenMP, MKL, OpenBLAS, Rayon); part of the numerics."""

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise InvalidClusterConfig(f"A stage needs at least one thread, not {self.threads}")
        if not (self.resources.cpus or self.resources.gpus):
            raise InvalidClusterConfig(
                "A stage must reserve some CPU or GPU; with neither, nothing limits how many "
                "are put on one node\nhint: Resources(cpus=1)"
            )


@dataclass(frozen=True, kw_only=True)
class ReplicaSpec:
    """A chain of stages that does whole units."""

    stages: tuple[StageSpec, ...]
    """First to last."""

    placement: Placement = "pack"
    """``pack``: all stages on one node. ``span``: on as few nodes as hold them, for models larger
    than a node. ``spread``: each on a node of its own, as far as there are nodes with room."""

    transport: Transport = "auto"
    """How tensors travel between stages: ``nccl`` from GPU to GPU, ``object_store`` through
    shared memory, ``auto`` the first where all stages can and else the second. ``gloo`` runs
    the code of ``nccl`` on CPUs; the object store is faster there."""

    messages_in_flight: int = 4
    """Messages of one unit between two stages before `send` blocks. Bounds the memory between
    stages: units in flight x this x the size of a message."""

    def __post_init__(self) -> None:
        if not self.stages:
            raise InvalidClusterConfig("A replica needs at least one stage")
        if self.messages_in_flight < 1:
            raise InvalidClusterConfig(
                f"messages_in_flight must be at least 1, not {self.messages_in_flight}"
            )
        if self.transport == "nccl" and not all(stage.resources.gpus for stage in self.stages):
            raise InvalidClusterConfig(
                "The transport nccl needs a GPU for each stage, and some ask for none\n"
                "hint: transport: auto"
            )

    @property
    def demand(self) -> tuple[Resources, ...]:
        """What each stage reserves, first to last."""
        return tuple(stage.resources for stage in self.stages)


def run_chain(workers: Sequence[StageWorker], unit: int) -> list[Receipt]:
    """Do one unit in this process and thread; the receipts of all stages, first to last."""

    def sender_to(stage: int) -> Send | None:
        if stage == len(workers):
            return None
        worker, send = workers[stage], sender_to(stage + 1)
        return lambda message: worker.receive(unit, message, send)

    first, *later = workers
    return [first.run(unit, sender_to(1)), *(worker.finish(unit) for worker in later)]
