"""Which features of an SAE a map carries over, on the rows on which each feature fires.

The one number that moments cannot give: R² of a feature counts only rows on which the *true*
target makes it fire ("Activation Transport Operators", arXiv:2508.17540), so the test rows are
read once more. What is compared is the projection on the feature's unit decoder row, of the
true and of the transported state.

Choosing rows by the target restricts its range, and R² with it: a feature that is linear in the
source can fall far below a threshold on its active rows. So the same R² over all test rows stands
beside it, and the R² on active rows after the best rescaling of the transported projection
(correlation squared), which a constant shift or a wrong slope does not lower. A feature *below the
threshold* is one whose R² on active rows is low; that it were made of something else than what the
source holds linearly does not follow.

Shapes:  N rows   F features   D width
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actlake.jobs.sae.trained import TrainedSAE
from actlake.jobs.transport.artefact import TransportOperator
from actlake.jobs.transport.blocks import columns_of
from actlake.jobs.transport.massive_table import massive_at
from actlake.jobs.transport.operators import AffineMap
from actlake.jobs.transport.pairs import Pair
from actlake.jobs.transport.parts import TEST, Shares, rows_of_part
from actlake.storage import ActivationStore

Array = np.ndarray[Any, Any]
_ROWS_AT_ONCE = 1024


@dataclass
class FeatureSums:
    """Of each feature, over its active rows: count and sums of the two projections.

    What begins with ``all_`` is over all rows.
    """

    count: Array
    true: Array
    mapped: Array
    true_squared: Array
    mapped_squared: Array
    product: Array
    error_squared: Array
    all_true: Array
    all_true_squared: Array
    all_error_squared: Array
    all_rows: int

    @classmethod
    def zeros(cls, num_features: int) -> "FeatureSums":
        """Of no rows."""
        names = ("count", "true", "mapped", "true_squared", "mapped_squared", "product")
        whole = ("error_squared", "all_true", "all_true_squared", "all_error_squared")
        sums = {name: np.zeros(num_features) for name in (*names, *whole)}
        return cls(**sums, all_rows=0)

    def add(self, active: Array, true: Array, mapped: Array) -> None:
        """Add rows: which features fire, and both projections, (N, F) each."""
        difference = true - mapped
        self.all_true += true.sum(axis=0, dtype=np.float64)
        self.all_true_squared += np.einsum("nf,nf->f", true, true, dtype=np.float64)
        self.all_error_squared += np.einsum("nf,nf->f", difference, difference, dtype=np.float64)
        error = difference * active
        on, off = true * active, mapped * active
        self.count += active.sum(axis=0)
        self.true += on.sum(axis=0, dtype=np.float64)
        self.mapped += off.sum(axis=0, dtype=np.float64)
        self.true_squared += np.einsum("nf,nf->f", on, on, dtype=np.float64)
        self.mapped_squared += np.einsum("nf,nf->f", off, off, dtype=np.float64)
        self.product += np.einsum("nf,nf->f", on, off, dtype=np.float64)
        self.error_squared += np.einsum("nf,nf->f", error, error, dtype=np.float64)
        self.all_rows += len(active)


@dataclass(frozen=True)
class FeatureScores:
    """Of each feature, on its active rows; NaN where it fires on fewer than two."""

    active: Array
    """Rows on which it fires."""
    density: Array
    """Share of all rows."""
    r2: Array
    """On active rows, as the paper has it."""
    r2_all_rows: Array
    """The same over all test rows."""
    r2_rescaled: Array
    """On active rows after the best rescaling of the transported projection: correlation²."""
    correlation: Array
    slope: Array
    """Calibration: the slope of the true projection on the transported one; 1 is calibrated."""
    threshold: float
    least_active: int

    @property
    def judged(self) -> Array:
        """(F,) bool: it fires often enough."""
        judged: Array = self.active >= self.least_active
        return judged

    @property
    def above_threshold(self) -> Array:
        """(F,) bool: judged, and R² on active rows reaches the threshold."""
        return self.judged & _reaches(self.r2, self.threshold)

    @property
    def below_though_linear(self) -> Array:
        """(F,) bool: judged and below the threshold, while R² over all rows reaches it."""
        return self.judged & ~self.above_threshold & _reaches(self.r2_all_rows, self.threshold)

    @property
    def share_above_threshold(self) -> float:
        """Of the judged features."""
        return float(self.above_threshold.sum() / max(1, self.judged.sum()))


def _reaches(values: Array, threshold: float) -> Array:
    reaches: Array = np.nan_to_num(values, nan=-np.inf) >= threshold
    return reaches


def scores_of(sums: FeatureSums, *, threshold: float, least_active: int) -> FeatureScores:
    """What the sums say."""
    n = np.where(sums.count >= 2, sums.count, np.nan)
    spread_true = sums.true_squared - sums.true**2 / n
    spread_mapped = sums.mapped_squared - sums.mapped**2 / n
    together = sums.product - sums.true * sums.mapped / n
    spread_of_all = sums.all_true_squared - sums.all_true**2 / max(1, sums.all_rows)
    with np.errstate(divide="ignore", invalid="ignore"):
        return FeatureScores(
            active=sums.count.astype(np.int64),
            density=sums.count / max(1, sums.all_rows),
            r2=_finite(1 - sums.error_squared / spread_true),
            r2_all_rows=_finite(1 - sums.all_error_squared / spread_of_all),
            r2_rescaled=_finite(together**2 / (spread_true * spread_mapped)),
            correlation=_finite(together / np.sqrt(spread_true * spread_mapped)),
            slope=_finite(together / spread_mapped),
            threshold=threshold,
            least_active=least_active,
        )


def _finite(values: Array) -> Array:
    return np.where(np.isfinite(values), values, np.nan)


def score_features(
    stores: Sequence[ActivationStore],
    shares: Shares,
    pair: Pair,
    fitted: AffineMap | TransportOperator,
    dictionary: TrainedSAE,
    *,
    excluded: bool = False,
    limits: Mapping[str, float] | None = None,
    threshold: float = 0.5,
    least_active: int = 20,
) -> FeatureScores:
    """Read the test rows once and score every feature of the target's SAE.

    `limits` are those of `StoredMoments`: rows above them at either end are left out.
    """
    decoder = dictionary.decoder.numpy()
    norms = np.linalg.norm(decoder, axis=1, keepdims=True)
    directions = (decoder / np.where(norms > 0, norms, 1)).astype(np.float32)
    sums = FeatureSums.zeros(dictionary.d_sae)
    # Projections are counted from that of a typical row, so that float32 keeps its digits.
    origin: Array | None = None
    for source, target in read_pair(stores, shares, pair, excluded=excluded, limits=limits):
        active = (dictionary.encode(target) != 0).astype(np.float32)
        mapped = np.asarray(fitted(source), np.float32)
        origin = target.mean(axis=0) if origin is None else origin
        sums.add(active, (target - origin) @ directions.T, (mapped - origin) @ directions.T)
    return scores_of(sums, threshold=threshold, least_active=least_active)


def read_pair(
    stores: Sequence[ActivationStore],
    shares: Shares,
    pair: Pair,
    *,
    excluded: bool,
    limits: Mapping[str, float] | None = None,
    at_once: int = _ROWS_AT_ONCE,
) -> Iterator[tuple[Array, Array]]:
    """The test rows of a pair, source and target, (N, D) float32 each, in order."""
    for rows in rows_to_test(stores[0], shares, pair.offset, excluded=excluded, at_once=at_once):
        columns = columns_of(pair, two_stores=len(stores) == 2)
        rows = rows[~massive_at(stores, columns, limits or {}, rows).any(axis=1)]
        if not len(rows):
            continue
        source = stores[0][pair.source].take(rows).astype(np.float32)
        target = stores[-1][pair.target].take(rows + pair.offset).astype(np.float32)
        yield source, target


def rows_to_test(
    store: ActivationStore, shares: Shares, offset: int, *, excluded: bool, at_once: int
) -> Iterable[Array]:
    """The test rows, some at a time, ascending within each group of documents."""
    for part in shares.parts:
        if shares.names[part.share].startswith(TEST):
            rows = rows_of_part(
                store, shares.of_document, part, offset, excluded=excluded, chosen=shares.chosen
            )
            for start in range(0, len(rows), at_once):
                yield rows[start : start + at_once]
