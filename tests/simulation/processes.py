"""Processes of a simulation: a program on its way, with its background deeds and its clock."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from greenlet import getcurrent, greenlet

from actlake.storage.errors import StoreError

if TYPE_CHECKING:
    from simulation.world import World


class Crashed(BaseException):
    """The process is gone: not an error that a program could handle."""


Program = Callable[["Process"], Any]


@dataclass(eq=False)
class Process:
    """A program on its way, with what became of it."""

    name: str
    world: "World"
    program: Program
    number: int
    is_suspended: bool = True
    is_dead: bool = False
    is_done: bool = False
    result: Any = None
    refusal: StoreError | None = None
    """The error in our words with which it ended."""
    error: BaseException | None = None
    """Any other error with which it ended: always a fault."""
    ended_at: int | None = None
    """How many steps there were when it was over."""
    actors: list["Actor"] = field(default_factory=list)

    @property
    def has_begun(self) -> bool:
        """Whether it has had its first turn."""
        return self.is_over or bool(self.actors[0].greenlet)

    @property
    def is_over(self) -> bool:
        """Whether it has ended or was ended."""
        return self.is_dead or self.is_done

    @property
    def clock(self) -> "ProcessClock":
        """The clock of the locations that it opens."""
        return ProcessClock(self)

    def run(self) -> None:
        """Go through the program to its end."""
        try:
            self.result = self.program(self)
        except StoreError as refusal:
            self.refusal = refusal
        except Crashed:
            self.is_dead = True
        except Exception as error:
            self.error = error
        self.ended_at = len(self.world.trace)
        if not self.is_dead:
            self.is_done = True
            self.world.end_actors(self)


@dataclass(eq=False)
class Actor:
    """A thread of a process: its program, or a deed that is repeated in the background."""

    process: Process
    body: Callable[[], None]
    wakes_at: float | None = None
    greenlet: greenlet = field(init=False)

    def __post_init__(self) -> None:
        self.greenlet = greenlet(self.body)
        self.greenlet.actor = self

    @property
    def is_over(self) -> bool:
        """Whether it has come to its end."""
        return self.greenlet.dead


@dataclass(frozen=True)
class ProcessClock:
    """What a process takes for its clock; see `actlake.storage.clock.Clock`."""

    process: Process

    def now(self) -> float:
        """See `Clock.now`."""
        return self.process.world.now

    def sleep(self, seconds: float) -> None:
        """See `Clock.sleep`."""
        self.process.world.sleep(seconds)

    def repeat(self, deed: Callable[[], bool], *, every_s: float) -> Callable[[], None]:
        """See `Clock.repeat`; a second actor of the process."""
        world = self.process.world
        state = {"ended": False, "busy": False}

        def keep_doing() -> None:
            try:
                while not state["ended"]:
                    state["busy"] = True
                    goes_on = deed()
                    state["busy"] = False
                    if not goes_on:
                        return
                    world.sleep(every_s)
            except Crashed:
                return

        beater = Actor(self.process, keep_doing)
        self.process.actors.append(beater)
        beater.wakes_at = world.now + every_s

        def end() -> None:
            state["ended"] = True
            while state["busy"] and not beater.is_over:
                world.let(beater)
            if beater.greenlet:
                beater.greenlet.parent = getcurrent()
                beater.greenlet.throw(Crashed)
            self.process.actors.remove(beater)

        return end
