"""Exactly once: whatever is killed when, the store is that of an undisturbed run, to the byte.

A handful of kills and suspensions; ``benchmarks/kills.py`` does hundreds with the same programs.
"""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kills.py"


def test_killed_and_suspended_drivers_leave_the_store_of_an_undisturbed_run():
    run = subprocess.run(
        [sys.executable, SCRIPT, "--kills", "8", "--stops", "2", "--real-stops", "0"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert run.returncode == 0, run.stderr
    figures = json.loads(run.stdout.splitlines()[-1])
    assert figures["unequal_stores"] == 0
    assert figures["kills"] >= 8
    assert figures["stopped_drivers"] == 2
    assert figures["interrupted_units"] > 0
    assert figures["lost_units"] == 0
