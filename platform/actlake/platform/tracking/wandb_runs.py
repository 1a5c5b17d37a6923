"""Weights & Biases; the only file that imports it, and only when a run is opened.

Never asks for a key, never writes to the working directory, and never stops a run: when W&B's
server cannot be reached a run is kept offline, and when W&B fails in the middle, that is said
once and the JSONL file goes on alone.

What W&B gathers by itself is switched off (command line, host and user names, git remote,
installed packages, console, metrics of itself), unless the environment asks for it: the record of a
run is `actlake.platform.runs.RunRecord`.
"""

import base64
import importlib
import io
import logging
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from actlake.platform.redact import without_secrets
from actlake.platform.telemetry import turn_off_telemetry
from actlake.platform.tracking.config import TrackingConfig
from actlake.platform.tracking.tracker import (
    Tracker,
    TrackingError,
    Value,
    check_name,
    check_names,
    page_text,
    png_bytes,
)
from actlake.platform.tracking.wandb_environment import (
    Mode,
    left_to_us,
    mend_environment,
    mode_of_environment,
    refused_setting,
)

PROBE_TIMEOUT_S = 10
"""How long W&B's server may take to answer at all before the run is kept offline."""

INIT_TIMEOUT_S = 60
"""How long W&B's server may take to open a run before the run is kept offline."""

FINISH_TIMEOUT_S = 300
"""How long to wait at the end for uploads; the rest can be sent with ``wandb sync``."""

PROJECT = "actlake"
"""Where runs go if neither the configuration nor the environment names a project."""

_OURS: dict[str, Any] = {
    "init_timeout": INIT_TIMEOUT_S, "finish_timeout": FINISH_TIMEOUT_S,
    "host": "", "console": "off", "silent": True, "disable_git": True, "disable_code": True,
    "disable_job_creation": True, "x_disable_meta": True, "x_save_requirements": False,
    # W&B writes its file every 15 s by default, which is what a kill would cost.
    "x_transaction_log_flush_interval": 1.0,
}  # fmt: skip
"""W&B's settings by its own names; any is the user's who has set it."""

logger = logging.getLogger(__name__)


def open_wandb(
    config: TrackingConfig,
    *,
    run_id: str,
    folder: Path,
    job_type: str,
    config_dict: Mapping[str, Any],
    label: str | None = None,
    group: str | None = None,
    is_one_of_several: bool = False,
    final_folder: Path | None = None,
) -> Tracker | None:
    """A W&B run below ``folder/wandb``, new or going on; None when it is disabled.

    What the configuration leaves open is the environment's to say, and then ours.

    Parameters
    ----------
    config
        How to track; ``auto`` is resolved here, and the log says to what and why.
    run_id
        Identity of the run: the same id later goes on with the same run.
    folder
        Folder of the run; made when it is missing.
    job_type
        The job, such as ``harvest``.
    config_dict
        Shown with the run, without credentials.
    label, group, is_one_of_several, final_folder
        See `open_tracker`.

    Raises
    ------
    TrackingError
        wandb is not installed; ``online`` is asked for and nobody is logged in; or W&B cannot take
        what the configuration or the environment says.
    """
    if config.wandb == "disabled":
        return None
    wandb, settings = _import_wandb(config.wandb)
    mode, reason = _resolve_mode(wandb, settings, config.wandb)
    if mode == "disabled":
        logger.info("W&B is disabled: %s", reason)
        return None
    folder.mkdir(parents=True, exist_ok=True)
    of_several = label if is_one_of_several else None
    ours = {
        **_OURS, "project": PROJECT, "run_group": group, "run_job_type": job_type,
        "resume": "allow", "root_dir": str(folder),
    }  # fmt: skip
    asked = {
        "project": config.project, "entity": config.entity, "run_group": config.group,
        "run_tags": config.tags or None,
        "run_name": _joined(config.name or settings.run_name, of_several, " ") or label or run_id,
    }  # fmt: skip
    chosen = left_to_us(settings, ours)
    chosen |= {name: value for name, value in asked.items() if value is not None}
    run_id = _joined(settings.run_id, of_several, "-") or run_id
    start = _starter(wandb, chosen, without_secrets(config_dict))
    run, mode, reason = _start(wandb, start, run_id, mode, reason)
    where = _moved(Path(run.dir).parent, folder, final_folder)
    logger.info(
        "W&B is %s (%s): %s",
        mode, reason, run.url if mode == "online" else f"send it with `wandb sync {where}`",
    )  # fmt: skip
    if config.step_metric is not None:
        run.define_metric("*", step_metric=config.step_metric)
    return WandbTracker(wandb, run, where)


def check_wandb(config: TrackingConfig) -> None:
    """Refuse what `open_wandb` would, before a job has worked for an hour. Asks no server.

    Raises
    ------
    TrackingError
        As `open_wandb`.
    """
    if config.wandb != "disabled":
        wandb, settings = _import_wandb(config.wandb)
        _wanted_mode(wandb, settings, config.wandb)


def wandb_state(asked: str = "auto") -> tuple[Mode, str]:
    """Whether a run would be online here, and why. Opens none, and asks for no key.

    Raises
    ------
    TrackingError
        As `open_wandb`.
    """
    if asked == "disabled":
        return "disabled", "asked for"
    wandb, settings = _import_wandb(asked)
    return _resolve_mode(wandb, settings, asked)


class WandbTracker:
    """A run of W&B, whose own files will be in `folder`. Made by `open_wandb`."""

    def __init__(self, wandb: Any, run: Any, folder: Path) -> None:
        self._wandb = wandb
        self._run = run
        self._folder = folder
        self._open = True

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """See `Tracker.log`."""
        check_names(metrics)
        numbers = {name: float(value) for name, value in metrics.items()}
        self._try(lambda: self._run.log(numbers, step=int(step)))

    def summary(self, values: Mapping[str, Value]) -> None:
        """See `Tracker.summary`."""
        shown = without_secrets(values)
        self._try(lambda: self._run.summary.update(shown))

    def image(self, name: str, png: bytes | Path, *, step: int) -> None:
        """See `Tracker.image`; as a page around the picture where pillow is not installed."""
        check_name(name)
        content = png_bytes(png)
        self._try(lambda: self._run.log({name: self._picture(content)}, step=int(step)))

    def html(self, name: str, page: str | Path, *, step: int) -> None:
        """See `Tracker.html`."""
        check_name(name)
        text = page_text(page)
        self._try(lambda: self._run.log({name: self._page(text)}, step=int(step)))

    def artifact(self, path: Path, *, kind: str) -> None:
        """See `Tracker.artifact`; read in place, not copied to W&B's cache first."""
        if not path.exists():
            raise TrackingError(f"There is no {kind} at {path} to record")
        name = re.sub(r"[^A-Za-z0-9_.\-]+", "-", f"{self._run.id}-{path.name}")
        self._try(lambda: self._send(path, name, kind))

    def finish(self, *, failed: bool = False) -> None:
        """See `Tracker.finish`; W&B's own process closes its file some 20 ms later."""
        self._try(lambda: self._run.finish(exit_code=1 if failed else 0))
        self._open = False

    def _try(self, call: Callable[[], object]) -> None:
        """Run `call`; when W&B has broken down, say so once and do without it from then on."""
        if not self._open:
            return
        try:
            call()
        except Exception as error:  # wandb's are of many families, some private
            self._open = False
            logger.error(  # noqa: TRY400  the traceback is W&B's inside and helps nobody
                "W&B failed and is left out from here on: %s\n"
                "hint: all numbers are still in metrics.jsonl; what W&B has so far can be sent "
                "with `wandb sync %s`",
                error, self._folder,
            )  # fmt: skip

    def _picture(self, png: bytes) -> Any:
        try:
            pillow = importlib.import_module("PIL.Image")  # wandb.Image wants it, wandb does not
        except ImportError:
            encoded = base64.b64encode(png).decode()
            return self._page(f'<img src="data:image/png;base64,{encoded}">')
        return self._wandb.Image(pillow.open(io.BytesIO(png)))

    def _page(self, text: str) -> Any:
        return self._wandb.Html(text, inject=False)

    def _send(self, path: Path, name: str, kind: str) -> None:
        artifact = self._wandb.Artifact(name, type=kind)
        if path.is_dir():
            artifact.add_dir(str(path), skip_cache=True, policy="immutable")
        else:
            artifact.add_file(str(path), skip_cache=True, policy="immutable")
        self._run.log_artifact(artifact)


def _import_wandb(asked: str) -> tuple[Any, Any]:
    """The package, and what it has read from the environment and from its settings files."""
    mend_environment()
    turn_off_telemetry()
    if asked == "offline":  # what else would be sent is what W&B counts of itself
        os.environ["WANDB_ERROR_REPORTING"] = "false"
    try:
        import wandb
    except ImportError as error:
        raise TrackingError(
            "Tracking with W&B needs the package wandb, which is not installed\n"
            'hint: pip install "actlake[platform]", or set tracking.wandb to disabled'
        ) from error
    try:
        # Not by `wandb.setup`, which would start a process.
        return wandb, wandb.sdk.wandb_setup.singleton().settings
    except (ValueError, wandb.errors.UsageError) as error:
        raise refused_setting(error) from error


def _resolve_mode(wandb: Any, settings: Any, asked: str) -> tuple[Mode, str]:
    """What to do, and why."""
    mode, reason = _wanted_mode(wandb, settings, asked)
    return _online_if_reached(settings.base_url, reason) if mode == "online" else (mode, reason)


def _wanted_mode(wandb: Any, settings: Any, asked: str) -> tuple[Mode, str]:
    """What to do if the server answers, and why. Looks for a login without asking for one."""
    if asked == "offline":
        return "offline", "asked for"
    reason = "asked for"
    if asked == "auto" and (said := mode_of_environment(settings)) is not None:
        asked, reason = said
        if said[0] != "online":
            return said
    logged_in = bool(wandb.login(prompt=False, verify=False))
    if logged_in:
        return "online", "you are logged in" if asked == "auto" else reason
    if asked == "auto":
        return "offline", "nobody is logged in; `wandb login` changes that"
    raise TrackingError(
        f"W&B cannot be online ({reason}): nobody is logged in here\n"
        "hint: run `wandb login` or set WANDB_API_KEY, on the machine where the job runs; or "
        "set tracking.wandb to offline and send the run later with `wandb sync`"
    )


def _online_if_reached(url: str, reason: str) -> tuple[Mode, str]:
    """Ask the server for anything at all, since a failing wandb.init takes a minute to say so."""
    try:
        with urllib.request.urlopen(url, timeout=PROBE_TIMEOUT_S):
            return "online", reason
    except urllib.error.HTTPError as answer:  # an answer all the same
        answer.close()
        return "online", reason
    except (OSError, ValueError) as error:
        logger.warning(
            "W&B cannot be reached, so this run is kept offline: %s: %s\n"
            "hint: send it later with `wandb sync`",
            url, error,
        )  # fmt: skip
        return "offline", "no connection"


def _starter(
    wandb: Any, chosen: Mapping[str, Any], config_dict: Mapping[str, Any]
) -> Callable[[Mode, str], Any]:
    def start(mode: Mode, run_id: str) -> Any:
        settings = wandb.Settings(**chosen, mode=mode, run_id=run_id, reinit="create_new")
        return wandb.init(config=config_dict, settings=settings)

    return start


def _start(
    wandb: Any, start: Callable[[Mode, str], Any], run_id: str, mode: Mode, reason: str
) -> tuple[Any, Mode, str]:
    inherited = "WANDB_SERVICE" in os.environ
    try:
        try:
            return start(mode, run_id), mode, reason
        except wandb.errors.CommError as error:
            if mode == "offline":
                raise
            logger.warning(
                "W&B's server did not open the run, so it is kept offline: %s\n"
                "hint: send it later with `wandb sync --id %s`",
                error, run_id,
            )  # fmt: skip
            # wandb's process holds the id of the failed run until it ends ("run ID is in use"),
            # and ending it would end all other runs in it.
            return start("offline", f"{run_id}-offline"), "offline", "the server refused"
    except (ValueError, wandb.errors.UsageError) as error:
        raise refused_setting(error) from error
    finally:
        # wandb puts the address of its process here for children. A Ray worker that inherits it
        # and is killed leaves its run open in there, and its successor is refused with
        # "run ID is in use"; so every process of ours has its own.
        if not inherited:
            os.environ.pop("WANDB_SERVICE", None)


def _joined(given: str | None, label: str | None, between: str) -> str | None:
    """A name from outside, which several runs of a job have to share."""
    return f"{given}{between}{label}" if given and label else given


def _moved(path: Path, folder: Path, final_folder: Path | None) -> Path:
    """Where a path will be when its folder has its final name."""
    if final_folder is None or not path.is_relative_to(folder):
        return path
    return final_folder / path.relative_to(folder)
