"""Means, covariance and class means of rows, in one pass: all that closed forms need.

Products are of rows less a typical row, in float64 where closed forms are solved from them, else
in float32; sums are float64.

Shapes:  N rows   D width   T targets (one column a class, a label or a number)
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from actlake.jobs.probe.problems import RowSource


@dataclass(frozen=True)
class Scatter:
    """Second-order statistics of rows and targets, all float64."""

    count: int
    mean: Tensor
    """(D,)"""
    covariance: Tensor
    """(D, D), divided by the number of rows."""
    target_sum: Tensor
    """(T,)"""
    cross: Tensor
    """(D, T): the sum of ``(x - mean) t``; of one-hot targets, by class."""

    @classmethod
    def of(cls, rows: RowSource, targets: Tensor, *, exact: bool = True) -> "Scatter":
        """Go through the rows once.

        Parameters
        ----------
        targets
            (N, T) float32.
        exact
            Take products in float64, which is twice the work. Weak directions of the rows are
            lost in the rounding of float32, and closed forms divide by their variances.
        """
        origin: Tensor | None = None
        device, width, columns = targets.device, rows.width, targets.shape[1]
        sums = torch.zeros(width, dtype=torch.float64, device=device)
        gram = torch.zeros(width, width, dtype=torch.float64, device=device)
        cross = torch.zeros(width, columns, dtype=torch.float64, device=device)
        for where, chunk in rows.chunks():
            if origin is None:
                origin = chunk.mean(dim=0, dtype=torch.float64).to(torch.float32)
            moved = chunk - origin
            moved = moved.to(torch.float64) if exact else moved
            sums += moved.sum(dim=0, dtype=torch.float64)
            gram += moved.T @ moved
            cross += moved.T @ targets[where].to(moved.dtype)
        assert origin is not None, "no rows"
        shift = sums / rows.num_rows
        total = targets.sum(dim=0, dtype=torch.float64)
        return cls(
            count=rows.num_rows,
            mean=origin.to(torch.float64) + shift,
            covariance=gram / rows.num_rows - torch.outer(shift, shift),
            target_sum=total,
            cross=cross - torch.outer(shift, total),
        )

    def scale(self) -> Tensor:
        """(D,) standard deviations; 1 where a dimension does not vary."""
        variance = self.covariance.diagonal()
        alive = variance > 1e-12 * variance.max()
        return torch.where(alive, variance.clamp_min(0).sqrt(), 1.0)

    def framed(self, scale: Tensor) -> "Scatter":
        """The same of rows less their mean, divided by `scale`."""
        return Scatter(
            self.count,
            torch.zeros_like(self.mean),
            self.covariance / torch.outer(scale, scale),
            self.target_sum,
            self.cross / scale[:, None],
        )
