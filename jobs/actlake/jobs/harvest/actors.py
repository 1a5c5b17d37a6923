"""How each replica and stage is doing: throughput, reasons of stalls, stragglers.

Pure: the driver tells what it hears, and asks for numbers. A replica is a **straggler** when it
has lately done less than `SLOW` of the median of its peers. "Lately" ends now, not at its last
unit, so a replica that has stopped altogether becomes one too.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from actlake.jobs.harvest.metering import ORDER, Doing, StageUse

logger = logging.getLogger(__name__)

SLOW = 0.6
"""Share of its peers' median rate below which a replica is a straggler."""

LATELY = 5
"""Units over which the rate of a replica is taken."""

_WORDS: dict[Doing, str] = {
    "wait": "waiting for input", "send": "waiting for the next stage",
    "write": "waiting for the disk", "compute": "computing",
}  # fmt: skip


@dataclass(slots=True)
class StageTally:
    """One actor since it was started."""

    seconds: dict[Doing, float] = field(default_factory=lambda: dict.fromkeys(ORDER, 0.0))
    cpu_s: float = 0.0
    memory_bytes: int = 0
    gpu_bytes: int = 0

    def add(self, use: StageUse) -> None:
        """Count what a receipt tells."""
        for what, seconds in use.seconds.items():
            self.seconds[what] += seconds
        self.cpu_s += use.cpu_s
        self.memory_bytes = max(self.memory_bytes, use.memory_bytes)
        self.gpu_bytes = max(self.gpu_bytes, use.gpu_bytes)

    def share(self, what: Doing) -> float:
        """Share of the actor's time, 0 to 1."""
        return self.seconds[what] / total if (total := sum(self.seconds.values())) else 0.0

    @property
    def mostly(self) -> Doing:
        """What it did most of the time."""
        return max(ORDER, key=lambda what: self.seconds[what])


@dataclass(slots=True)
class ReplicaTally:
    """One replica since it was up."""

    up_at: float
    rows: int = 0
    units: int = 0
    stages: list[StageTally] = field(default_factory=list)
    marks: "deque[tuple[float, int]]" = field(default_factory=lambda: deque(maxlen=LATELY + 1))
    """When a unit was done, and the rows done by then."""

    def rate(self, now: float) -> float:
        """Rows a second since it was up."""
        return self.rows / max(1e-9, now - self.up_at)

    def rate_lately(self, now: float) -> float:
        """Rows a second over the last units, until now."""
        at, rows = self.marks[0]
        return (self.rows - rows) / max(1e-9, now - at)


@dataclass(frozen=True, slots=True)
class Look:
    """Replicas and stages at one moment."""

    numbers: dict[str, float]
    """As metrics, by replica and stage."""
    table: list[dict[str, object]]
    """A row an actor, for ``status.json``."""


class Actors:
    """All replicas of a run; those that are gone are forgotten."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._replicas: dict[int, ReplicaTally] = {}
        self._slow: frozenset[int] = frozenset()

    def up(self, replica: int) -> None:
        """A replica is ready for work."""
        now = self._clock()
        tally = self._replicas[replica] = ReplicaTally(now)
        tally.marks.append((now, 0))

    def gone(self, replica: int) -> None:
        """A replica was lost."""
        self._replicas.pop(replica, None)

    def done(self, replica: int, rows: int, uses: Sequence[StageUse]) -> None:
        """A replica has finished a unit; what each of its stages did for it."""
        if replica not in self._replicas:
            self.up(replica)
        tally = self._replicas[replica]
        tally.rows += rows
        tally.units += 1
        tally.marks.append((self._clock(), tally.rows))
        tally.stages += [StageTally() for _ in uses[len(tally.stages) :]]
        for stage, use in zip(tally.stages, uses, strict=True):
            stage.add(use)

    def rates(self) -> dict[int, float]:
        """Rows a second of each replica since it was up."""
        now = self._clock()
        return {number: tally.rate(now) for number, tally in sorted(self._replicas.items())}

    def stragglers(self) -> dict[int, float]:
        """Replicas that are slow, with their rate as a share of their peers' median."""
        now = self._clock()
        rates = sorted(
            (tally.rate_lately(now), number)
            for number, tally in self._replicas.items()
            if tally.units >= 2
        )
        slow = {}
        for place, (rate, number) in enumerate(rates):
            usual = _median_without(rates, place)
            if usual and rate < SLOW * usual:
                slow[number] = rate / usual
        return slow

    def look(self) -> "Look":
        """Every replica and stage as it is now; logs who has become a straggler, or is none now.

        Costs a few microseconds a replica: for every some seconds, not for every unit.
        """
        slow = self.stragglers()
        self._tell(slow)
        return Look(self._numbers(slow), self._table(slow))

    def _tell(self, slow: dict[int, float]) -> None:
        for number in slow.keys() - self._slow:
            logger.warning(
                "Replica %d is a straggler: %.0f %% of its peers' rate; %s",
                number, 100 * slow[number], self.why(number),
            )  # fmt: skip
        for number in self._slow - slow.keys():
            if number in self._replicas:
                logger.info("Replica %d keeps up again", number)
        self._slow = frozenset(slow)

    def why(self, replica: int) -> str:
        """What each stage of a replica spends its time on, for a person."""
        stages = self._replicas[replica].stages
        return ", ".join(
            f"{'' if len(stages) == 1 else f'stage {number} '}{_WORDS[stage.mostly]} "
            f"{stage.share(stage.mostly):.0%} of its time"
            for number, stage in enumerate(stages)
        )

    def _numbers(self, slow: dict[int, float]) -> dict[str, float]:
        now = self._clock()
        numbers: dict[str, float] = {"harvest/stragglers": len(slow)}
        for number, rate in self.rates().items():
            numbers[f"harvest/replica_{number}/tokens_per_s"] = rate
        for name, replica, stage in self._each():
            numbers |= {
                f"harvest/{name}/{what}_share": round(stage.share(what), 4) for what in ORDER
            }
            numbers |= {
                f"system/{name}/memory_mb": stage.memory_bytes / 2**20,
                f"system/{name}/cores": stage.cpu_s / max(1e-9, now - replica.up_at),
            }
            if stage.gpu_bytes:
                numbers[f"system/{name}/gpu_memory_mb"] = stage.gpu_bytes / 2**20
        return numbers

    def _table(self, slow: dict[int, float]) -> list[dict[str, object]]:
        now = self._clock()
        return [
            {
                "replica": number, "stage": place, "units": replica.units,
                "tokens_per_s": round(replica.rate(now), 1),
                "share": {what: round(stage.share(what), 3) for what in ORDER},
                "mostly": _WORDS[stage.mostly],
                "memory_mb": round(stage.memory_bytes / 2**20),
                "straggler": number in slow,
            }
            for number, replica in sorted(self._replicas.items())
            for place, stage in enumerate(replica.stages)
        ]  # fmt: skip

    def _each(self) -> Iterator[tuple[str, ReplicaTally, StageTally]]:
        for number, replica in sorted(self._replicas.items()):
            for place, stage in enumerate(replica.stages):
                yield f"replica_{number}/stage_{place}", replica, stage


def _median_without(rates: Sequence[tuple[float, int]], place: int) -> float:
    """Median of sorted rates but the one at `place`; 0 where that is the only one."""
    left = len(rates) - 1
    if not left:
        return 0.0
    middle = [at + (at >= place) for at in ((left - 1) // 2, left // 2)]
    return (rates[middle[0]][0] + rates[middle[1]][0]) / 2
