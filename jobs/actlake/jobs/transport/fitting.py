"""All maps of a pair and all their numbers, from moments: no row is read.

`fit_pairs` goes through the pairs source by source, so that what depends on the source alone
is computed once.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from actlake.jobs.jackknife import Interval, jackknife
from actlake.jobs.transport.metrics import (
    R2,
    RankCurves,
    Spectrum,
    r2,
    rank_curves,
    spectrum,
)
from actlake.jobs.transport.moments import PairMoments, PairSums
from actlake.jobs.transport.moments_file import TRAIN, StoredMoments
from actlake.jobs.transport.operators import (
    AffineMap,
    Criterion,
    Fit,
    RankedMaps,
    SourceBasis,
    r2_of,
)
from actlake.jobs.transport.pairs import Pair
from actlake.jobs.transport.parts import FIT, TEST, VALIDATE, warn_if_few

Array = np.ndarray[Any, Any]
logger = logging.getLogger(__name__)

Measure = Literal["uniform", "variance_weighted", "whitened"]


@dataclass(frozen=True)
class Tested:
    """A map with its R² on test rows and, beside it, on the rows it was fitted on."""

    fitted: AffineMap
    test: R2
    train: R2
    intervals: dict[Measure, Interval] = field(default_factory=dict)
    """Of the test R², by the jackknife over groups of documents; empty for minor maps."""


@dataclass(frozen=True)
class PairFit:
    """All maps of a pair and their numbers."""

    pair: Pair
    maps: dict[str, Tested]
    """By kind: ridge, ols, procrustes, identity, mean."""
    alphas: dict[float, float]
    """R² on validation rows of each ridge penalty."""
    ranked: dict[str, RankedMaps]
    """By kind: svd, reduced, cca; empty where no curves were asked for."""
    curves: dict[str, RankCurves]
    """Of the same, on test rows."""
    train_curves: dict[str, RankCurves]
    spectrum: Spectrum | None
    """Canonical correlations of the test rows, in-sample on these."""
    train_spectrum: Spectrum | None
    train_rows: int
    test_rows: int
    massive_rows: int
    """Rows of all shares that are left out, as massive at the source or the target."""
    rank_x: int
    rank_y: int
    condition_x: float
    warnings: tuple[str, ...]

    @property
    def ridge(self) -> Tested:
        """The map whose α was chosen."""
        return self.maps["ridge"]

    def efficiency(self, kind: str) -> Array:
        """(R + 1,) η(r) on the test rows: whitened R² over the ceiling of the same rows."""
        assert self.spectrum is not None
        return self.spectrum.efficiency(self.curves[kind].whitened)


def fit_pairs(
    moments: StoredMoments,
    pairs: Sequence[Pair],
    *,
    alphas: Sequence[float],
    choose_by: Criterion = "uniform",
    intercept: bool = True,
    curves: bool = True,
    on_pair: Callable[[Pair], None] = lambda pair: None,
) -> Iterator[PairFit]:
    """Fit and test all maps of all pairs, a pair at a time, those of one source together."""
    basis: tuple[tuple[Any, int, bytes], SourceBasis, SourceBasis] | None = None
    for pair in sorted(pairs, key=lambda pair: (pair.offset, pair.source, pair.target)):
        fit, validate = (moments.moments(pair, s, whitened=False) for s in (FIT, VALIDATE))
        train, test = (moments.moments(pair, share) for share in (TRAIN, TEST))
        key = (pair.source, pair.offset, moments.rows_of(pair))
        if basis is None or basis[0] != key:
            on_fit = Fit(fit, intercept=intercept).source
            basis = (key, on_fit, Fit(train, intercept=intercept).source)
        chosen, scores = Fit(fit, intercept=intercept, source=basis[1]).best_ridge(
            alphas, validate, by=choose_by
        )
        assert chosen.alpha is not None
        final = Fit(train, intercept=intercept, source=basis[2])
        groups = [moments.sums(pair, group) for group in moments.groups]
        yield _fit_pair(
            pair, final, test, groups, chosen.alpha, scores,
            massive_rows=moments.left_out(pair), curves=curves,
        )  # fmt: skip
        on_pair(pair)


def _fit_pair(
    pair: Pair,
    fit: Fit,
    test: PairMoments,
    groups: Sequence[PairSums],
    alpha: float,
    scores: dict[float, float],
    *,
    massive_rows: int,
    curves: bool,
) -> PairFit:
    train = fit.moments
    ridge = fit.ridge(alpha)
    fitted = [ridge, fit.ols, fit.procrustes, fit.identity, fit.mean]
    maps = {
        one.kind: Tested(
            one,
            r2(one, test),
            r2(one, train),
            intervals(one, test, groups) if one.kind in ("ridge", "identity") else {},
        )
        for one in fitted
        if one is not None
    }
    ranked = [fit.truncated(ridge), fit.reduced_rank(ridge), fit.canonical(ridge)] if curves else []
    return PairFit(
        pair=pair,
        maps=maps,
        alphas=scores,
        ranked={one.kind: one for one in ranked},
        curves={one.kind: rank_curves(one, test) for one in ranked},
        train_curves={one.kind: rank_curves(one, train) for one in ranked},
        spectrum=spectrum(test) if curves else None,
        train_spectrum=spectrum(train) if curves else None,
        train_rows=train.count,
        test_rows=test.count,
        massive_rows=massive_rows,
        rank_x=train.whiten_x.rank,
        rank_y=train.whiten_y.rank,
        condition_x=train.whiten_x.condition,
        warnings=tuple(_warnings(pair, train, test, alpha, scores)),
    )


def _warnings(
    pair: Pair, train: PairMoments, test: PairMoments, alpha: float, scores: dict[float, float]
) -> Iterator[str]:
    width = len(train.mean_x)
    if few := warn_if_few(train.count, width):
        yield f"{pair}: {few}"
    if test.count < 10 * width:
        yield (
            f"{pair}: {test.count:,} test rows for {width:,} dimensions: the ceiling on these rows "
            "is overfitted, and efficiency too low"
        )
    if train.whiten_x.rank < width:
        yield (
            f"{pair}: the source's covariance has effective rank {train.whiten_x.rank} of {width}; "
            "the rest is mapped to nothing"
        )
    if len(scores) > 1 and alpha in (min(scores), max(scores)):
        yield f"{pair}: the best α, {alpha:g}, is at the end of the grid"


def intervals(
    fitted: AffineMap, test: PairMoments, groups: Sequence[PairSums]
) -> dict[Measure, Interval]:
    """Intervals of a map's R² over groups of test documents, the map as it is.

    A group's squared errors are sums, so leaving it out is a subtraction. The whitened R² is
    taken in the metric of all test rows.
    """
    precision = test.whiten_y.precision
    weighted = precision @ fitted.weight
    parts = [_group_error(fitted, group, precision, weighted) for group in groups]
    if len(parts) < 2:
        return {}
    total = _Errors.sum(parts)
    left_out = [total.without(part) for part in parts]
    return {
        "uniform": jackknife(total.r2("uniform"), [rest.r2("uniform") for rest in left_out]),
        "variance_weighted": jackknife(
            total.r2("variance_weighted"), [rest.r2("variance_weighted") for rest in left_out]
        ),
        "whitened": jackknife(total.r2("whitened"), [rest.r2("whitened") for rest in left_out]),
    }


@dataclass(frozen=True)
class _Errors:
    """Sums over rows: all that R² needs of a group, for one map."""

    count: int
    squared: Array
    """(Y,) of squared errors."""
    y: Array
    """(Y,) of y - origin."""
    yy: Array
    """(Y,) of its squares."""
    weighted: float
    """Of squared errors in the metric of all test rows."""
    weighted_yy: float
    precision: Array

    @classmethod
    def sum(cls, parts: Sequence["_Errors"]) -> "_Errors":
        return cls(
            sum(part.count for part in parts),
            np.sum([part.squared for part in parts], axis=0),
            np.sum([part.y for part in parts], axis=0),
            np.sum([part.yy for part in parts], axis=0),
            sum(part.weighted for part in parts),
            sum(part.weighted_yy for part in parts),
            parts[0].precision,
        )

    def without(self, part: "_Errors") -> "_Errors":
        return _Errors(
            self.count - part.count,
            self.squared - part.squared,
            self.y - part.y,
            self.yy - part.yy,
            self.weighted - part.weighted,
            self.weighted_yy - part.weighted_yy,
            self.precision,
        )

    def r2(self, measure: Measure) -> float:
        mean = self.y / self.count
        if measure == "whitened":
            spread = self.weighted_yy / self.count - float(mean @ self.precision @ mean)
            return 1 - self.weighted / self.count / spread
        return r2_of(self.squared / self.count, self.yy / self.count - mean**2, measure)


def _group_error(
    fitted: AffineMap, group: PairSums, precision: Array, precision_weight: Array
) -> _Errors:
    # With x and y counted from the origins, y - T x - b has the bias b'. Products in float32:
    # they decide the width of an interval, not the number it is around.
    weight = fitted.weight
    bias = fitted.bias - group.origin_y + weight @ group.origin_x
    xx = group.xx if fitted.kind == "identity" else _product(weight, group.xx)
    product = xx - 2 * group.yx
    linear = group.y - weight @ group.x
    squared = (
        np.diagonal(group.yy)
        + np.einsum("yx,yx->y", product, weight)
        + group.count * bias**2
        - 2 * bias * linear
    )
    weighted_yy = float(np.einsum("ij,ij->", precision, group.yy))
    weighted = (
        weighted_yy
        + float(np.einsum("yx,yx->", precision_weight, product))
        + group.count * float(bias @ precision @ bias)
        - 2 * float(bias @ precision @ linear)
    )
    return _Errors(
        group.count, squared, group.y, np.diagonal(group.yy), weighted, weighted_yy, precision
    )


def _product(left: Array, right: Array) -> Array:
    product: Array = left.astype(np.float32) @ right.astype(np.float32)
    return product
