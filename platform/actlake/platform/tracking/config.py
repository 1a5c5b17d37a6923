"""How a run is tracked."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where a run's numbers go. The JSONL file is always written."""

    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """Weights & Biases: `auto` is online where you are logged in and offline where not, never
    asking; WANDB_MODE, WANDB_DISABLED and `wandb offline` decide for `auto`. `online` fails at
    once without a login. `disabled` does not import wandb."""

    project: str | None = None
    """W&B project; null is $WANDB_PROJECT, or `actlake`."""

    entity: str | None = None
    """W&B user or team; null is $WANDB_ENTITY, or the default of your account."""

    group: str | None = None
    """W&B group, such as the name of a sweep; null is $WANDB_RUN_GROUP, or the job's own."""

    name: str | None = None
    """Name shown for the run; null is $WANDB_NAME, or what tells it from the job's other runs."""

    tags: tuple[str, ...] = ()
    """W&B tags; none are those of $WANDB_TAGS."""

    step_metric: str | None = None
    """Metric on the x-axis of W&B's charts, such as `tokens`; null is the step."""
