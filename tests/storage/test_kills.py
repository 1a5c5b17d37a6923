"""Exactly once: whatever is killed when, the store is that of an undisturbed run, to the byte.

A handful of kills; ``benchmarks/kills.py`` does hundreds with the same program.
"""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kills.py"


def test_killed_drivers_and_writers_leave_the_store_of_an_undisturbed_run():
    run = subprocess.run(
        [sys.executable, SCRIPT, "--kills", "8"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert run.returncode == 0, run.stderr
    figures = json.loads(run.stdout.splitlines()[-1])
    assert figures["unequal_stores"] == 0
    assert figures["kills"] >= 8
    assert figures["interrupting_kills"] > figures["kills"] / 2
    assert figures["interrupted_units"] >= figures["interrupting_kills"]
