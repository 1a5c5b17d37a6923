"""Which schedules are run: all with so many decisions, or some that a seed draws.

Most places at which a process can be suspended are alike. Where a process is suspended before
its step *i* for another to run, and again before a later step *k*, and none of its steps
*i … k - 1* depends on any that the other does meanwhile (`Call.depends_on`), the two runs differ
only in the order of steps of which neither sees the other, and have one outcome: only the first is
run. The same holds for all that is decided later in those runs, since the other process's steps
before a later decision are a part of those looked at. (Godefroid 1996, "Partial-order methods for
the verification of concurrent systems", LNCS 1032: independent transitions commute.)
"""

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from simulation.scenes import Outcome, Scenario, Scene
from simulation.schedules import Act, Decision, as_text
from simulation.stage import Stage
from simulation.world import Call, Decide, Step, World

Schedule = tuple[Decision, ...]
ENVIRONMENT = "ACTLAKE_SIMULATE"


class Falsified(AssertionError):
    """A promise does not hold; the message says by which schedule it was broken."""


@dataclass(slots=True)
class Explored:
    """How much was run, and what came of it."""

    runs: int = 0
    falsified: int = 0
    refusals: int = 0

    def count(self, outcome: Outcome) -> None:
        """Add one run."""
        self.runs += 1
        self.falsified += bool(outcome.faults)
        self.refusals += sum(outcome.refusals.values())


def by_schedule(schedule: Iterable[Decision]) -> Decide:
    """Decide what is written."""
    decisions = {decision.step: decision for decision in schedule}
    return lambda world, call: decisions.get(len(world.trace) - 1)


def all_schedules(
    play: Callable[[Schedule], Outcome], *, decisions: int, acts: Iterable[Act] = (Act.SUSPEND,)
) -> Iterator[Outcome]:
    """Run every schedule of at most so many decisions, each once up to the order of what commutes.

    Parameters
    ----------
    acts
        What can be decided; after anything but a suspension nothing more is.
    """
    yield from _below(play, (), decisions, frozenset(acts))


def _below(
    play: Callable[[Schedule], Outcome], schedule: Schedule, decisions: int, acts: frozenset[Act]
) -> Iterator[Outcome]:
    outcome = play(schedule)
    yield outcome
    if len(schedule) == decisions or (schedule and schedule[-1].act is not Act.SUSPEND):
        return
    first = schedule[-1].step + 1 if schedule else 0
    for act in sorted(acts - {Act.SUSPEND}):
        for step in _places(outcome.trace, first, act):
            yield play((*schedule, Decision(step, act)))
    if Act.SUSPEND in acts:
        yield from _suspensions(play, schedule, outcome, first, decisions, acts)


def _suspensions(
    play: Callable[[Schedule], Outcome],
    schedule: Schedule,
    outcome: Outcome,
    first: int,
    decisions: int,
    acts: frozenset[Act],
) -> Iterator[Outcome]:
    seen: dict[str, tuple[int, Call]] = {}  # per other process: since which step, and its steps
    for step in range(first, len(outcome.trace)):
        own = outcome.trace[step].process
        for other in outcome.names:
            if other == own or outcome.ends.get(other, step + 1) <= step:
                continue
            if other in seen and _commute(outcome.trace, seen[other], step, own):
                continue
            below = _below(play, (*schedule, Decision(step, Act.SUSPEND, other)), decisions, acts)
            child = next(below)
            seen[other] = step, _until_back(child.trace, step, own)
            yield child
            yield from below


def _commute(trace: list[Step], since: tuple[int, Call], step: int, own: str) -> bool:
    """Whether it does not matter if the other process runs before the steps from `since` on."""
    start, others = since
    passed = trace[start:step]
    return all(s.process == own and not s.call.depends_on(others) for s in passed)


def _until_back(trace: list[Step], step: int, own: str) -> Call:
    """All that others do from a suspension until its process goes on, as one call."""
    reads: set[str] = set()
    writes: set[str] = set()
    lists: set[str] = set()
    renames: set[str] = set()
    for done in trace[step + 1 :]:
        if done.process == own:
            break
        reads |= done.call.reads
        writes |= done.call.writes
        lists |= done.call.lists
        renames |= done.call.renames
    return Call("", *map(frozenset, (reads, writes, lists, renames)))


def _places(trace: list[Step], first: int, act: Act) -> Iterator[int]:
    """Before which steps something can happen that differs from its happening one step earlier."""
    changed = True
    for step in range(first, len(trace)):
        call = trace[step].call
        if act in (Act.FAIL, Act.LOSE_ANSWER):
            if act is Act.FAIL or call.writes:
                yield step
            continue
        if changed:
            yield step
        changed = call.syncs if act is Act.POWER_LOSS else bool(call.renames)


class Drawn:
    """A schedule that a seed draws, a decision every fifty steps or so."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)
        # Some runs are disturbed often, most seldom; some by failures, others by turns alone.
        self._rate = self._draw.choice((0.005, 0.01, 0.02, 0.05))
        acts = [Act.SUSPEND] * 8 + [Act.YIELD] * 4 + [Act.TIME] * 2
        if self._draw.random() < 0.5:
            acts += [Act.CRASH, Act.POWER_LOSS, Act.POWER_LOSS_SOME, Act.FAIL, Act.LOSE_ANSWER]
        self._acts = acts

    def __call__(self, world: World, call: Call) -> Decision | None:
        """See `Decide`."""
        if self._draw.random() >= self._rate:
            return None
        act = self._draw.choice(self._acts)
        who = ""
        if act in (Act.SUSPEND, Act.YIELD):
            others = [p.name for p in world.processes if not p.is_over and p is not world.running]
            if not others:
                return None
            who = self._draw.choice(others)
        elif act is Act.POWER_LOSS_SOME:
            who = str(self._draw.randrange(1000))
        return Decision(len(world.trace) - 1, act, who)


def check(scenario: Scenario, outcome: Outcome, *, drawn_by: int | None = None) -> None:
    """Refuse an outcome in which a promise was broken."""
    if not outcome.faults:
        return
    seed = "" if drawn_by is None else f" (drawn by seed {drawn_by})"
    last = "\n  ".join(map(str, outcome.trace[-12:]))
    text = as_text(outcome.decisions)
    raise Falsified(
        f"{scenario}, schedule {text}{seed}:\n- " + "\n- ".join(outcome.faults[:10]) +
        f"\nthe last steps of {len(outcome.trace)}:\n  {last}\n"
        f"to run it again: {ENVIRONMENT}='{scenario}: {text}' pytest -n 0 tests/simulation"
    )  # fmt: skip


def player(stage: Stage, scenario: Scenario) -> Callable[[Schedule], Outcome]:
    """Runs a scenario by a schedule."""
    return lambda schedule: Scene(stage, scenario).play(by_schedule(schedule))


def check_all(stage: Stage, scenario: Scenario, *acts: Act, decisions: int = 1) -> int:
    """Run all schedules of so many decisions, until a promise is broken; how many there were."""
    outcomes = all_schedules(player(stage, scenario), decisions=decisions, acts=acts)
    runs = 0
    for outcome in outcomes:
        check(scenario, outcome)
        runs += 1
    return runs
