"""Weights & Biases; the only file that imports it, and only when a run is opened.

Never asks for a key, never writes to the working directory, and never stops a run: when W&B's
server cannot be reached a run is kept offline, and when W&B fails in the middle, that is said
once and the JSONL file goes on alone.

What W&B gathers by itself is switched off (command line, host and user names, git remote,
installed packages, console): the record of a run is `actlake.platform.runs.RunRecord`.
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
from typing import Any, Literal, cast

from actlake.platform.redact import without_secrets
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

Mode = Literal["online", "offline", "disabled"]

PROBE_TIMEOUT_S = 10
"""How long W&B's server may take to answer at all before the run is kept offline."""

INIT_TIMEOUT_S = 60
"""How long W&B's server may take to open a run before the run is kept offline."""

FINISH_TIMEOUT_S = 300
"""How long to wait at the end for uploads; the rest can be sent with ``wandb sync``."""

# W&B writes its file every 15 s by default, which is what a kill would cost.
_FLUSH_EVERY_S = 1.0

logger = logging.getLogger(__name__)


def open_wandb(
    config: TrackingConfig,
    *,
    run_id: str,
    folder: Path,
    job_type: str,
    config_dict: Mapping[str, Any],
) -> Tracker | None:
    """A W&B run below ``folder/wandb``, new or going on; None when it is disabled.

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

    Raises
    ------
    TrackingError
        wandb is not installed; or ``online`` is asked for and nobody is logged in.
    """
    if config.wandb == "disabled":
        return None
    wandb = _import_wandb()
    mode, reason = _resolve_mode(wandb, config.wandb)
    if mode == "disabled":
        logger.info("W&B is disabled: %s", reason)
        return None
    folder.mkdir(parents=True, exist_ok=True)
    start = _starter(wandb, config, run_id, folder, job_type, config_dict)
    run, mode, reason = _start(wandb, start, run_id, mode, reason)
    logger.info("W&B is %s (%s): %s", mode, reason, _where(run, mode))
    if config.step_metric is not None:
        run.define_metric("*", step_metric=config.step_metric)
    return WandbTracker(wandb, run)


def wandb_state(asked: str = "auto") -> tuple[Mode, str]:
    """Whether a run would be online here, and why. Opens none, and asks for no key.

    Raises
    ------
    TrackingError
        As `open_wandb`.
    """
    if asked == "disabled":
        return "disabled", "asked for"
    return _resolve_mode(_import_wandb(), asked)


class WandbTracker:
    """A run of W&B. Made by `open_wandb`."""

    def __init__(self, wandb: Any, run: Any) -> None:
        self._wandb = wandb
        self._run = run
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
                error, Path(self._run.dir).parent,
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


def _import_wandb() -> Any:
    try:
        import wandb
    except ImportError as error:
        raise TrackingError(
            "Tracking with W&B needs the package wandb, which is not installed\n"
            'hint: pip install "actlake[platform]", or set tracking.wandb to disabled'
        ) from error
    return wandb


def _resolve_mode(wandb: Any, asked: str) -> tuple[Mode, str]:
    """What to do, and why. Looks for a login without asking for one."""
    if asked == "offline":
        return "offline", "asked for"
    from_environment = os.environ.get("WANDB_MODE")
    if asked == "auto" and from_environment in ("online", "offline", "disabled"):
        asked, reason = from_environment, "WANDB_MODE says so"
        if asked != "online":
            return cast(Mode, asked), reason
    else:
        reason = "asked for"
    logged_in = bool(wandb.login(prompt=False, verify=False))
    if logged_in:
        return _online_if_reached(wandb, "you are logged in" if asked == "auto" else reason)
    if asked == "auto":
        return "offline", "nobody is logged in; `wandb login` changes that"
    raise TrackingError(
        f"W&B cannot be online ({reason}): nobody is logged in here\n"
        "hint: run `wandb login` or set WANDB_API_KEY, on the machine where the job runs; or "
        "set tracking.wandb to offline and send the run later with `wandb sync`"
    )


def _online_if_reached(wandb: Any, reason: str) -> tuple[Mode, str]:
    """Ask the server for anything at all, since a failing wandb.init takes a minute to say so."""
    url = wandb.setup().settings.base_url
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
    wandb: Any,
    config: TrackingConfig,
    name: str,
    folder: Path,
    job_type: str,
    config_dict: Mapping[str, Any],
) -> Callable[[Mode, str], Any]:
    def start(mode: Mode, run_id: str) -> Any:
        settings = wandb.Settings(
            init_timeout=INIT_TIMEOUT_S, finish_timeout=FINISH_TIMEOUT_S,
            host="", console="off", silent=True, disable_git=True, disable_code=True,
            disable_job_creation=True, x_disable_meta=True, x_save_requirements=False,
            x_transaction_log_flush_interval=_FLUSH_EVERY_S,
        )  # fmt: skip
        return wandb.init(
            mode=mode, id=run_id, resume="allow", reinit="create_new", dir=str(folder),
            project=config.project, entity=config.entity, group=config.group,
            name=config.name or name, tags=list(config.tags), job_type=job_type,
            config=without_secrets(config_dict), settings=settings,
        )  # fmt: skip

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
    finally:
        # wandb puts the address of its process here for children. A Ray worker that inherits it
        # and is killed leaves its run open in there, and its successor is refused with
        # "run ID is in use"; so every process of ours has its own.
        if not inherited:
            os.environ.pop("WANDB_SERVICE", None)


def _where(run: Any, mode: Mode) -> str:
    if mode == "online":
        return str(run.url)
    return f"send it with `wandb sync {Path(run.dir).parent}`"
