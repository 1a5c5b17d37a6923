"""Labels attach beside the rows, aligned token by token, and nothing misaligned is silent."""

import shutil

import numpy as np
import pandas as pd
import polars
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actlake.storage import open_store
from actlake.storage.errors import (
    InvalidQuery,
    LabelsMisaligned,
    LabelsNotAttached,
    StoreDamaged,
    StoreMismatch,
)
from actlake.storage.export import export_store
from actlake.storage.querying.labels import attached_names

SPAN = ("document", "start", "stop")
BY_DOCUMENT = {"document": ["paris", "york", "code"], "label": ["a", "b", "a"]}


def test_a_label_of_a_document_is_a_label_of_all_its_rows(told):
    store = told.store()
    before = {p: p.read_bytes() for p in told.folder.rglob("*") if p.is_file()}

    labels = store.attach_labels("kind", BY_DOCUMENT, key="document")

    of = dict(zip(*BY_DOCUMENT.values(), strict=True))
    expected = [(row, of[name]) for row, name in enumerate(told.names) if name in of]
    assert list(zip(labels.rows.tolist(), labels.values().tolist(), strict=True)) == expected
    assert labels.to_arrow().column_names == ["row", "label"]
    assert len(labels) == len(expected)
    assert all(path.read_bytes() == data for path, data in before.items())
    assert (told.folder / "labels" / "kind.parquet").is_file()


def test_documents_are_named_by_id_or_by_number(told):
    store = told.store()
    numbers = {"document_number": [0, 1, 3], "label": BY_DOCUMENT["label"]}

    by_id = store.attach_labels("by_id", BY_DOCUMENT, key="document")
    by_number = store.attach_labels("by_number", numbers, key="document_number")

    assert by_id.to_arrow().equals(by_number.to_arrow())
    assert by_number.key == "document"


@st.composite
def spans(draw):
    from_name = st.sampled_from(["paris", "york", "snow", "code", "again"])
    one = st.tuples(from_name, st.integers(0, 50), st.integers(1, 12))
    return draw(st.lists(one, min_size=1, max_size=12, unique_by=lambda s: s[:3]))


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(spans=spans())
def test_a_span_labels_the_tokens_that_overlap_it_and_no_others(told, spans):
    texts = dict(zip(told.names, told.texts, strict=True))
    inside = [(n, a, a + k) for n, a, k in spans if a + k <= len(texts[n])]
    given_ = {
        "document": [s[0] for s in spans],
        "start": [s[1] for s in spans],
        "stop": [s[1] + s[2] for s in spans],
        "number": list(range(len(spans))),
    }
    if not inside:
        with pytest.raises(LabelsMisaligned, match="No label of 'spans' fits"):
            told.store().attach_labels("spans", given_, key=SPAN, misaligned="drop", replace=True)
        return

    labels = told.store().attach_labels("spans", given_, key=SPAN, misaligned="drop", replace=True)

    expected = [
        (row, number)
        for number, (name, start, length) in enumerate(spans)
        if (name, start, start + length) in inside
        for row in told.overlapping(name, start, start + length)
    ]
    assert list(zip(labels.rows, labels.values(), strict=True)) == sorted(expected)
    assert labels.alignment.kept == len(inside)
    assert labels.alignment.outside_text == len(spans) - len(inside)


def test_a_label_of_a_row_is_of_that_row(told):
    labels = told.store().attach_labels("marks", {"row": [9, 2], "x": [0.5, 1.5]}, key="row")

    assert labels.rows.tolist() == [2, 9]
    assert labels.values("x").tolist() == [1.5, 0.5]
    assert labels.found().rows.tolist() == [2, 9]


def test_spans_work_without_the_text(make_told):
    told = make_told(keep_text=False)
    given_ = {"document": ["york"], "start": [4], "stop": [11], "label": [1]}

    labels = told.store().attach_labels("spans", given_, key=SPAN)

    assert labels.rows.tolist() == told.overlapping("york", 4, 11)


@pytest.mark.parametrize(("beyond", "fits"), [(0, True), (1, False), (10_000, False)])
@pytest.mark.parametrize("keep_text", [True, False])
def test_a_span_ends_where_the_text_does_whether_it_is_kept_or_not(
    make_told, keep_text, beyond, fits
):
    told = make_told(keep_text=keep_text)
    length = len(told.texts[told.names.index("paris")])
    spans = {"document": ["paris"], "start": [4], "stop": [length + beyond], "label": [1]}

    if fits:
        told.store().attach_labels("spans", spans, key=SPAN)
    else:
        with pytest.raises(LabelsMisaligned, match="1 outside text"):
            told.store().attach_labels("spans", spans, key=SPAN)


def test_without_text_a_document_that_was_cut_ends_with_its_last_token(make_told):
    told = make_told(keep_text=False, cut=7)
    row = max(row for row, name in enumerate(told.names) if name == "again")
    start, stop = told.spans[row]
    assert stop - start > 1

    spans = {"document": ["again"] * 2, "start": [start] * 2, "stop": [stop, stop + 1], "n": [1, 2]}
    labels = told.store().attach_labels("spans", spans, key=SPAN, misaligned="drop")

    assert labels.rows.tolist() == [row]
    assert labels.alignment.outside_text == 1


def table_forms(folder):
    table = pa.table(BY_DOCUMENT)
    pq.write_table(table, folder / "t.parquet")
    pyarrow.csv.write_csv(table, folder / "t.csv")
    pyarrow.feather.write_feather(table, folder / "t.feather")
    return [
        folder / "t.parquet",
        str(folder / "t.csv"),
        folder / "t.feather",
        table,
        pd.DataFrame(BY_DOCUMENT),
        polars.DataFrame(BY_DOCUMENT),
        BY_DOCUMENT,
        pd.DataFrame(BY_DOCUMENT).astype({"document": "category"}),
    ]


@pytest.mark.parametrize("form", range(8))
def test_tables_come_as_parquet_csv_arrow_pandas_polars_or_plain_columns(told, tmp_path, form):
    expected = told.store().attach_labels("plain", BY_DOCUMENT, key="document").to_arrow()

    given_ = table_forms(tmp_path)[form]
    labels = told.store().attach_labels("kind", given_, key="document")

    assert labels.to_arrow().to_pylist() == expected.to_pylist()


@pytest.mark.parametrize("frame", [pd.DataFrame, polars.DataFrame, dict])
def test_integers_with_gaps_that_became_floats_are_keys(told, frame):
    given_ = frame({"row": [9.0, float("nan"), 2.0], "x": [1, 2, 3]})

    with pytest.raises(LabelsMisaligned, match="2 of 3 labels fit; 1 missing keys"):
        told.store().attach_labels("marks", given_, key="row")
    labels = told.store().attach_labels("marks", given_, key="row", misaligned="drop")

    assert labels.rows.tolist() == [2, 9]
    assert labels.values().tolist() == [3, 1]


def test_document_numbers_with_gaps_that_became_floats_are_documents(told):
    given_ = pd.DataFrame({"document_number": [1, None], "x": [1, 2]})

    labels = told.store().attach_labels("kind", given_, key="document_number", misaligned="drop")

    assert labels.rows.tolist() == np.flatnonzero(np.array(told.names) == "york").tolist()


def test_labels_are_found_again_in_a_store_opened_later(told):
    told.store().attach_labels("kind", BY_DOCUMENT, key="document")

    labels = told.store().labels("kind")

    assert labels.key == "document"
    assert labels.columns == ("label",)
    assert str(labels.alignment) == "3 of 3 labels fit"
    assert "Labels 'kind' by document: label" in repr(labels)


def test_predicates_see_labels_of_every_kind(told):
    store = told.store()
    store.attach_labels("kind", BY_DOCUMENT, key="document")
    store.attach_labels("marks", {"row": [1, 3, 5], "x": [1, 2, 3]}, key="row")
    spans = {"document": ["paris", "paris"], "start": [0, 2], "stop": [5, 8], "part": ["p", "q"]}
    store.attach_labels("parts", spans, key=SPAN)

    names = np.array(told.names)
    by_a = np.flatnonzero(np.isin(names, ["paris", "code"])).tolist()
    assert store.find(where="label = 'a'").rows.tolist() == by_a
    assert store.find(where="kind.label = 'b' and position < 3").rows.tolist() == [
        row for row in np.flatnonzero(names == "york").tolist() if told.positions[row] < 3
    ]
    assert store.find(where="x >= 2").rows.tolist() == [3, 5]
    assert store.find(where="row in (select row + 1 from marks)").rows.tolist() == [2, 4, 6]
    assert store.find(where="part is not null").rows.tolist() == told.overlapping("paris", 0, 8)
    nothing = store.find(where="x is null and row < 6").rows.tolist()
    assert nothing == [0, 2, 4]


def test_a_label_column_named_like_another_is_called_after_its_table(told):
    store = told.store()
    store.attach_labels(
        "kind",
        {
            "document": ["paris", "york"],
            "Position": [7, 8],
            "words": [100, 200],
            "kind_words": [1, 2],
            "text": ["a", "b"],
        },
        key="document",
    )
    marks = {"row": [1, 3], "split": ["x", "y"], "document_id": ["p", "q"]}
    store.attach_labels("marks", marks, key="row")

    def found(where):
        return store.find(where=where).rows.tolist()

    names = np.array(told.names)
    assert found("position < 3") == np.flatnonzero(told.positions < 3).tolist()
    assert found("words > 99") == []
    assert found("split = 'y'") == []
    assert found("kind_position = 7") == np.flatnonzero(names == "paris").tolist()
    assert found("kind_words = 2") == np.flatnonzero(names == "york").tolist()
    assert found("kind_kind_words = 200") == np.flatnonzero(names == "york").tolist()
    assert found("kind.kind_text = 'b'") == np.flatnonzero(names == "york").tolist()
    assert found("marks_split = 'y'") == [3]
    assert found("marks_document_id = 'p' and document_id = 'paris'") == [1]
    assert store.sql("select position from kind order by 1").table()["Position"].to_pylist() == [
        7,
        8,
    ]


def test_sql_sees_labels_as_tables(told):
    store = told.store()
    store.attach_labels("kind", BY_DOCUMENT, key="document")
    store.attach_labels("marks", {"row": [1, 3], "x": [1, 2]}, key="row")

    counted = store.sql(
        "select label, count(*) as n from tokens join kind using (document_number) "
        "group by 1 order by 1"
    ).table()
    joined = store.sql("select row, x, id from marks join tokens using (row) order by row").table()

    names = np.array(told.names)
    a = int(np.isin(names, ["paris", "code"]).sum())
    assert counted.to_pylist() == [
        {"label": "a", "n": a},
        {"label": "b", "n": int((names == "york").sum())},
    ]
    assert joined["id"].to_pylist() == told.ids[[1, 3]].tolist()


MISALIGNED = [
    (
        "document",
        {"document": ["paris", "london", None, "paris"], "label": [1, 2, 3, 4]},
        r"1 of 4 labels fit; 1 missing keys; 1 unknown documents; 1 duplicates\n"
        r"such as label 1: document 'london' \(unknown documents\)",
    ),
    (
        SPAN,
        {
            "document": ["paris", "paris", "paris", "paris", "paris", "rome"],
            "start": [0, 50, 4, -1, 0, 0],
            "stop": [5, 500, 4, 3, 5, 1],
            "label": [1, 2, 3, 4, 5, 6],
        },
        "1 of 6 labels fit; 1 unknown documents; 2 outside text; 1 empty spans; 1 duplicates",
    ),
    (
        "row",
        {"row": [0, -1, 10**9, 0, None], "label": [1, 2, 3, 4, 5]},
        "1 of 5 labels fit; 1 missing keys; 2 out of range; 1 duplicates",
    ),
]


@pytest.mark.parametrize(("key", "table", "words"), MISALIGNED)
def test_misaligned_keys_are_counted_and_refused(told, key, table, words):
    with pytest.raises(LabelsMisaligned, match=words):
        told.store().attach_labels("kind", table, key=key)
    assert not (told.folder / "labels").exists()


@pytest.mark.parametrize(("key", "table", "words"), MISALIGNED)
def test_misaligned_keys_are_dropped_when_asked_and_the_count_stays(told, key, table, words):
    labels = told.store().attach_labels("kind", table, key=key, misaligned="drop")

    assert str(told.store().labels("kind").alignment) == words.split(r"\n")[0]
    assert set(labels.values().tolist()) == {1}


def test_a_span_of_text_that_was_not_laid_out_is_misaligned(make_told):
    told = make_told(cut=7)
    end = max(
        stop for name, (_, stop) in zip(told.names, told.spans, strict=True) if name == "again"
    )
    spans = {"document": ["again"], "start": [end + 5], "stop": [end + 9], "label": [1]}

    with pytest.raises(LabelsMisaligned, match="1 without tokens"):
        told.store().attach_labels("kind", spans, key=SPAN)


@pytest.mark.parametrize(
    ("name", "table", "key", "words"),
    [
        ("Kind", BY_DOCUMENT, "document", "cannot be called 'Kind'"),
        ("../x", BY_DOCUMENT, "document", "cannot be called '../x'"),
        ("tokens", BY_DOCUMENT, "document", "cannot be called 'tokens'"),
        ("kind", BY_DOCUMENT, "row", "no key column 'row', but document, label"),
        ("kind", BY_DOCUMENT, "id", "cannot be keyed by 'id'"),
        ("kind", {"document": ["paris"]}, "document", "no column of labels"),
        ("kind", {"document": [0], "row": [1]}, "document", "a column 'row', which is a key's"),
        ("kind", {"document": [0.5], "x": [1]}, "document", r"`document` holds double .* 0\.5"),
        ("kind", {"row": [float("inf")], "x": [1]}, "row", "`row` holds double such as inf"),
        ("kind", {"row": [True], "x": [1]}, "row", "`row` holds bool"),
        ("kind", {"row": ["a"], "x": [1]}, "row", "`row` holds string"),
        ("kind", "labels.xlsx", "row", "hint: give a file that ends in .parquet, .csv"),
        ("kind", "nowhere.csv", "row", "cannot be read"),
        ("kind", 5, "row", "cannot be made of int"),
        (5, BY_DOCUMENT, "document", "The name of labels is 5, of type int"),
        ("kind", BY_DOCUMENT, 5, r"cannot be keyed by 5\nhint: key is"),
        ("kind", BY_DOCUMENT, None, "cannot be keyed by None"),
        ("kind", BY_DOCUMENT, ("document",), "cannot be keyed by"),
        ("kind", {"row": [1, 2], "x": [1]}, "row", r"no table: .*\nhint: columns are of one"),
        ("kind", {"row": 5, "x": [1]}, "row", "no table: 'int' object is not iterable"),
        ("kind", pd.DataFrame({"row": [1, 2], "x": [1, "a"]}), "row", "no table: .*column x"),
        (
            "kind",
            pa.table([[1], [2], [3]], names=["row", "x", "X"]),
            "row",
            r"several columns 'x': row, x, X\nhint: rename them",
        ),
        ("kind", pd.DataFrame([[1, 2, 3]], columns=["row", "x", "x"]), "row", "no table"),
    ],
)
def test_a_table_that_cannot_be_labels_is_refused(told, name, table, key, words):
    with pytest.raises(InvalidQuery, match=words):
        told.store().attach_labels(name, table, key=key)


def test_an_unknown_word_for_misaligned_is_refused(told):
    with pytest.raises(InvalidQuery, match="misaligned is 'refuse' or 'drop', not 'ignore'"):
        told.store().attach_labels("kind", BY_DOCUMENT, key="document", misaligned="ignore")


def test_labels_are_replaced_only_when_asked(told):
    store = told.store()
    store.attach_labels("kind", BY_DOCUMENT, key="document")

    with pytest.raises(InvalidQuery, match=r"attached to .* already\nhint: .*replace=True"):
        store.attach_labels("kind", {"row": [1], "x": [1]}, key="row")
    store.attach_labels("kind", {"row": [1], "x": [1]}, key="row", replace=True)

    assert store.labels("kind").rows.tolist() == [1]


def test_unknown_labels_and_columns_name_what_there_is(told):
    store = told.store()

    with pytest.raises(LabelsNotAttached, match=r"hint: store\.attach_labels attaches them"):
        store.labels("kind")
    store.attach_labels("kind", {**BY_DOCUMENT, "n": [1, 2, 3]}, key="document")
    with pytest.raises(LabelsNotAttached, match="did you mean 'kind'"):
        store.labels("kinds")
    with pytest.raises(InvalidQuery, match="The name of labels is 5, of type int"):
        store.labels(5)
    with pytest.raises(LabelsNotAttached, match="no column None\nhint: there is label, n"):
        store.labels("kind").values()


def test_an_export_has_no_labels_and_those_of_documents_attach_again(told, tmp_path):
    store = told.store()
    store.attach_labels("kind", BY_DOCUMENT, key="document")

    copy = export_store(store, str(tmp_path / "copy"), documents=["york"]).store

    assert attached_names(copy) == []
    labels = copy.attach_labels("kind", BY_DOCUMENT, key="document", misaligned="drop")
    assert copy.find(document="york") == copy.find(where="label = 'b'")
    assert labels.alignment.unknown_documents == 3 - labels.alignment.kept


def test_labels_of_another_corpus_are_refused(told, make_told):
    told.store().attach_labels("kind", BY_DOCUMENT, key="document")
    other = make_told(cut=3)
    (told.folder / "labels").rename(other.folder / "labels")

    with pytest.raises(StoreMismatch, match="attached to another corpus"):
        other.store().labels("kind")


def test_a_file_that_is_no_label_table_is_refused(told):
    (told.folder / "labels").mkdir()
    pq.write_table(pa.table({"row": [1]}), told.folder / "labels" / "kind.parquet")

    with pytest.raises(StoreDamaged, match="no label table of actlake"):
        told.store().labels("kind")


def test_files_that_are_no_labels_of_the_store_are_left_out_and_named(make_told, caplog):
    told = make_told()
    store = told.store()
    store.attach_labels("mark", {"row": [3, 9], "x": [1, 2]}, key="row")
    labels = told.folder / "labels"
    expected = store.find(where="position < 3").rows.tolist()
    pq.write_table(pa.table({"row": [1], "id": [5]}), labels / "foreign.parquet")
    pq.write_table(pa.table({"row": [1], "id": [5]}), labels / "Old copy.parquet")
    (labels / "torn.parquet").write_bytes(b"PAR1")
    shutil.copy(labels / "mark.parquet", labels / "tokens.parquet")

    store = open_store(told.folder)

    assert store.find(where="position < 3").rows.tolist() == expected
    assert store.find(where="x = 2").rows.tolist() == [9]
    assert len(store.sql("SELECT * FROM tokens").table()) == len(store)
    assert ["labels", "mark"] in [line.split() for line in repr(store).splitlines()]
    for name in ("foreign", "Old copy", "torn", "tokens"):
        assert f"labels/{name}.parquet is left out: " in caplog.text
    with pytest.raises(StoreDamaged, match=r"labels/foreign\.parquet .* is no label table"):
        store.labels("foreign")
