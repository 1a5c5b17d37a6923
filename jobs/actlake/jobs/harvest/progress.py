"""How far a harvest is: for a terminal, for a log, for the tracker, for a notebook elsewhere.

The numbers are kept once (`Tally`) and shown by `HarvestProgress`: a bar on a terminal, a line
every ten seconds in a log, ``log/status.json`` beside the store, and gauges for Prometheus.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from actlake.jobs.harvest.actors import Actors
from actlake.storage.location import Location
from actlake.storage.summary import human_bytes

logger = logging.getLogger(__name__)

_LINE_EVERY_S = 10.0
_STATUS_EVERY_S = 2.0
STATUS = "log/status.json"


@dataclass(slots=True)
class Tally:
    """What was done since this harvest began, and what there is to do."""

    total_rows: int
    total_units: int
    rows_before: int
    units_before: int
    rows: int = 0
    units: int = 0
    num_bytes: int = 0
    num_tokens: int = 0
    compute_s: float = 0.0
    write_s: float = 0.0
    requeued: int = 0
    nonfinite: int = 0
    rows_by_replica: Counter[int] = field(default_factory=Counter)
    actors: Actors = field(default_factory=Actors)
    """Replicas and stages one by one; see `actlake.jobs.harvest.actors`."""
    began: float = field(default_factory=time.monotonic)
    """When the first replica was ready; loading is not part of the rate."""

    def restart_clock(self) -> None:
        """Count from now: the first replica is ready."""
        self.began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the first replica was ready."""
        return max(1e-9, time.monotonic() - self.began)

    @property
    def rows_per_s(self) -> float:
        """New rows a second; a token is a row."""
        return self.rows / self.seconds

    @property
    def eta_s(self) -> float | None:
        """Seconds to go at this rate; None before the first unit."""
        left = self.total_rows - self.rows_before - self.rows
        return left / self.rows_per_s if self.rows else None

    def numbers(self) -> dict[str, float]:
        """As metrics."""
        return {
            "harvest/rows": self.rows_before + self.rows,
            "harvest/units": self.units_before + self.units,
            "harvest/tokens_per_s": self.rows_per_s,
            "harvest/mb_per_s": self.num_bytes / self.seconds / 1e6,
            "harvest/bytes": self.num_bytes,
            "harvest/compute_s": self.compute_s,
            "harvest/write_s": self.write_s,
            "harvest/units_requeued": self.requeued,
            "harvest/nonfinite": self.nonfinite,
            **{
                f"harvest/replica_{replica}/tokens_per_s": rows / self.seconds
                for replica, rows in self.rows_by_replica.items()
            },
            **self.actors.numbers(),
        }

    def __str__(self) -> str:
        """One line for a person."""
        done = self.units_before + self.units
        line = (
            f"{done:,} of {self.total_units:,} units, {self.rows_per_s:,.0f} tokens/s, "
            f"{human_bytes(self.num_bytes / self.seconds)}/s"
        )
        if len(self.rows_by_replica) > 1:
            each = sorted(self.rows_by_replica.items())
            rates = ", ".join(f"{number}: {rows / self.seconds:,.0f}" for number, rows in each)
            line += f" (replica {rates})"
        for replica, share in self.actors.stragglers().items():
            line += f", replica {replica} lags at {share:.0%}"
        if self.requeued:
            line += f", {self.requeued} units requeued"
        return line if self.eta_s is None else f"{line}, {_clock(self.eta_s)} to go"


class HarvestProgress:
    """Shows a `Tally` as it grows; a context manager."""

    def __init__(
        self,
        tally: Tally,
        location: Location,
        *,
        console: Console,
        gauges: Callable[[Mapping[str, float]], None] = lambda numbers: None,
    ) -> None:
        self.tally = tally
        self._gauges = gauges
        self._location = location
        self._console = console
        self._bar = Progress(
            TextColumn("harvest"), BarColumn(), TextColumn("{task.fields[line]}"), console=console
        )
        done = tally.rows_before
        self._task = self._bar.add_task("", total=tally.total_rows, completed=done, line="")
        self._next_line = time.monotonic() + _LINE_EVERY_S
        self._next_status = 0.0

    @contextmanager
    def showing(self) -> Iterator["HarvestProgress"]:
        """Show progress while the body runs; the last status is written at its end."""
        if self._console.is_terminal:
            self._bar.start()
        try:
            yield self
        finally:
            self._bar.stop() if self._console.is_terminal else None
            self._write_status(running=False)

    def update(self) -> None:
        """Show the tally as it is now, if it is time to."""
        now = time.monotonic()
        if self._console.is_terminal:
            done = self.tally.rows_before + self.tally.rows
            self._bar.update(self._task, completed=done, line=str(self.tally))
        elif now >= self._next_line:
            self._next_line = now + _LINE_EVERY_S
            logger.info("%s", self.tally)
        if now >= self._next_status:
            self._next_status = now + _STATUS_EVERY_S
            self.tally.actors.watch()
            self._write_status(running=True)

    def _write_status(self, *, running: bool) -> None:
        status: Mapping[str, Any] = {
            "running": running,
            "line": str(self.tally),
            "eta_s": self.tally.eta_s,
            **self.tally.numbers(),
            "actors": self.tally.actors.table(),
        }
        self._gauges(self.tally.numbers())
        self._location.write(STATUS, [json.dumps(status, indent=1).encode()])


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
