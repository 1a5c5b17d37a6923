"""How far a harvest is: for a terminal, for a log, for the tracker, for a notebook elsewhere.

The numbers are kept once (`Tally`) and shown by `HarvestProgress`: a bar on a terminal, a line
every ten seconds in a log, ``log/status.json`` beside the store, and gauges for Prometheus.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from actlake.jobs.harvest.actors import Actors, Look
from actlake.jobs.harvest.worker import UnitReceipt
from actlake.storage.errors import ActlakeError
from actlake.storage.location import Location
from actlake.storage.summary import human_bytes

logger = logging.getLogger(__name__)

_LINE_EVERY_S = 10.0
_ACTORS_EVERY_S = 10.0
_BAR_EVERY_S = 0.2
_STATUS_EVERY_S = 2.0
STATUS = "log/status.json"
_REPLICAS_IN_A_LINE = 8


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
    actors: Actors = field(default_factory=Actors)
    """Replicas and stages one by one; see `actlake.jobs.harvest.actors`."""
    began: float = field(default_factory=time.monotonic)
    """When the first replica was ready; loading is not part of the rate."""

    def count(self, rows: int, receipts: Sequence[UnitReceipt], *, replica: int) -> None:
        """One more unit is done."""
        self.rows += rows
        self.units += 1
        self.num_tokens += receipts[0].num_tokens
        for receipt in receipts:
            self.num_bytes += receipt.num_bytes
            self.compute_s += receipt.compute_s
            self.write_s += receipt.write_s
            self.nonfinite += sum(record.infinite + record.nan for record in receipt.records)
        self.actors.done(replica, rows, [receipt.use for receipt in receipts])

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
        """As metrics, without the actors one by one."""
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
        }

    def __str__(self) -> str:
        """One line for a person."""
        done = self.units_before + self.units
        line = (
            f"{done:,} of {self.total_units:,} units, {self.rows_per_s:,.0f} tokens/s, "
            f"{human_bytes(self.num_bytes / self.seconds)}/s"
        )
        each = self.actors.rates()
        if 1 < len(each) <= _REPLICAS_IN_A_LINE:
            rates = ", ".join(f"{number}: {rate:,.0f}" for number, rate in each.items())
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
        self._look = Look({}, [])
        self._unlogged: dict[str, float] = {}
        self._status_fails = False
        self._next_line = time.monotonic() + _LINE_EVERY_S
        self._next_look = time.monotonic() + _ACTORS_EVERY_S
        self._next_bar = 0.0
        self._next_status = 0.0

    @contextmanager
    def showing(self) -> Iterator["HarvestProgress"]:
        """Show progress while the body runs; the last status is written at its end."""
        if self._console.is_terminal:
            self._bar.start()
        try:
            yield self
        finally:
            if self._console.is_terminal:
                self._draw()
                self._bar.stop()
            self._look_at_actors()
            self._write_status(running=False)

    def update(self) -> None:
        """Show the tally as it is now, as far as it is time to."""
        now = time.monotonic()
        if self._console.is_terminal and now >= self._next_bar:
            self._next_bar = now + _BAR_EVERY_S
            self._draw()
        elif not self._console.is_terminal and now >= self._next_line:
            self._next_line = now + _LINE_EVERY_S
            logger.info("%s", self.tally)
        if now >= self._next_look:
            self._next_look = now + _ACTORS_EVERY_S
            self._look_at_actors()
        if now >= self._next_status:
            self._next_status = now + _STATUS_EVERY_S
            self._write_status(running=True)

    def numbers(self) -> dict[str, float]:
        """For the tracker: the totals, and the actors' numbers once after each look at them."""
        unlogged, self._unlogged = self._unlogged, {}
        return self.tally.numbers() | unlogged

    def _draw(self) -> None:
        done = self.tally.rows_before + self.tally.rows
        self._bar.update(self._task, completed=done, line=str(self.tally))

    def _look_at_actors(self) -> None:
        self._look = self.tally.actors.look()
        self._unlogged = self._look.numbers
        self._gauges(self.tally.numbers() | self._look.numbers)

    def _write_status(self, *, running: bool) -> None:
        """A notebook elsewhere reads it; nothing depends on it, so a harvest goes on without."""
        status: Mapping[str, Any] = {
            "running": running,
            "line": str(self.tally),
            "eta_s": self.tally.eta_s,
            **self.tally.numbers(),
            **self._look.numbers,
            "actors": self._look.table,
        }
        try:
            self._location.write(STATUS, [json.dumps(status, indent=1).encode()])
        except (ActlakeError, OSError) as error:
            if not self._status_fails:
                logger.warning("%s cannot be written, and is out of date: %s", STATUS, error)
            self._status_fails = True
        else:
            self._status_fails = False


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
