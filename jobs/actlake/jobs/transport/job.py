"""Fit transport operators: moments once, then every map and every number in closed form.

    result = fit_transport(TransportConfig(store="runs/smollm2", out="runs/transport"))
    TransportOperator.load(result.operator("resid_post.4->resid_post.9"))

The result folder holds

    run.json                     config, fingerprints, code, final numbers
    maps, ranks, pairs .parquet  see `tables`; with the tests that were asked for also
    features, causal, shortcuts, early_exit .parquet
    operators/PAIR/MAP/          see `artefact`
    pictures/*.png, report.html  the report

and appears when all of it is there. Moments are kept beside it; killed and called again, the
pass over the rows goes on from its last checkpoint, and fits begin again (they take seconds).
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from actlake.jobs.begun import kept_beside
from actlake.jobs.chosen_rows import inputs_of_rows
from actlake.jobs.model_of_store import model_of_store
from actlake.jobs.progress_bar import progress
from actlake.jobs.saying import say
from actlake.jobs.stored_as import inputs_of_store
from actlake.jobs.transport.config import Kind, TransportConfig
from actlake.jobs.transport.moments_file import StoredMoments, find_moments
from actlake.jobs.transport.moments_pass import MomentsPlan, compute_moments, plan_moments
from actlake.jobs.transport.opening import Opened, open_config, what_decides
from actlake.jobs.transport.pairs import Pair
from actlake.jobs.transport.parts import TEST, warn_if_few
from actlake.jobs.transport.result import ResultWriter
from actlake.platform.cluster import plan_workers, session, threads_here
from actlake.platform.cluster.interrupts import stops_at_once
from actlake.platform.compute_threads import compute_threads
from actlake.platform.computed_on import computed_on
from actlake.platform.config import to_dict
from actlake.platform.runs import Input, RunRecord, whole_folder
from actlake.platform.tracking import check_wandb, open_tracker, run_id_of
from actlake.platform.writable import check_writable

logger = logging.getLogger(__name__)

JOB = "transport"


@dataclass(frozen=True)
class TransportResult:
    """How a fit ended."""

    folder: Path
    pairs: tuple[Pair, ...]
    metrics: Mapping[str, float]
    """The final numbers, as in ``run.json``."""
    was_there: bool
    """The same result was there already, and nothing was computed."""

    def operator(self, pair: str | Pair, kind: Kind = "ridge") -> Path:
        """Folder of a saved operator."""
        written = pair if isinstance(pair, Pair) else Pair.parse(pair)
        return self.folder / "operators" / written.folder / kind

    @property
    def report(self) -> Path:
        """The page."""
        return self.folder / "report.html"


@dataclass(frozen=True)
class TransportPlan:
    """What a fit would do, in numbers."""

    pairs: tuple[Pair, ...]
    rows: Mapping[str, int]
    """Rows to fit, validate and test on, before exclusion."""
    groups: int
    moments: MomentsPlan
    found: Path | None
    """Moments that are there already."""
    warnings: tuple[str, ...]
    chosen: str | None = None
    """Of which rows, in words, and how many of each split; None where all take part."""

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.pairs[:4])) + (", …" if len(self.pairs) > 4 else "")
        rows = ", ".join(f"{number:,} to {name}" for name, number in self.rows.items())
        lines = [
            f"pairs     {len(self.pairs):,}: {shown}",
            f"rows      {rows} (in {self.groups} groups of documents), before exclusion",
            *([f"where     {self.chosen}"] if self.chosen else []),
            f"moments   found in {self.found}" if self.found else str(self.moments),
            *(f"warning   {warning}" for warning in self.warnings),
        ]
        return "\n".join(lines)


def plan_transport(config: TransportConfig) -> TransportPlan:
    """What `fit_transport` would do now.

    Raises
    ------
    ActlakeError
        Whatever `fit_transport` would refuse before it reads rows.
    """
    check_writable(config.out)
    return _plan(open_config(config))


def fit_transport(config: TransportConfig, *, console: Console | None = None) -> TransportResult:
    """Fit, test and report all maps of a config.

    Parameters
    ----------
    console
        Where the plan and the progress are shown; by default standard error.

    Raises
    ------
    InvalidPair, InvalidTransport
        Pairs or options that cannot be.
    NotEnoughRows
        A split is unknown or empty.
    StoresDiffer
        Two stores do not hold the same tokens.
    RowsNotCommitted
        A site is not whole.
    ResultExists
        Something else is at `config.out`.
    WorkStopped
        SIGTERM, or a stop of the session; what is complete is kept, and the same call goes on.
    ActlakeError
        Anything else that is refused; the message says what, and what to do.
    """
    console = console or Console(stderr=True)
    check_writable(config.out)
    opened = open_config(config)
    if done := _result_that_is_there(config, opened):
        return done
    check_wandb(config.tracking)
    say(_plan(opened), console)
    record = RunRecord.start(
        JOB, to_dict(config), inputs=_inputs(config, opened), seed=config.seed,
        computed_on=_computed_on(config, opened),
    )  # fmt: skip
    with (
        stops_at_once(),
        kept_beside(record, Path(config.out).expanduser()),
        compute_threads(threads_here(config.moments.threads, 1)),
        whole_folder(Path(config.out).expanduser()) as folder,
    ):
        moments = _moments(config, opened, console)
        with open_tracker(
            config.tracking,
            run_id=run_id_of(JOB, [what_decides(to_dict(config)), opened.request.key], config.out),
            folder=folder / "log",
            final_folder=Path(config.out).expanduser() / "log",
            job_type=JOB,
            config_dict=to_dict(config),
        ) as tracker:
            metrics = ResultWriter(config, opened, moments, folder, tracker, console).run()
        record.finish(metrics).save(folder)
    return TransportResult(Path(config.out).expanduser(), opened.pairs, metrics, was_there=False)


def _computed_on(config: TransportConfig, opened: Opened) -> dict[str, Any]:
    """Maps are fitted here, on the CPU; rows may be summed on a cluster."""
    dtype = None
    if config.causal or config.shortcut:
        dtype = model_of_store(opened.stores[0], config.model).dtype.value
    return computed_on("cpu", threads=threads_here(config.moments.threads, 1), in_model_dtype=dtype)


def _plan(opened: Opened) -> TransportPlan:
    shares = opened.shares
    rows = {name: shares.rows_of(name) for name in shares.names[:2]}
    rows[TEST] = sum(shares.rows_of(name) for name in shares.test_groups)
    few = warn_if_few(rows["fit"], opened.request.dims[0])
    found = find_moments(opened.root, opened.request)
    return TransportPlan(
        pairs=opened.pairs,
        rows=rows,
        groups=len(shares.test_groups),
        moments=plan_moments(opened.stores, opened.request, shares, threads=opened.threads),
        found=found.folder if found else None,
        warnings=(few,) if few else (),
        chosen=None if opened.chosen is None else str(opened.chosen),
    )


def _inputs(config: TransportConfig, opened: Opened) -> dict[str, Input]:
    sources = {pair.source for pair in opened.pairs}
    targets = {pair.target for pair in opened.pairs}
    if config.target_store is None:
        inputs = inputs_of_store(config.store, opened.stores[0], sources | targets)
    else:
        inputs = inputs_of_store(config.store, opened.stores[0], sources)
        inputs |= inputs_of_store(
            config.target_store, opened.stores[1], targets, name="target_store"
        )
    return {**inputs, **inputs_of_rows(opened.chosen)}


def _result_that_is_there(config: TransportConfig, opened: Opened) -> TransportResult | None:
    """The result of the same config on the same rows, where it is complete already."""
    folder = Path(config.out).expanduser()
    if not (folder / "run.json").is_file():
        return None
    record = RunRecord.load(folder)
    asked, had = what_decides(to_dict(config)), what_decides(record.config)
    same = {name: given.fingerprint for name, given in record.inputs.items()} == {
        name: given.fingerprint for name, given in _inputs(config, opened).items()
    }
    if record.job != JOB or asked != had or not same:
        return None  # `whole_folder` refuses to write there
    logger.info("%s is complete already", folder)
    return TransportResult(folder, opened.pairs, record.metrics, was_there=True)


def _moments(config: TransportConfig, opened: Opened, console: Console) -> StoredMoments:
    """Found, or summed here or on Ray; SIGTERM is the cluster's only until they are there."""
    total = sum(part.num_rows for part in opened.shares.parts)
    workers = config.moments.workers
    with progress(console, "rows", total) as advance:
        compute = partial(
            compute_moments,
            opened.stores,
            opened.request,
            opened.root,
            shares=opened.shares,
            on_rows=advance,
        )
        is_there = find_moments(opened.root, opened.request) is not None
        if is_there or (workers == 1 and not opened.joins):
            return compute(threads=opened.threads)
        with session(config.cluster) as cluster:
            plan = plan_workers(
                cluster, config.resources, workers=workers, threads=config.moments.threads
            )
            moments = compute(
                session=cluster,
                workers=workers,
                threads=plan.threads,
                resources=plan.resources,
            )
            cluster.raise_if_stopped()
            return moments
