"""How a run is tracked."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where a run's numbers go. The JSONL file is always written."""

    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """Weights & Biases: `auto` is online where you are logged in and offline where not, never
    asking; the environment variable WANDB_MODE decides for `auto`. `online` fails at once
    without a login. `disabled` does not import wandb."""

    project: str = "actlake"
    """W&B project."""

    entity: str | None = None
    """W&B user or team; null is the default of your account."""

    group: str | None = None
    """W&B group, such as the name of a sweep."""

    name: str | None = None
    """Name shown for the run; null is the run's id."""

    tags: tuple[str, ...] = ()
    """W&B tags."""

    step_metric: str | None = None
    """Metric on the x-axis of W&B's charts, such as `tokens`; null is the step."""
