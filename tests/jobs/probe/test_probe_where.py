"""Probes of rows for which a predicate is true: trained, validated and tested on those alone."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from actlake.jobs.probe import (
    DrawnSplits,
    Probe,
    RowsConfig,
    StoreSplits,
    TaskConfig,
    plan_probes,
    train_probes,
)
from actlake.jobs.probe.errors import NotEnoughRows
from actlake.jobs.probe.opening import open_config
from actlake.jobs.probe.tables import read_table
from actlake.platform.cluster import ClusterConfig
from actlake.platform.runs import ResultExists
from actlake.storage import Site
from actlake.storage.errors import EmptySelection, InvalidQuery

WHERE = "id >= 20 and document_number % 7 <> 3"
ROWS = RowsConfig(where=WHERE, groups=4)
FEW = {"sites": ("resid_post.2",), "probes": ("logistic",), "controls": (), "learning_curve": ()}


def is_true(made) -> np.ndarray:
    """(rows,) bool, of `WHERE`, without a line of ours."""
    return (made.ids >= 20) & (made.document % 7 != 3)


@pytest.mark.parametrize("offset", [0, 1])
def test_activations_are_of_chosen_rows_in_every_split(made, make_config, offset) -> None:
    (examples,) = open_config(make_config(rows=ROWS, offsets=(offset,))).sets

    assert is_true(made)[examples.rows].all()
    assert {int(code) for code in examples.split} == {0, 1, 2}
    here = np.flatnonzero(is_true(made) & made.kept)
    labelled = np.minimum(here + offset, len(made.ids) - 1)
    inside = (made.document[labelled] == made.document[here]) & (labelled == here + offset)
    wanted = here[inside & np.isin(made.split[here], ("train", "test"))]
    assert sorted(examples.rows) == wanted.tolist()


def test_a_probe_is_the_one_that_sees_the_chosen_rows_only(made, make_config) -> None:
    def rows(split: str) -> np.ndarray:
        return np.flatnonzero((made.split == split) & made.kept & is_true(made))

    stored = StoreSplits(validate="validation")
    result = train_probes(make_config(rows=ROWS, penalties=(10.0,), splits=stored, **FEW))

    acts = StandardScaler().fit(made.acts[Site(2)][rows("train")]).transform(made.acts[Site(2)])
    theirs = LogisticRegression(C=1 / 10.0, tol=1e-10, max_iter=10_000)
    theirs.fit(acts[rows("train")], made.mark[rows("train")])
    ours = Probe.load(result.probe("mark", "resid_post.2"))
    np.testing.assert_allclose(
        ours.predict_proba(made.acts[Site(2)][rows("test")]),
        theirs.predict_proba(acts[rows("test")]),
        atol=1e-3,
    )
    scores = read_table(result.folder, "scores").to_pylist()
    accuracy = next(one["value"] for one in scores if one["metric"] == "accuracy")
    assert accuracy == theirs.score(acts[rows("test")], made.mark[rows("test")])


def test_pooled_examples_are_means_over_their_chosen_rows(made, make_config) -> None:
    height = TaskConfig(column="height")

    (examples,) = open_config(make_config(height, rows=ROWS, pooling=("mean",))).sets

    for number in (0, 7, len(examples) - 1):
        first, last = examples.bounds[number : number + 2]
        mine = made.document == examples.document[number]
        assert (
            examples.rows[first:last].tolist()
            == np.flatnonzero(mine & made.kept & is_true(made)).tolist()
        )


def test_the_report_and_the_plan_say_how_many_rows_were_left_out(made, make_config) -> None:
    wanted = make_config(rows=ROWS, **FEW)
    chosen = {split: is_true(made)[made.rows(split)] for split in ("test", "train", "validation")}
    counts = {
        split: f"{split} {rows.sum():,} of {len(rows):,} rows" for split, rows in chosen.items()
    }
    left_out = (~is_true(made) & made.kept).sum()

    plan = str(plan_probes(wanted))
    page = train_probes(wanted).report.read_text(encoding="utf-8")

    for words in (*counts.values(), f"{left_out:,} left out"):
        assert words in plan
        assert words in page


def test_other_rows_are_another_run(make_config) -> None:
    wanted = make_config(rows=ROWS, **FEW)
    train_probes(wanted)

    assert train_probes(wanted).was_there
    for other in (None, "id >= 19 and document_number % 7 <> 3"):
        with pytest.raises(ResultExists):
            train_probes(replace(wanted, rows=replace(ROWS, where=other)))


@pytest.mark.parametrize(
    ("where", "kind", "words"),
    [
        ("id > 1000", EmptySelection, r"true of none of .*: test 0 of [\d,]+ rows, train 0 of"),
        ("split <> 'test'", EmptySelection, r"'test' \(splits.test\) is left .*: test 0 of"),
        ("marks = 1", InvalidQuery, "hint"),
    ],
)
def test_a_predicate_that_leaves_nothing_is_refused_before_any_work(
    make_config, tmp_path, where, kind, words
) -> None:
    for deed in (plan_probes, train_probes):
        with pytest.raises(kind, match=words):
            deed(make_config(rows=RowsConfig(where=where)))

    assert list(tmp_path.iterdir()) == []


def test_splits_that_are_drawn_anew_need_chosen_rows_of_no_split_of_the_store(
    make_config,
) -> None:
    drawn = DrawnSplits(by="document")

    opened = open_config(make_config(rows=RowsConfig(where="split = 'train'"), splits=drawn))

    assert len(opened.sets[0])


def test_labelled_rows_that_are_not_chosen_are_counted_where_none_is_left(make_config) -> None:
    late = RowsConfig(where="position = 25")

    with pytest.raises(NotEnoughRows, match=r"not where position = 25\n.*rows.where"):
        open_config(make_config(TaskConfig(column="topic"), rows=late, offsets=(20,)))


@pytest.mark.ray
def test_two_workers_probe_the_chosen_rows_as_one_does(make_config, tmp_path) -> None:
    both_sites = {**FEW, "sites": ("resid_post.1", "resid_post.2")}
    one = train_probes(make_config(rows=ROWS, out=str(tmp_path / "one"), **both_sites))

    cluster = ClusterConfig(address="local", num_cpus=2, object_store_mb=100)
    two = train_probes(
        make_config(rows=ROWS, out=str(tmp_path / "two"), workers=2, cluster=cluster, **both_sites)
    )

    assert two.metrics == one.metrics
    assert read_table(two.folder, "scores").equals(read_table(one.folder, "scores"))
