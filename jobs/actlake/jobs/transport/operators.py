"""Linear maps between sites, in closed form from moments.

With ``Σ`` the covariances of the rows that are fitted on (divided by their number n):

    ridge        T = Σyx (Σxx + α/n I)^-1: scikit-learn's Ridge(alpha=α) on the same rows
    ols          the same with α = 0; by pseudo-inverse where Σxx is singular
    procrustes   the orthogonal T nearest to mapping x to y
    identity     T = I, b = 0: what the residual stream does when no block adds anything
    mean         T = 0, b = the mean: the baseline of every R²

and families of maps of every rank r, as two factors of which r columns and rows are used. All
cut the same ridge map, and are that map at full rank:

    svd          its singular value decomposition, cut off: the paper's rank-r map
    reduced      best in sample by squared error (reduced-rank ridge regression)
    cca          best in sample by whitened R²; for α = 0, Σyy^½ U_r ρ_r V_rᵀ Σxx^-½

"Activation Transport Operators" (arXiv:2508.17540). Everything is float64.

Shapes:  X width of the source   Y width of the target   R number of ranks
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from actlake.jobs.transport.errors import InvalidRank, InvalidTransport
from actlake.jobs.transport.moments import PairMoments, Whitening

Array = np.ndarray[Any, Any]
Criterion = Literal["uniform", "variance_weighted"]


@dataclass(frozen=True, eq=False)
class AffineMap:
    """y ≈ T x + b."""

    kind: str
    weight: Array
    """(Y, X) T."""
    bias: Array
    """(Y,) b."""
    alpha: float | None = None
    """The ridge penalty, where there was one."""

    def __call__(self, rows: Array) -> Array:
        """Map rows, (n, X) to (n, Y)."""
        mapped: Array = rows @ self.weight.T + self.bias
        return mapped


@dataclass(frozen=True, eq=False)
class RankedMaps:
    """Maps of every rank: ``T_r = left[:, :r] @ right[:r]``."""

    kind: str
    left: Array
    """(Y, R)."""
    right: Array
    """(R, X)."""
    mean_x: Array
    """(X,) the means the bias is made of; zeros without an intercept."""
    mean_y: Array

    @property
    def max_rank(self) -> int:
        """The largest rank, R."""
        return len(self.right)

    def of_rank(self, rank: int) -> AffineMap:
        """The map of one rank.

        Raises
        ------
        InvalidRank
            It is below 0 or above `max_rank`.
        """
        if not 0 <= rank <= self.max_rank:
            raise InvalidRank(
                f"There is no map of rank {rank}: ranks go from 0 to {self.max_rank}\n"
                "hint: the largest is the smaller of the two widths, or of the effective ranks "
                "of their covariances"
            )
        weight = self.left[:, :rank] @ self.right[:rank]
        return AffineMap(self.kind, weight, self.mean_y - weight @ self.mean_x)


class Fit:
    """All maps of a pair from the moments of the rows to fit on.

    The expensive decompositions are computed once, when they are first needed; those of the
    source alone are shared with `other_target`.
    """

    def __init__(
        self,
        moments: PairMoments,
        *,
        intercept: bool = True,
        source: "SourceBasis | None" = None,
    ) -> None:
        self.moments = moments
        self.intercept = intercept
        zero_x, zero_y = np.zeros_like(moments.mean_x), np.zeros_like(moments.mean_y)
        self.mean_x = moments.mean_x if intercept else zero_x
        self.mean_y = moments.mean_y if intercept else zero_y
        if intercept:
            xx, yx, self.yy = moments.xx, moments.yx, moments.yy
        else:
            xx, yx, self.yy = moments.about(zero_x, zero_y)
        self.source = source or SourceBasis(
            xx, moments.noise, moments.known_x if intercept else None
        )
        self.yx = self.source.without_noise(yx)

    def ridge(self, alpha: float) -> AffineMap:
        """The ridge map of one α.

        Raises
        ------
        InvalidTransport
            α is negative; 0 is `ols`.
        """
        if alpha < 0:
            raise InvalidTransport(
                f"A ridge penalty must be above 0, and alpha is {alpha:g}\n"
                "hint: such as alphas: [1, 10, 100, 1000]"
            )
        if alpha == 0:
            return self.ols
        shrunk = self._projected * self.source.shrinkage(alpha, self.moments.count)
        return self._with_bias("ridge", shrunk @ self.source.vectors.T, alpha)

    def best_ridge(
        self, alphas: Sequence[float], validation: PairMoments, *, by: Criterion = "uniform"
    ) -> tuple[AffineMap, dict[float, float]]:
        """The ridge map whose α has the highest R² on other rows, and all of those R²."""
        scores = dict(self._scores(alphas, validation, by))
        best = max(scores, key=lambda alpha: (scores[alpha], alpha))
        return self.ridge(best), scores

    def _scores(
        self, alphas: Sequence[float], validation: PairMoments, by: Criterion
    ) -> Iterator[tuple[float, float]]:
        # In the source's eigenbasis a ridge map is one multiplication of columns, so an α costs
        # one matrix product, or none where only the trace is needed.
        vectors = self.source.vectors
        xx, yx, _ = validation.about(self.mean_x, self.mean_y)
        inside = self.source.turned(xx)
        cross = yx @ vectors
        shift_y = validation.mean_y - self.mean_y
        variance = validation.variance_y
        for alpha in alphas:
            shrunk = self._projected * self.source.shrinkage(alpha, self.moments.count)
            squared = (
                variance + shift_y**2 + np.einsum("yx,yx->y", shrunk @ inside - 2 * cross, shrunk)
            )
            yield alpha, r2_of(squared, variance, by)

    @cached_property
    def _projected(self) -> Array:
        projected: Array = self.yx @ self.source.vectors
        return projected

    @cached_property
    def ols(self) -> AffineMap:
        """Ordinary least squares; of least norm, in the correlation metric, where singular."""
        precision = self.source.whitening.precision
        return self._with_bias("ols", self.yx @ precision)

    @cached_property
    def procrustes(self) -> AffineMap:
        """The orthogonal map (of orthonormal rows or columns between unequal widths)."""
        left, _, right = np.linalg.svd(self.yx, full_matrices=False)
        return self._with_bias("procrustes", left @ right)

    @cached_property
    def mean(self) -> AffineMap:
        """The mean of the target, whatever the source."""
        return AffineMap("mean", np.zeros_like(self.yx), self.moments.mean_y)

    @property
    def identity(self) -> AffineMap | None:
        """The source itself; None between unequal widths."""
        width_y, width_x = self.yx.shape
        if width_x != width_y:
            return None
        return AffineMap("identity", np.eye(width_x), np.zeros(width_x))

    # Families of ranks of one map. All begin from the same full map, with its α, and end in it,
    # so that their curves differ in how they cut and in nothing else.

    def truncated(self, full: AffineMap) -> RankedMaps:
        """A map's singular value decomposition, cut off at every rank."""
        left, values, right = np.linalg.svd(full.weight, full_matrices=False)
        return RankedMaps("svd", left * values, right, self.mean_x, self.mean_y)

    def reduced_rank(self, full: AffineMap) -> RankedMaps:
        """Of each rank the map with the least squared error on the rows that are fitted on.

        A map projected on the leading directions of what it predicts: reduced-rank regression
        for least squares (Izenman 1975), and with the penalty for a ridge map (Mukherjee and Zhu
        2011, "Reduced rank ridge regression and its kernel extensions").
        """
        directions = _leading(full.weight @ self.yx.T)[:, : self._max_rank]
        return RankedMaps(
            "reduced", directions, directions.T @ full.weight, self.mean_x, self.mean_y
        )

    def canonical(self, full: AffineMap) -> RankedMaps:
        """Of each rank the map with the largest whitened R² on the rows that are fitted on.

        The same in the metric in which the target is white: of least squares, what canonical
        correlations give.
        """
        whiten, colour = self._whitening_y.whiten, self._whitening_y.colour
        rank = min(self._max_rank, len(whiten))
        directions = _leading(whiten @ full.weight @ self.yx.T @ whiten.T)[:, :rank]
        return RankedMaps(
            "cca",
            colour @ directions,
            directions.T @ whiten @ full.weight,
            self.mean_x,
            self.mean_y,
        )

    @property
    def _max_rank(self) -> int:
        return min(len(self.yx), self.source.whitening.rank)

    @cached_property
    def _whitening_y(self) -> Whitening:
        if self.intercept:
            return self.moments.whiten_y
        return replace(self.moments, yy=self.yy, known_y=None).whiten_y

    def _with_bias(self, kind: str, weight: Array, alpha: float | None = None) -> AffineMap:
        return AffineMap(kind, weight, self.mean_y - weight @ self.mean_x, alpha)


def _leading(symmetric: Array) -> Array:
    """Eigenvectors in columns, that of the largest eigenvalue first."""
    vectors: Array = np.linalg.eigh((symmetric + symmetric.T) / 2).eigenvectors[:, ::-1]
    return vectors


class SourceBasis:
    """What depends on the source's covariance alone, for all targets of one source.

    Directions whose variance is rounding error of the products are taken out before anything
    is inverted; which those are, the correlation matrix says (`Whitening`).
    """

    def __init__(self, xx: Array, noise: float, known: Whitening | None = None) -> None:
        self.whitening = known or Whitening.of(xx, noise)
        self._singular = self.whitening.rank < len(xx)
        colour = self.whitening.colour
        self._xx = colour @ colour.T if self._singular else xx
        self._turned: tuple[Array, Array] | None = None

    def without_noise(self, yx: Array) -> Array:
        """(Y, X) a covariance with the source, less what is along the directions taken out."""
        if not self._singular:
            return yx
        kept: Array = yx @ self.whitening.whiten.T @ self.whitening.colour.T
        return kept

    @cached_property
    def _eigen(self) -> tuple[Array, Array]:
        values, vectors = np.linalg.eigh(self._xx)
        return np.clip(values, 0, None), vectors

    @property
    def vectors(self) -> Array:
        """(X, X) eigenvectors of the covariance, in columns."""
        return self._eigen[1]

    def shrinkage(self, alpha: float, count: int) -> Array:
        """(X,) what ridge multiplies each eigenvector's share with; α is above 0."""
        shrunk: Array = 1 / (self._eigen[0] + alpha / count)
        return shrunk

    def turned(self, xx: Array) -> Array:
        """Another covariance of the source in the eigenbasis; the last one is remembered."""
        if self._turned is None or not np.array_equal(self._turned[0], xx):
            self._turned = (xx, self.vectors.T @ xx @ self.vectors)
        return self._turned[1]


def r2_of(squared_error: Array, variance: Array, by: Criterion) -> float:
    """R² from each dimension's mean squared error and variance.

    ``uniform`` averages the dimensions' R² (scikit-learn's default: a dimension without
    variance counts as 1 when it is predicted exactly, else as 0); ``variance_weighted``
    divides the sums.
    """
    if by == "variance_weighted":
        return float(1 - squared_error.sum() / variance.sum())
    constant = variance <= 0
    safe = np.where(constant, 1.0, variance)
    each = np.where(constant, squared_error <= 0, 1 - squared_error / safe)
    return float(each.mean())
