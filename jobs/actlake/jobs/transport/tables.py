"""The numbers of a fit as tables, written as Parquet (pure).

maps.parquet       a row for each pair, map and measure: test R², its interval, train R²
ranks.parquet      a row for each pair, family and rank: R², ceiling, efficiency, both splits
pairs.parquet      a row for each pair: α, effective ranks, Σρ² and its value by chance, row counts
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from actlake.jobs.transport.causal import CausalScore
from actlake.jobs.transport.features import FeatureScores
from actlake.jobs.transport.fitting import Measure, PairFit
from actlake.jobs.transport.metrics import Spectrum
from actlake.jobs.transport.pairs import Pair, depth
from actlake.jobs.transport.shortcut import ShortcutScore

MEASURES: tuple[Measure, ...] = get_args(Measure)


def pair_columns(pair: Pair) -> dict[str, Any]:
    """What every row of every table begins with."""
    return {
        "source": str(pair.source),
        "target": str(pair.target),
        "source_layer": depth(pair.source)[0],
        "target_layer": depth(pair.target)[0],
        "k": pair.distance,
        "offset": pair.offset,
    }


def map_rows(fit: PairFit) -> Iterable[dict[str, Any]]:
    """Rows of ``maps.parquet``."""
    for kind, tested in fit.maps.items():
        for measure in MEASURES:
            interval = tested.intervals.get(measure)
            yield pair_columns(fit.pair) | {
                "map": kind,
                "alpha": tested.fitted.alpha,
                "measure": measure,
                "r2": getattr(tested.test, measure),
                "r2_low": interval.low if interval else None,
                "r2_high": interval.high if interval else None,
                "r2_train": getattr(tested.train, measure),
            }


def rank_rows(fit: PairFit) -> Iterable[dict[str, Any]]:
    """Columns of ``ranks.parquet``, one mapping a family and split."""
    for split, curves, found in (
        ("test", fit.curves, fit.spectrum),
        ("train", fit.train_curves, fit.train_spectrum),
    ):
        for kind, curve in curves.items():
            assert found is not None
            length = len(curve.whitened)
            yield {
                **{name: [value] * length for name, value in pair_columns(fit.pair).items()},
                "family": [kind] * length,
                "split": [split] * length,
                "rank": np.arange(length, dtype=np.int32),
                "uniform": curve.uniform,
                "variance_weighted": curve.variance_weighted,
                "whitened": curve.whitened,
                "ceiling": _padded(found.ceiling, length),
                "efficiency": _padded(found.efficiency(curve.whitened), length),
            }


def pair_row(fit: PairFit) -> dict[str, Any]:
    """A row of ``pairs.parquet``."""
    best = fit.ridge.fitted.alpha
    return pair_columns(fit.pair) | {
        "alpha": best,
        "train_rows": fit.train_rows,
        "test_rows": fit.test_rows,
        "massive_rows": fit.massive_rows,
        "rank_source": fit.rank_x,
        "rank_target": fit.rank_y,
        "condition_source": fit.condition_x,
        "pillai_trace": _or_none(fit.spectrum, "pillai_trace"),
        "pillai_trace_permuted": _or_none(fit.spectrum, "permuted_pillai_trace"),
        "pillai_trace_train": _or_none(fit.train_spectrum, "pillai_trace"),
        "pillai_trace_train_permuted": _or_none(fit.train_spectrum, "permuted_pillai_trace"),
        "alphas": list(fit.alphas),
        "alpha_scores": list(fit.alphas.values()),
        "correlations": fit.spectrum.correlations if fit.spectrum else None,
        "warnings": list(fit.warnings),
    }


def _or_none(found: Spectrum | None, name: str) -> float | None:
    return None if found is None else float(getattr(found, name))


def _padded(values: "np.ndarray[Any, Any]", length: int) -> "np.ndarray[Any, Any]":
    """The last value again where a family has more ranks than there are correlations."""
    return values[np.minimum(np.arange(length), len(values) - 1)]


def feature_block(pair: Pair, scores: FeatureScores) -> dict[str, Any]:
    """Columns of ``features.parquet``, of one pair."""
    length = len(scores.r2)
    return {name: [value] * length for name, value in pair_columns(pair).items()} | {
        "feature": np.arange(length, dtype=np.int32),
        "active_rows": scores.active,
        "density": scores.density,
        "r2": scores.r2,
        "r2_all_rows": scores.r2_all_rows,
        "r2_rescaled": scores.r2_rescaled,
        "correlation": scores.correlation,
        "slope": scores.slope,
        "judged": scores.judged,
        "above_threshold": scores.above_threshold,
    }


def causal_row(score: CausalScore) -> dict[str, Any]:
    """A row of ``causal.parquet``."""
    return pair_columns(score.pair) | {
        "condition": score.condition,
        **{f"delta_ce{end}": getattr(score.delta_ce, name) for end, name in _ENDS},
        **{f"kl{end}": getattr(score.divergence, name) for end, name in _ENDS},
        "replaced": score.replaced,
    }


_ENDS = (("", "value"), ("_low", "low"), ("_high", "high"))


def shortcut_row(score: ShortcutScore) -> dict[str, Any]:
    """A row of ``shortcuts.parquet``."""
    return {
        "source": str(score.source),
        "source_layer": score.source.layer,
        "lens": score.lens,
        **{
            f"precision_at_{k}{end}": getattr(found, name)
            for k, found in score.precision.items()
            for end, name in _ENDS
        },
        **{f"surprisal{end}": getattr(score.surprisal, name) for end, name in _ENDS},
        **{f"kl{end}": getattr(score.divergence, name) for end, name in _ENDS},
        "rows": score.rows,
    }


def write_rows(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows as Parquet."""
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path)


def write_blocks(blocks: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write blocks of columns as Parquet, one after the other."""
    if blocks:
        pq.write_table(pa.concat_tables([pa.table(dict(block)) for block in blocks]), path)
