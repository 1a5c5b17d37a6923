"""Confidence intervals by leaving out groups of documents.

Tokens of one document are alike, so rows are not independent and documents are the unit. What
was trained or fitted stays as it is: the interval says how far a number on *other test
documents* would be from this one, not how far another training text would have led.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Interval:
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the length of the interval."""
        return (self.high - self.low) / 2

    def __str__(self) -> str:
        return f"{self.value:.4f} ± {self.half_width:.4f}"


def jackknife(value: float, left_out: Sequence[float]) -> Interval:
    """The delete-a-group jackknife: Efron and Tibshirani 1993, section 11.5.

    Parameters
    ----------
    value
        On all groups.
    left_out
        On all groups but one, for each. Fewer than two give no interval (NaN).
    """
    groups = len(left_out)
    if groups < 2:
        return Interval(value, float("nan"), float("nan"))
    replicates = np.asarray(left_out, np.float64)
    variance = (groups - 1) / groups * float(((replicates - replicates.mean()) ** 2).sum())
    reach = student_t(groups - 1) * np.sqrt(variance)
    return Interval(value, value - reach, value + reach)


def jackknife_mean(sums: Array, counts: Array) -> Interval:
    """The interval of ``sums.sum() / counts.sum()``, a pair of numbers for each group."""
    kept = counts > 0
    sums, counts = sums[kept], counts[kept]
    if not len(sums):
        return Interval(float("nan"), float("nan"), float("nan"))
    value = float(sums.sum() / counts.sum())
    if len(sums) < 2:
        return Interval(value, float("nan"), float("nan"))
    left_out = (sums.sum() - sums) / (counts.sum() - counts)
    return jackknife(value, left_out.tolist())


def over_groups(total: Any, groups: Sequence[Any], measure: Callable[[Any], float]) -> Interval:
    """The interval of a measure of sums that can be subtracted."""
    return jackknife(measure(total), [measure(total - group) for group in groups])


_T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def student_t(freedom: int) -> float:
    """The 97.5 % point of Student's t, to three digits."""
    if freedom <= len(_T_975):
        return _T_975[freedom - 1]
    return 1.96 + 2.4 / freedom
