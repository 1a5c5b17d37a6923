"""What libraries would report of their own accord about whoever uses them, switched off.

They read their variables when they are imported or when they start a process of their own, so
`turn_off_telemetry` comes before that. A variable that is set already stays as it is, unless
``DO_NOT_TRACK`` (https://donottrack.sh) says that nothing is to be reported.
"""

import os

_OFF = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "WANDB_ERROR_REPORTING": "false",  # metrics and logs of W&B's own process, to W&B's server
}


def turn_off_telemetry() -> None:
    """Let nothing be reported by this process and those it starts."""
    for name, off in _OFF.items():
        if must_not_track() or not os.environ.get(name):
            os.environ[name] = off


def must_not_track() -> bool:
    """Whether the environment says that nothing is to be reported."""
    return os.environ.get("DO_NOT_TRACK", "").strip().lower() not in ("", "0", "false", "no", "off")
