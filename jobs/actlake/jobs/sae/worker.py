"""What one process of a training does: train its SAEs, and finish them."""

import hashlib
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from actlake.jobs.sae.config import SAEConfig, SAESpec
from actlake.jobs.sae.finishing import JOB, finish, record_of, report
from actlake.jobs.sae.opening import Opened, open_config
from actlake.jobs.sae.planning import checkpoint_folders, shares
from actlake.jobs.sae.report import RunFacts
from actlake.jobs.sae.training import Outcome, Training
from actlake.platform.cluster.errors import WorkStopped
from actlake.platform.cluster.process_group import Member
from actlake.platform.cluster.worker_plan import WorkerPlan
from actlake.platform.compute_threads import compute_threads
from actlake.platform.config import to_dict
from actlake.platform.tracking import TrackedRun, open_tracker, run_id_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Worked:
    """What a process has done."""

    outcome: Outcome
    facts: Sequence[RunFacts]
    """Of the SAEs that this process has finished; none where it was stopped before."""


def work(config: SAEConfig, plan: WorkerPlan, member: Member) -> Worked:
    """Train and finish what is this member's share; see `Training`."""
    return work_on(open_config(config, plan=plan), member)


def work_on(opened: Opened, member: Member) -> Worked:
    """The same, of what is open already."""
    config = opened.config
    share = config.spread == "rows"
    specs = shares(opened.specs, config)[member.rank]
    if not specs:
        return Worked(Outcome(opened.steps, opened.steps, {}), [])
    folders = checkpoint_folders(config, opened.out)
    with ExitStack() as stack:
        stack.enter_context(compute_threads(opened.threads))
        training = Training(
            opened.store,
            config,
            specs,
            steps=opened.steps,
            folder=folders[0] if share else folders[member.rank],
            identity=opened.identity,
            member=member,
            device=opened.device,
            share=share,
            chosen=opened.rows,
        )
        trackers: dict[str, TrackedRun] = {}
        if training.writes:
            trackers = {
                str(spec.name): stack.enter_context(track(opened, spec, training.step))
                for spec in specs
            }
        records = {str(spec.name): record_of(opened, spec) for spec in specs}
        outcome = training.run(trackers)
        if not outcome.complete or not training.writes:
            return Worked(outcome, [])
        facts = []
        for one in training.trainees:
            if member.stop.is_set():
                raise WorkStopped(
                    f"Stopped after the training, before {one.name} was tested\n"
                    "hint: the same command goes on from here"
                )
            member.report({"step": outcome.step})
            facts.append(finish(opened, training, one, trackers[one.name], records[one.name]))
        if len(opened.specs) == 1:
            report(opened, facts, next(iter(trackers.values())))
    return Worked(outcome, facts)


def track(opened: Opened, spec: SAESpec, resume_step: int | None) -> TrackedRun:
    """The tracker of one SAE; what was logged after `resume_step` is cut off."""
    return open_tracker(
        opened.config.tracking,
        run_id=f"{group_id(opened)}-{hashlib.sha256(str(spec.name).encode()).hexdigest()[:6]}",
        folder=Path(opened.out) / str(spec.name),
        job_type=JOB,
        config_dict={**to_dict(opened.config), "sae": to_dict(spec), "saes": [], "grid": {}},
        resume_step=resume_step,
        label=str(spec.name),
        group=group_id(opened),
        is_one_of_several=len(opened.specs) > 1,
    )


def group_id(opened: Opened) -> str:
    """Identity of the whole training, the same when it goes on."""
    return run_id_of(JOB, opened.identity, opened.out)
