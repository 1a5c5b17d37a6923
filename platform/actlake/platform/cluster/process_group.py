"""Processes that work on one thing together and talk to each other through torch.distributed.

    results = run_group(session, partial(train, config), workers=4, threads=2, on_report=show)

Every process calls ``work(member)`` with a `Member` of its own; ``torch.distributed`` is
initialised in it (NCCL where each has a GPU, else gloo). A group lives and dies as one: when a
process of it is lost or hangs, the others, which may be waiting for it in the middle of a sum, are
killed too and all are started again. So `work` goes on from its own last checkpoint. The same
work may have been done before; a group never runs beside its predecessor, for it is started only
when every process of that is seen to be gone on its own node.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from actlake.platform.cluster.errors import (
    ClusterError,
    InvalidClusterConfig,
    ReplicasKeepDying,
    ReplicaStartFailed,
)
from actlake.platform.cluster.losses import LOST, in_our_words, reason
from actlake.platform.cluster.patience import WITHOUT_ROOM_S, Patience
from actlake.platform.cluster.process_options import bundle_of, process_options
from actlake.platform.cluster.resources import Resources, check_demand
from actlake.platform.cluster.session import Session
from actlake.platform.cluster.stage_actor import portable
from actlake.platform.compute_threads import set_compute_threads
from actlake.storage.processes import is_gone, this_process

logger = logging.getLogger(__name__)
R = TypeVar("R")

LOSSES = 3
"""How often in a row a group is started again without having come further than ever before."""

HANG_TIMEOUT_S = 3600.0
"""How long a process may tell nothing before it counts as hung."""

_POLL_S = 0.25
_LAST_NEWS_S = 5.0  # for a process that has answered just now
_FENCE_S = 60.0  # Ray's own SIGKILL comes after 5 s; a node that is cut off is dead after 15


@dataclass(frozen=True)
class Member:
    """One process of a group, as its work sees it."""

    rank: int
    size: int
    stop: threading.Event = field(default_factory=threading.Event)
    """Set when the work shall end early; each member sees it at another moment."""
    report: Callable[[Any], None] = lambda news: None
    """Tell the driver something small; only the latest news are kept. A member that tells nothing
    for long is taken for hung."""


def run_group(
    session: Session,
    work: Callable[[Member], R],
    *,
    workers: int,
    threads: int = 1,
    resources: Resources | None = None,
    joined: bool = True,
    on_report: Callable[[int, Any], None] = lambda rank, news: None,
    progress: Callable[[Any], float] | None = None,
    start_timeout_s: float = WITHOUT_ROOM_S,
    hang_timeout_s: float = HANG_TIMEOUT_S,
) -> list[R]:
    """What ``work(member)`` returned in each of `workers` processes, by rank.

    Setting `session.stop` sets `Member.stop` in all; then the work decides how it ends. On a
    cluster that others use, the group waits for its place, and says so every half minute.

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
    progress
        How far the work is by what was reported, as a number that grows. A group that came
        further than any before it may be lost `LOSSES` times again; without it all losses count.
    start_timeout_s
        How long nodes that are gone are waited for when the group begins again; and, once there
        is a place for all, how long the processes may take until they answer.
    hang_timeout_s
        A process that has reported nothing for so long is taken for hung, and all begin again.

    Raises
    ------
    NotEnoughResources
        The cluster can never hold that many, or has lost the nodes that could.
    ReplicaStartFailed
        The processes were not up in time.
    ReplicasKeepDying
        The group lost a process more than `LOSSES` times in a row.
    WorkStopped
        `session.stop` was set while no work was under way.
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
    furthest = float("-inf")
    while True:
        group = _Group(
            session, workers, threads, resources, joined and workers > 1, start_timeout_s,
            hang_timeout_s,
        )  # fmt: skip
        try:
            return group.results(work, on_report, progress)
        except (*LOST, _Hung) as lost:
            if group.furthest > furthest:
                furthest, losses = group.furthest, []
            losses.append(reason(lost))
            logger.warning("A worker was lost, and all begin again: %s", losses[-1])
            if len(losses) > LOSSES:
                raise ReplicasKeepDying(
                    f"The group of {workers} workers lost one {len(losses)} times in a row\n"
                    f"the last time: {losses[-1]}\n"
                    "hint: out of memory? fewer workers, or smaller batches, need less"
                ) from lost
        finally:
            group.end()
        group.require_gone()


class _Hung(Exception):
    """A process has told nothing for too long."""


class _Group:
    """The actors of one attempt, and their place. Making one starts nothing."""

    def __init__(
        self,
        session: Session,
        workers: int,
        threads: int,
        resources: Resources,
        joined: bool,
        start_timeout_s: float,
        hang_timeout_s: float,
    ) -> None:
        self._session, self._workers, self._joined = session, workers, joined
        self._threads, self._resources = threads, resources
        self._start_timeout_s, self._hang_timeout_s = start_timeout_s, hang_timeout_s
        self._place: Any = None
        self._actors: list[Any] = []
        self._processes: list[tuple[str, Mapping[str, Any]]] = []
        self._heard: list[float] = []
        self._asked: dict[Any, int] = {}
        self.furthest = float("-inf")
        """Of what was reported."""

    def results(
        self,
        work: Callable[[Member], Any],
        on_report: Callable[[int, Any], None],
        progress: Callable[[Any], float] | None,
    ) -> list[Any]:
        """Start the processes, let them work, wait for all."""

        def hear(rank: int, news: Any) -> None:
            if progress is not None:
                self.furthest = max(self.furthest, progress(news))
            on_report(rank, news)

        self._find_place()
        at = self._start()
        self._heard = [time.monotonic()] * self._workers
        running = {actor.run.remote(work, at): rank for rank, actor in enumerate(self._actors)}
        self._asked = {actor.news.remote(): rank for rank, actor in enumerate(self._actors)}
        results: dict[int, Any] = {}
        told = False
        while running:
            if self._session.stop.is_set() and not told:
                told = True
                for actor in self._actors:
                    actor.stop.remote()
            done, _ = ray.wait(list(running), num_returns=1, timeout=_POLL_S)
            for ref in done:
                results[running.pop(ref)] = self._result(ref)
            self._listen(hear, set(running.values()))
        self._last_news(hear)
        return [results[rank] for rank in range(self._workers)]

    def end(self) -> None:
        """Kill all processes and give the place back; waits for nothing."""
        for actor in self._actors:
            ray.kill(actor, no_restart=True)
        if self._place is not None:
            remove_placement_group(self._place)

    def require_gone(self) -> None:
        """Return when no process of the group is left; each is looked for on its own node.

        Raises
        ------
        ClusterError
            One does not go.
        """
        witnesses = [
            ray.remote(wait_until_gone)
            .options(
                num_cpus=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            )
            .remote(process, _FENCE_S)
            for node, process in self._processes
        ]
        waiting, alive, end = witnesses, 0, time.monotonic() + 2 * _FENCE_S
        while waiting and time.monotonic() < end:
            self._session.raise_if_stopped()
            done, waiting = ray.wait(waiting, num_returns=1, timeout=_POLL_S)
            alive += sum(not _says_gone(ref) for ref in done)
        if alive or waiting:
            raise ClusterError(
                f"{alive + len(waiting)} process(es) of a group that was lost do not end, and a "
                "new group must not run beside them\n"
                "hint: end them, or their nodes; the same command goes on from the last checkpoint"
            )

    def _find_place(self) -> None:
        """Wait until there is room for all."""
        bundle = bundle_of(self._resources) or {"CPU": 0.001}
        self._place = placement_group([bundle] * self._workers, strategy="PACK")
        patience = Patience(
            self._session, self._resources, count=self._workers,
            what=f"The group of {self._workers} worker(s) waits for a place",
            without_room_s=self._start_timeout_s,
        )  # fmt: skip
        ready = self._place.ready()
        while not ray.wait([ready], timeout=_POLL_S)[0]:
            self._session.raise_if_stopped()
            patience.look()

    def _start(self) -> tuple[str, int] | None:
        """Wait until all processes are up; where they find each other, if they have to."""
        options = process_options(self._resources, threads=self._threads)
        options |= {"max_restarts": 0, "max_concurrency": 3}  # the work; beside it `stop`, `news`
        for rank in range(self._workers):
            strategy = PlacementGroupSchedulingStrategy(
                self._place, placement_group_bundle_index=rank
            )
            self._actors.append(
                ray.remote(GroupActor)
                .options(**options, scheduling_strategy=strategy)
                .remote(rank, self._workers, self._threads, 2 * self._hang_timeout_s)
            )
        up = [actor.where.remote() for actor in self._actors]
        meeting = [self._actors[0].meet.remote()] if self._joined else []
        waiting, began = [*up, *meeting], time.monotonic()
        while waiting:
            self._session.raise_if_stopped()
            done, waiting = ray.wait(waiting, num_returns=1, timeout=_POLL_S)
            for ref in done:
                answer = self._result(ref)
                if ref in up:
                    self._processes.append(answer)
            if time.monotonic() - began > self._start_timeout_s:
                raise ReplicaStartFailed(
                    f"Of {self._workers} processes {len(waiting)} have a place and were not up "
                    f"after {self._start_timeout_s:.0f} s\n"
                    "hint: the Ray logs of their nodes say why; start_timeout_s gives more time"
                )
        return ray.get(meeting[0]) if meeting else None

    def _result(self, ref: Any) -> Any:
        """What a call has returned; an error as it was raised, unless a process was lost."""
        try:
            return ray.get(ref)
        except LOST:
            raise
        except ray.exceptions.RayError as error:
            self._raise_if_lost()
            raise in_our_words(error, what="A worker of the group") from None

    def _raise_if_lost(self) -> None:
        """A process that is gone makes the others fail too, and is the reason."""
        asked = [actor.where.remote() for actor in self._actors]
        ray.get(ray.wait(asked, num_returns=len(asked), timeout=_LAST_NEWS_S)[0])

    def _listen(self, hear: Callable[[int, Any], None], at_work: set[int]) -> None:
        """Pass on what ranks have to tell; a rank that tells nothing for too long hangs."""
        answered, _ = ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0)
        for ref in answered:
            rank = self._asked.pop(ref)
            if rank in at_work:
                self._asked[self._actors[rank].news.remote()] = rank
                self._pass_on(ref, rank, hear)
            else:
                self._asked[ref] = rank  # its result is there; see `_last_news`
        now = time.monotonic()
        silent = [r for r in sorted(at_work) if now - self._heard[r] > self._hang_timeout_s]
        if silent:
            ranks = ", ".join(map(str, silent))
            raise _Hung(f"rank {ranks} told nothing for {self._hang_timeout_s:.0f} s")

    def _last_news(self, hear: Callable[[int, Any], None]) -> None:
        """What was told after it was asked for the last time."""
        last = {actor.news.remote(): rank for rank, actor in enumerate(self._actors)}
        asked = self._asked | last
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_LAST_NEWS_S)
        for ref in answered:
            with suppress(*LOST):  # its work is done
                self._pass_on(ref, asked[ref], hear)

    def _pass_on(self, ref: Any, rank: int, hear: Callable[[int, Any], None]) -> None:
        for news in ray.get(ref):
            self._heard[rank] = time.monotonic()
            hear(rank, news)


class GroupActor:
    """The process around a member. Made by `_Group`, used by nobody else."""

    def __init__(self, rank: int, size: int, threads: int, timeout_s: float) -> None:
        set_compute_threads(threads)
        self._news: deque[Any] = deque(maxlen=1)
        self._member = Member(rank, size, report=self._news.append)
        # How long one exchange waits for the others. The driver notices much earlier when one is
        # lost or hangs; this is for a driver that does not.
        self._timeout = timedelta(seconds=timeout_s)
        self._store: Any = None

    def where(self) -> tuple[str, Mapping[str, Any]]:
        """The node's id, and the process as `is_gone` knows it."""
        return ray.get_runtime_context().get_node_id(), this_process()

    def meet(self) -> tuple[str, int]:
        """Rank 0: where the others find it. The port is bound, not just found free."""
        host = str(ray.util.get_node_ip_address())
        self._store = self._rendezvous(host, 0, is_master=True)
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
            self._store = self._rendezvous(*at, is_master=False)
        if torch.cuda.is_available():
            torch.cuda.set_device(0)  # the one that Ray lets it see
        distributed.init_process_group(
            "nccl" if torch.cuda.is_available() else "gloo",
            store=self._store,
            rank=self._member.rank,
            world_size=self._member.size,
            timeout=self._timeout,
        )

    def _rendezvous(self, host: str, port: int, *, is_master: bool) -> Any:
        """Where the processes find each other."""
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        return TCPStore(
            host, port, self._member.size, is_master=is_master, wait_for_workers=False,
            timeout=self._timeout,
        )  # fmt: skip


def _says_gone(witness: Any) -> bool:
    """What a witness has seen; one without a node to be on: the process went with its node."""
    try:
        return bool(ray.get(witness))
    except (ray.exceptions.TaskUnschedulableError, *LOST):
        return True


def wait_until_gone(process: Mapping[str, Any], timeout_s: float) -> bool:
    """Whether a process of this machine has ended, or does within `timeout_s`."""
    if not process["boot"]:
        return True  # a machine without /proc: Ray's word must do
    end = time.monotonic() + timeout_s
    while not is_gone(process):
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True
