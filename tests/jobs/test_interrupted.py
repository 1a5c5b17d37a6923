"""Ctrl-C before a command has begun: one line, and no traceback."""

import subprocess
import sys

import pytest

INTERRUPTED_AT_AN_IMPORT = """
import signal, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            print("interrupted", file=sys.stderr)
            signal.raise_signal(signal.SIGINT)

module = sys.argv.pop(1)
sys.meta_path.insert(0, Interrupting())
from actlake.jobs.__main__ import main
main()
"""


def _interrupted_at(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", INTERRUPTED_AT_AN_IMPORT, module, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "module", ["actlake.jobs.cli", "numpy", "numpy._core.multiarray", "zarr", "pyarrow"]
)
def test_ctrl_c_while_the_command_line_is_imported_ends_with_one_line(module):
    ended = _interrupted_at(module, "info", "/nowhere")

    assert ended.stderr == "interrupted\nactlake: interrupted before anything was begun\n"
    assert ended.returncode == 130


def test_ctrl_c_while_a_command_is_imported_ends_with_one_line():
    ended = _interrupted_at("actlake.jobs.harvest.command", "harvest", "--help")

    assert ended.stderr == "interrupted\nactlake: interrupted before anything was begun\n"
    assert ended.returncode == 130


def test_who_ignores_ctrl_c_as_nohup_does_goes_on():
    program = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"

    ended = subprocess.run(
        [sys.executable, "-c", program + INTERRUPTED_AT_AN_IMPORT, "zarr", "--help"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 0
    assert "usage: actlake COMMAND" in ended.stdout
