"""`actlake harvest` with one unit whose computation kills the process, at every attempt.

python poisoned.py UNIT harvest --store …
"""

import os
import signal
import sys

from ray import cloudpickle

from actlake.jobs.cli import run
from actlake.jobs.harvest import job, worker

POISON = int(sys.argv[1])


class Poisoned(worker.HarvestWorker):
    def run(self, unit, send):
        if unit == POISON:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().run(unit, send)


cloudpickle.register_pickle_by_value(sys.modules[__name__])
job.HarvestWorker = Poisoned

if __name__ == "__main__":
    sys.exit(run(sys.argv[2:]))
