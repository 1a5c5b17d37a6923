"""What test scores are worth, each number with its interval over documents (pure).

Every metric is a function of sums over rows, kept by jackknife group, or is computed again
without each group (AUROC): `actlake.jobs.jackknife` makes intervals of that.

Shapes:  N test rows   C classes   G groups   B bins
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from actlake.jobs.jackknife import Interval, jackknife, jackknife_mean

Array = np.ndarray[Any, Any]
BINS = 15
CLASS_METRICS = ("accuracy", "macro_f1", "auroc", "log_loss_bits", "ece", "v_information_bits")
NUMBER_METRICS = ("r2", "mae", "v_information_bits")
_LEAST = 1e-12  # of a probability, so that a sure mistake costs 40 bits and not infinity


def probabilities(scores: Array) -> Array:
    """(N, C) float64 of scores (N, C), or of log-odds (N, 1) of the second of two classes."""
    plain = scores.astype(np.float64)
    if plain.shape[1] == 1:
        plain = np.concatenate([np.zeros_like(plain), plain], axis=1)
    plain -= plain.max(axis=1, keepdims=True)
    grown = np.exp(plain)
    found: Array = grown / grown.sum(axis=1, keepdims=True)
    return found


@dataclass(frozen=True)
class ClassTest:
    """Predicted probabilities of test rows, beside what is true."""

    probability: Array
    """(N, C) float64."""
    codes: Array
    """(N,) int64, the true classes."""
    group: Array
    """(N,) the jackknife group of each row, from 0."""
    prior: Array
    """(C,) shares of the classes among training rows: what a probe of zero input predicts."""

    @property
    def num_groups(self) -> int:
        """How many jackknife groups."""
        return int(self.group.max()) + 1

    @cached_property
    def predicted(self) -> Array:
        """(N,) the most probable class."""
        return np.asarray(self.probability.argmax(axis=1))

    @cached_property
    def loss_bits(self) -> Array:
        """(N,) -log2 p of the true class."""
        return _bits(self.probability[np.arange(len(self.codes)), self.codes])

    @cached_property
    def null_loss_bits(self) -> Array:
        """(N,) the same of the training shares alone."""
        return _bits(self.prior[self.codes])

    def intervals(self) -> dict[str, Interval]:
        """All metrics of classes."""
        return {
            "accuracy": self._mean(self.predicted == self.codes),
            "macro_f1": self._of_sums(self.confusion_by_group, macro_f1),
            "auroc": self._auroc(),
            "log_loss_bits": self._mean(self.loss_bits),
            "ece": self._of_sums(self.bins_by_group, _ece),
            "v_information_bits": self._mean(self.null_loss_bits - self.loss_bits),
        }

    def values(self) -> dict[str, float]:
        """The same without intervals."""
        return {
            "accuracy": float((self.predicted == self.codes).mean()),
            "macro_f1": macro_f1(self.confusion),
            "auroc": self._mean_auroc(np.ones(len(self.codes), bool)),
            "log_loss_bits": float(self.loss_bits.mean()),
            "ece": _ece(self.bins),
            "v_information_bits": float((self.null_loss_bits - self.loss_bits).mean()),
        }

    def baseline(self) -> dict[str, float]:
        """What the training shares alone score: always the most common class."""
        one = np.broadcast_to(self.prior, self.probability.shape)
        constant = ClassTest(one, self.codes, self.group, self.prior)
        return constant.values() | {"auroc": 0.5}

    @property
    def confusion(self) -> Array:
        """(C, C) rows of each true class that were given each class."""
        total: Array = self.confusion_by_group.sum(axis=0)
        return total

    @cached_property
    def confusion_by_group(self) -> Array:
        """(G, C, C) `confusion` of each group."""
        classes = self.probability.shape[1]
        place = (self.group.astype(np.int64) * classes + self.codes) * classes + self.predicted
        counts = np.bincount(place, minlength=self.num_groups * classes * classes)
        return counts.reshape(self.num_groups, classes, classes)

    @property
    def bins(self) -> Array:
        """(3, B) rows, summed confidence and correct ones by confidence."""
        total: Array = self.bins_by_group.sum(axis=0)
        return total

    @cached_property
    def bins_by_group(self) -> Array:
        """(G, 3, B) `bins` of each group."""
        confidence = self.probability.max(axis=1)
        number = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
        place = self.group.astype(np.int64) * BINS + number
        parts = (np.ones(len(place)), confidence, self.predicted == self.codes)
        sums = [np.bincount(place, part, self.num_groups * BINS) for part in parts]
        return np.stack([one.reshape(self.num_groups, BINS) for one in sums], axis=1)

    def _mean(self, values: Array) -> Interval:
        sums = np.bincount(self.group, values.astype(np.float64), self.num_groups)
        return jackknife_mean(sums, np.bincount(self.group, minlength=self.num_groups))

    def _of_sums(self, sums: Array, measure: Callable[[Array], float]) -> Interval:
        total = sums.sum(axis=0)
        return jackknife(measure(total), [measure(total - one) for one in sums])

    @cached_property
    def _ranks(self) -> "list[_Ranking]":
        classes = self.probability.shape[1]
        which = [1] if classes == 2 else range(classes)
        return [_Ranking.of(self.probability[:, c], self.codes == c) for c in which]

    def _auroc(self) -> Interval:
        value = self._mean_auroc(np.ones(len(self.codes), bool))
        left_out = [self._mean_auroc(self.group != one) for one in range(self.num_groups)]
        return jackknife(value, left_out)

    def _mean_auroc(self, kept: Array) -> float:
        """Of two classes; of more, the mean of each against the others that can be computed."""
        found = np.array([ranking.area(kept) for ranking in self._ranks])
        found = found[np.isfinite(found)]
        return float(found.mean()) if len(found) else float("nan")


@dataclass(frozen=True)
class _Ranking:
    """Rows in order of a score, ready for AUROC of any part of them."""

    order: Array
    tie: Array
    """(N,) number of each place's run of equal scores."""
    positive: Array
    """(N,) in that order."""

    @classmethod
    def of(cls, score: Array, positive: Array) -> "_Ranking":
        order = np.argsort(score, kind="stable")
        tie = np.cumsum(np.diff(score[order], prepend=score[order[:1]]) != 0)
        return cls(order, tie, positive[order])

    def area(self, kept: Array) -> float:
        """Chance that a positive row ranks above a negative one, ties half; NaN without both."""
        here = kept[self.order]
        positive = np.bincount(self.tie, here & self.positive)
        negative = np.bincount(self.tie, here & ~self.positive)
        pairs = positive.sum() * negative.sum()
        if not pairs:
            return float("nan")
        below = np.cumsum(negative) - negative
        return float((positive * (below + negative / 2)).sum() / pairs)


def macro_f1(confusion: Array) -> float:
    """Mean F1 of the classes that are there or were predicted."""
    hits = np.diagonal(confusion).astype(np.float64)
    either = confusion.sum(axis=0) + confusion.sum(axis=1)
    used = either > 0
    return float((2 * hits[used] / either[used]).mean()) if used.any() else float("nan")


def _ece(bins: Array) -> float:
    """Expected calibration error: |accuracy - confidence|, weighted by rows of a bin."""
    rows, confidence, correct = bins
    return float(np.abs(correct - confidence).sum() / rows.sum()) if rows.sum() else float("nan")


def _bits(probability: Array) -> Array:
    return np.asarray(-np.log2(np.maximum(probability, _LEAST)))


@dataclass(frozen=True)
class NumberTest:
    """Predicted numbers of test rows, beside the true ones."""

    predicted: Array
    """(N,) float64."""
    true: Array
    """(N,) float64."""
    group: Array
    """(N,) the jackknife group of each row, from 0."""
    mean: float
    """Of the training rows: the baseline."""
    variance: float
    """Of the training rows about their mean."""
    error: float
    """Mean squared error on the validation rows: the variance that the probe predicts with."""

    @property
    def num_groups(self) -> int:
        """How many jackknife groups."""
        return int(self.group.max()) + 1

    @cached_property
    def _sums(self) -> Array:
        """(G, 6) of each group: rows, t, t², squared errors, absolute errors, bits gained."""
        wrong = self.true - self.predicted
        parts = (
            np.ones(len(self.true)), self.true, self.true**2, wrong**2, np.abs(wrong), self._gain(),
        )  # fmt: skip
        return np.stack([np.bincount(self.group, part, self.num_groups) for part in parts], axis=1)

    def _gain(self) -> Array:
        """(N,) log2 of the normal density at the truth, with the probe less without."""
        with_probe = _normal_bits(self.true - self.predicted, self.error)
        return np.asarray(_normal_bits(self.true - self.mean, self.variance) - with_probe)

    def intervals(self) -> dict[str, Interval]:
        """All metrics of numbers."""
        total = self._sums.sum(axis=0)
        measures: Mapping[str, Callable[[Array], float]] = {
            "r2": _r2,
            "mae": lambda sums: float(sums[4] / sums[0]),
            "v_information_bits": lambda sums: float(sums[5] / sums[0]),
        }
        return {
            name: jackknife(measure(total), [measure(total - one) for one in self._sums])
            for name, measure in measures.items()
        }

    def values(self) -> dict[str, float]:
        """The same without intervals."""
        return {name: interval.value for name, interval in self.intervals().items()}

    def baseline(self) -> dict[str, float]:
        """What the training mean alone scores."""
        constant = np.full_like(self.true, self.mean)
        return NumberTest(
            constant, self.true, self.group, self.mean, self.variance, self.variance
        ).values()


def _r2(sums: Array) -> float:
    """1 - squared error over the variance about the test rows' own mean, as scikit-learn's."""
    spread = sums[2] - sums[1] ** 2 / sums[0] if sums[0] else 0.0
    return float(1 - sums[3] / spread) if spread > 0 else float("nan")


def _normal_bits(error: Array, variance: float) -> Array:
    safe = max(variance, 1e-300)
    return np.asarray(0.5 * (np.log2(2 * np.pi * safe) + error**2 / safe / np.log(2)))
