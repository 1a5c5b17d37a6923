"""Processes that work on one thing together and talk to each other through torch.distributed.

    results = run_group(session, partial(train, config), workers=4, threads=2, on_report=show)

Every process calls ``work(member)`` with a `Member` of its own; ``torch.distributed`` is
initialised in it (NCCL where each has a GPU, else gloo). A group lives and dies as one: when a
process of it is lost, the others, which may be waiting for it in the middle of a sum, are killed
too and all are started again. So `work` goes on from its own last checkpoint. The same work may
have been done before; a group never runs beside its predecessor.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actlake.platform.cluster.errors import InvalidClusterConfig, ReplicasKeepDying
from actlake.platform.cluster.losses import LOST, cause_of, reason
from actlake.platform.cluster.resources import Resources, check_demand
from actlake.platform.cluster.session import Session
from actlake.platform.cluster.stage_actor import portable

logger = logging.getLogger(__name__)
R = TypeVar("R")

LOSSES = 3
"""How often a group is started again."""

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others in one exchange; a lost one is noticed by the driver
within a second, and this is for one that hangs."""

_POLL_S = 0.25


@dataclass(frozen=True)
class Member:
    """One process of a group, as its work sees it."""

    rank: int
    size: int
    stop: threading.Event = field(default_factory=threading.Event)
    """Set when the work shall end early; each member sees it at another moment."""
    report: Callable[[Any], None] = lambda news: None
    """Tell the driver something small; only the latest news are kept."""


def run_group(
    session: Session,
    work: Callable[[Member], R],
    *,
    workers: int,
    threads: int = 1,
    resources: Resources | None = None,
    joined: bool = True,
    on_report: Callable[[int, Any], None] = lambda rank, news: None,
) -> list[R]:
    """What ``work(member)`` returned in each of `workers` processes, by rank.

    Setting `session.stop` sets `Member.stop` in all; then the work decides how it ends.

    Parameters
    ----------
    work
        Importable on the nodes, or a `functools.partial` of such, with small arguments.
    threads
        Compute threads of each process.
    resources
        What each process reserves; as many CPUs as threads if left out.
    joined
        Initialise torch.distributed; False: the processes have nothing to say to each other.
    on_report
        Told in this thread what a rank has reported.

    Raises
    ------
    NotEnoughResources
        The cluster can never hold that many.
    ReplicasKeepDying
        The group lost a process more than `LOSSES` times.
    Exception
        Whatever `work` raised first in any of them; an `ActlakeError` as it is.
    """
    if workers < 1 or threads < 1:
        raise InvalidClusterConfig(
            f"workers and threads must be at least 1, not {workers} and {threads}"
        )
    resources = resources or Resources(cpus=threads)
    check_demand(session.nodes(), [resources], placement="pack", replicas=workers)
    losses: list[str] = []
    while True:
        group = _Group(work, workers, threads, resources, joined)
        try:
            return group.results(session, on_report)
        except LOST as lost:
            losses.append(reason(lost))
            logger.warning("A worker was lost, and all begin again: %s", losses[-1])
            if len(losses) > LOSSES:
                raise ReplicasKeepDying(
                    f"The group of {workers} workers lost one {len(losses)} times\n"
                    f"the last time: {losses[-1]}\n"
                    "hint: out of memory? fewer workers, or smaller batches, need less"
                ) from lost
        finally:
            group.end()


class _Group:
    """The actors of one attempt, and their place."""

    def __init__(
        self,
        work: Callable[[Member], Any],
        workers: int,
        threads: int,
        resources: Resources,
        joined: bool,
    ) -> None:
        amounts = {"CPU": resources.cpus, "GPU": resources.gpus}
        bundle = {name: amount for name, amount in amounts.items() if amount}
        self._place = placement_group([bundle or {"CPU": 0.001}] * workers, strategy="PACK")
        self._actors = [
            ray.remote(GroupActor)
            .options(
                num_cpus=resources.cpus,
                num_gpus=resources.gpus,
                max_restarts=0,
                max_concurrency=3,  # the work, and beside it `stop` and `news`
                runtime_env={"env_vars": _environment(threads, resources)},
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    self._place, placement_group_bundle_index=rank
                ),
            )
            .remote(rank, workers)
            for rank in range(workers)
        ]
        self._work, self._joined = work, joined and workers > 1

    def results(self, session: Session, on_report: Callable[[int, Any], None]) -> list[Any]:
        at = ray.get(self._actors[0].meet.remote()) if self._joined else None
        running = [actor.run.remote(self._work, at) for actor in self._actors]
        waiting, told = list(running), False
        while waiting:
            if session.stop.is_set() and not told:
                told = True
                for actor in self._actors:
                    actor.stop.remote()
            done, waiting = ray.wait(waiting, num_returns=1, timeout=_POLL_S)
            self._raise_first(done)
            self._pass_on(on_report)
        self._pass_on(on_report)
        results: list[Any] = ray.get(running)
        return results

    def _raise_first(self, done: list[Any]) -> None:
        for ref in done:
            try:
                ray.get(ref)
            except LOST:
                raise
            except ray.exceptions.RayTaskError as error:
                self._raise_if_lost()
                raise cause_of(error) from None

    def _raise_if_lost(self) -> None:
        """A process that is gone makes the others fail too, and is the reason."""
        ray.get([actor.news.remote() for actor in self._actors])

    def _pass_on(self, on_report: Callable[[int, Any], None]) -> None:
        for rank, news in enumerate(ray.get([actor.news.remote() for actor in self._actors])):
            for one in news:
                on_report(rank, one)

    def end(self) -> None:
        for actor in self._actors:
            ray.kill(actor, no_restart=True)
        remove_placement_group(self._place)


class GroupActor:
    """The process around a member. Made by `_Group`, used by nobody else."""

    def __init__(self, rank: int, size: int) -> None:
        self._news: deque[Any] = deque(maxlen=1)
        self._member = Member(rank, size, report=self._news.append)
        self._store: Any = None

    def meet(self) -> tuple[str, int]:
        """Rank 0: where the others find it. The port is bound, not just found free."""
        host = str(ray.util.get_node_ip_address())
        self._store = _store(host, 0, self._member.size, is_master=True)
        return host, int(self._store.port)

    def run(self, work: Callable[[Member], Any], at: tuple[str, int] | None) -> Any:
        """Do the work; what it raises can be sent."""
        try:
            if at is not None:
                self._join(at)
            return work(self._member)
        except Exception as error:
            raise portable(error) from None

    def stop(self) -> None:
        """Ask the work to end early."""
        self._member.stop.set()

    def news(self) -> list[Any]:
        """The latest report, once."""
        return [self._news.popleft()] if self._news else []

    def _join(self, at: tuple[str, int]) -> None:
        import torch
        from torch import distributed

        if self._store is None:
            self._store = _store(*at, self._member.size, is_master=False)
        if torch.cuda.is_available():
            torch.cuda.set_device(0)  # the one that Ray lets it see
        distributed.init_process_group(
            "nccl" if torch.cuda.is_available() else "gloo",
            store=self._store,
            rank=self._member.rank,
            world_size=self._member.size,
            timeout=TIMEOUT,
        )


def _store(host: str, port: int, size: int, *, is_master: bool) -> Any:
    """Where the processes find each other."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    return TCPStore(host, port, size, is_master=is_master, wait_for_workers=False, timeout=TIMEOUT)


def _environment(threads: int, resources: Resources) -> Mapping[str, str]:
    names = ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "RAYON")
    environment = {f"{name}_NUM_THREADS": str(threads) for name in names}
    if not resources.gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ""  # Ray would leave all GPUs visible
    return environment
