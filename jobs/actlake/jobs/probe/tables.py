"""The numbers of a site as rows of tables, written as Parquet (pure).

scores.parquet          a row for each probe and metric: value, interval, and beside it what the
                        baseline, shuffled labels and the control task score
probes.parquet          a row for each probe: penalty, how the solver ended, rows, leakage
controls.parquet        a row for each probe, control and metric
learning_curve.parquet  a row for each share of the training documents and metric
confusion.parquet       test rows by true and predicted class
calibration.parquet     test rows by confidence
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_KEY = [
    ("task", pa.string()), ("label", pa.string()), ("pooling", pa.string()),
    ("offset", pa.int32()), ("site", pa.string()), ("layer", pa.int32()), ("point", pa.string()),
    ("probe", pa.string()),
]  # fmt: skip

SCHEMAS: dict[str, pa.Schema] = {
    "scores": pa.schema(
        [
            *_KEY, ("kind", pa.string()), ("metric", pa.string()), ("value", pa.float64()),
            ("validation", pa.float64()), ("low", pa.float64()), ("high", pa.float64()),
            ("baseline", pa.float64()),
            ("shuffled", pa.float64()), ("control", pa.float64()), ("selectivity", pa.float64()),
        ]
    ),
    "probes": pa.schema(
        [
            *_KEY, ("kind", pa.string()), ("classes", pa.list_(pa.string())),
            ("penalty", pa.float64()), ("penalties", pa.list_(pa.float64())),
            ("validation_loss", pa.list_(pa.float64())), ("iterations", pa.int32()),
            ("converged", pa.bool_()), ("train_rows", pa.int64()), ("validate_rows", pa.int64()),
            ("test_rows", pa.int64()), ("train_documents", pa.int64()),
            ("test_documents", pa.int64()), ("leaked", pa.float64()),
            ("types_seen", pa.float64()), ("streamed", pa.bool_()),
            ("folder", pa.string()), ("warnings", pa.list_(pa.string())),
        ]
    ),
    "controls": pa.schema(
        [*_KEY, ("control", pa.string()), ("metric", pa.string()), ("value", pa.float64())]
    ),
    "learning_curve": pa.schema(
        [
            *_KEY, ("share", pa.float64()), ("train_rows", pa.int64()), ("metric", pa.string()),
            ("value", pa.float64()),
        ]
    ),
    "confusion": pa.schema(
        [*_KEY, ("true", pa.string()), ("predicted", pa.string()), ("count", pa.int64())]
    ),
    "calibration": pa.schema(
        [
            *_KEY, ("bin", pa.int32()), ("low", pa.float64()), ("high", pa.float64()),
            ("count", pa.int64()), ("confidence", pa.float64()), ("accuracy", pa.float64()),
        ]
    ),
}  # fmt: skip
"""Columns of every table."""

Rows = dict[str, list[dict[str, Any]]]
"""Rows of each table."""


def empty_rows() -> Rows:
    """Every table, without rows."""
    return {name: [] for name in SCHEMAS}


def write_tables(rows: Mapping[str, Sequence[Mapping[str, Any]]], folder: Path) -> None:
    """Write every table as ``NAME.parquet``, also those without rows."""
    for name, schema in SCHEMAS.items():
        table = pa.Table.from_pylist([dict(row) for row in rows.get(name, ())], schema=schema)
        pq.write_table(table, folder / f"{name}.parquet")


def join_tables(parts: Sequence[Path], folder: Path) -> None:
    """The tables of several folders, one after the other, in one folder."""
    for name in SCHEMAS:
        tables = [read_table(part, name) for part in parts]
        pq.write_table(pa.concat_tables(tables), folder / f"{name}.parquet")


def read_table(folder: Path, name: str) -> pa.Table:
    """A table of a result."""
    return pq.read_table(folder / f"{name}.parquet", partitioning=None)
