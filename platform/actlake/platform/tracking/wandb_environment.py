"""What W&B's variables and settings files say of a run, and what is left for us to choose.

Three may say how a run is tracked: the job's configuration; then the environment (``WANDB_PROJECT``
and the others) and the files that `wandb init` and `wandb offline` write; then we. W&B reads the
second by itself, but takes an argument of ``wandb.init`` for stronger. So an argument is passed
only where the configuration says it, or nobody has.

wandb is not imported here.
"""

import os
from collections.abc import Mapping
from typing import Any, Literal

from actlake.platform.tracking.tracker import TrackingError

Mode = Literal["online", "offline", "disabled"]

_MODES: dict[str, Mode] = {
    "online": "online", "run": "online",
    "offline": "offline", "dryrun": "offline",
    "disabled": "disabled",
}  # fmt: skip
_TRUE = ("1", "true", "t", "yes", "y", "on")


def mend_environment() -> None:
    """Make of the variables what W&B can read, before it does: it fails at empty and capital ones.

    Raises
    ------
    TrackingError
        WANDB_MODE is none that a run can have.
    """
    for name, value in list(os.environ.items()):
        if name.startswith("WANDB_") and not value.strip():
            del os.environ[name]
    if (written := os.environ.get("WANDB_MODE")) is not None:
        os.environ["WANDB_MODE"] = _mode(written)


def mode_of_environment(settings: Any) -> tuple[Mode, str] | None:
    """The mode that variables or settings files ask for, and who does; None where none does."""
    if os.environ.get("WANDB_DISABLED", "").strip().lower() in _TRUE:
        return "disabled", "WANDB_DISABLED says so"
    if (written := os.environ.get("WANDB_MODE")) is not None:
        return _mode(written), "WANDB_MODE says so"
    if "mode" in settings.model_fields_set:
        return _mode(settings.mode), "W&B's settings file says so"
    return None


def left_to_us(settings: Any, ours: Mapping[str, Any]) -> dict[str, Any]:
    """Those of our choices, by W&B's name of the setting, that nobody else has made."""
    chosen = set(settings.model_fields_set)
    if "WANDB_HOST" not in os.environ:
        chosen.discard("host")  # W&B fills in the name of the machine by itself
    return {name: value for name, value in ours.items() if name not in chosen}


def refused_setting(error: Exception) -> TrackingError:
    """The error for a value that W&B cannot take."""
    listed = getattr(error, "errors", None)  # pydantic's
    said = (
        "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in listed())
        if callable(listed)
        else str(error)
    )
    given = sorted(name for name in os.environ if name.startswith("WANDB_"))
    variables = [name for name in given if "KEY" not in name]
    return TrackingError(
        f"W&B cannot be set up as asked: {said}\n"
        f"Its variables that are set: {', '.join(variables) or 'none'}\n"
        "hint: mend the variable or the field of tracking, or set tracking.wandb to disabled"
    )


def _mode(written: str) -> Mode:
    try:
        return _MODES[written.strip().lower()]
    except KeyError:
        raise TrackingError(
            f"WANDB_MODE is {written!r}; there can be online, offline and disabled\n"
            "hint: set one of them, or unset it for online where you are logged in"
        ) from None
