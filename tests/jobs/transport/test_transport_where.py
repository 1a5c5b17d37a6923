"""Maps on rows for which a predicate is true: at both ends of a pair, in every share."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from actlake.jobs.chosen_rows import choose_rows
from actlake.jobs.transport import (
    MomentsConfig,
    RowsConfig,
    TransportConfig,
    fit_transport,
    plan_transport,
)
from actlake.jobs.transport.moments_file import TRAIN
from actlake.jobs.transport.moments_pass import compute_moments, request_moments, shares_of
from actlake.jobs.transport.pairs import Pair
from actlake.platform.cluster import ClusterConfig
from actlake.platform.runs import ResultExists, RunRecord
from actlake.platform.tracking import TrackingConfig
from actlake.storage import Site, open_store
from actlake.storage.errors import EmptySelection, InvalidQuery

QUIET = Console(quiet=True)
WHERE = "id >= 12 and document_number % 5 <> 1"
PAIRS = (Pair(Site(0), Site(1)), Pair(Site(0), Site(2), 1), Pair(Site(1), Site(2), -2))


def config(store: Path, out: Path, where: str | None = WHERE, **options) -> TransportConfig:
    given = {"rows": RowsConfig(groups=6, where=where), "save": ()} | options
    return TransportConfig(
        store=str(store), out=str(out), tracking=TrackingConfig(wandb="disabled"), **given
    )


def is_true(layers) -> np.ndarray:
    """(rows,) bool, of `WHERE`, without a line of ours."""
    return (layers.ids >= 12) & (layers.document % 5 != 1)


def wanted_rows(layers, split: str, offset: int) -> np.ndarray:
    """Row i and row i + offset are in one context, count, and have the predicate true."""
    counts = is_true(layers) & layers.kept & (layers.split == split)
    i = np.arange(len(counts))
    j = np.clip(i + offset, 0, len(counts) - 1)
    inside = (i + offset == j) & (layers.context[i] == layers.context[j])
    return np.flatnonzero(inside & counts[i] & counts[j])


@pytest.mark.parametrize("pair", PAIRS)
def test_moments_are_of_rows_whose_source_and_target_are_chosen(
    layers, store, centred, tmp_path, pair
) -> None:
    chosen = choose_rows(store, WHERE)
    request = request_moments([store], PAIRS, groups=5, part_rows=256, chosen=chosen)

    found = compute_moments([store], request, tmp_path, shares=shares_of([store], request, chosen))

    for share, split in ((TRAIN, "train"), ("test", "test")):
        rows = wanted_rows(layers, split, pair.offset)
        exact = centred(
            layers.acts[pair.source][rows], layers.acts[pair.target][rows + pair.offset]
        )
        ours = found.moments(pair, share)
        spread = np.sqrt(np.outer(np.diagonal(exact.yy), np.diagonal(exact.xx)))
        assert ours.count == len(rows) < len(layers.rows(split))
        assert np.abs((ours.yx - exact.yx) / spread).max() < 3e-7


def test_no_document_without_a_chosen_row_is_held_out_or_a_group(layers, store) -> None:
    chosen = choose_rows(store, WHERE)
    request = request_moments([store], PAIRS, groups=5, chosen=chosen)

    shares = shares_of([store], request, chosen)

    with_rows = np.bincount(layers.document[is_true(layers)], minlength=len(layers.documents)) > 0
    assert not with_rows.all()
    np.testing.assert_array_equal(shares.of_document >= 0, with_rows)


@pytest.fixture(scope="module")
def result(layers_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("where") / "result"
    wanted = config(layers_folder, out, moments=MomentsConfig(threads=1))
    return fit_transport(wanted, console=QUIET)


def test_a_report_says_which_rows_and_how_many_were_left_out(layers, result) -> None:
    test, train = (layers.rows(split) for split in ("test", "train"))
    chosen = is_true(layers)

    words = result.report.read_text(encoding="utf-8")

    assert "rows where" in words
    assert f"test {chosen[test].sum():,} of {len(test):,} rows" in words
    assert f"train {chosen[train].sum():,} of {len(train):,} rows" in words
    assert f"{(~chosen[test]).sum() + (~chosen[train]).sum():,} left out" in words


def test_other_rows_are_another_result_with_moments_of_its_own(
    result, layers_folder, tmp_path
) -> None:
    with pytest.raises(ResultExists):
        fit_transport(config(layers_folder, result.folder, "id >= 13"), console=QUIET)

    moments = MomentsConfig(folder=str(result.folder.parent / "moments"))
    all_rows = fit_transport(
        config(layers_folder, tmp_path / "all", None, moments=moments), console=QUIET
    )

    assert fit_transport(config(layers_folder, result.folder), console=QUIET).was_there
    counts = [pq.read_table(one.folder / "pairs.parquet")["train_rows"][0].as_py()
              for one in (result, all_rows)]  # fmt: skip
    assert counts[0] < counts[1]


def test_labels_that_are_others_now_make_another_result(layers, tmp_path) -> None:
    folder = layers.build(tmp_path / "store")
    store, rows = open_store(folder), np.arange(len(layers.ids))
    store.attach_labels("mine", {"row": rows, "side": rows % 3}, key="row")
    wanted = config(folder, tmp_path / "out", "side = 1")
    first = fit_transport(wanted, console=QUIET)

    store.attach_labels("mine", {"row": rows, "side": rows % 4}, key="row", replace=True)

    named = RunRecord.load(first.folder).inputs["chosen_rows"]
    assert named.path == "side = 1"
    assert named.fingerprint.startswith(f"{(rows % 3 == 1).sum()}-")
    with pytest.raises(ResultExists):
        fit_transport(wanted, console=QUIET)


def test_a_plan_counts_the_rows_and_reads_none(layers, layers_folder, tmp_path) -> None:
    words = str(plan_transport(config(layers_folder, tmp_path / "out")))

    assert f"where     {WHERE}: test " in words
    assert f"{(is_true(layers) & (layers.split == 'train')).sum():,} to fit" not in words
    train = (is_true(layers) & (layers.split == "train")).sum()
    fit, validate = (
        int(part.split(" to ")[0].replace(",", ""))
        for part in words.split("rows      ")[1].split(", ")[:2]
    )
    assert fit + validate == train


@pytest.mark.parametrize(
    ("where", "kind", "words"),
    [
        ("id > 1000", EmptySelection, r"true of none of .*: test 0 of [\d,]+ rows, train 0 of"),
        (
            "document_number % 4 <> 3",
            EmptySelection,
            r"No row of the split 'test' \(rows.test\) is left .*test 0 of [\d,]+ rows, train \d",
        ),
        ("position = 0", EmptySelection, "position 0 of each context .* left out"),
        ("ids > 10", InvalidQuery, "hint"),
        ("id >", InvalidQuery, "hint"),
    ],
)  # fmt: skip
def test_a_predicate_that_leaves_nothing_is_refused_before_any_work(
    layers_folder, tmp_path, where, kind, words
) -> None:
    for deed in (plan_transport, fit_transport):
        with pytest.raises(kind, match=words):
            deed(config(layers_folder, tmp_path / "out", where))

    assert list(tmp_path.iterdir()) == []


@pytest.mark.ray
def test_two_workers_sum_the_chosen_rows_as_one_does(result, layers_folder, tmp_path) -> None:
    wanted = replace(
        config(layers_folder, tmp_path / "fits" / "result"),
        cluster=ClusterConfig(address="local", num_cpus=2, object_store_mb=100),
        moments=MomentsConfig(workers=2, threads=1),
    )

    both = fit_transport(wanted, console=QUIET)

    assert both.metrics == result.metrics
