"""Repair a store: find out what can be mended and from what, then mend that and nothing else.

    report = verify(store)
    planned = plan_repair(store, report)   # opens the parent, finds the model; changes nothing
    print(planned)
    repair(planned)

A damaged shard is only ever replaced by the bytes that were committed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from actlake.platform.cluster import ClusterConfig
from actlake.storage import ActivationStore, ActlakeError, Lease, Problem, VerifyReport
from actlake.storage.ledger_records import ShardRecord
from actlake.storage.ledger_state import SiteGroup
from actlake.storage.parent import Origin, ParentRows
from actlake.storage.repair import own_rows, restore_metadata, restore_shards, restore_totals

Records = tuple[ShardRecord, ...]


class CannotRepair(ActlakeError, ValueError):
    """What is damaged is what everything else is checked against."""


class Source(Protocol):
    """Where rows of damaged shards can be had again. To make one changes nothing."""

    def impossible(self, records: Records) -> Mapping[ShardRecord, str]:
        """Those that cannot be had, as far as can be told before, and why."""
        ...

    def restore(self, lease: Lease, records: Records) -> Mapping[ShardRecord, str]:
        """Write the shards again; which were not restored, and why."""
        ...

    def __str__(self) -> str:
        """What it is, for a person."""
        ...


@dataclass(frozen=True, slots=True)
class RepairPlan:
    """What can be repaired and from what; nothing has changed yet."""

    store: ActivationStore
    metadata: int
    """Derived files to write again: metadata, and totals of moments."""
    sources: tuple[tuple[Source, Records], ...]
    """The shards to restore, each with where its rows come from."""
    impossible: Mapping[ShardRecord, str]
    """Damaged shards that cannot be restored here, and why."""
    contradictions: tuple[Problem, ...]
    """What no repair mends: files that are what was committed, and contradict each other."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing that can be done."""
        return not (self.metadata or self.sources)

    @property
    def num_shards(self) -> int:
        """Shards that can be restored, as far as can be told before."""
        return sum(len(records) for _, records in self.sources)

    def __str__(self) -> str:
        lines = [f"{len(shards):,} damaged shards from {source}" for source, shards in self.sources]
        if self.metadata:
            lines.append(f"{self.metadata:,} derived files")
        can = "To be repaired: " + "; ".join(lines) if lines else "Nothing of it can be repaired"
        return "\n".join(
            [
                can,
                *_lines(self.impossible),
                *(f"Cannot be repaired: {problem}" for problem in self.contradictions),
            ]
        )


@dataclass(frozen=True, slots=True)
class RepairResult:
    """What a repair did."""

    shards: int
    """Damaged shards that are now what was committed."""
    metadata: int
    """Derived files that were written again."""
    lost: Mapping[ShardRecord, str] = field(default_factory=dict)
    """Shards that could not be restored, and why; their files are as they were."""

    def __str__(self) -> str:
        done = f"Repaired {self.shards:,} shards and {self.metadata:,} derived files"
        return "\n".join([done, *_lines(self.lost)])


def plan_repair(
    store: ActivationStore,
    report: VerifyReport,
    *,
    parent: str | None = None,
    model: str | None = None,
    cluster: ClusterConfig | None = None,
) -> RepairPlan:
    """Find out what can be repaired and from what. Changes nothing.

    Parameters
    ----------
    report
        What `verify` found in this store.
    parent
        Where the store is now that this one was exported from, if not where it was.
    model
        Where its model is now: a name as in `ModelConfig.name`, if not as it was.
    cluster
        Where damaged units are computed again; by default on this machine.

    Raises
    ------
    CannotRepair
        The corpus or the ledger is damaged, which nothing gives again.
    """
    for problem in report.problems:
        if problem.kind in ("corpus", "ledger"):
            raise CannotRepair(
                f"{store.url} cannot be repaired: {problem}\n"
                "hint: rows are checked against its corpus and its ledger, which cannot be made "
                "again; restore them from a copy, or harvest or export again to another path"
            )
    damaged = report.damaged
    of_moments = tuple(damage.record for damage in damaged if damage.rows_are_whole)
    sources: list[tuple[Source, Records]] = [(_OwnRows(store), of_moments)]
    impossible: dict[ShardRecord, str] = {}
    for group in store.ledger.groups:
        wanted = tuple(
            damage.record
            for damage in damaged
            if damage.record.site in group.sites and not damage.rows_are_whole
        )
        if wanted:
            try:
                source = _source(store, group, wanted, parent=parent, model=model, cluster=cluster)
                impossible |= source.impossible(wanted)
            except ActlakeError as error:
                impossible |= {record: str(error) for record in wanted}
            else:
                sources.append((source, tuple(r for r in wanted if r not in impossible)))
    kinds = [problem.kind for problem in report.problems]
    return RepairPlan(
        store,
        kinds.count("metadata"),
        tuple((source, records) for source, records in sources if records),
        impossible,
        tuple(problem for problem in report.problems if problem.kind == "contents"),
    )


def repair(plan: RepairPlan) -> RepairResult:
    """Do what was planned.

    Killed at any moment, every file is as damaged as it was, or whole.

    Raises
    ------
    StoreLocked
        Somebody is writing to the store.
    """
    lost: dict[ShardRecord, str] = dict(plan.impossible)
    with Lease.acquire(plan.store.location) as lease:
        metadata = restore_metadata(lease) if plan.metadata else 0
        for source, records in plan.sources:
            lost |= source.restore(lease, records)
        metadata += restore_totals(lease, plan.store)
    restored = plan.num_shards + len(plan.impossible) - len(lost)
    return RepairResult(restored, metadata, lost)


@dataclass(frozen=True, slots=True)
class _OwnRows:
    """The store's own rows, for shards of which only the moments are damaged."""

    store: ActivationStore

    def impossible(self, records: Records) -> Mapping[ShardRecord, str]:
        return {}

    def restore(self, lease: Lease, records: Records) -> Mapping[ShardRecord, str]:
        return restore_shards(lease, self.store, records, own_rows(self.store))

    def __str__(self) -> str:
        return "their own rows"


@dataclass(frozen=True, slots=True)
class _FromParent:
    """The store that this one was exported from."""

    rows: ParentRows

    def impossible(self, records: Records) -> Mapping[ShardRecord, str]:
        return {}

    def restore(self, lease: Lease, records: Records) -> Mapping[ShardRecord, str]:
        return restore_shards(lease, self.rows.copy, records, self.rows)

    def __str__(self) -> str:
        return f"its parent, {self.rows.parent.url}"


def _source(
    store: ActivationStore,
    group: SiteGroup,
    wanted: Records,
    *,
    parent: str | None,
    model: str | None,
    cluster: ClusterConfig | None,
) -> Source:
    """Where rows of a group of sites can be had again."""
    origin = Origin.of(group.request)
    if origin is not None:
        return _FromParent(ParentRows.find(store, origin.open(parent), wanted))

    from actlake.jobs.harvest.recompute import Recomputation  # torch and Ray

    return Recomputation.resolve(store, group, model_name=model, cluster=cluster)


def _lines(lost: Mapping[ShardRecord, str]) -> list[str]:
    """Shards with what is said of them, those of one reason together."""
    shards: dict[str, list[ShardRecord]] = {}
    for record, why in lost.items():
        shards.setdefault(why, []).append(record)
    return [f"Not repaired: {_named(records)}: {why}" for why, records in shards.items()]


def _named(records: list[ShardRecord]) -> str:
    names = [f"{record.site}, unit {record.unit}" for record in records]
    return "; ".join(names[:5]) + (f"; and {len(names) - 5:,} more" if len(names) > 5 else "")
