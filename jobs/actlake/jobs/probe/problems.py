"""What logistic solvers are given and give back.

Shapes:  N rows   D width   P problems   K columns of a problem   S label sets
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class RowSource(Protocol):
    """Rows that can be gone through any number of times, in the same order."""

    @property
    def num_rows(self) -> int:
        """How many."""
        ...

    @property
    def width(self) -> int:
        """Dimensions of a row."""
        ...

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """Where they stand, and some rows, (n, D) float32 on the device."""
        ...


@dataclass(frozen=True)
class Basis:
    """Principal components of the rows that are fitted on."""

    vectors: Tensor
    """(D, D) float64, a component a column."""
    variances: Tensor
    """(D,) float64, of the rows along each."""

    @classmethod
    def of(cls, covariance: Tensor) -> "Basis":
        """Of a covariance, (D, D) float64."""
        values, vectors = torch.linalg.eigh(covariance)
        return cls(vectors, values.clamp_min(0.0))


@dataclass(frozen=True)
class Problems:
    """What is fitted on the same rows."""

    codes: Tensor
    """(N, S) integers, the class of each row in each label set; 0 or 1 in binary problems."""
    label_set: Tensor
    """(P,) int64, the label set of each problem."""
    penalty: Tensor
    """(P,) float64, λ above 0."""
    num_classes: int
    """At least 2."""
    weight: Tensor | None = None
    """(N, P) float32, of each row in each problem; all 1 if left out."""

    @property
    def columns(self) -> int:
        """Columns of a problem."""
        return 1 if self.num_classes == 2 else self.num_classes


@dataclass(frozen=True)
class Solution:
    """The optimum of each problem, for the rows as they were given."""

    weight: Tensor
    """(D, P, K) float64."""
    bias: Tensor
    """(P, K) float64."""
    iterations: Tensor
    """(P,) int64, Newton steps."""
    converged: Tensor
    """(P,) bool, the last step was shorter than the tolerance."""
    passes: int
    """Times that the rows were gone through."""


def penalties_for(sets: Sequence[int], penalties: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Every penalty for every label set: (label sets, penalties) of the problems."""
    return (
        torch.tensor([number for number in sets for _ in penalties], dtype=torch.int64),
        torch.tensor([value for _ in sets for value in penalties], dtype=torch.float64),
    )
