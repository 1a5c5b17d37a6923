"""Train sparse autoencoders, transcoders and crosscoders from a store.

    result = train_saes(SAEConfig(store="runs/smollm2", out="runs/sae", sae=SAESpec(...)))

The result folder holds

    run.json                config, fingerprints, code, final numbers; begun until it is finished
    NAME/                   each SAE, see `finishing`
    checkpoints/            the last states of the training, see `checkpoint`
    report.html, pictures/  the report

Killed at any moment and called again, the training goes on from its last checkpoint, to the same
weights and the same curves.
"""

import fcntl
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

from rich.console import Console

from actlake.jobs.progress_bar import progress
from actlake.jobs.sae.checkpoint import Checkpoints
from actlake.jobs.sae.config import SAEConfig, SAESpec
from actlake.jobs.sae.errors import AlreadyTraining, ConfigChanged
from actlake.jobs.sae.finishing import JOB, computed_on_of, report
from actlake.jobs.sae.opening import Opened, identity, open_config
from actlake.jobs.sae.planning import SAEPlan, checkpoint_folders, last_steps, plan_opened
from actlake.jobs.sae.speeds import Speeds
from actlake.jobs.sae.training import not_finite
from actlake.jobs.sae.worker import Worked, group_id, work, work_on
from actlake.jobs.saying import say
from actlake.platform.cluster import (
    Member,
    Session,
    WorkStopped,
    plan_workers,
    run_group,
    session,
)
from actlake.platform.cluster.interrupts import current_handlers, stop_flag, stops_at_once
from actlake.platform.config import from_dict, to_dict
from actlake.platform.runs import FILE, ResultExists, RunRecord
from actlake.platform.tracking import TrackedRun, check_wandb, open_tracker
from actlake.platform.writable import check_writable
from actlake.storage.provenance import differences

logger = logging.getLogger(__name__)
LOCK = ".lock"


@dataclass(frozen=True)
class SAEResult:
    """How a training ended."""

    out: Path
    specs: tuple[SAESpec, ...]
    """The SAEs, with names."""
    metrics: Mapping[str, float]
    """``NAME/held_out/fvu`` and so on, as in ``run.json``."""
    was_there: bool
    """The same result was there already, and nothing was done."""

    def folder(self, sae: SAESpec | str) -> Path:
        """Where an SAE is; of a spec without a name, there must be one only."""
        if isinstance(sae, SAESpec) and sae.name is None:
            names = [s.name for s in self.specs if replace(s, name=None) == sae]
            assert len(names) == 1, (sae, [spec.name for spec in self.specs])
            return self.out / str(names[0])
        return self.out / str(sae.name if isinstance(sae, SAESpec) else sae)

    @property
    def report(self) -> Path:
        """The page."""
        return self.out / "report.html"


def plan_saes(config: SAEConfig) -> SAEPlan:
    """What `train_saes` would do now.

    Raises
    ------
    ActlakeError
        Whatever `train_saes` would refuse before it reads rows.
    """
    check_writable(config.out)
    opened = open_config(config)
    _begun(opened)
    return plan_opened(opened)


def train_saes(config: SAEConfig, *, console: Console | None = None) -> SAEResult:
    """Train, publish, test and report all SAEs of a configuration.

    Parameters
    ----------
    console
        Where the plan and the progress are shown; by default standard error.

    Raises
    ------
    InvalidSAE, InvalidTraining
        SAEs or a training that cannot be.
    SiteNotStored, UnknownSplit, NotEnoughRows
        The store has not what is asked for.
    ConfigChanged
        `config.out` holds another training; the differences are named.
    AlreadyTraining
        Another process is at it.
    NonFiniteLoss
        The loss of an SAE became NaN or infinite; the others are trained to the end.
    WorkStopped
        SIGTERM or Ctrl-C; the state is written down, and the same call goes on from there.
    """
    console = console or Console(stderr=True)
    check_writable(config.out)
    opened = open_config(config)
    record = _begun(opened)
    if record is not None and record.finished is not None:
        logger.info("%s is complete already", opened.out)
        return SAEResult(opened.out, opened.specs, record.metrics, was_there=True)
    check_wandb(config.tracking)
    say(plan_opened(opened), console)
    with _only_one(opened.out):
        record = record or _begin(opened)
        done = _train(opened, console)
        with stops_at_once():
            metrics = _conclude(opened, done, record)
    return SAEResult(opened.out, opened.specs, metrics, was_there=False)


def _begun(opened: Opened) -> RunRecord | None:
    """The record of the training that is in the folder already; None where there is none.

    Raises
    ------
    ConfigChanged
        It is another one.
    ResultExists
        The folder holds something else.
    """
    out = opened.out
    if not (out / FILE).is_file():
        if out.is_dir() and any(path.name != LOCK for path in out.iterdir()):
            raise ResultExists(
                f"There is already something at {out} that is no training of SAEs\n"
                "hint: name another folder, or remove that one yourself"
            )
        return None
    record = RunRecord.load(out)
    if record.job != JOB:
        raise ResultExists(f"{out} is a result of actlake {record.job}\nhint: name another folder")
    had = identity(from_dict(SAEConfig, record.config), record.inputs)
    if lines := differences(had, opened.identity):
        state = "holds the result" if record.finished else "holds a part"
        raise ConfigChanged(
            f"{out} {state} of a training with another configuration:\n"
            + "\n".join(lines)
            + "\nhint: name another folder as out, or give the same configuration"
        )
    return record


def _begin(opened: Opened) -> RunRecord:
    record = RunRecord.start(
        JOB, to_dict(opened.config), inputs=opened.inputs, seed=opened.config.seed,
        computed_on=computed_on_of(opened),
    )  # fmt: skip
    record.save(opened.out)
    return record


@contextmanager
def _only_one(out: Path) -> Iterator[None]:
    """Keep other processes away from the folder; the lock goes with the process."""
    out.mkdir(parents=True, exist_ok=True)
    handle = os.open(out / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise AlreadyTraining(
            f"Another process is training into {out}\nhint: wait for it, or stop it"
        ) from error
    except OSError:
        logger.warning("The file system of %s has no locks; do not start two trainings", out)
    try:
        yield
    finally:
        os.close(handle)


def _train(opened: Opened, console: Console) -> list[Worked]:
    """In this process, or in workers on Ray; all is written down when it is stopped."""
    config = opened.config
    speeds = Speeds(share=config.spread == "rows")
    done = min(last_steps(config, opened.out), default=0)
    with progress(console, "steps", opened.steps, done=done, words=speeds.__str__) as advance:
        shown = _Shown(advance, done, speeds)
        if config.workers == 1 and not opened.joins:
            stop = Event()
            with stop_flag(stop, restore=current_handlers()):
                member = Member(0, 1, stop=stop, report=partial(shown, 0))
                worked = [work_on(opened, member)]
        else:
            with session(config.cluster) as cluster:
                worked = _on_ray(config, cluster, shown)
    stopped = [one.outcome for one in worked if not one.outcome.complete]
    if stopped:
        first = min(stopped, key=lambda outcome: outcome.step)
        raise WorkStopped(
            f"Stopped after step {first.step:,} of {first.steps:,}; all of it is written down\n"
            "hint: the same command goes on from here"
        )
    return worked


def _on_ray(
    config: SAEConfig, cluster: Session, shown: Callable[[int, Mapping[str, Any]], None]
) -> list[Worked]:
    plan = plan_workers(
        cluster,
        config.resources,
        workers=config.workers,
        threads=config.threads,
        device=config.device,
    )
    logger.info(
        "%d worker(s) on %s, with %s and %d thread(s) each",
        config.workers, plan.device, plan.resources, plan.threads,
    )  # fmt: skip
    return run_group(
        cluster,
        partial(work, config, plan),
        workers=config.workers,
        threads=plan.threads,
        resources=plan.resources,
        joined=config.spread == "rows",
        on_report=shown,
        progress=lambda news: float(news["step"]),
        hang_timeout_s=config.hang_timeout_s,
    )


class _Shown:
    """Moves the bar on by what the slowest worker has done, and takes their speeds."""

    def __init__(self, advance: Callable[[int], None], step: int, speeds: Speeds) -> None:
        self._advance, self._step, self._speeds = advance, step, speeds
        self._steps: dict[int, int] = {}

    def __call__(self, rank: int, news: Mapping[str, Any]) -> None:
        self._speeds.hear(rank, news)
        self._steps[rank] = news["step"]
        slowest = min(self._steps.values())
        self._advance(max(slowest - self._step, 0))
        self._step = max(self._step, slowest)


def _conclude(opened: Opened, worked: Sequence[Worked], record: RunRecord) -> dict[str, float]:
    """Report and record; refuse where an SAE has failed."""
    order = [str(spec.name) for spec in opened.specs]
    facts = sorted(
        (one for each in worked for one in each.facts), key=lambda one: order.index(one.name)
    )
    if len(opened.specs) > 1:  # that of a single SAE is written, and tracked, where it is trained
        with _report_tracker(opened) as tracker:
            report(opened, facts, tracker)
    endings = {k: v for each in worked for k, v in each.outcome.endings.items()}
    failed = [ending.words for ending in endings.values() if ending.failed]
    if failed:
        raise not_finite(
            failed, Checkpoints(checkpoint_folders(opened.config, opened.out)[0], keep=1)
        )
    metrics = {
        f"{one.name}/{name}": value
        for one in facts
        for name, value in RunRecord.load(opened.out / one.name).metrics.items()
    }
    record.finish(metrics).save(opened.out)
    return metrics


def _report_tracker(opened: Opened) -> TrackedRun:
    """A run of its own for what compares several SAEs."""
    return open_tracker(
        opened.config.tracking,
        run_id=f"{group_id(opened)}-report",
        folder=opened.out / "log",
        job_type=f"{JOB}-report",
        config_dict=to_dict(opened.config),
        label="report",
        group=group_id(opened),
        is_one_of_several=True,
    )
