"""Depth markers: at which layer a score jumps, and from which it no longer changes.

Jin et al. 2024, "Exploring Concept Depth" (arXiv:2404.07066): with ``r_i = score_i / score_{i-1}``,

    jump        the first layer with ``r_i >= 1.1``
    converge    the last layer with ``|r_i - 1| < 0.03``

Taken by its words, the second is the deepest layer in nearly every model, since scores hardly move
between the last layers. So two more are reported:

    settled     the first layer from which on no ratio leaves the band ``|r_i - 1| < 0.03``
    best        the layer with the highest score on validation rows, with its score on test rows

A ratio needs a positive score before it (R² and V-information may be 0 or less); others are
not counted, and how many is reported.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from actlake.jobs.probe.config import ProbeConfig

METRICS = ("accuracy", "macro_f1", "auroc", "r2", "v_information_bits")
"""Scores that grow with what a layer holds; markers of a log-loss would be upside down."""

SERIES = ("task", "label", "pooling", "offset", "point", "probe", "metric")
"""What the scores of one line over the layers have in common."""

_SCHEMA = pa.schema(
    [
        ("task", pa.string()), ("label", pa.string()), ("pooling", pa.string()),
        ("offset", pa.int32()), ("point", pa.string()), ("probe", pa.string()),
        ("metric", pa.string()), ("layers", pa.int32()), ("jump", pa.int32()),
        ("converge", pa.int32()), ("settled", pa.int32()), ("best", pa.int32()),
        ("best_value", pa.float64()), ("ratios_undefined", pa.int32()),
    ]
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class DepthMarkers:
    """Markers of one line of scores; None where there is none."""

    jump: int | None
    converge: int | None
    settled: int | None
    best: int
    best_value: float
    ratios_undefined: int
    """Layers whose ratio to the one before does not exist, since that score is 0 or less."""


def depth_markers(
    layers: Sequence[int],
    scores: Sequence[float],
    *,
    chosen_by: Sequence[float] | None = None,
    jump: float = 1.1,
    converge: float = 0.03,
) -> DepthMarkers:
    """The markers of a line.

    Parameters
    ----------
    layers
        The layers, ascending; a jump is named after the layer that is reached by it.
    scores
        One a layer; higher is better.
    chosen_by
        The scores by which the best layer is chosen, on other rows; `scores` if left out.
    jump
        Least ratio of a jump.
    converge
        Width of the band about a ratio of 1.
    """
    values = np.asarray(scores, np.float64)
    assert len(layers) == len(values) > 0, (len(layers), len(values))
    before, after = values[:-1], values[1:]
    defined = before > 0
    ratios = np.full(len(before), np.nan)
    ratios[defined] = after[defined] / before[defined]
    jumps = np.flatnonzero(ratios >= jump)
    still = np.abs(ratios - 1) < converge  # False where undefined
    calm = np.flatnonzero(still)
    moving = np.flatnonzero(~still)
    settled = int(moving[-1]) + 1 if len(moving) else 0
    by = values if chosen_by is None else np.asarray(chosen_by, np.float64)
    best = int(np.nanargmax(by)) if np.isfinite(by).any() else 0
    return DepthMarkers(
        jump=layers[jumps[0] + 1] if len(jumps) else None,
        converge=layers[calm[-1] + 1] if len(calm) else None,
        settled=layers[settled] if settled < len(ratios) else None,
        best=layers[best],
        best_value=float(values[best]),
        ratios_undefined=int((~defined).sum()),
    )


def write_markers(folder: Path, config: "ProbeConfig") -> None:
    """Write ``markers.parquet`` from ``scores.parquet``, a row for each line of scores."""
    table = pq.read_table(folder / "scores.parquet")
    rows = []
    for key, line in lines_over_depth(table, columns=("value", "validation")):
        if key["metric"] in METRICS:
            markers = depth_markers(
                line["layer"].tolist(),
                line["value"].tolist(),
                chosen_by=line["validation"].tolist(),
                jump=config.markers.jump,
                converge=config.markers.converge,
            )
            rows.append(key | {"layers": len(line["layer"])} | asdict(markers))
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), folder / "markers.parquet")


def lines_over_depth(
    table: pa.Table, *, columns: Sequence[str] = ("value",)
) -> Iterator[tuple[dict[str, Any], Mapping[str, "np.ndarray[Any, Any]"]]]:
    """Each line of `SERIES`, with ``layer`` and `columns` in order of the layers.

    ``resid_pre.0``, what enters the first block, continues the line of ``resid_post`` at layer -1.
    Rows without a value are left out.
    """
    table = table.filter(pc.is_valid(table["value"]))
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    wanted = list(dict.fromkeys((*SERIES, "layer", "value", *columns)))
    for row in table.select(wanted).to_pylist():
        if row["point"] == "resid_pre" and row["layer"] == 0:
            row |= {"point": "resid_post", "layer": -1}
        groups.setdefault(tuple(row[name] for name in SERIES), []).append(row)
    for key, rows in groups.items():
        rows.sort(key=lambda row: int(row["layer"]))
        numbers = {
            name: np.array(
                [np.nan if row[name] is None else row[name] for row in rows],
                np.int64 if name == "layer" else np.float64,
            )
            for name in ("layer", *columns)
        }
        yield dict(zip(SERIES, key, strict=True)), numbers
