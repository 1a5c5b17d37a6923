"""What a run would do, in numbers (reads no activations)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from actlake.jobs.probe.config import ProbeConfig
from actlake.jobs.probe.gathering import rows_needed
from actlake.jobs.probe.identity import parts_folder
from actlake.jobs.probe.opening import Opened
from actlake.jobs.probe.site_work import part_of
from actlake.jobs.probe.splits import SPLITS
from actlake.storage import Site
from actlake.storage.summary import human_bytes


@dataclass(frozen=True)
class SetPlan:
    """One set of examples, in numbers."""

    name: str
    kind: str
    classes: tuple[str, ...]
    rows: Mapping[str, int]
    """Examples of each split."""
    documents: int
    leaked: float
    """Share of test examples whose entity is in training."""
    streamed: bool


@dataclass(frozen=True)
class ProbePlan:
    """What a run would do, in numbers."""

    sites: tuple[Site, ...]
    done: int
    """Sites that an earlier run has finished."""
    sets: tuple[SetPlan, ...]
    rows: int
    """Rows of a site that are read."""
    bytes_read: int
    """At all sites together."""
    held: bool
    warnings: tuple[str, ...]
    chosen: str | None = None
    """Of which rows, in words, and how many of each split; None where all take part."""
    massive: str | None = None
    """The massive rows that are left out."""

    def __str__(self) -> str:
        sites = ", ".join(map(str, self.sites[:4])) + (", …" if len(self.sites) > 4 else "")
        done = f" ({self.done} done already)" if self.done else ""
        how = "once a site" if self.held else "for each set of examples"
        lines = [f"sites     {len(self.sites):,}: {sites}{done}"]
        for one in self.sets:
            rows = ", ".join(f"{number:,} to {name}" for name, number in one.rows.items())
            classes = f" of {len(one.classes)} classes" if one.classes else ""
            stream = "; streamed in every pass" if one.streamed else ""
            lines.append(f"task      {one.name}: {one.kind}{classes}, {rows}{stream}")
        lines.append(f"rows      {self.rows:,} ({human_bytes(self.bytes_read)}), read {how}")
        if self.chosen:
            lines.append(f"where     {self.chosen}")
        if self.massive:
            lines.append(f"massive   {self.massive}")
        return "\n".join([*lines, *(f"warning   {warning}" for warning in self.warnings)])


def plan_of(config: ProbeConfig, opened: Opened) -> ProbePlan:
    """What a run of an opened config would do."""
    rows = len(rows_needed(opened.sets))
    row_bytes = opened.store.schema_of(opened.sites[0]).row_bytes
    parts = parts_folder(config, opened)
    sets = tuple(
        SetPlan(
            one.name,
            one.kind,
            one.classes,
            {name: one.count(code) for code, name in enumerate(SPLITS)},
            len(np.unique(one.document)),
            one.leaked,
            streamed,
        )
        for one, streamed in zip(opened.sets, opened.streamed, strict=True)
    )
    return ProbePlan(
        sites=opened.sites,
        done=sum(part_of(parts, site).is_dir() for site in opened.sites),
        sets=sets,
        rows=rows,
        bytes_read=rows * row_bytes * len(opened.sites),
        held=opened.held,
        warnings=opened.warnings,
        chosen=None if opened.chosen is None else str(opened.chosen),
        massive=str(opened.massive) if opened.massive and len(opened.massive.anywhere) else None,
    )
