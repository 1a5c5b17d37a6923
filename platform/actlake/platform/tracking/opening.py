"""Open the trackers of a run as one."""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from actlake.platform.plain_json import json_text
from actlake.platform.tracking.config import TrackingConfig
from actlake.platform.tracking.jsonl import JsonLinesTracker
from actlake.platform.tracking.tracker import Tracker, TrackingError, Value
from actlake.platform.tracking.wandb_runs import open_wandb

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}")


def open_tracker(
    config: TrackingConfig,
    *,
    run_id: str,
    folder: Path,
    job_type: str,
    config_dict: Mapping[str, Any],
    resume_step: int | None = None,
    label: str | None = None,
    group: str | None = None,
    is_one_of_several: bool = False,
    final_folder: Path | None = None,
) -> "TrackedRun":
    """The JSONL file of a run, and its W&B run unless that is disabled.

    Open it in one process of a run only, and after Ray was started.

    Parameters
    ----------
    config
        How to track.
    run_id
        Identity of the run, the same when it is resumed and no other's: derive it, by
        `run_id_of`, from what the run is and where its result is to be. Letters, digits and
        ``_ . -``, at most 64.
    folder
        Folder of the run; everything is written below it. Made when it is missing.
    job_type
        The job, such as ``harvest`` or ``train-sae``.
    config_dict
        The job's configuration; W&B shows it, without credentials.
    resume_step
        Step of the checkpoint from which the run goes on: what was logged for later steps is
        cut from the JSONL file, and W&B ignores it. None for a new run.
    label
        What W&B shows as the run's name where nobody has named it; the id if left out.
    group
        W&B group where neither the configuration nor the environment says one.
    is_one_of_several
        The job opens others, too: a name or id that comes from outside gets `label` behind it.
    final_folder
        What `folder` will be called when the run has ended, where that is not its name now.

    Returns
    -------
    TrackedRun
        A `Tracker`; as a context manager it finishes at the end, as failed after an error.

    Raises
    ------
    TrackingError
        The id cannot be one, the JSONL file is damaged, wandb is missing, or W&B is to be
        online and nobody is logged in.
    """
    if not _RUN_ID.fullmatch(run_id):
        raise TrackingError(
            f"{run_id!r} cannot be the id of a run\n"
            "hint: use letters, digits, _ . and -, at most 64 of them"
        )
    lines = JsonLinesTracker(folder, resume_step=resume_step)
    try:
        wandb = open_wandb(
            config, run_id=run_id, folder=folder, job_type=job_type, config_dict=config_dict,
            label=label, group=group, is_one_of_several=is_one_of_several,
            final_folder=final_folder,
        )  # fmt: skip
    except BaseException:
        lines.finish(failed=True)
        raise
    return TrackedRun([lines] if wandb is None else [lines, wandb])


def run_id_of(job: str, identity: Any, place: str | Path) -> str:
    """The id of a run: what it is, and the path or URL of its result.

    The same job into another folder is another run; what goes on in its folder is the same one.

    Parameters
    ----------
    identity
        JSON-able: what the numbers depend on.
    """
    where = str(place) if "://" in str(place) else str(Path(place).expanduser().resolve())
    payload = json_text([identity, where])
    return f"{job}-{hashlib.sha256(payload.encode()).hexdigest()[:12]}"


class TrackedRun:
    """Several trackers as one; a context manager that finishes them."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = tuple(trackers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.finish(failed=error is not None)

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """See `Tracker.log`."""
        for tracker in self._trackers:
            tracker.log(metrics, step=step)

    def summary(self, values: Mapping[str, Value]) -> None:
        """See `Tracker.summary`."""
        for tracker in self._trackers:
            tracker.summary(values)

    def image(self, name: str, png: bytes | Path, *, step: int) -> None:
        """See `Tracker.image`."""
        for tracker in self._trackers:
            tracker.image(name, png, step=step)

    def html(self, name: str, page: str | Path, *, step: int) -> None:
        """See `Tracker.html`."""
        for tracker in self._trackers:
            tracker.html(name, page, step=step)

    def artifact(self, path: Path, *, kind: str) -> None:
        """See `Tracker.artifact`."""
        for tracker in self._trackers:
            tracker.artifact(path, kind=kind)

    def finish(self, *, failed: bool = False) -> None:
        """See `Tracker.finish`; all are finished, also when one of them raises."""
        _finish_all([tracker.finish for tracker in self._trackers], failed=failed)


def _finish_all(finishes: Sequence[Callable[..., None]], *, failed: bool) -> None:
    if finishes:
        try:
            finishes[0](failed=failed)
        finally:
            _finish_all(finishes[1:], failed=failed)
