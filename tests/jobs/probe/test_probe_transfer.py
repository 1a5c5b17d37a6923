"""A probe on other examples: compared by name, with the other's baseline, and leakage told."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import r2_score, roc_auc_score

from actlake.jobs.probe import train_probes
from actlake.jobs.probe.config import DrawnSplits, ProbeConfig, TaskConfig
from actlake.jobs.probe.errors import InvalidProbe
from actlake.jobs.probe.examples import Examples
from actlake.jobs.probe.transfer import (
    check_transfer,
    main,
    score_elsewhere,
    transfer_results,
)
from actlake.platform.runs import RunRecord

TRAIN, TEST = 30, 40


def examples(
    classes: tuple[str, ...] = ("no", "yes"),
    *,
    kind: str = "binary",
    targets: np.ndarray | None = None,
    name: str = "a",
    column: str = "topic",
) -> Examples:
    """30 training and 40 test examples of a row each, in documents of five."""
    total = TRAIN + TEST
    if targets is None:
        targets = np.arange(total) % max(1, len(classes))
    return Examples(
        task=TaskConfig(labels="labels", column=column, name=name), kind=kind, pooling="token",
        offset=0, classes=classes, targets=targets,
        split=np.repeat(np.array([0, 2], np.int8), [TRAIN, TEST]), rows=np.arange(total),
        bounds=np.arange(total + 1), document=np.arange(total) // 5, entity=np.arange(total),
        group=np.where(np.arange(total) < TRAIN, -1, np.arange(total) // 5).astype(np.int16),
        word_type=np.zeros(total, np.int64), of_documents=False,
    )  # fmt: skip


def probe(said: np.ndarray, classes: tuple[str, ...] = ()) -> Any:
    """A probe that says what it is told to: probabilities of its classes, or numbers."""
    return SimpleNamespace(
        classes=classes, predict=lambda rows: said, predict_proba=lambda rows: said
    )


def test_classes_are_compared_by_name_whatever_their_order():
    rng = np.random.default_rng(0)
    target = examples()
    truth = np.array(target.classes)[target.targets[TRAIN:]]
    of_no = np.clip(0.5 + 0.2 * rng.normal(size=TEST) + 0.2 * (truth == "no"), 0.01, 0.99)
    said = np.stack([1 - of_no, of_no], axis=1)

    scores = {
        metric: (interval, baseline)
        for metric, interval, baseline in score_elsewhere(
            probe(said, ("yes", "no")), np.zeros((TEST, 3)), target
        )
    }

    accuracy, baseline = scores["accuracy"]
    assert accuracy.value == pytest.approx(((of_no > 0.5) == (truth == "no")).mean())
    assert accuracy.low < accuracy.value < accuracy.high
    assert baseline == 0.5
    assert scores["auroc"][0].value == pytest.approx(roc_auc_score(truth == "no", of_no))


def test_the_baseline_is_the_majority_of_the_tested_tasks_own_training_rows():
    targets = np.r_[np.ones(20), np.zeros(10), np.ones(10), np.zeros(30)].astype(np.int64)
    target = examples(targets=targets)
    said = np.tile([0.9, 0.1], (TEST, 1))

    (metric, interval, baseline), *_ = score_elsewhere(probe(said, target.classes), said, target)

    assert (metric, interval.value, baseline) == ("accuracy", 0.75, 0.25)


def test_numbers_are_scored_by_scikit_learns_r2():
    rng = np.random.default_rng(1)
    values = rng.normal(size=TRAIN + TEST)
    target = examples((), kind="regression", targets=values)
    said = values[TRAIN:] + rng.normal(size=TEST)

    ((metric, interval, baseline),) = score_elsewhere(probe(said), said, target)

    assert metric == "r2"
    assert interval.value == pytest.approx(r2_score(values[TRAIN:], said))
    mean = np.full(TEST, values[:TRAIN].mean())
    assert baseline == pytest.approx(r2_score(values[TRAIN:], mean))


def test_labels_of_a_multilabel_task_are_matched_by_name():
    rng = np.random.default_rng(2)
    targets = rng.random((TRAIN + TEST, 2)) < 0.3
    target = examples(("red", "blue"), kind="multilabel", targets=targets)

    ((metric, interval, _),) = score_elsewhere(
        probe(targets[TRAIN:, ::-1], ("blue", "red")), targets, target
    )

    assert (metric, interval.value) == ("accuracy", 1.0)


def test_transfer_without_two_tasks_alike_is_refused_and_says_what_there_is():
    sets = [examples(), examples(("no", "yes", "maybe"), kind="multiclass", name="b")]

    with pytest.raises(InvalidProbe, match=r"(?s)a/token: no, yes; b/token: maybe, no, yes.*hint"):
        check_transfer(None, sets)

    check_transfer(None, [*sets, examples(("yes", "no"), name="c")])


def test_numbers_transfer_only_to_the_same_column():
    a = examples((), kind="regression", targets=np.zeros(70), name="a", column="latitude")
    b = replace(a, task=TaskConfig(labels="other", column="longitude"))

    with pytest.raises(InvalidProbe):
        check_transfer(None, [a, b])
    check_transfer(None, [a, replace(a, task=TaskConfig(labels="other", column="latitude"))])


def test_tasks_that_are_pooled_otherwise_are_not_alike(tmp_path: Path):
    with pytest.raises(InvalidProbe):
        check_transfer(None, [examples(), replace(examples(name="b"), pooling="last")])


def two_tasks(make_config: Callable[..., ProbeConfig], **options: Any) -> ProbeConfig:
    tasks = tuple(TaskConfig(labels="words", column="mark", name=name) for name in "ab")
    quickly = {"probes": ("logistic",), "controls": (), "learning_curve": ()}
    return make_config(tasks=tasks, sites=("resid_post.1", "resid_post.2"), **quickly | options)


def test_the_diagonal_is_what_the_probe_scores_at_home(make_config: Callable[..., ProbeConfig]):
    result = train_probes(two_tasks(make_config, transfer=True))

    cells = pq.read_table(result.folder / "transfer.parquet").to_pylist()
    home = {
        (row["task"], row["site"], row["metric"]): row
        for row in pq.read_table(result.folder / "scores.parquet").to_pylist()
    }
    assert len(cells) == 2 * 4 * 2  # sites, pairs of tasks, metrics
    for cell in cells:
        there = home[cell["tested"], cell["site"], cell["metric"]]
        for name in ("value", "low", "high", "baseline"):
            assert cell[name] == pytest.approx(there[name], abs=2e-3)  # weights are kept as float32
        assert cell["leaked"] == 0
    assert "Transfer" in result.report.read_text()


def test_results_of_other_splits_are_tested_on_each_other_and_leakage_is_told(
    make_config: Callable[..., ProbeConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folders = []
    for seed in (1, 2):
        config = two_tasks(
            make_config, out=str(tmp_path / f"run{seed}"), seed=seed,
            splits=DrawnSplits(by="document"),
        )  # fmt: skip
        folders.append(str(train_probes(config).folder))

    assert main([*folders, "--out", str(tmp_path / "matrix")]) == 0

    cells = pq.read_table(tmp_path / "matrix" / "transfer.parquet").to_pylist()
    assert {cell["trained"] for cell in cells} == {"run1/a", "run1/b", "run2/a", "run2/b"}
    for cell in cells:  # a run draws one split for all its tasks
        same_run = cell["trained"].split("/")[0] == cell["tested"].split("/")[0]
        assert (cell["leaked"] == 0) == same_run
    assert RunRecord.load(tmp_path / "matrix").metrics == {"scores": float(len(cells))}
    assert (tmp_path / "matrix" / "pictures" / "transfer_accuracy.png").is_file()
    assert "report.html" in capsys.readouterr().out.replace("\n", "")


def test_results_that_share_no_site_are_refused(
    make_config: Callable[..., ProbeConfig], tmp_path: Path
):
    options = {"probes": ("mean_difference",), "controls": (), "learning_curve": ()}
    folders = [
        train_probes(make_config(out=str(tmp_path / site), sites=(site,), **options)).folder
        for site in ("resid_post.0", "resid_post.2")
    ]

    with pytest.raises(InvalidProbe, match="hint: same classes, same pooling and offset"):
        transfer_results(folders, tmp_path / "matrix")

    assert not (tmp_path / "matrix").exists()
