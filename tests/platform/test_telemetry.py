"""What libraries report of whoever uses them is off, unless it was asked for."""

import os
import subprocess
import sys

import pytest

from actlake.platform.telemetry import must_not_track, turn_off_telemetry

VARIABLES = ("HF_HUB_DISABLE_TELEMETRY", "RAY_USAGE_STATS_ENABLED", "WANDB_ERROR_REPORTING")


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    for name in (*VARIABLES, "DO_NOT_TRACK"):
        monkeypatch.setenv(name, "")


ASKS = """
import os, sys
os.environ.update(pair.split("=") for pair in sys.argv[1:])
from actlake.jobs.cli import run
run(["harvets"]); run(["info", "nowhere"])
from huggingface_hub.constants import HF_HUB_DISABLE_TELEMETRY
from ray._common.usage.usage_lib import usage_stats_enabled
from wandb.env import error_reporting_enabled
print(not HF_HUB_DISABLE_TELEMETRY, usage_stats_enabled(), error_reporting_enabled())
"""


@pytest.mark.parametrize(
    ("given", "reports"),
    [
        ([], "False False False"),
        (["RAY_USAGE_STATS_ENABLED=1", "WANDB_ERROR_REPORTING=true"], "False True True"),
        (["RAY_USAGE_STATS_ENABLED=1", "DO_NOT_TRACK=1"], "False False False"),
        (["WANDB_ERROR_REPORTING=true", "DO_NOT_TRACK=TRUE"], "False False False"),
    ],
)
def test_the_libraries_find_themselves_switched_off_by_every_command(given, reports):
    """The libraries are asked, and not the variables."""
    answer = subprocess.run(
        [sys.executable, "-c", ASKS, *given], capture_output=True, text=True, timeout=60
    )

    assert answer.stdout.splitlines()[-1:] == [reports], answer.stderr


@pytest.mark.parametrize(("value", "said"), [("", False), ("0", False), ("1", True), ("Yes", True)])
def test_do_not_track_is_understood(value, said, monkeypatch):
    monkeypatch.setenv("DO_NOT_TRACK", value)

    assert must_not_track() == said


def test_turning_off_twice_is_turning_off_once(monkeypatch):
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "true")

    turn_off_telemetry()
    turn_off_telemetry()

    assert [os.environ[name] for name in VARIABLES] == ["1", "0", "true"]
