"""Questions to a store of ten million rows; the benchmark checks every answer against a scan."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_token_is_found_well_under_a_second_after_the_first_lookup(tmp_path):
    script = Path(__file__).parents[3] / "benchmarks" / "query.py"
    out = tmp_path / "query.json"

    subprocess.run([sys.executable, script, "--out", out], check=True, timeout=280)

    figures = json.loads(out.read_text())
    assert figures["rows"] == 10_000_000
    assert figures["commonest_token_s"] < 0.5
    assert figures["reopened_token_s"] < 1
    assert figures["first_token_s"] < 30
    assert figures["index_bytes"] < 5 * figures["rows"]
