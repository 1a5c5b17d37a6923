"""What the workers of a training tell of their speed, and which of them keeps the others back."""

from collections.abc import Mapping
from typing import Any

from actlake.jobs.sae import means as named

_NOTABLE = 0.05
"""Difference of shares, or of speeds, below which no worker is called the slowest."""


class Speeds:
    """The latest numbers of each rank, for a person.

    Parameters
    ----------
    share
        The ranks share the rows of each step, and so all have the speed of the slowest: that is
        the one which waits least for the others. Else each has a speed of its own.
    """

    def __init__(self, *, share: bool) -> None:
        self._share = share
        self._numbers: dict[int, Mapping[str, float]] = {}

    def hear(self, rank: int, news: Mapping[str, Any]) -> None:
        """Take what a rank has reported; news without a speed change nothing."""
        if named.SPEED in news:
            self._numbers[rank] = news

    @property
    def slowest(self) -> int | None:
        """The rank that keeps the others back, if one does."""
        if len(self._numbers) < 2:
            return None
        name = named.EXCHANGING if self._share else named.SPEED
        values = {rank: numbers.get(name, 0.0) for rank, numbers in self._numbers.items()}
        rank = min(values, key=lambda rank: values[rank])
        highest = max(values.values())
        notable = _NOTABLE if self._share else _NOTABLE * highest
        return rank if highest - values[rank] > notable else None

    def __str__(self) -> str:
        """One line; empty before the first news."""
        if not self._numbers:
            return ""
        speeds = [numbers[named.SPEED] for numbers in self._numbers.values()]
        speed = min(speeds) if self._share else sum(speeds)
        waits = {rank: numbers[named.WAITING] for rank, numbers in sorted(self._numbers.items())}
        if len(waits) == 1:
            return f"{speed:,.0f} rows/s, waiting for rows {next(iter(waits.values())):.0%}"
        each = ", ".join(f"rank {rank}: {share:.0%}" for rank, share in waits.items())
        line = f"{speed:,.0f} rows/s, waiting for rows {each}"
        return line if self.slowest is None else f"{line}; rank {self.slowest} is the slowest"
