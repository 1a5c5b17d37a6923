"""Which unit a replica does next, how often it was tried, what is set aside (pure).

The pool's decisions without its machinery: no Ray, no clock, no threads.

    units ──► fresh ──take──► in flight ──done──► counted once
                 ▲                │
                 └─── retry ◄──leave (replica lost)──► failed, after `max_attempts`

When a replica is lost, one of the units it held may be the reason, and nobody can say which.
All go back to the front, and from then on each is tried *alone* on a replica: a poison unit
then takes no innocent neighbour with it, and is the only one whose attempts run out.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Attempt:
    """One unit handed to a replica."""

    unit: int
    number: int
    """1 for the first time."""


@dataclass(slots=True)
class _Suspect:
    """A unit that lost its replica at least once."""

    unit: int
    reasons: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Leaving:
    """What became of the units a lost replica held."""

    requeued: tuple[int, ...]
    failed: tuple[int, ...]


class Schedule:
    """Deals units to replicas. `units` is read one ahead of what replicas have taken.

    Memory: the units in flight, those waiting for another attempt, and those set aside.
    """

    def __init__(self, units: Iterable[int], *, in_flight: int, max_attempts: int) -> None:
        self.failed: dict[int, tuple[str, ...]] = {}
        self.done_count = 0
        self.requeued_count = 0
        self._fresh: Iterator[int] = iter(units)
        self._next_fresh = next(self._fresh, None)
        self._retry: deque[_Suspect] = deque()
        self._suspects: dict[int, _Suspect] = {}  # in flight, by unit
        self._held: dict[int, dict[int, Attempt]] = {}  # by replica, then unit, oldest first
        self._emptying: set[int] = set()  # replicas that take nothing until they are idle
        self._in_flight = in_flight
        self._max_attempts = max_attempts

    def join(self, replica: int) -> None:
        """A replica is ready for work."""
        assert replica not in self._held, replica
        self._held[replica] = {}

    def take(self, replica: int) -> Attempt | None:
        """The next unit for this replica, or None if it should get none now."""
        held = self._held[replica]
        if len(held) >= self._in_flight or any(unit in self._suspects for unit in held):
            return None
        if self._retry:
            if not held:
                self._emptying.discard(replica)
                return self._take_suspect(replica)
            if replica in self._emptying or len(self._emptying) < len(self._retry):
                self._emptying.add(replica)
                return None
        self._emptying.discard(replica)
        if self._next_fresh is None:
            return None
        attempt = held[self._next_fresh] = Attempt(self._next_fresh, 1)
        self._next_fresh = next(self._fresh, None)
        return attempt

    def _take_suspect(self, replica: int) -> Attempt:
        suspect = self._retry.popleft()
        self._suspects[suspect.unit] = suspect
        attempt = Attempt(suspect.unit, len(suspect.reasons) + 1)
        self._held[replica][suspect.unit] = attempt
        return attempt

    def done(self, replica: int, unit: int) -> None:
        """All stages of this replica have finished the unit."""
        del self._held[replica][unit]
        self._suspects.pop(unit, None)
        self.done_count += 1

    def leave(self, replica: int, reason: str, *, blame: bool = True) -> Leaving:
        """The replica is gone; its units go back to the front, or aside if tried too often.

        Without `blame` no unit can have been the reason, and none of them counts an attempt.
        """
        held = self._held.pop(replica, {})
        self._emptying.discard(replica)
        back: list[_Suspect] = []
        failed: list[int] = []
        for unit in held:
            suspect = self._suspects.pop(unit, None) or _Suspect(unit)
            if blame:
                suspect.reasons.append(reason)
            if len(suspect.reasons) >= self._max_attempts:
                self.failed[unit] = tuple(suspect.reasons)
                failed.append(unit)
            else:
                back.append(suspect)
        self._retry.extendleft(reversed(back))
        self.requeued_count += len(back)
        return Leaving(tuple(suspect.unit for suspect in back), tuple(failed))

    def held(self, replica: int) -> tuple[int, ...]:
        """The units this replica has now, oldest first."""
        return tuple(self._held.get(replica, ()))

    @property
    def waiting(self) -> bool:
        """There are units that no replica holds."""
        return bool(self._retry) or self._next_fresh is not None

    @property
    def idle(self) -> bool:
        """No replica holds a unit."""
        return not any(self._held.values())

    @property
    def finished(self) -> bool:
        """Every unit is done or set aside."""
        return self.idle and not self.waiting
