"""Processes that take turns at one store, by a schedule, on a clock that only this file moves.

Every call to the storage is a *step*. Before it is done the schedule may put another process in
its place, end the process, cut the power, or let the call fail. All of it runs in one thread:
each process is a greenlet, so a schedule always gives the same run.

Without a decision the process that runs goes on; a suspended one wakes when those that were put
in its place have ended.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from greenlet import getcurrent
from simulation.processes import Actor, Crashed, Process, Program
from simulation.schedules import Act, Decision

MOST_STEPS = 20_000


class EndlessRun(AssertionError):
    """A program does not come to its end."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call to the storage, and what it depends on."""

    name: str
    reads: frozenset[str] = frozenset()
    """Names whose contents or being there the call sees."""
    writes: frozenset[str] = frozenset()
    """Names whose contents or being there it changes."""
    lists: frozenset[str] = frozenset()
    """Folders whose names it sees."""
    renames: frozenset[str] = frozenset()
    """Folders in which names come or go."""
    syncs: bool = False
    """Whether it makes something durable."""

    def depends_on(self, other: "Call") -> bool:
        """Whether the order of the two can matter to either, or to anybody later."""
        return bool(
            self.writes & other.writes
            or self.writes & other.reads
            or self.reads & other.writes
            or self.lists & other.renames
            or self.renames & other.lists
        )


@dataclass(frozen=True, slots=True)
class Fault:
    """How a call fails."""

    is_done: bool
    """Whether it is done nevertheless, and only the answer is lost."""


@dataclass(frozen=True, slots=True)
class Step:
    """One entry of the trace of a run."""

    process: str
    call: Call

    def __str__(self) -> str:
        return f"{self.process:3} {self.call.name}"


Decide = Callable[["World", Call], Decision | None]


class World:
    """Runs processes to their ends.

    Parameters
    ----------
    decide
        The schedule: what happens before a call, or None to go on.
    on_power_loss
        What the storage does when the power is cut: called with the decision.
    name
        Processes of one world do not know those of another.
    """

    def __init__(
        self,
        decide: Decide = lambda world, call: None,
        *,
        on_power_loss: Callable[[Decision], None] = lambda decision: None,
        name: str = "before",
    ) -> None:
        self.name = name
        self.decide = decide
        self.trace: list[Step] = []
        self.decisions: list[Decision] = []
        self.now = 0.0
        self.processes: list[Process] = []
        self._on_power_loss = on_power_loss
        self._resting: list[Process] = []  # suspended, or not begun; the last rests least
        self._wanted: Actor | None = None
        self._hub = getcurrent()

    def start(self, name: str, program: Program) -> Process:
        """Add a process, which begins when those before it have ended, or earlier by decision."""
        process = Process(name, self, program, len(self.processes) + 1)
        process.actors.append(Actor(process, process.run))
        self.processes.append(process)
        self._resting.insert(0, process)
        return process

    def run(self) -> None:
        """Let all processes come to their ends."""
        while (actor := self._next()) is not None:
            self._switch(actor)

    def process(self, name: str) -> Process:
        """The process of that name."""
        return next(process for process in self.processes if process.name == name)

    @property
    def running(self) -> Process | None:
        """The process whose turn it is; None outside of all."""
        actor = getattr(getcurrent(), "actor", None)
        return None if actor is None else actor.process

    def step(self, call: Call) -> Fault | None:
        """Called before each call of a process: here others take their turns.

        How the call is to fail is returned, or None.
        """
        process = self.running
        if process is None:  # the test itself looks
            return None
        if process.is_dead:
            raise Crashed
        number = len(self.trace)
        self.trace.append(Step(process.name, call))
        if number > MOST_STEPS:
            raise EndlessRun(f"{number} steps, the last: {call.name}")
        decision = self.decide(self, call)
        if decision is None:
            return None
        self.decisions.append(decision)
        return self._obey(decision, process)

    def _obey(self, decision: Decision, process: Process) -> Fault | None:
        act = decision.act
        if act in (Act.FAIL, Act.LOSE_ANSWER):
            return Fault(is_done=act is Act.LOSE_ANSWER)
        if act is Act.CRASH:
            self._kill(process)
        elif act in (Act.POWER_LOSS, Act.POWER_LOSS_SOME):
            self._on_power_loss(decision)
            for other in self.processes:
                if other.has_begun and not other.is_over:
                    self._kill(other)
        elif act is Act.TIME:
            self._pass_time()
            self._yield()
        else:
            if act is Act.SUSPEND:
                process.is_suspended = True
                self._resting.append(process)
            other = self.process(decision.who)
            assert not other.is_over, f"{decision}: {other.name} has ended"
            self._wake(other)
            self._wanted = next(actor for actor in other.actors if not actor.is_over)
            self._yield()
        if process.is_dead:
            raise Crashed
        return None

    # Turns.

    def _yield(self) -> None:
        self._hub.switch()

    def _switch(self, actor: Actor) -> None:
        actor.greenlet.parent = self._hub
        actor.greenlet.switch()

    def _wake(self, process: Process) -> None:
        process.is_suspended = False
        if process in self._resting:
            self._resting.remove(process)

    def _awake(self) -> Iterator[Actor]:
        for process in self.processes:
            if not process.is_suspended and not process.is_over:
                yield from (actor for actor in process.actors if not actor.is_over)

    def _next(self) -> Actor | None:
        while True:
            wanted, self._wanted = self._wanted, None
            if wanted is not None and self._is_ready(wanted):
                return wanted
            for actor in self._awake():
                if self._is_ready(actor):
                    return actor
            if self._pass_time():
                continue
            if not self._resting:
                return None
            self._wake(self._resting[-1])

    def _is_ready(self, actor: Actor) -> bool:
        return actor.wakes_at is None or actor.wakes_at <= self.now

    def _pass_time(self) -> bool:
        """Let the clock jump to where the next waiting process wakes, if one waits."""
        waiting = [a for a in self._awake() if a.wakes_at is not None and a.wakes_at > self.now]
        if not waiting:
            return False
        first = min(waiting, key=lambda actor: actor.wakes_at or 0.0)
        self.now = first.wakes_at or 0.0
        self._wanted = first
        return True

    # Ends.

    def _kill(self, process: Process) -> None:
        """End it as SIGKILL does; where it is the one that runs, the caller raises `Crashed`."""
        process.is_dead = True
        process.ended_at = len(self.trace)
        if process in self._resting:
            self._resting.remove(process)
        self.end_actors(process)

    def end_actors(self, process: Process) -> None:
        """End what a process that is over still has in the background."""
        for actor in process.actors:
            if actor.greenlet is not getcurrent() and actor.greenlet:
                actor.greenlet.parent = getcurrent()
                actor.greenlet.throw(Crashed)

    def close(self) -> None:
        """End whatever still runs."""
        for process in self.processes:
            if not process.is_over:
                self._kill(process)

    # Time.

    def sleep(self, seconds: float) -> None:
        """Let the actor that runs wait."""
        actor: Actor = getcurrent().actor
        actor.wakes_at = self.now + seconds
        self._yield()
        actor.wakes_at = None
        if actor.process.is_dead:
            raise Crashed

    def let(self, other: Actor) -> None:
        """Let another actor of the same process have the turn first."""
        self._wanted = other
        self._yield()
        if other.process.is_dead:
            raise Crashed
