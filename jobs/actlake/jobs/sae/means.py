"""Means of what is logged, over the steps since the last line; part of a checkpoint."""

from collections.abc import Mapping

import torch
from torch import Tensor

LOSS = "train/loss"
GRADIENT_NORM = "train/gradient_norm"
L0 = "train/l0"
FVU = "train/fvu"
LEARNING_RATE = "train/learning_rate"
ROWS = "train/rows"
SPEED = "speed/rows_per_s"
WAITING = "speed/data_wait_share"
EXCHANGING = "speed/exchange_share"
HELD_OUT = "held_out"


class Means:
    """Sums of scalars on their device, in float64, and of how many steps.

    Nothing is copied to the host before `take`, so that a GPU need not wait.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums: dict[str, Tensor] = {}
        self._steps = 0

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Count one step."""
        for name, value in values.items():
            value = value.detach().to(self._device, torch.float64)
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
        self._steps += 1

    def take(self) -> dict[str, float]:
        """The means, and begin anew; empty when no step was counted."""
        if not self._steps:
            return {}
        names = list(self._sums)
        values = (torch.stack([self._sums[name] for name in names]) / self._steps).tolist()
        self._sums, self._steps = {}, 0
        return dict(zip(names, values, strict=True))

    def state(self) -> tuple[dict[str, float], int]:
        """The sums and the number of steps, to be written down; floats keep every bit."""
        return {name: float(value) for name, value in self._sums.items()}, self._steps

    def load(self, sums: Mapping[str, float], steps: int) -> None:
        """Go on from what `state` gave."""
        self._sums = {
            name: torch.tensor(float(value), dtype=torch.float64, device=self._device)
            for name, value in sums.items()
        }
        self._steps = steps
