"""Extents: which rows belong to which unit of work. Pure arithmetic.

The rows of a store are cut into *units* of one fixed size; unit ``u`` is one shard file of
every site. A unit is written by one process at a time and becomes visible as a whole.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, order=True, slots=True)
class Extent:
    """The half-open range ``start <= i < stop`` of rows, contexts or units."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        assert 0 <= self.start <= self.stop, (self.start, self.stop)

    def __len__(self) -> int:
        return self.stop - self.start

    def __contains__(self, index: int) -> bool:
        return self.start <= index < self.stop

    def intersect(self, other: "Extent") -> "Extent":
        """What both hold; empty where they do not meet."""
        start = max(self.start, other.start)
        return Extent(start, max(start, min(self.stop, other.stop)))

    def pieces(self, length: int) -> Iterator["Extent"]:
        """It in pieces of `length`, of which the last may be shorter."""
        for start in range(self.start, self.stop, length):
            yield Extent(start, min(start + length, self.stop))

    def slice(self) -> slice:
        """As a slice, to index an array with."""
        return slice(self.start, self.stop)


def block_extent(index: int, *, block: int, total: int) -> Extent:
    """The `index`-th block of `block` items out of `total`; only the last may be shorter."""
    return Extent(min(index * block, total), min((index + 1) * block, total))


def num_blocks(*, block: int, total: int) -> int:
    """How many blocks of `block` items hold `total` items."""
    return -(-total // block)


class UnitSet:
    """A set of unit numbers, kept as sorted runs, so that a nearly full set stays small.

    Ten million units of which all are present are one run.
    """

    def __init__(self, runs: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        for start, stop in runs:
            self.add(start, stop)

    def add(self, start: int, stop: int | None = None) -> None:
        """Put in one unit, or all units of ``start <= u < stop``."""
        stop = start + 1 if stop is None else stop
        if start >= stop:
            return
        first = bisect_left(self._stops, start)  # the first run that touches or follows
        last = bisect_right(self._starts, stop)  # one past the last run that touches
        if first < last:
            start = min(start, self._starts[first])
            stop = max(stop, self._stops[last - 1])
        self._starts[first:last] = [start]
        self._stops[first:last] = [stop]

    def discard(self, start: int, stop: int | None = None) -> None:
        """Take out one unit, or all units of ``start <= u < stop``."""
        stop = start + 1 if stop is None else stop
        if start >= stop:
            return
        first = bisect_right(self._stops, start)
        last = bisect_left(self._starts, stop)
        if first >= last:
            return
        kept = [(self._starts[first], start), (stop, self._stops[last - 1])]
        kept = [(a, b) for a, b in kept if a < b]
        self._starts[first:last] = [a for a, _ in kept]
        self._stops[first:last] = [b for _, b in kept]

    def update(self, other: "UnitSet") -> None:
        """Put in all units of `other`."""
        for start, stop in other.runs():
            self.add(start, stop)

    def difference_update(self, other: "UnitSet") -> None:
        """Take out all units of `other`."""
        for start, stop in other.runs():
            self.discard(start, stop)

    def intersection(self, other: "UnitSet") -> "UnitSet":
        """The units that are in both."""
        both = UnitSet(self.runs())
        end = max([0, *self._stops])
        both.difference_update(UnitSet(other.gaps(end)))
        return both

    def covers(self, start: int, stop: int) -> bool:
        """Whether all units of ``start <= u < stop`` are in the set."""
        run = bisect_right(self._starts, start) - 1
        return run >= 0 and stop <= self._stops[run]

    def meets(self, start: int, stop: int) -> bool:
        """Whether any unit of ``start <= u < stop`` is in the set."""
        run = bisect_right(self._stops, start)
        return run < len(self._starts) and self._starts[run] < stop

    def without(self, other: "UnitSet") -> "UnitSet":
        """The units that are in this one alone."""
        left = UnitSet(self.runs())
        left.difference_update(other)
        return left

    def runs(self) -> list[tuple[int, int]]:
        """The set as sorted ``(start, stop)`` pairs that do not touch."""
        return list(zip(self._starts, self._stops, strict=True))

    def gaps(self, total: int) -> Iterator[tuple[int, int]]:
        """The ``(start, stop)`` runs of ``0 <= u < total`` that are not in the set."""
        start = 0
        for run_start, run_stop in zip(self._starts, self._stops, strict=True):
            if run_start >= total:
                break
            if start < run_start:
                yield start, run_start
            start = run_stop
        if start < total:
            yield start, total

    def __contains__(self, unit: int) -> bool:
        run = bisect_right(self._starts, unit) - 1
        return run >= 0 and unit < self._stops[run]

    def __iter__(self) -> Iterator[int]:
        for start, stop in self.runs():
            yield from range(start, stop)

    def __len__(self) -> int:
        return sum(self._stops) - sum(self._starts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UnitSet) and self.runs() == other.runs()

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return f"UnitSet({self.runs()})"
