"""The tables of a result, as a report needs them: which probe stands for a task, and its lines."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from actlake.jobs.probe.markers import lines_over_depth

Array = np.ndarray[Any, Any]
Row = dict[str, Any]

HEADLINE = ("accuracy", "r2")
"""The metric that stands for a task: of classes, of numbers."""

_SCORE_COLUMNS = (
    "value", "validation", "low", "high", "baseline", "shuffled", "control", "selectivity",
)  # fmt: skip
_STANDS_FOR_A_TASK = ("logistic", "ridge")


@dataclass(frozen=True, slots=True)
class Series:
    """A label of a task, pooled one way, at one offset: a line in every picture."""

    task: str
    label: str | None
    pooling: str
    offset: int
    point: str

    def named(self, others: Iterable["Series"]) -> str:
        """Its name, saying only what tells it from the others."""
        others = list(others)
        parts = [self.task]
        if self.label is not None:
            parts.append(self.label)
        elif any(other.label is not None for other in others):
            parts.append("mean over labels")
        if len({other.pooling for other in others}) > 1:
            parts.append(self.pooling)
        if len({other.offset for other in others}) > 1:
            parts.append(f"{self.offset:+d}" if self.offset else "0")
        if len({other.point for other in others}) > 1:
            parts.append(self.point)
        return ", ".join(parts)


@dataclass(frozen=True, eq=False)
class ScoreLine:
    """A metric of a probe over the layers."""

    series: Series
    probe: str
    metric: str
    columns: Mapping[str, Array]
    """``layer``, ``value``, ``validation``, ``low``, ``high``, and the controls; NaN: none."""

    @property
    def best(self) -> int:
        """Place of the highest score on validation rows: chosen there, reported on test rows."""
        values = self.columns["validation"]
        return int(np.nanargmax(values)) if np.isfinite(values).any() else 0


class ResultTables:
    """The Parquet tables of a result folder; empty where one is not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def rows(self, name: str) -> list[Row]:
        """All rows of a table."""
        path = self.folder / f"{name}.parquet"
        return pq.read_table(path).to_pylist() if path.is_file() else []

    @cached_property
    def lines(self) -> list[ScoreLine]:
        """Every metric of every probe over the layers."""
        path = self.folder / "scores.parquet"
        table: pa.Table = pq.read_table(path)
        return [
            ScoreLine(
                Series(key["task"], key["label"], key["pooling"], key["offset"], key["point"]),
                key["probe"],
                key["metric"],
                columns,
            )
            for key, columns in lines_over_depth(table, columns=_SCORE_COLUMNS)
        ]

    @cached_property
    def main_probe(self) -> Mapping[str, str]:
        """The probe that stands for each task: logistic or ridge, where it was fitted."""
        found: dict[str, list[str]] = {}
        for line in self.lines:
            found.setdefault(line.series.task, []).append(line.probe)
        return {
            task: next((p for p in _STANDS_FOR_A_TASK if p in probes), probes[0])
            for task, probes in found.items()
        }

    def main_lines(self, metric: str) -> list[ScoreLine]:
        """The lines of a metric, of the probe that stands for each task."""
        return [
            line
            for line in self.lines
            if line.metric == metric and line.probe == self.main_probe[line.series.task]
        ]

    @cached_property
    def headlines(self) -> list[ScoreLine]:
        """One line for each series: accuracy or R²."""
        return [line for metric in HEADLINE for line in self.main_lines(metric)]

    def headline_of(self, row: Row) -> ScoreLine | None:
        """The headline of the series that a row of another table belongs to."""
        for line in self.headlines:
            series = line.series
            if (series.task, series.label, series.pooling, series.offset) == (
                row["task"], row["label"], row["pooling"], row["offset"],
            ) and line.probe == row["probe"]:  # fmt: skip
                return line
        return None

    def at_the_best_layer(self, name: str) -> Mapping[tuple[Series, str], Sequence[Row]]:
        """Rows of a table, of each series' main probe where its headline is highest; and the site.

        For what is a picture a site (confusion, calibration, learning curves).
        """
        found: dict[tuple[Series, str], list[Row]] = {}
        for row in self.rows(name):
            line = self.headline_of(row)
            if line is None:
                continue
            layer = -1 if row["point"] == "resid_pre" and row["layer"] == 0 else row["layer"]
            point = "resid_post" if layer == -1 else row["point"]
            if point == line.series.point and layer == line.columns["layer"][line.best]:
                found.setdefault((line.series, row["site"]), []).append(row)
        return found
