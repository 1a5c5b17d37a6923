"""How well a map predicts, from the moments of rows it was not fitted on.

``E`` is the mean outer product of the errors, ``Σyy`` the target's covariance on the same rows:

    uniform             mean over dimensions of 1 - E_jj / Σyy_jj: scikit-learn's r2_score
    variance_weighted   1 - tr E / tr Σyy
    whitened            1 - tr(Σyy^-1 E) / rank Σyy
    along u             1 - uᵀ E u / uᵀ Σyy u, such as an SAE's decoder row

The ceiling of the whitened R² of a map of rank r is ``Σ_{i≤r} ρ_i² / rank Σyy`` with the
canonical correlations ρ of the same rows; efficiency is the share of it that is reached.
On the rows that were fitted on, the full-rank map reaches it by identity: only held-out numbers
inform, and the in-sample ones stand beside them to show the optimism.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from actlake.jobs.transport.moments import PairMoments
from actlake.jobs.transport.operators import AffineMap, RankedMaps, r2_of

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class R2:
    """The three R² of a map on some rows."""

    uniform: float
    variance_weighted: float
    whitened: float


def r2(fitted: AffineMap, moments: PairMoments) -> R2:
    """All three R² of a map on the rows of `moments`."""
    precision = moments.whiten_y.precision
    error_part = fitted.weight @ moments.xx - 2 * moments.yx
    shift = moments.mean_y - fitted.weight @ moments.mean_x - fitted.bias
    squared = moments.variance_y + np.einsum("yx,yx->y", error_part, fitted.weight) + shift**2
    # tr(P E) without E: P Σyy is a projection, and P T is one more product.
    weighted = float(np.einsum("yx,yx->", precision @ fitted.weight, error_part))
    whitened = moments.whiten_y.rank + weighted + float(shift @ precision @ shift)
    return R2(
        r2_of(squared, moments.variance_y, "uniform"),
        r2_of(squared, moments.variance_y, "variance_weighted"),
        1 - whitened / max(1, moments.whiten_y.rank),
    )


def r2_along(fitted: AffineMap, moments: PairMoments, directions: Array) -> Array:
    """R² along each of some directions, (F, Y) of any length, to (F,); NaN without variance."""
    error = moments.error(fitted.weight, fitted.bias)
    left = np.einsum("fy,fy->f", directions @ error, directions)
    variance = np.einsum("fy,fy->f", directions @ moments.yy, directions)
    safe = np.where(variance > 0, variance, np.nan)
    along: Array = 1 - left / safe
    return along


@dataclass(frozen=True)
class RankCurves:
    """R² of the maps of rank 0, 1, …, R, each (R + 1,)."""

    kind: str
    uniform: Array
    variance_weighted: Array
    whitened: Array


def rank_curves(maps: RankedMaps, moments: PairMoments) -> RankCurves:
    """The three R² of the maps of all ranks, at the cost of a few matrix products.

    With ``T_r = Σ_{i≤r} l_i r_iᵀ``, going from rank r - 1 to r changes every quadratic form by
    its r-th row and column, so all ranks are one cumulative sum.
    """
    xx, yx, yy = moments.about(maps.mean_x, maps.mean_y)
    inside = maps.right @ xx @ maps.right.T
    lower = 2 * np.tril(inside, -1) + np.diag(np.diagonal(inside))
    cross = yx @ maps.right.T
    change = maps.left * (maps.left @ lower.T - 2 * cross)  # (Y, R)
    start = np.diagonal(yy)
    squared = start[:, None] + np.concatenate(
        [np.zeros((len(start), 1)), np.cumsum(change, axis=1)], axis=1
    )
    variance = moments.variance_y
    precision = moments.whiten_y.precision
    weighted = precision @ maps.left
    forms = maps.left.T @ weighted
    steps = np.einsum("ri,ri->r", lower, forms) - 2 * np.einsum("yr,yr->r", weighted, cross)
    begin = float(np.einsum("ij,ij->", precision, yy))
    whitened = 1 - (begin + np.concatenate([[0.0], np.cumsum(steps)])) / max(
        1, moments.whiten_y.rank
    )
    alive = variance > 0
    uniform = 1 - (squared[alive] / variance[alive, None]).sum(axis=0) / len(variance)
    uniform -= np.count_nonzero(~alive & (squared.max(axis=1) > 0)) / len(variance)
    return RankCurves(maps.kind, uniform, 1 - squared.sum(axis=0) / variance.sum(), whitened)


@dataclass(frozen=True)
class Spectrum:
    """Canonical correlations of a pair on some rows, and what follows from them."""

    correlations: Array
    """ρ, descending."""
    rank_x: int
    """Effective rank of the source's covariance."""
    rank_y: int
    rows: int

    @cached_property
    def ceiling(self) -> Array:
        """(R + 1,) the largest whitened R² of a map of rank 0, 1, …, R on these rows."""
        squares = np.concatenate([[0.0], np.cumsum(self.correlations**2)])
        ceiling: Array = squares / max(1, self.rank_y)
        return ceiling

    @property
    def pillai_trace(self) -> float:
        """Σρ²: how many of the target's whitened dimensions the source accounts for."""
        return float((self.correlations**2).sum())

    @property
    def permuted_pillai_trace(self) -> float:
        """The mean of Σρ² over all permutations of the target's rows: what chance gives.

        The trace of a product of two projections of n - 1 dimensions, of which one is turned
        by the permutation, is on average the product of their ranks over n - 1. That is exact,
        so no row has to be permuted. ((Σρ)²/Σρ², the "dimension" of the paper, is not shown:
        it is as large for rows that have nothing to do with each other.)
        """
        return self.rank_x * self.rank_y / (self.rows - 1)

    def efficiency(self, curve: Array) -> Array:
        """(R + 1,) η(r): what a map of rank r reaches of the ceiling; NaN at rank 0."""
        length = min(len(curve), len(self.ceiling))
        ceiling = self.ceiling[:length]
        safe = np.where(ceiling > 0, ceiling, np.nan)
        reached: Array = curve[:length] / safe
        return reached


def spectrum(moments: PairMoments) -> Spectrum:
    """Canonical correlations of the rows of `moments`, in-sample on those rows."""
    whiten_x, whiten_y = moments.whiten_x, moments.whiten_y
    cross = whiten_y.whiten @ moments.yx @ whiten_x.whiten.T
    values = np.linalg.svd(cross, compute_uv=False)
    return Spectrum(np.clip(values, 0, 1), whiten_x.rank, whiten_y.rank, moments.count)
