"""The process of one step: the command itself, which ends when its pipeline does.

    python -m actlake.jobs.pipeline.step_process PIPELINE_PID COMMAND --config FILE

A pipeline that is killed cannot tell its steps, and they would go on unseen. On Linux the
system tells them: SIGTERM, at which a step finishes what it holds.
"""

import ctypes
import os
import signal
import sys

from actlake.jobs.cli import run

_PR_SET_PDEATHSIG = 1


def end_with(pipeline_pid: int) -> None:
    """Have SIGTERM sent to this process when the pipeline's ends, where Linux can do that."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
        if os.getppid() != pipeline_pid:  # it ended before it was asked for
            raise SystemExit(128 + signal.SIGTERM)


if __name__ == "__main__":
    end_with(int(sys.argv[1]))
    raise SystemExit(run(sys.argv[2:]))
