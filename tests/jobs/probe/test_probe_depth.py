"""Depth markers: what the paper's two say, and what its words leave open."""

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actlake.jobs.probe.config import MarkersConfig
from actlake.jobs.probe.markers import depth_markers, lines_over_depth, write_markers

SCORES = st.lists(st.floats(0.01, 1), min_size=2, max_size=40)


def test_the_jump_is_the_first_layer_that_gains_a_tenth():
    found = depth_markers([0, 1, 2, 3, 4], [0.50, 0.54, 0.60, 0.90, 0.91])

    assert found.jump == 2  # 0.60 / 0.54 = 1.11; 0.54 / 0.50 = 1.08 is none
    assert depth_markers([0, 1], [0.5, 0.549]).jump is None
    assert depth_markers([0, 1], [0.5, 0.549], jump=1.05).jump == 1


def test_the_converge_layer_is_the_last_calm_one_and_the_settled_one_the_first_of_them():
    layers = [-1, 0, 1, 2, 3, 4, 5]

    found = depth_markers(layers, [0.50, 0.51, 0.70, 0.80, 0.81, 0.82, 0.81])

    assert found.converge == 5
    assert found.settled == 2
    assert (found.best, found.best_value) == (4, 0.82)


def test_the_best_layer_is_chosen_on_other_rows_than_it_is_reported_on():
    found = depth_markers([0, 1, 2], [0.5, 0.9, 0.6], chosen_by=[0.5, 0.6, 0.7])

    assert (found.best, found.best_value) == (2, 0.6)


def test_a_line_that_moves_to_the_end_has_not_settled():
    found = depth_markers([0, 1, 2], [0.5, 0.5, 0.6])

    assert found.settled is None
    assert found.converge == 1


@settings(deadline=None, max_examples=40)
@given(SCORES)
def test_markers_are_what_a_loop_over_the_definition_finds(scores):
    ratios = [b / a for a, b in pairwise(scores)]
    jumps = [i + 1 for i, ratio in enumerate(ratios) if ratio >= 1.1]
    calm = [i + 1 for i, ratio in enumerate(ratios) if abs(ratio - 1) < 0.03]

    found = depth_markers(range(len(scores)), scores)

    assert found.jump == (jumps[0] if jumps else None)
    assert found.converge == (calm[-1] if calm else None)
    if found.settled is not None:
        assert all(abs(ratio - 1) < 0.03 for ratio in ratios[found.settled :])
        assert found.settled == 0 or abs(ratios[found.settled - 1] - 1) >= 0.03


def test_a_score_of_zero_or_less_has_no_ratio_and_is_counted():
    found = depth_markers([0, 1, 2, 3], [-0.2, 0.0, 0.4, 0.41])

    assert found.ratios_undefined == 2
    assert found.jump is None
    assert found.settled == 2


_WORDS = ("task", "label", "pooling", "site", "point", "probe", "metric")


def scores_table(rows: list[dict[str, object]]) -> pa.Table:
    shared = {
        "task": "topic", "label": None, "pooling": "token", "offset": 0, "probe": "logistic",
        "metric": "accuracy",
    }  # fmt: skip
    schema = pa.schema(
        [(name, pa.string()) for name in _WORDS]
        + [("offset", pa.int32()), ("layer", pa.int32())]
        + [("value", pa.float64()), ("validation", pa.float64())]
    )  # fmt: skip
    return pa.Table.from_pylist([shared | row for row in rows], schema=schema)


def test_the_embedding_is_the_layer_before_the_first():
    table = scores_table(
        [
            {"site": "resid_post.1", "point": "resid_post", "layer": 1, "value": 0.8},
            {"site": "resid_pre.0", "point": "resid_pre", "layer": 0, "value": 0.5},
            {"site": "resid_post.0", "point": "resid_post", "layer": 0, "value": 0.6},
            {"site": "resid_mid.0", "point": "resid_mid", "layer": 0, "value": 0.1},
        ]
    )

    (stream, line), (mid, _) = lines_over_depth(table)

    assert stream["point"] == "resid_post"
    assert line["layer"].tolist() == [-1, 0, 1]
    np.testing.assert_array_equal(line["value"], [0.5, 0.6, 0.8])
    assert mid["point"] == "resid_mid"


def test_the_table_of_markers_leaves_out_scores_where_less_is_better(tmp_path: Path):
    rows = [
        {
            "site": f"resid_post.{n}",
            "point": "resid_post",
            "layer": n,
            "value": v,
            "validation": v,
            "metric": metric,
        }
        for metric in ("accuracy", "log_loss_bits")
        for n, v in enumerate([0.5, 0.6, 0.6])
    ]
    pq.write_table(scores_table(rows), tmp_path / "scores.parquet")

    write_markers(tmp_path, SimpleNamespace(markers=MarkersConfig(jump=1.15)))

    (found,) = pq.read_table(tmp_path / "markers.parquet").to_pylist()
    assert found["metric"] == "accuracy"
    assert (found["jump"], found["converge"], found["settled"], found["layers"]) == (1, 2, 1, 3)


def test_a_line_of_one_layer_has_no_markers_but_a_best():
    found = depth_markers([3], [0.7])

    assert (found.jump, found.converge, found.settled, found.best) == (None, None, None, 3)


@pytest.mark.parametrize("scores", [[np.nan, np.nan], [0.5, np.nan]])
def test_scores_that_are_not_numbers_do_not_mark_anything(scores):
    found = depth_markers([0, 1], scores)

    assert (found.jump, found.converge, found.settled) == (None, None, None)
