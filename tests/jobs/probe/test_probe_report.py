"""The page: every task is in it, with its controls, at the layer where it is best."""

import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actlake.jobs.probe.config import MarkersConfig
from actlake.jobs.probe.markers import write_markers
from actlake.jobs.probe.pictures import Line, over_depth
from actlake.jobs.probe.report import _overviews, draw, write_report, write_transfer_report
from actlake.jobs.probe.report_tables import ResultTables
from actlake.platform.tracking.memory import MemoryTracker

LAYERS = (-1, 0, 1, 2, 3)
BEST = {"continent": 2, "<b>rating": 3}
"""The layer at which each task of the tables below is best."""


def key(task: str, layer: int, probe: str) -> dict[str, Any]:
    entry = layer < 0
    return {
        "task": task, "label": None, "pooling": "token", "offset": 0,
        "site": "resid_pre.0" if entry else f"resid_post.{layer}", "layer": max(layer, 0),
        "point": "resid_pre" if entry else "resid_post", "probe": probe,
    }  # fmt: skip


def score(task: str, layer: int, probe: str, metric: str, value: float) -> dict[str, Any]:
    return key(task, layer, probe) | {
        "kind": "regression" if metric == "r2" else "multiclass", "metric": metric, "value": value,
        "validation": value,
        "low": value - 0.05, "high": value + 0.05, "baseline": 0.4, "shuffled": 0.38,
        "control": 0.3, "selectivity": value - 0.3,
    }  # fmt: skip


def probe_row(task: str, layer: int, probe: str) -> dict[str, Any]:
    return key(task, layer, probe) | {
        "kind": "multiclass", "classes": ["A", "B", "C"], "penalty": 10.0, "iterations": 12,
        "converged": True, "train_rows": 1000, "validate_rows": 100, "test_rows": 200,
        "leaked": 0.0125, "types_seen": 0.75, "folder": "probes/x",
    }  # fmt: skip


def filled(number: int) -> dict[str, Any]:
    """A bin of a calibration curve; the first is empty."""
    return {
        "bin": number, "low": number / 15, "high": (number + 1) / 15, "count": number,
        "confidence": (number + 0.5) / 15 if number else None,
        "accuracy": number / 15 if number else None,
    }  # fmt: skip


def write_tables(folder: Path) -> None:
    """The tables of a run with a task of three classes and one of numbers."""
    scores, probes, curve, confusion, calibration = [], [], [], [], []
    for layer in LAYERS:
        for task, probe, metrics in (
            ("continent", "logistic", ("accuracy", "v_information_bits", "auroc", "ece")),
            ("continent", "mean_difference", ("accuracy",)),
            ("<b>rating", "ridge", ("r2", "v_information_bits")),
        ):
            value = 0.9 - 0.1 * abs(layer - BEST[task]) - 0.05 * (probe == "mean_difference")
            scores += [score(task, layer, probe, metric, value) for metric in metrics]
            probes.append(probe_row(task, layer, probe))
        at = key("continent", layer, "logistic")
        confusion += [
            at | {"true": true, "predicted": said, "count": 10 * layer + 30 * (true == said)}
            for true in "ABC"
            for said in "ABC"
        ]
        calibration += [at | filled(number) for number in range(15)]
        curve += [
            at
            | {"share": share, "train_rows": int(1000 * share)}
            | {"metric": "accuracy", "value": 0.5 + share / 3}
            for share in (0.1, 0.3, 1.0)
        ]
    for name, rows in {
        "scores": scores, "probes": probes, "learning_curve": curve, "confusion": confusion,
        "calibration": calibration,
    }.items():  # fmt: skip
        pq.write_table(with_words(rows), folder / f"{name}.parquet")
    write_markers(folder, SimpleNamespace(markers=MarkersConfig()))


def with_words(rows: list[dict[str, Any]]) -> pa.Table:
    """A column that is all null is still one of words."""
    table = pa.Table.from_pylist(rows)
    return table.set_column(1, "label", table["label"].cast(pa.string()))


def written(folder: Path, tracker: MemoryTracker) -> str:
    page = write_report(
        folder, title="Probes of <tiny>", facts={"store": "abc & d"}, warnings=["few <rows>"],
        tracker=tracker, step=4,
    )  # fmt: skip
    return page.read_text()


@dataclass(frozen=True)
class Report:
    folder: Path
    tracker: MemoryTracker
    page: str


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A report that tests only look at."""
    folder, tracker = tmp_path_factory.mktemp("result"), MemoryTracker()
    write_tables(folder)
    return Report(folder, tracker, written(folder, tracker))


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """Tables to change."""
    write_tables(tmp_path)
    return tmp_path


def rows_of(page: str) -> list[list[str]]:
    return [
        [re.sub(r"<.*?>", "", cell) for cell in re.findall(r"<td.*?>(.*?)</td>", row, re.DOTALL)]
        for row in re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    ]


def test_every_task_is_in_the_table_at_its_best_layer_with_its_controls(report: Report):
    rows = rows_of(report.page)

    (continent,) = (row for row in rows if row and row[0] == "continent" and row[2] == "accuracy")
    (rating,) = (row for row in rows if row and row[0] == "&lt;b&gt;rating" and row[2] == "R²")
    #  label, probe, metric, best, ±, layer, majority, shuffled, random labels, selectivity, V, …
    assert continent[3:10] == ["0.9000", "0.0500", "2", "0.4000", "0.3800", "0.3000", "0.6000"]
    assert continent[10] == "0.900"
    assert continent[11:] == ["0", "–", "–"]  # 0.7 / 0.6 is the first jump; no ratio is calm
    assert rating[1:6] == ["ridge", "R²", "0.9000", "0.0500", "3"]


def test_words_from_outside_never_become_markup(report: Report):
    page = report.page

    assert "<b>rating" not in page
    assert "Probes of &lt;tiny&gt;" in page
    assert "few &lt;rows&gt;" in page
    assert "abc &amp; d" in page


def test_the_page_needs_nothing_else(report: Report):
    num_pictures = len(list((report.folder / "pictures").iterdir()))

    assert not re.findall(r'(?:src|href)="(?!data:|#)', report.page)
    assert report.page.count("data:image/png;base64,") == num_pictures


def test_pictures_go_into_the_folder_and_to_the_tracker(report: Report):
    pictures = list((report.folder / "pictures").iterdir())

    names = {path.stem for path in pictures}
    assert names == {
        "depth_accuracy", "depth_r2", "depth_v_information_bits", "depth_auroc",
        "depth_selectivity", "task_continent", "task_b_rating",
        "confusion_continent__resid_post_2", "calibration_continent__resid_post_2",
        "learning_accuracy",
    }  # fmt: skip
    for path in pictures:
        assert path.read_bytes().startswith(b"\x89PNG")
    assert {name.removeprefix("pictures/") for name, *_ in report.tracker.images} == names
    assert [name for name, *_ in report.tracker.pages] == ["report"]


def test_what_was_not_asked_for_is_not_on_the_page(result: Path):
    for name in ("confusion", "calibration", "learning_curve"):
        (result / f"{name}.parquet").unlink()

    page = written(result, MemoryTracker())

    for title in ("Where probes are wrong", "Calibration", "More training rows", "Transfer"):
        assert title not in page
    assert "Best layers" in page


def test_the_same_tables_give_the_same_pictures(report: Report):
    drawn = dict(draw(ResultTables(report.folder)))

    assert drawn == {
        path.stem: path.read_bytes() for path in (report.folder / "pictures").iterdir()
    }


def test_a_control_that_was_not_computed_is_not_drawn(result: Path, report: Report):
    with_controls = {
        path.stem: path.read_bytes() for path in (report.folder / "pictures").iterdir()
    }
    table = pq.read_table(result / "scores.parquet")
    for name in ("shuffled", "control", "selectivity"):
        nothing = pa.nulls(len(table), pa.float64())
        table = table.set_column(table.column_names.index(name), name, nothing)
    pq.write_table(table, result / "scores.parquet")

    without = dict(draw(ResultTables(result)))

    assert "depth_selectivity" not in without
    assert without["task_continent"] != with_controls["task_continent"]
    assert without["depth_accuracy"] == with_controls["depth_accuracy"]


def test_more_lines_than_a_picture_holds_are_drawn_in_several(result: Path):
    rows = [
        score(f"task {number}", layer, "logistic", "accuracy", 0.5 + number / 50)
        for number in range(10)
        for layer in LAYERS
    ]
    pq.write_table(with_words(rows), result / "scores.parquet")

    drawn = dict(_overviews(ResultTables(result)))

    assert {"depth_accuracy", "depth_accuracy_2"} <= set(drawn)


def test_names_say_only_what_tells_tasks_apart(result: Path):
    rows = [
        score("x", 0, "logistic", "accuracy", 0.5) | {"pooling": pooling, "offset": offset}
        for pooling in ("token", "last")
        for offset in (0, 2)
    ]
    pq.write_table(with_words(rows), result / "scores.parquet")

    lines = ResultTables(result).headlines

    names = [line.series.named(other.series for other in lines) for line in lines]
    assert names == ["x, token, 0", "x, token, +2", "x, last, 0", "x, last, +2"]


def transfer_row(trained: str, tested: str, site: str, value: float) -> dict[str, Any]:
    return {
        "trained": trained, "tested": tested, "pooling": "last", "offset": 0, "site": site,
        "layer": int(site[-1]), "point": "resid_post", "probe": "logistic", "metric": "accuracy",
        "value": value, "low": value - 0.1, "high": value + 0.1, "baseline": 0.5,
        "test_examples": 100, "leaked": 0.0,
    }  # fmt: skip


def test_the_matrix_is_shown_where_probes_are_best_on_their_own_task(tmp_path: Path):
    rows = [
        transfer_row(a, b, site, (0.9 if site == "resid_post.1" else 0.6) - 0.2 * (a != b))
        for site in ("resid_post.0", "resid_post.1", "resid_post.2")
        for a in ("films", "products")
        for b in ("films", "products")
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "transfer.parquet")

    page = write_transfer_report(tmp_path).read_text()

    assert (tmp_path / "pictures" / "transfer_accuracy.png").is_file()
    assert ["films", "products", "resid_post.1", "logistic", "accuracy", "0.7000", "0.1000",
            "0.5000", "0.00%"] in rows_of(page)  # fmt: skip


def test_an_interval_that_is_not_known_leaves_the_line(tmp_path: Path):
    layers, value = np.arange(3), np.array([0.5, 0.6, 0.7])
    unknown = np.full(3, np.nan)

    png = over_depth(
        {"a": Line(layers=layers, value=value, low=unknown, high=unknown)},
        title="t",
        y="y",
        marks={"jump": 1},
        zero=True,
    )

    assert png.startswith(b"\x89PNG")
