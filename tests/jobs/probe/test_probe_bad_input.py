"""What cannot be is refused before an activation is read, in words that help."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actlake.jobs.probe import DrawnSplits, ProbeConfig, RowsConfig, StoreSplits, TaskConfig
from actlake.jobs.probe.errors import InvalidLabels, InvalidProbe, LabelNotFound, NotEnoughRows
from actlake.jobs.probe.labelling import read_labels
from actlake.jobs.probe.opening import open_config
from actlake.platform.cluster import InvalidClusterConfig
from actlake.platform.models.errors import InvalidModelConfig
from actlake.storage import open_store
from actlake.storage.errors import LabelsMisaligned, LabelsNotAttached, SiteNotStored


@pytest.fixture
def attach(made, tmp_path, request):
    """A store of one's own with labels ``own`` by row, and a config on them."""

    def make(values, rows=None, task=None, misaligned="refuse", **options):
        folder = made.build(tmp_path / "own")
        store = open_store(folder)
        number = np.arange(len(made.ids)) if rows is None else rows
        store.attach_labels(
            "own", {"row": number, "label": values}, key="row", misaligned=misaligned
        )
        task = task or TaskConfig(labels="own")
        return ProbeConfig(store=str(folder), out=str(tmp_path / "out"), tasks=(task,), **options)

    return make


def refused(config: ProbeConfig, error: type[Exception]) -> str:
    with pytest.raises(error) as caught:
        open_config(config)
    text = str(caught.value)
    assert "\nhint: " in text or ", or" in text
    return text


def test_one_class(attach, made) -> None:
    text = refused(attach(["yes"] * len(made.ids)), InvalidLabels)

    assert "one class only: yes" in text


def test_labels_that_are_nan_are_counted_or_dropped(attach, made, tmp_path) -> None:
    values = made.height.copy()
    values[[3, 40, 41]] = np.nan
    config = attach(values)

    text = refused(config, InvalidLabels)
    opened = open_config(
        ProbeConfig(
            store=config.store, out=config.out, tasks=config.tasks, rows=RowsConfig(missing="drop")
        )
    )

    assert "3 of 1,5" in text
    assert "such as row 3" in text
    assert "3 rows have no value" in opened.warnings[0]
    assert not np.isnan(opened.sets[0].targets).any()


def test_labels_that_are_all_null(attach, made) -> None:
    config = attach([None] * len(made.ids), rows=None, task=TaskConfig(labels="own"))

    with pytest.raises(InvalidLabels, match="no value"):
        open_config(config)


def test_infinite_numbers(attach, made) -> None:
    values = made.height.copy()
    values[5] = np.inf

    assert "1 labels" in refused(attach(values), InvalidLabels)


def test_a_class_with_too_few_rows_is_named_with_its_counts(attach, made) -> None:
    values = np.array(["common", "usual"])[made.flag]
    values = values.astype(object)
    values[made.rows("train")[:3]] = "rare"
    config = attach(values.tolist())

    text = refused(config, NotEnoughRows)

    assert "1 of 3 classes" in text
    assert "'rare' 3 train, 0 validate, 0 test" in text


def test_rare_classes_are_left_out_where_that_is_asked_for(attach, made) -> None:
    values = np.array(["common", "usual"]).astype(object)[made.flag]
    values[made.rows("train")[:3]] = "rare"

    opened = open_config(replace(attach(values.tolist()), rows=RowsConfig(rare="drop")))

    assert opened.sets[0].classes == ("common", "usual")
    assert opened.sets[0].kind == "binary"
    assert "'rare'" in " ".join(opened.warnings)


def test_a_site_that_is_not_stored(make_config) -> None:
    text = refused(make_config(sites=("resid_post.7",)), SiteNotStored)

    assert "resid_post.7" in text


def test_labels_that_are_not_attached(make_config) -> None:
    text = refused(make_config(TaskConfig(labels="wrods")), LabelsNotAttached)

    assert "words" in text


def test_a_column_that_is_not_there_or_not_said(make_config) -> None:
    text = refused(make_config(TaskConfig(labels="words", column="marc")), LabelNotFound)
    several = refused(make_config(TaskConfig(labels="words")), LabelNotFound)
    document = refused(make_config(TaskConfig(column="topc")), LabelNotFound)

    assert "mark" in text
    assert "mark, flag, height, names" in several
    assert "topic" in document


def test_keys_that_are_not_the_stores_are_counted_and_listed(attach, made) -> None:
    rows = np.arange(len(made.ids)) + 10
    values = made.mark.tolist()

    with pytest.raises(LabelsMisaligned) as caught:
        attach(values, rows=rows)
    assert "10 out of range" in str(caught.value)


def test_keys_that_were_dropped_are_said_again(attach, made) -> None:
    rows = np.arange(len(made.ids)) + 10

    opened = open_config(attach(made.mark.tolist(), rows=rows, misaligned="drop"))

    assert "10 out of range" in opened.warnings[0]


def test_all_rows_filtered_out_says_by_what(attach, made) -> None:
    first = np.flatnonzero(made.position == 0)
    config = attach(made.mark[first].tolist(), rows=first)

    text = refused(config, NotEnoughRows)

    assert "filtered out" in text
    assert "at position 0 or special tokens" in text
    assert "rows.excluded: true" in text


def test_labels_of_one_split_only(attach, made) -> None:
    training = np.flatnonzero(made.split == "train")

    text = refused(attach(made.mark[training].tolist(), rows=training), NotEnoughRows)

    assert "left to test" in text


def test_a_split_that_is_not_there(make_config) -> None:
    text = refused(make_config(splits=StoreSplits(test="tset")), NotEnoughRows)

    assert "test" in text


def test_words_cannot_be_regressed_on(make_config) -> None:
    text = refused(make_config(TaskConfig(column="topic", kind="regression")), InvalidLabels)

    assert "cannot be regression" in text


def test_three_classes_are_not_binary(make_config) -> None:
    task = TaskConfig(labels="words", column="mark", kind="binary")

    assert "3 classes" in refused(make_config(task), InvalidLabels)


def test_an_item_with_two_labels_cannot_be_pooled(make_config) -> None:
    task = TaskConfig(labels="words", column="mark", item="flag")

    text = refused(make_config(task, pooling=("mean",)), InvalidLabels)

    assert "different labels of 'mark'" in text


def test_no_probe_for_a_task(make_config) -> None:
    task = TaskConfig(labels="words", column="height")

    assert "add ridge" in refused(make_config(task, probes=("lda",)), InvalidProbe)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"penalties": (0.0,)}, "above 0"),
        ({"penalties": ()}, "empty"),
        ({"pooling": ("last", "last")}, "twice"),
        ({"learning_curve": (1.0,)}, "below 1"),
        ({"memory_mb": 0}, "memory_mb must be at least 1"),
        ({"offsets": ()}, "offsets is empty"),
    ],
)
def test_options_that_cannot_be(make_config, options, words) -> None:
    with pytest.raises(InvalidProbe, match=words):
        make_config(**options)


def test_a_name_that_no_folder_can_have() -> None:
    with pytest.raises(InvalidProbe, match="cannot be called 'a b'"):
        TaskConfig(column="a b")
    with pytest.raises(InvalidProbe, match="does not say which"):
        TaskConfig()
    with pytest.raises(InvalidProbe, match="below 1"):
        DrawnSplits(by="document", test=0.95)


def test_a_gpu_that_is_not_there(make_config) -> None:
    with pytest.raises(InvalidModelConfig, match="no device 'gpu0'"):
        make_config(device="gpu0")
    assert "sees no CUDA device" in refused(make_config(device="cuda"), InvalidModelConfig)


def test_a_certain_card_is_not_for_several_workers(make_config) -> None:
    assert "hint: device: cuda" in refused(
        make_config(device="cuda:1", workers=2), InvalidClusterConfig
    )


def test_the_command_prints_the_refusal(made_folder: Path, tmp_path: Path, capsys) -> None:
    from actlake.jobs.cli import run

    status = run(
        ["probe", "--store", str(made_folder), "--out", str(tmp_path / "out"),
         "--tasks", "[{labels: wrods}]"]
    )  # fmt: skip

    assert status == 1
    assert "actlake probe: No labels 'wrods'" in capsys.readouterr().err


def test_the_command_plans(made_folder: Path, tmp_path: Path, capsys) -> None:
    from actlake.jobs.cli import run

    status = run(
        ["probe", "--store", str(made_folder), "--out", str(tmp_path / "out"), "--plan",
         "--tasks", "[{labels: words, column: mark}]"]
    )  # fmt: skip

    assert status == 0
    assert "mark/token: multiclass of 3 classes" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_classes_that_a_gap_made_floats_are_called_as_whole_numbers_are(made, made_folder):
    store = open_store(made_folder)
    rows = made.rows("train")[:40]
    whole = np.arange(40) % 3
    table = {"row": rows, "whole": whole, "float": whole.astype(float)}
    store.attach_labels("gaps", table, key="row", replace=True)

    tasks = [TaskConfig(labels="gaps", column=column) for column in ("whole", "float")]
    labelled = [read_labels(store, task, RowsConfig()) for task in tasks]

    assert labelled[0].classes == labelled[1].classes == ("0", "1", "2")
    np.testing.assert_array_equal(labelled[0].targets, labelled[1].targets)
