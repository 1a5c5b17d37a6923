"""Train probes: labels once, then every site, then the tables, the comparisons and the page.

    result = train_probes(ProbeConfig(store="runs/smollm2", out="runs/probes", tasks=(…)))
    Probe.load(result.probe("topic", "resid_post.9"))

The result folder holds

    run.json                     config, fingerprints, code, final numbers
    scores, probes, controls, learning_curve, confusion, calibration .parquet   see `tables`
    markers.parquet              see `markers`; with the tests that were asked for also
    transfer, dictionary .parquet
    probes/TASK/POOLING/SITE/PROBE/   see `artefact`
    pictures/*.png, report.html  the report

and appears when all of it is there. Sites that are done are kept beside it until then; killed
and called again, the job goes on with the others.
"""

import glob
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from filelock import FileLock
from rich.console import Console

from actlake.jobs.begun import kept_beside
from actlake.jobs.massive_rows import massive_facts
from actlake.jobs.probe.config import ProbeConfig
from actlake.jobs.probe.errors import ProbeNotFound
from actlake.jobs.probe.examples import folder_of
from actlake.jobs.probe.identity import (
    JOB,
    NOT_THE_RESULT,
    identity_of,
    inputs_of,
    parts_folder,
    what_decides,
)
from actlake.jobs.probe.opening import Opened, open_config, training_split
from actlake.jobs.probe.planning import ProbePlan, SetPlan, plan_of
from actlake.jobs.probe.site_work import (
    CONFIG,
    heads_of_all,
    make_part,
    part_of,
    probe_site,
)
from actlake.jobs.probe.splits import SPLITS
from actlake.jobs.probe.tables import join_tables, read_table
from actlake.jobs.progress_bar import progress
from actlake.jobs.saying import say
from actlake.platform.cluster import WorkStopped, map_reduce, plan_workers, session, threads_here
from actlake.platform.cluster.interrupts import stops_at_once
from actlake.platform.compute_threads import compute_threads
from actlake.platform.computed_on import computed_on
from actlake.platform.config import to_dict
from actlake.platform.plain_json import json_text
from actlake.platform.runs import RunRecord, whole_folder
from actlake.platform.safetensors_files import plain_mode
from actlake.platform.tracking import Tracker, check_wandb, open_tracker, run_id_of
from actlake.platform.writable import check_writable
from actlake.storage import Site
from actlake.storage.location import LocalFolder
from actlake.storage.provenance import shortened

logger = logging.getLogger(__name__)

MAIN_METRIC = {"regression": "r2"}
"""The metric in which tasks of a kind are summed up; accuracy for classes."""


@dataclass(frozen=True)
class ProbeResult:
    """How a run ended."""

    folder: Path
    scores: int
    """Rows of ``scores.parquet``."""
    metrics: Mapping[str, float]
    """The final numbers, as in ``run.json``."""
    was_there: bool
    """The same result was there already, and nothing was computed."""

    def probe(
        self,
        task: str,
        site: str | Site,
        kind: str | None = None,
        *,
        pooling: str | None = None,
        offset: int = 0,
    ) -> Path:
        """Folder of a saved probe; `kind` and `pooling` may be left out where there is one.

        Raises
        ------
        ProbeNotFound
            There is none such, or several.
        """
        stored = str(Site.parse(site).stored)
        where = self.folder / "probes"
        found = sorted(
            where.glob(
                f"{folder_of(glob.escape(task), pooling or '*', offset)}/{stored}/{kind or '*'}"
            )
        )
        if not offset:
            found = [path for path in found if "@" not in path.parts[-3]]
        if kind is None and len(found) > 1:
            first = [path for path in found if path.name in ("logistic", "ridge")]
            found = first or found
        if len(found) != 1:
            there = ", ".join(str(path.relative_to(where)) for path in found)
            raise ProbeNotFound(
                f"There are {len(found)} probes of {task!r} at {stored} in {self.folder}"
                f"{': ' if there else ''}{there}\nhint: tasks, sites and kinds are the folders of "
                "RESULT/probes; say also kind and pooling"
            )
        return found[0]

    @property
    def report(self) -> Path:
        """The page."""
        return self.folder / "report.html"


def plan_probes(config: ProbeConfig) -> ProbePlan:
    """What `train_probes` would do now.

    Raises
    ------
    ActlakeError
        Whatever `train_probes` would refuse before it reads activations.
    """
    check_writable(config.out)
    opened = open_config(config)
    return plan_of(config, opened)


def train_probes(config: ProbeConfig, *, console: Console | None = None) -> ProbeResult:
    """Train, test and report all probes of a config.

    Parameters
    ----------
    console
        Where the plan and the progress are shown; by default standard error.

    Raises
    ------
    LabelsNotAttached, LabelNotFound, InvalidLabels
        Labels that are not there, or that cannot be predicted.
    NotEnoughRows
        A split or class has too few examples, or all rows are filtered out.
    SiteNotStored, InvalidProbe
        A site or an option that cannot be.
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
    out = Path(config.out).expanduser()
    record = RunRecord.start(
        JOB,
        to_dict(config),
        inputs=inputs_of(config, opened.store, opened.chosen, opened.sites),
        seed=config.seed,
        computed_on=computed_on(
            None if opened.joins else opened.device, threads=opened.threads * opened.at_once
        ),
    )
    with ExitStack() as stack:
        stack.enter_context(stops_at_once())
        stack.enter_context(kept_beside(record, out))
        stack.enter_context(compute_threads(threads_here(config.threads, 1)))
        folder = stack.enter_context(whole_folder(out))
        parts = parts_folder(config, opened)
        parts.mkdir(parents=True, exist_ok=True)
        stack.enter_context(
            FileLock(parts.with_name(f"{parts.name}.lock"), mode=plain_mode(parts.parent))
        )
        say(plan_of(config, opened), console)
        with open_tracker(
            config.tracking,
            run_id=run_id_of(JOB, identity_of(config, opened), out),
            folder=folder / "log",
            final_folder=out / "log",
            job_type=JOB,
            config_dict=to_dict(config),
        ) as tracker:
            _all_sites(config, opened, parts, tracker, console)
            join_tables([part_of(parts, site) for site in opened.sites], folder)
            for site in opened.sites:
                shutil.copytree(
                    part_of(parts, site) / "probes", folder / "probes", dirs_exist_ok=True
                )
            _compare(config, opened, folder, tracker)
            metrics = _final_metrics(folder)
            tracker.summary(metrics)
        record.finish(metrics).save(folder)
        scores = read_table(folder, "scores").num_rows
    shutil.rmtree(parts_folder(config, opened).parent, ignore_errors=True)
    return ProbeResult(out, scores, metrics, was_there=False)


def _all_sites(
    config: ProbeConfig,
    opened: Opened,
    parts: Path,
    tracker: Tracker,
    console: Console,
) -> None:
    """Make the parts that are not there yet, here or on the cluster; track those that are."""
    LocalFolder(parts).write(CONFIG, [json_text(to_dict(config)).encode()])
    waiting = [site for site in opened.sites if not part_of(parts, site).is_dir()]
    done = len(opened.sites) - len(waiting)
    with progress(console, "sites", len(opened.sites), done=done) as advance:
        if config.workers == 1 and not opened.joins:
            _here(config, opened, parts, waiting, lambda: advance(1))
        elif waiting:
            _on_ray(config, parts, waiting, lambda: advance(1))
    for step, site in enumerate(opened.sites):
        tracker.log(_tracked(part_of(parts, site)), step=step)


def _on_ray(
    config: ProbeConfig, parts: Path, waiting: Sequence[Site], on_done: Callable[[], None]
) -> None:
    """Make parts in workers; SIGTERM is theirs only until the last one is made."""
    with session(config.cluster) as cluster:
        plan = plan_workers(
            cluster,
            config.resources,
            workers=config.workers,
            threads=config.threads,
            device=config.device,
        )
        map_reduce(
            [str(site) for site in waiting],
            partial(probe_site, str(parts.absolute()), plan),
            _joined,
            session=cluster,
            workers=config.workers,
            threads=plan.threads,
            resources=plan.resources,
            on_done=lambda _: on_done(),
        )
        cluster.raise_if_stopped()


def _here(
    config: ProbeConfig,
    opened: Opened,
    parts: Path,
    waiting: Sequence[Site],
    on_done: Callable[[], None],
) -> None:
    """Make parts in threads of this process, a site each: they never wait for each other."""
    heads = heads_of_all(config, opened)
    with compute_threads(opened.threads), ThreadPoolExecutor(opened.at_once) as pool:
        futures = [pool.submit(make_part, parts, config, opened, heads, site) for site in waiting]
        try:
            for future in as_completed(futures):
                future.result()
                on_done()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _joined(one: list[str], other: list[str]) -> list[str]:
    return [*one, *other]


def _compare(config: ProbeConfig, opened: Opened, folder: Path, tracker: Tracker) -> None:
    """What is made of the tables and probes: depth markers, transfer, the SAE, the page."""
    from actlake.jobs.probe.dictionary import write_comparison
    from actlake.jobs.probe.markers import write_markers
    from actlake.jobs.probe.report import write_report
    from actlake.jobs.probe.transfer import write_transfer

    write_markers(folder, config)
    if config.transfer:
        write_transfer(folder, opened, config)
    if config.dictionary is not None:
        write_comparison(folder, opened, config)
    name = str(opened.store.provenance.model.get("name", "a model")).rstrip("/").rpartition("/")[2]
    write_report(
        folder,
        title=f"Probes of {name}",
        facts=_facts(config, opened),
        warnings=opened.warnings,
        tracker=tracker,
        step=len(opened.sites),
    )


def _facts(config: ProbeConfig, opened: Opened) -> dict[str, str]:
    sets = "; ".join(
        f"{one.name} ({one.kind}): "
        + ", ".join(f"{one.count(code):,} to {name}" for code, name in enumerate(SPLITS))
        for one in opened.sets
    )
    chosen = {} if opened.chosen is None else {"Rows where": str(opened.chosen)}
    return {
        "Store": f"{Path(config.store).name} ({shortened(opened.store.fingerprint)})",
        "Sites": f"{len(opened.sites)}: {opened.sites[0]} to {opened.sites[-1]}",
        "Examples": sets,
        **chosen,
        "Massive rows": massive_facts(
            opened.store,
            opened.massive,
            opened.sites,
            split=training_split(config),
            excluded=config.rows.excluded,
        ),
        "Logistic penalties": ", ".join(f"{one:g}" for one in config.penalties),
        "Ridge penalties": ", ".join(f"{one:g}" for one in config.alphas),
        "Standardised": "yes" if config.standardize else "no",
        "Seed": str(config.seed),
    }


def _final_metrics(folder: Path) -> dict[str, float]:
    """Of each task and probe the layer that is best on validation rows, and its test score."""
    best: dict[str, tuple[float, float, int]] = {}
    for row in read_table(folder, "scores").to_pylist():
        if row["metric"] != MAIN_METRIC.get(row["kind"], "accuracy"):
            continue
        if row["label"] is not None or not np.isfinite(row["value"]):
            continue
        name = f"{_metric_folder(row)}/best_{row['metric']}"
        if name not in best or row["validation"] > best[name][0]:
            best[name] = (row["validation"], row["value"], row["layer"])
    found: dict[str, float] = {}
    for name, (_, value, layer) in best.items():
        found[name] = value
        found[f"{name}_layer"] = float(layer)
    return found


def _tracked(part: Path) -> dict[str, float]:
    """The scores of a site, for the tracker."""
    return {
        f"{_metric_folder(row)}/{row['metric']}": row["value"]
        for row in read_table(part, "scores").to_pylist()
        if row["label"] is None
    }


def _metric_folder(row: Mapping[str, object]) -> str:
    offset = row["offset"]
    assert isinstance(offset, int)
    ahead = f"-ahead.{offset}" if offset > 0 else f"-behind.{-offset}" if offset < 0 else ""
    return f"{row['task']}/{row['pooling']}{ahead}/{row['probe']}"


def _result_that_is_there(config: ProbeConfig, opened: Opened) -> ProbeResult | None:
    """The result of the same config on the same rows, where it is complete already."""
    folder = Path(config.out).expanduser()
    if not (folder / "run.json").is_file():
        return None
    record = RunRecord.load(folder)
    asked = what_decides(to_dict(config), NOT_THE_RESULT)
    had = what_decides(record.config, NOT_THE_RESULT)
    same = {name: given.fingerprint for name, given in record.inputs.items()} == {
        name: given.fingerprint
        for name, given in inputs_of(config, opened.store, opened.chosen, opened.sites).items()
    }
    if record.job != JOB or asked != had or not same:
        return None  # `whole_folder` refuses to write there
    logger.info("%s is complete already", folder)
    scores = read_table(folder, "scores").num_rows
    return ProbeResult(folder, scores, record.metrics, was_there=True)


__all__ = ["ProbePlan", "ProbeResult", "SetPlan", "WorkStopped", "plan_probes", "train_probes"]
