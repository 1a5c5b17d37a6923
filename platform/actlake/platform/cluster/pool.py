"""The driver's loop: units to replicas, receipts to the caller, dead replicas replaced.

Ray's own pools lose the unit whose worker dies, and its retries cannot restart a chain of
actors as one. So the driver owns the list of what is to be done:

1. `Schedule` says which unit goes to which replica.
2. A replica that loses any of its processes, or is silent for too long, is fenced (killed
   whole) and replaced; its units go back to the front, each a bounded number of times.
3. A unit counts when `on_done` has returned for it, in the driver's thread, once.
4. There are as many replicas as wanted and as the living nodes hold: nodes that go take theirs
   along, nodes that come later get theirs.
5. A replica that cannot work *where it is* (it cannot write, or start, or computes other bits) is
   given up while there are others, and none is put on its nodes again. The last one's error is
   the run's.
6. A device that fails, or has too little memory, costs its replica; a node where that happens
   again is avoided as well.

A unit may be *executed* more than once, so executing it twice must leave what once leaves.
If the driver dies, Ray ends its actors; what was counted is the caller's to remember.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import ray

from actlake.platform.cluster import interrupts
from actlake.platform.cluster.errors import (
    ClusterError,
    DeviceFailed,
    DeviceOutOfMemory,
    InvalidClusterConfig,
    ReplicasKeepDying,
    ReplicaStartFailed,
    WorkerFailed,
    first_line,
)
from actlake.platform.cluster.job_start import code_hash
from actlake.platform.cluster.losses import LOST, cause_of, reason
from actlake.platform.cluster.replica import Ref, Replica
from actlake.platform.cluster.resources import check_demand, replicas_that_fit
from actlake.platform.cluster.schedule import Attempt, Schedule
from actlake.platform.cluster.session import Session
from actlake.platform.cluster.stage import UNIT_TIMEOUT_S, Receipt, ReplicaSpec
from actlake.storage.errors import ActlakeError, StoreMismatch, StoreNotWritable

logger = logging.getLogger(__name__)

DEVICE_FAULTS = 2
"""Faults of devices on one node after which no replica is put there while there are others: one
may be a unit's, two in one place are the place's."""

STARTS_IN_A_ROW = 3
"""Replicas that may fail to start, one after another, before the run gives up; or, while
others work, before the next is tried only after a while."""

_BACK_OFF_S = 30.0  # and twice that the next time, up to ten minutes
_LONGEST_BACK_OFF_S = 600.0
_NODES_S = 2.0  # how soon a node that came is noticed; asking takes 1 to 2 ms
_SLOW_START_S = 60.0  # after which a replica that is still starting is spoken of

_POLL_S = 0.25  # how soon a stop or a time-out is noticed; results are noticed at once

EventKind = Literal[
    "replica_starting",
    "replica_up",
    "replica_slow",
    "replica_lost",
    "node_avoided",
    "nodes_too_few",
    "unit_requeued",
    "unit_failed",
    "stopping",
]


_BAD = ("replica_slow", "replica_lost", "node_avoided", "nodes_too_few", "unit_failed")


@dataclass(frozen=True, slots=True)
class PoolEvent:
    """Something that happened beside units being done."""

    kind: EventKind
    at_s: float
    """Seconds since `run_units` was called."""
    replica: int | None = None
    """Replicas are numbered from 0; a replacement has a number of its own."""
    unit: int | None = None
    reason: str = ""

    def __str__(self) -> str:
        words = self.kind.replace("_", " ").capitalize()
        where = "" if self.replica is None else f", replica {self.replica}"
        which = "" if self.unit is None else f", unit {self.unit}"
        why = f": {self.reason}" if self.reason else ""
        return f"{words}{where}{which} (after {self.at_s:.1f} s){why}"


@dataclass(frozen=True, slots=True)
class UnitTiming:
    """Where and how long a finished unit took."""

    replica: int
    attempt: int
    """1 when it went well at once."""
    seconds: float
    """From being handed out to the last stage's receipt, waiting in the replica included."""


@dataclass(frozen=True, slots=True)
class PoolResult:
    """How a run ended. ``done + len(failed)`` is all units, unless it was stopped."""

    done: int
    """Units for which `on_done` has returned."""
    failed: Mapping[int, tuple[str, ...]]
    """Units set aside, with the reason of each attempt."""
    stopped: bool
    """Ended early because `Session.stop` was set."""
    requeued: int
    replicas_lost: int
    given_up: tuple[str, ...]
    """Replicas that could not work where they were, with the reason."""
    seconds: float

    @property
    def complete(self) -> bool:
        """Every unit is done."""
        return not (self.failed or self.stopped)


OnDone: TypeAlias = Callable[[int, list[Receipt], UnitTiming], None]
OnEvent: TypeAlias = Callable[[PoolEvent], None]


def run_units(
    session: Session,
    units: Iterable[int],
    replica: ReplicaSpec,
    *,
    replicas: int,
    on_done: OnDone,
    at_least: int | None = None,
    in_flight: int = 2,
    max_attempts: int = 3,
    unit_timeout_s: float | None = UNIT_TIMEOUT_S,
    start_timeout_s: float = 1800.0,
    drain_s: float | None = None,
    on_event: OnEvent | None = None,
) -> PoolResult:
    """Do every unit on `replicas` copies of a chain of stages; return when all is settled.

    Nothing is left running when this returns or raises. Setting `session.stop` ends the run
    early: nothing new is handed out and what is in flight is finished.

    Parameters
    ----------
    session
        The cluster.
    units
        Distinct numbers, read one at a time: may be a generator of any length.
    replica
        The chain.
    replicas
        How many copies work side by side, at most.
    at_least
        How many of them the cluster must have room for at the start; all, if left out. The
        others join when nodes do.
    on_done
        Called in this thread once per unit, with the receipts of all stages in order. This is
        where a unit is committed. If it raises, the run ends and the exception is raised; but
        for a `StoreMismatch`, which says that this replica cannot be used, while there are others.
    in_flight
        Units a replica holds at once: 2 let writing overlap computing; chains do best with
        one more than they have stages.
    max_attempts
        How often a unit may lose its replica before it is set aside (`PoolResult.failed`).
    unit_timeout_s
        A replica that holds units and of which no stage has finished one for so long counts as
        lost. None: it may take for ever, and one that hangs is never noticed.
    start_timeout_s
        A replica that is not ready after so long, waiting for a place included, has failed.
        After so long without a node that could hold any replica the run ends.
    drain_s
        How long a stop waits for what is in flight; by default `interrupts.drain_s`.
    on_event
        Told about replicas and units lost, in this thread.

    Returns
    -------
    PoolResult
        Incomplete if units were set aside or the session was stopped.

    Raises
    ------
    NotEnoughResources
        The cluster can never hold these replicas, or has lost the nodes that could.
    ReplicaStartFailed
        Replicas failed to start three times in a row and none works: their processes died, or
        were not ready in time, or their devices failed.
    WorkerFailed
        A worker's constructor raised an exception that another attempt would raise as well, such
        as an `ImportError`, and there is no other replica. An `ActlakeError` is raised as it is.
    ClusterMismatch
        A node that came late has other code than this process, and there is no other replica.
    StoreNotWritable
        The last replica cannot write. Of several, one that cannot is given up.
    ReplicasKeepDying
        Many replicas were lost in a row without one unit finished; the last reason is in its words.
    Exception
        Whatever a worker raised while doing a unit: bad data, or a bug. It is not retried.
    """
    for name, value in (("replicas", replicas), ("in_flight", in_flight)):
        if value < 1:
            raise InvalidClusterConfig(f"{name} must be at least 1, not {value}")
    if max_attempts < 1:
        raise InvalidClusterConfig(f"max_attempts must be at least 1, not {max_attempts}")
    needed = replicas if at_least is None else at_least
    if not 1 <= needed <= replicas:
        raise InvalidClusterConfig(f"at_least must be from 1 to {replicas}, not {needed}")
    check_demand(session.nodes(), replica.demand, placement=replica.placement, replicas=needed)
    pool = _Pool(
        session=session,
        spec=replica,
        wanted=replicas,
        schedule=Schedule(units, in_flight=in_flight, max_attempts=max_attempts),
        in_flight=in_flight,
        code="" if session.embedded else code_hash(),
        losses_allowed=4 * max_attempts + replicas,
        unit_timeout_s=unit_timeout_s,
        start_timeout_s=start_timeout_s,
        drain_s=interrupts.drain_s() if drain_s is None else drain_s,
        on_done=on_done,
        on_event=on_event,
    )
    return pool.run()


@dataclass(slots=True)
class _Member:
    """A replica of the pool and what its clock says."""

    replica: Replica
    since: float
    """When it was started; once it is up, when a stage of it last finished a unit."""
    starting: set[Ref]
    is_slow: bool = False
    """That it takes long to start was said."""

    @property
    def up(self) -> bool:
        return not self.starting


@dataclass(slots=True)
class _Flight:
    """A unit on its way through a replica."""

    member: _Member
    attempt: Attempt
    dispatched: float
    receipts: list[Receipt] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class _Pool:
    session: Session
    spec: ReplicaSpec
    wanted: int
    schedule: Schedule
    in_flight: int
    code: str
    """What nodes must run: the driver's `code_hash`; empty where they share its files."""
    losses_allowed: int
    unit_timeout_s: float | None
    start_timeout_s: float
    drain_s: float
    on_done: OnDone
    on_event: OnEvent | None

    members: dict[int, _Member] = field(default_factory=dict)
    started: int = 0
    starts_failed_in_a_row: int = 0
    no_start_before: float = 0.0
    room: int = 0
    """Replicas that the living nodes hold, at most `wanted`; nodes to avoid do not count."""
    room_known_until: float = 0.0
    without_room_since: float | None = None
    avoided: set[str] = field(default_factory=set)
    """Nodes on which a replica could not work."""
    device_faults: Counter[str] = field(default_factory=Counter)
    """How often a device has failed, by the id of its node."""
    given_up: list[str] = field(default_factory=list)
    lost: int = 0
    lost_in_a_row: int = 0
    watched: dict[Ref, _Flight | _Member] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    next_check: float = 0.0
    stopped_at: float | None = None

    def run(self) -> PoolResult:
        try:
            while not self.over():
                self.staff()
                self.deal()
                self.listen()
                self.check_clocks()
            return self.result()
        finally:
            for member in self.members.values():
                member.replica.fence()

    def over(self) -> bool:
        if self.stopped_at is None and self.session.stop.is_set():
            self.stopped_at = time.monotonic()
            self.tell("stopping")
        if self.stopped_at is None:
            return self.schedule.finished
        return self.schedule.idle or time.monotonic() - self.stopped_at > self.drain_s

    def result(self) -> PoolResult:
        return PoolResult(
            done=self.schedule.done_count,
            failed=self.schedule.failed,
            stopped=self.stopped_at is not None and not self.schedule.finished,
            requeued=self.schedule.requeued_count,
            replicas_lost=self.lost,
            given_up=tuple(self.given_up),
            seconds=time.monotonic() - self.began,
        )

    def staff(self) -> None:
        """Start replicas until there are as many as wanted, while there is work to hand out."""
        if self.stopped_at is not None or not self.schedule.waiting:
            return
        if len(self.members) == self.wanted or time.monotonic() < self.no_start_before:
            return
        if self.given_up and self.members and not any(m.up for m in self.members.values()):
            return  # whether it was that replica's place shows when another is up, or is not
        self.look_at_nodes()
        while len(self.members) < self.room:
            replica = Replica(
                self.started,
                self.spec,
                in_flight=self.in_flight,
                avoid=self.avoided,
                code=self.code,
            )
            member = _Member(replica, time.monotonic(), set(replica.starting))
            self.members[replica.number] = member
            self.watched.update(dict.fromkeys(replica.starting, member))
            self.started += 1
            self.tell("replica_starting", replica=replica.number)

    def look_at_nodes(self) -> None:
        """How many replicas there is room for now; nothing is started that has no place."""
        now = time.monotonic()
        if now < self.room_known_until:
            return
        room = self.count_room()
        if not room and not self.members and self.avoided:  # rather those than none
            self.avoided.clear()
            room = self.count_room()
        if room != self.room and room < self.wanted:
            self.tell("nodes_too_few", reason=f"room for {room} of {self.wanted} replicas")
        self.room, self.room_known_until = room, now + _NODES_S
        if room:
            self.without_room_since = None
        elif self.without_room_since is None:
            self.without_room_since = now
        elif now - self.without_room_since > self.start_timeout_s:
            nodes = self.session.nodes()
            check_demand(nodes, self.spec.demand, placement=self.spec.placement, replicas=1)

    def count_room(self) -> int:
        return replicas_that_fit(
            self.session.nodes(without=self.avoided),
            self.spec.demand,
            placement=self.spec.placement,
            wanted=self.wanted,
        )

    def deal(self) -> None:
        """Hand out units to every replica that has room."""
        if self.stopped_at is not None:
            return
        for number, member in self.members.items():
            while member.up and (attempt := self.schedule.take(number)):
                ref = member.replica.run(attempt.unit)
                self.watched[ref] = _Flight(member, attempt, time.monotonic())

    def listen(self) -> None:
        """Wait for an answer, or a moment; then hear all that have come."""
        if not self.watched:  # every node is gone
            self.session.stop.wait(_POLL_S)
            return
        refs = list(self.watched)
        answered, waiting = ray.wait(refs, num_returns=1, timeout=_POLL_S, fetch_local=False)
        if answered and waiting:
            more, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0, fetch_local=False)
            answered += more
        for ref in answered:
            match self.watched.pop(ref, None):  # None: of a replica that was lost just now
                case _Member() as member:
                    self.hear_start(member, ref)
                case _Flight() as flight:
                    self.hear_stage(flight, ref)

    def hear_start(self, member: _Member, ref: Ref) -> None:
        try:
            ray.get(ref)
        except ray.exceptions.RayError as error:
            cause = cause_of(error)
            if isinstance(cause, DeviceFailed | DeviceOutOfMemory):
                self.count_device_fault(member, cause)
                self.start_failed(member, cause)
            elif isinstance(cause, ActlakeError):
                self.give_up(member, cause)
            elif isinstance(cause, ray.exceptions.RayError | OSError):
                self.start_failed(member, cause)  # a process, a place or a disk: may come right
            else:  # a missing package, a wrong option: the same at every attempt
                self.give_up(member, _cannot_be_made(cause))
            return
        member.starting.remove(ref)
        if member.up:
            number = member.replica.number
            member.since = time.monotonic()
            self.starts_failed_in_a_row = 0
            self.schedule.join(number)
            self.tell("replica_up", replica=number)

    def hear_stage(self, flight: _Flight, ref: Ref) -> None:
        try:
            receipt, messages = ray.get(ref)
        except LOST as lost:
            self.lose(flight.member, reason(lost))
            return
        except ray.exceptions.RayError as error:
            cause = _as_ours(error)
            if isinstance(cause, DeviceFailed | DeviceOutOfMemory):
                self.count_device_fault(flight.member, cause)
                self.lose(flight.member, str(cause))
                return
            if not isinstance(cause, StoreNotWritable):
                raise cause from None
            self.give_up(flight.member, cause)
            return
        flight.member.since = now = time.monotonic()
        flight.receipts.append(receipt)
        unit, number = flight.attempt.unit, flight.member.replica.number
        stage = len(flight.receipts)
        if stage < len(self.spec.stages):
            rest = flight.member.replica.finish(unit, stage=stage, messages=messages)
            self.watched[rest] = flight
            return
        timing = UnitTiming(number, flight.attempt.number, now - flight.dispatched)
        try:
            self.on_done(unit, flight.receipts, timing)
        except StoreMismatch as mismatch:
            self.give_up(flight.member, mismatch)
            return
        self.schedule.done(number, unit)
        flight.member.since = time.monotonic()  # the time `on_done` took is not the replica's
        self.lost_in_a_row = 0

    def give_up(self, member: _Member, cause: ActlakeError) -> None:
        """Go on without a replica that cannot work where it is, while there are others that may.

        Where none does, more would only be tried on every node with the same end: the last one's
        error is the run's.
        """
        if len(self.members) == 1:
            raise cause from None
        self.avoided |= member.replica.nodes()
        why = f"given up, and its node avoided: {cause}"
        self.given_up.append(f"replica {member.replica.number}, {why}")
        self.lose(member, why, blame=False)

    def count_device_fault(self, member: _Member, fault: DeviceFailed | DeviceOutOfMemory) -> None:
        """Remember where a device failed; avoid a place where that happens again."""
        for node in {fault.node} if fault.node else member.replica.nodes():
            self.device_faults[node] += 1
            if self.device_faults[node] == DEVICE_FAULTS:
                self.avoided.add(node)
                self.room_known_until = 0.0
                self.tell(
                    "node_avoided",
                    replica=member.replica.number,
                    reason=f"{DEVICE_FAULTS} faults of its devices, the last one: {fault}",
                )

    def start_failed(self, member: _Member, cause: Exception) -> None:
        self.starts_failed_in_a_row += 1
        self.lose(member, f"did not start: {reason(cause)}")
        too_many = self.starts_failed_in_a_row - STARTS_IN_A_ROW
        if too_many >= 0 and any(other.up for other in self.members.values()):
            pause = min(_BACK_OFF_S * 2**too_many, _LONGEST_BACK_OFF_S)
            self.no_start_before = time.monotonic() + pause
        elif too_many >= 0:
            raise ReplicaStartFailed(
                f"Replicas failed to start {self.starts_failed_in_a_row} times in a row, the "
                f"last one with\n  {reason(cause)}\n"
                f"each asks for {' then '.join(map(str, self.spec.demand))}; free now is "
                f"{self.session.free()}\n{_hint_of_start(cause)}"
            ) from cause

    def refs_of(self, member: _Member) -> list[Ref]:
        """What is waited for from a replica."""
        return [
            ref
            for ref, watched in self.watched.items()
            if (watched.member if isinstance(watched, _Flight) else watched) is member
        ]

    def lose(self, member: _Member, why: str, *, blame: bool = True) -> None:
        """Fence a replica and take its units back; `blame`: one of them may be the reason."""
        number = member.replica.number
        member.replica.fence()
        del self.members[number]
        for ref in self.refs_of(member):
            del self.watched[ref]
        self.lost += 1
        self.room_known_until = 0.0  # its node may be gone
        self.tell("replica_lost", replica=number, reason=why)
        leaving = self.schedule.leave(number, why, blame=blame)
        for unit in leaving.requeued:
            self.tell("unit_requeued", replica=number, unit=unit, reason=why)
        for unit in leaving.failed:
            self.tell("unit_failed", replica=number, unit=unit, reason=why)
        if leaving.requeued or leaving.failed:
            self.lost_in_a_row += 1
        if self.lost_in_a_row > self.losses_allowed:
            raise ReplicasKeepDying(
                f"{self.lost_in_a_row} replicas were lost in a row and not one unit was finished "
                f"in between, the last one by\n  {why}\n"
                f"set aside so far: {len(self.schedule.failed)} units"
                + ("" if "hint: " in why else f"\n{_HINT_OF_DEATHS}")
            )

    def check_clocks(self) -> None:
        now = time.monotonic()
        if now < self.next_check:
            return
        self.next_check = now + _POLL_S
        oldest = self.oldest_flights()
        for member in list(self.members.values()):
            number = member.replica.number
            silent_s = now - max(member.since, oldest.get(number, member.since))
            limit_s = self.unit_timeout_s if member.up else self.start_timeout_s
            idle = member.up and not self.schedule.held(number)
            if not idle and limit_s is not None and silent_s > limit_s:
                self.silent(member, limit_s)
            elif not member.up and silent_s > _SLOW_START_S and not member.is_slow:
                member.is_slow = True
                free = f"still starting; free on the cluster are {self.session.free()}"
                self.tell("replica_slow", replica=number, reason=free)

    def silent(self, member: _Member, limit_s: float) -> None:
        """Lose a replica that did not answer in time; not one that was not listened to."""
        answered, _ = ray.wait(self.refs_of(member), timeout=0, fetch_local=False)
        if answered:
            return
        if member.up:
            self.lose(member, f"no unit finished within {limit_s:g} s")
        else:
            self.start_failed(member, TimeoutError(f"not ready after {limit_s:g} s"))

    def oldest_flights(self) -> dict[int, float]:
        """By replica, when the unit it holds longest was handed out."""
        oldest: dict[int, float] = {}
        for flight in self.watched.values():
            if isinstance(flight, _Flight):
                number = flight.member.replica.number
                oldest[number] = min(flight.dispatched, oldest.get(number, flight.dispatched))
        return oldest

    def tell(
        self,
        kind: EventKind,
        *,
        replica: int | None = None,
        unit: int | None = None,
        reason: str = "",
    ) -> None:
        event = PoolEvent(kind, time.monotonic() - self.began, replica, unit, reason)
        level = logging.WARNING if kind in _BAD else logging.INFO
        logger.log(level, "%s", event)
        if self.on_event is not None:
            self.on_event(event)


_HINT_OF_DEATHS = (
    "hint: this is the machines, the memory or the code rather than single units; run one unit in "
    "one process to see"
)


def _hint_of_start(cause: Exception) -> str:
    """What to do about replicas that do not come up, by why they do not."""
    if isinstance(cause, DeviceFailed | DeviceOutOfMemory):
        return "hint: look at what else is on these devices; `actlake doctor` lists them"
    if isinstance(cause, TimeoutError):
        return "hint: is the cluster's other work done? `actlake doctor` looks at the cluster"
    if isinstance(cause, LOST):
        return "hint: a process that dies at once was often out of memory: has a worker enough?"
    return "hint: `actlake doctor` looks at the cluster, its disks and its memory"


def _cannot_be_made(cause: Exception) -> WorkerFailed:
    """A worker whose constructor fails whenever and wherever it is called, in our words."""
    failure = WorkerFailed(
        f"A worker cannot be made: {type(cause).__name__}: {first_line(cause)}\n"
        "hint: this is the same at every attempt, so look at the packages and options that it "
        "names; every node needs the same ones"
    )
    failure.__cause__ = cause
    for note in getattr(cause, "__notes__", ()):
        failure.add_note(note)
    return failure


def _as_ours(error: Exception) -> Exception:
    """A worker's exception as it was raised; an error of Ray's own in our words."""
    cause = cause_of(error)
    if isinstance(cause, ray.exceptions.ObjectStoreFullError):
        return ClusterError(
            f"The object store is full of messages between stages\n{reason(cause)}\n"
            "hint: a larger `object_store_mb`, fewer `messages_in_flight`, or smaller batches"
        )
    if isinstance(cause, ray.exceptions.RayError):
        return ClusterError(f"The cluster failed at a unit\n{reason(cause)}")
    return cause
