"""One run of a scenario: several processes at one store, and whether every promise was kept.

What is promised, whatever the schedule:

* What a reader was once told stays true: rows, committed units, fingerprint.
* A store holds one corpus; committed bytes never change and never vanish.
* `verify` calls no store whole that differs from an undisturbed one, and none damaged that is not.
* A command ends as it should, or is refused in our words, with a hint at how to go on; and it
  speaks of damage only where there is some.
* The same command, given again, ends in a store that equals an undisturbed one, byte for byte.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from simulation import programs
from simulation.bucket import Bucket
from simulation.disk import Disk
from simulation.processes import Process
from simulation.schedules import Act, Decision
from simulation.stage import (
    OF_THE_RUN,
    STORE,
    Command,
    Flavour,
    Recipe,
    Stage,
    is_metadata,
    is_of,
    is_of_a_corpus,
    lasting,
    shard_of,
)
from simulation.world import Decide, Step, World

from actlake.storage import Site
from actlake.storage.errors import StoreDamaged, StoreError
from actlake.storage.ledger import read_state
from actlake.storage.location import Location

# What a schedule decides of turns and deaths leaves every file as it was.
HARMLESS = (Act.SUSPEND, Act.YIELD, Act.TIME, Act.CRASH)


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Which processes meet in which store."""

    name: str
    flavour: Flavour
    begin: Callable[[Stage], None]
    """Makes the store that they find."""
    processes: Mapping[str, Callable[["Scene", Process], Any]]
    again: tuple[Command, ...]
    """The commands that are given again when all is over."""
    recipes: tuple[Recipe, ...]
    """Of the stores in which that may end."""
    is_damaged: bool = False
    """Whether they find a store in which `verify` finds something."""
    may_be_refused: bool = False
    """Whether, in the end, all commands may be refused, for what an unfinished store has left."""

    def __str__(self) -> str:
        return f"{self.name}-{self.flavour}"


@dataclass(frozen=True)
class Outcome:
    """How one run went."""

    decisions: tuple[Decision, ...]
    trace: list[Step]
    ends: dict[str, int]
    """At which step each process was over; those that never were are left out."""
    faults: tuple[str, ...]
    """Promises that were broken."""
    refusals: Counter[str]
    """Errors in our words with which processes ended."""
    names: tuple[str, ...]
    """Of the processes."""


class Scene:
    """One run of a scenario."""

    def __init__(self, stage: Stage, scenario: Scenario) -> None:
        self.stage = stage
        self.scenario = scenario
        self.seams = stage.seams
        self.tokens: list[Any] = []
        """Of the drivers, for workers."""
        self._told: list[tuple[str, programs.Seen, bool]] = []
        self._faults: list[str] = []

    def location(self, process: Process, name: str = STORE) -> Location:
        """A place, as a process opens it."""
        return self.seams.location(name, process)

    def play(self, decide: Decide) -> Outcome:
        """Let all processes run, then look at what has become of the store."""
        scenario = self.scenario
        truths = [self.stage.truth(scenario.flavour, recipe) for recipe in scenario.recipes]
        self.truths = {truth.fingerprint: truth for truth in truths}
        storage = self.stage.begun(scenario.name, scenario.flavour, scenario.begin).copy()
        self.world = World(decide, on_power_loss=self._lose_power, name="scene")
        self.seams.enter(self.world, storage)
        storage.on_change = self._changed
        for name, program in scenario.processes.items():
            self.world.start(name, lambda process, program=program: program(self, process))
        try:
            self.world.run()
        finally:
            self.world.close()
            storage.on_change = None
        refusals: Counter[str] = Counter()
        for process in self.world.processes:
            self._check_end(process, refusals)
        self._check_told()
        end = self.stage.end(
            scenario.name, scenario.again, self.truths, may_be_refused=scenario.may_be_refused
        )
        self._faults += end.faults
        for name, seen, _ in self._told:
            if end.fingerprints and seen.fingerprint not in end.fingerprints:
                self._blame(f"{name} was told another fingerprint than the store has at last")
        ends = {p.name: p.ended_at for p in self.world.processes if p.ended_at is not None}
        return Outcome(
            tuple(self.world.decisions),
            self.world.trace,
            ends,
            tuple(self._faults),
            refusals,
            tuple(scenario.processes),
        )

    # While they run.

    def tell(self, process: Process, seen: programs.Seen) -> None:
        """A reader was told this."""
        storage = self.seams.storage
        lasts = isinstance(storage, Bucket) or storage.is_synced(f"/{STORE}/ledger")
        self._told.append((process.name, seen, lasts))
        truth = self.truths.get(seen.fingerprint)
        if truth is None:
            self._blame(f"{process.name} read a store of no known fingerprint")
            return
        corpus = truth.corpus
        if seen.ids != corpus.ids.tobytes():
            self._blame(f"{process.name} read other tokens than those of {corpus.name}")
        if seen.documents != tuple(document.text for document in corpus.documents()):
            self._blame(f"{process.name} read other documents than those of {corpus.name}")
        for (site, unit), rows in seen.rows.items():
            if rows != truth.rows(site, unit):
                self._blame(f"{process.name} read other rows than {corpus.name}'s: {site}, {unit}")

    def _lose_power(self, decision: Decision) -> None:
        storage = self.seams.storage
        if isinstance(storage, Disk):
            some = decision.act is Act.POWER_LOSS_SOME
            storage.lose_power(random.Random(decision.who) if some else None)
            self._told = [told for told in self._told if told[2]]

    def _changed(self, name: str, before: bytes | None, now: bytes | None) -> None:
        """Look whether anything that is committed has become something else."""
        place, _, key = name.lstrip("/").partition("/")
        if place != STORE:
            return
        if before is None or before == now or key.split("/")[0] in OF_THE_RUN:
            return
        with self._looking():
            state = read_state(self.seams.location(STORE, None))
        covered = state.covered
        if not any(covered.values()):
            return
        if (shard := shard_of(key)) and shard[1] not in covered.get(Site.parse(shard[0]), ()):
            return
        if now is None and key.startswith("rows.zarr/acts/") and shard is not None and (
            shard[1] in state.released.get(Site.parse(shard[0]), ())
        ):  # fmt: skip
            return  # its rows were given up
        if is_metadata(key) and self._grows(key, before, now):
            return
        of_corpora = {name for corpus in state.corpora for name in corpus.files}
        if is_of_a_corpus(key) and key not in of_corpora:
            return  # a killed append has left it
        if self.scenario.is_damaged and all(
            before != truth.contents.get(key) for truth in self.truths.values()
        ):
            return  # what was damaged is made whole
        verb = "deleted" if now is None else "changed"
        by = self.world.running
        self._blame(f"{by and by.name} {verb} {key} although units are committed")

    def _grows(self, key: str, before: bytes, now: bytes | None) -> bool:
        """Whether a file that repeats the ledger becomes that of a store with more corpora."""
        lengths = [
            [t.length for t in self.truths.values() if t.contents.get(key) == data]
            for data in (before, now)
        ]
        return all(lengths) and min(lengths[0]) < max(lengths[1])

    @contextmanager
    def _looking(self) -> Iterator[None]:
        """Calls are no steps meanwhile."""
        storage = self.seams.storage
        world, storage.world = storage.world, None
        try:
            yield
        finally:
            storage.world = world

    def _blame(self, fault: str) -> None:
        if fault not in self._faults:
            self._faults.append(fault)

    # When all is over.

    def _check_end(self, process: Process, refusals: Counter[str]) -> None:
        if process.error is not None:
            self._blame(f"{process.name} ended with {process.error!r}")
        if (refusal := process.refusal) is not None:
            refusals[type(refusal).__name__] += 1
            if "\nhint: " not in str(refusal):
                self._blame(f"{process.name} was refused without a hint: {refusal}")
            if isinstance(refusal, StoreDamaged) and self._must_be_whole():
                self._blame(f"{process.name} is told of damage where there is none: {refusal}")
        if isinstance(process.result, programs.Verified):
            self._check_verified(process.name, process.result)

    def _check_verified(self, name: str, verified: programs.Verified) -> None:
        report = verified.report
        if report.problems and self._must_be_whole():
            self._blame(f"{name} finds damage where there is none: {report.problems[0]}")
        if not report.is_whole:
            return
        truth = self.truths.get(verified.fingerprint)
        if truth is None:
            self._blame(f"{name} calls a store of no known fingerprint whole")
            return
        contents = lasting(self.seams)
        for key, expected in truth.contents.items():
            of_others = {t.contents.get(key) for t in self.truths.values()}
            if is_metadata(key) and contents.get(key) in of_others:
                continue  # as before an append, or after one: see `actlake.storage.metadata`
            if is_of(key, verified.covered) and contents.get(key) != expected:
                self._blame(f"{name} calls a store whole whose {key} is another")

    def _must_be_whole(self) -> bool:
        """Whether nothing was damaged, by the scenario, a power loss or a failing call."""
        return not self.scenario.is_damaged and all(
            decision.act in HARMLESS for decision in self.world.decisions
        )

    def _check_told(self) -> None:
        """Compare what readers were told with what the ledger says when all is over."""
        if not self._told:
            return
        try:
            covered = read_state(self.seams.location(STORE, None)).covered
        except StoreError as error:
            self._blame(f"the ledger cannot be read any more: {error}")
            return
        for name, seen, _ in self._told:
            gone = [key for key in seen.rows if key[1] not in covered.get(key[0], ())]
            if gone:
                self._blame(f"{name} was told of committed units that are none any more: {gone}")
