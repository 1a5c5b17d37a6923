"""Where a run's numbers go: always a JSONL file, and Weights & Biases when wanted.

    with open_tracker(config.tracking, run_id=..., folder=out, job_type="train-sae",
                      config_dict=to_dict(config)) as tracker:
        tracker.log({"train/loss": 0.31}, step=100)

Below the folder of the run:

    metrics.jsonl     every logged number, one line a call; `read_metrics` reads it back
    summary.json      the last values of the run
    media/            pictures and pages
    wandb/            W&B's own files; `wandb sync` sends those of an offline run

wandb is imported only when a run is opened that uses it.
"""

from actlake.platform.tracking.config import TrackingConfig
from actlake.platform.tracking.jsonl import JsonLinesTracker, read_metrics
from actlake.platform.tracking.memory import MemoryTracker
from actlake.platform.tracking.opening import TrackedRun, open_tracker, run_id_of
from actlake.platform.tracking.tracker import Tracker, TrackingError
from actlake.platform.tracking.wandb_runs import check_wandb

__all__ = [
    "JsonLinesTracker",
    "MemoryTracker",
    "TrackedRun",
    "Tracker",
    "TrackingError",
    "TrackingConfig",
    "check_wandb",
    "open_tracker",
    "read_metrics",
    "run_id_of",
]
