"""From the scores of fitted probes on test rows to rows of tables, controls beside them (pure)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from actlake.jobs.jackknife import Interval
from actlake.jobs.probe.controls import TRUE, TYPES_SEEN, Heads
from actlake.jobs.probe.examples import Examples
from actlake.jobs.probe.fitting import Fit, Fitted
from actlake.jobs.probe.metrics import BINS, ClassTest, NumberTest, probabilities
from actlake.jobs.probe.splits import TEST, TRAIN, VALIDATE
from actlake.jobs.probe.tables import Rows, empty_rows
from actlake.storage.sites import Site

Array = np.ndarray[Any, Any]
Test = ClassTest | NumberTest
_SELECTIVE = ("accuracy", "r2")
_VALIDATION = "validation"
_CONTROLS = {"shuffled": "shuffled", "control": "word_type"}


@dataclass
class Scoring:
    """The tables of one set of examples at one site."""

    site: Site
    examples: Examples
    heads: Heads
    fitted: Fitted
    rows: Rows = field(default_factory=empty_rows)

    def run(self) -> Rows:
        """All rows of all tables."""
        fitted = self.fitted
        for fit, scores, validated in zip(
            fitted.fits, fitted.scores, fitted.validated, strict=True
        ):
            if fit.share < 1:
                self._curve(fit, scores)
            else:
                self._whole(fit, scores, validated)
        return self.rows

    def folder(self, fit: Fit) -> str:
        """Where a probe is kept in the result."""
        return f"probes/{self.examples.name}/{self.site}/{fit.probe}"

    # One probe.

    def _whole(self, fit: Fit, scores: Array, validated: Array) -> None:
        every: dict[str, list[dict[str, float]]] = {}
        tests = [self._test(fit, scores, TRUE, place) for place in range(self.heads.labels)]
        intervals = [test.intervals() for test in tests]
        every["baseline"] = [test.baseline() for test in tests]
        for condition in self.heads.conditions[1:]:
            every[condition] = [
                self._test(fit, scores, condition, place).values()
                for place in range(self.heads.labels)
            ]
        every[_VALIDATION] = [
            self._test(fit, validated, TRUE, place, split=VALIDATE).values()
            for place in range(self.heads.labels)
        ]
        for place, label in enumerate(self._labels):
            beside = {name: values[place] for name, values in every.items()}
            self._score(fit, label, intervals[place], beside)
            self._probe(fit, label, place)
            self._curve_rows(fit, label, _plain(intervals[place]))
            test = tests[place]
            if isinstance(test, ClassTest):
                self._confusion(fit, label, test)
                self._calibration(fit, label, test)
        if self._multilabel:  # and the mean over its labels
            mean = {
                name: Interval(value, float("nan"), float("nan"))
                for name, value in _mean(map(_plain, intervals)).items()
            }
            self._score(fit, None, mean, {name: _mean(values) for name, values in every.items()})
            self._curve_rows(fit, None, _plain(mean))

    def _curve(self, fit: Fit, scores: Array) -> None:
        found = [
            self._test(fit, scores, TRUE, place).values() for place in range(self.heads.labels)
        ]
        for label, values in zip(self._labels, found, strict=True):
            self._curve_rows(fit, label, values)
        if self._multilabel:
            self._curve_rows(fit, None, _mean(found))

    @property
    def _multilabel(self) -> bool:
        return self.examples.kind == "multilabel"

    @property
    def _labels(self) -> tuple[str | None, ...]:
        return self.examples.classes if self._multilabel else (None,)

    def _test(
        self, fit: Fit, scores: Array, condition: str, place: int, *, split: int = TEST
    ) -> Test:
        column = self.heads.column(condition, place)
        which = self.examples.where(split)
        true = self.heads.targets[which, column]
        # Only of test rows are there groups, and intervals.
        group = self.examples.group[which].astype(np.int64)
        group = np.arange(len(true)) % 2 if split != TEST else group
        training = self.heads.targets[self.examples.where(TRAIN), column]
        if self.heads.num_classes == 1:
            assert fit.losses is not None or fit.share < 1
            predicted = scores[:, column, 0].astype(np.float64)
            error = self._validation_error(fit, column)
            return NumberTest(
                predicted, true, group, float(training.mean()), float(training.var()), error
            )
        prior = np.bincount(training, minlength=self.heads.num_classes) / len(training)
        return ClassTest(probabilities(scores[:, column]), true, group, prior)

    def _validation_error(self, fit: Fit, column: int) -> float:
        """Of numbers: mean squared error on validation rows, also that of the whole probe."""
        if fit.losses is None or fit.chosen is None:
            whole = next(one for one in self.fitted.fits if one.probe == fit.probe)
            return self._validation_error(whole, column)
        return float(fit.losses[column, fit.chosen[column]])

    # Rows of tables.

    def _key(self, fit: Fit, label: str | None) -> dict[str, Any]:
        task, pooling, offset = self.examples.key
        return {
            "task": task, "label": label, "pooling": pooling, "offset": offset,
            "site": str(self.site), "layer": self.site.layer, "point": self.site.point,
            "probe": fit.probe,
        }  # fmt: skip

    def _score(
        self,
        fit: Fit,
        label: str | None,
        intervals: Mapping[str, Interval],
        beside: Mapping[str, Mapping[str, float]],
    ) -> None:
        key = self._key(fit, label)
        for metric, interval in intervals.items():
            controls = {
                column: _finite(beside.get(control, {}).get(metric))
                for column, control in _CONTROLS.items()
            }
            on_words = controls["control"]
            selective = metric in _SELECTIVE and self._types_seen >= TYPES_SEEN
            self.rows["scores"].append(
                key | controls | {
                    "kind": self.examples.kind,
                    "metric": metric,
                    "value": interval.value,
                    "validation": _finite(beside[_VALIDATION].get(metric)),
                    "low": _finite(interval.low),
                    "high": _finite(interval.high),
                    "baseline": _finite(beside["baseline"].get(metric)),
                    "selectivity": interval.value - on_words
                    if selective and on_words is not None
                    else None,
                }
            )  # fmt: skip
        self.rows["controls"] += [
            key | {"control": control, "metric": metric, "value": value}
            for control, values in beside.items()
            if control != _VALIDATION
            for metric, value in values.items()
        ]

    def _probe(self, fit: Fit, label: str | None, place: int) -> None:
        examples = self.examples
        documents = [
            len(np.unique(examples.document[examples.where(split)])) for split in (TRAIN, TEST)
        ]
        chosen = None if fit.chosen is None else int(fit.chosen[place])
        losses = None if fit.losses is None else fit.losses[place].tolist()
        converged = None if fit.converged is None else bool(fit.converged[place])
        warnings = list(examples.warnings)
        if converged is False:
            warnings.append(f"The solver of {fit.probe} did not converge: {self.folder(fit)}")
        self.rows["probes"].append(
            self._key(fit, label)
            | {
                "kind": examples.kind,
                "classes": list(examples.classes),
                "penalty": None if chosen is None else fit.penalties[chosen],
                "penalties": list(fit.penalties),
                "validation_loss": losses,
                "iterations": None if fit.iterations is None else int(fit.iterations[place]),
                "converged": converged,
                "train_rows": examples.count(TRAIN),
                "validate_rows": examples.count(VALIDATE),
                "test_rows": examples.count(TEST),
                "train_documents": documents[0],
                "test_documents": documents[1],
                "leaked": self._leaked,
                "types_seen": self._types_seen,
                "streamed": self.fitted.streamed,
                "folder": self.folder(fit),
                "warnings": warnings,
            }
        )

    @cached_property
    def _leaked(self) -> float:
        return self.examples.leaked

    @cached_property
    def _types_seen(self) -> float:
        return self.examples.types_seen

    def _curve_rows(self, fit: Fit, label: str | None, values: Mapping[str, float]) -> None:
        self.rows["learning_curve"] += [
            self._key(fit, label)
            | {"share": fit.share, "train_rows": fit.train_rows, "metric": metric, "value": value}
            for metric, value in values.items()
        ]

    def _confusion(self, fit: Fit, label: str | None, test: ClassTest) -> None:
        names = ("no", "yes") if label is not None else self.examples.classes
        key, counts = self._key(fit, label), test.confusion
        self.rows["confusion"] += [
            key | {"true": names[true], "predicted": names[said], "count": int(counts[true, said])}
            for true, said in zip(*np.nonzero(counts), strict=True)
        ]

    def _calibration(self, fit: Fit, label: str | None, test: ClassTest) -> None:
        key = self._key(fit, label)
        for number, (rows, confidence, correct) in enumerate(test.bins.T):
            if rows:
                self.rows["calibration"].append(
                    key
                    | {
                        "bin": number,
                        "low": number / BINS,
                        "high": (number + 1) / BINS,
                        "count": int(rows),
                        "confidence": confidence / rows,
                        "accuracy": correct / rows,
                    }
                )


def _plain(intervals: Mapping[str, Interval]) -> dict[str, float]:
    return {name: interval.value for name, interval in intervals.items()}


def _mean(values: Iterable[Mapping[str, float]]) -> dict[str, float]:
    every = list(values)
    return {name: float(np.mean([one[name] for one in every])) for name in every[0]}


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None
