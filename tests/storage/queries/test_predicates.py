"""A predicate picks the rows it says, refuses what is not of the store, and copies no text."""

import logging

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from actlake.storage.errors import InvalidQuery, RowsOutOfRange
from actlake.storage.export import export_store
from actlake.storage.extents import Extent
from actlake.storage.reading import predicates
from actlake.storage.reading.many import open_stores
from actlake.storage.reading.predicates import Predicate, TokenBlock

SITE = "resid_post.2"


def rows_read(store, where):
    batches = store.batches(SITE, 5, where=where, exclude=None, epochs=1, last="ragged")
    return np.sort(np.concatenate([batch.rows for batch in batches])).tolist()


def all_of(store):
    return Extent(0, len(store))


@pytest.mark.parametrize("rows", [[3, 999, 7], [3, -5], np.array([10**6])])
def test_rows_that_do_not_exist_are_refused_by_number(told, tmp_path, rows):
    store = told.store()
    wrong = next(row for row in rows if not 0 <= row < len(store))

    with pytest.raises(RowsOutOfRange, match=f"There is no row {wrong:,}"):
        rows_read(store, rows)
    with pytest.raises(RowsOutOfRange, match=f"There is no row {wrong:,}"):
        export_store(store, str(tmp_path / "copy"), where=rows)


def test_rows_of_another_store_are_refused(told, make_told, tmp_path):
    store, other = told.store(), make_told(cut=7, length=12).store()
    rows = other.find(text="Paris")

    for ask in (
        lambda: rows_read(store, rows),
        lambda: rows_read(open_stores([told.folder, other.url]), rows),
        lambda: export_store(store, str(tmp_path / "copy"), where=rows),
    ):
        with pytest.raises(InvalidQuery, match=r"not the same tokens\nhint: use rows with"):
            ask()


def test_rows_labels_numbers_and_a_mask_pick_the_same_rows(told):
    store = told.store()
    rows = store.find(text="Paris", at="all")
    mask = np.isin(np.arange(len(store)), rows.rows)
    labels = store.attach_labels("marks", {"row": rows.rows, "x": rows.rows}, key="row")

    for where in (rows, labels, rows.rows, rows.rows[::-1].tolist(), mask, mask.tolist()):
        assert rows_read(store, where) == rows.rows.tolist()


def test_a_mask_has_a_boolean_for_each_row(told):
    store = told.store()

    with pytest.raises(RowsOutOfRange, match=rf"mask is of 3 rows; there are {len(store)} in"):
        rows_read(store, [True, False, True])


def test_rows_that_are_not_committed_are_counted_in_the_log(make_told, caplog):
    told = make_told(skip=(1,))

    with caplog.at_level(logging.WARNING):
        rows = rows_read(told.store(), [3, 15, 16, 20, 40])

    assert rows == [3, 15, 40]
    assert [record.message for record in caplog.records] == [
        f"2 of 5 rows asked of {told.store().url} are not committed and left out, the first row 16"
    ]


def test_rows_that_are_all_committed_are_not_logged(told, caplog):
    with caplog.at_level(logging.WARNING):
        rows_read(told.store(), [3, 15])

    assert caplog.records == []


def test_an_empty_predicate_is_refused_as_such(told):
    for ask in (lambda: told.store().find(where=" "), lambda: rows_read(told.store(), "")):
        with pytest.raises(InvalidQuery, match=r"An empty predicate .*\nhint: leave where out"):
            ask()


@pytest.mark.parametrize(
    "where",
    [
        pc.match_substring(pc.field("text"), "Paris") & (pc.field("position") > 2),
        lambda columns: (
            np.array(["Paris" in text for text in columns["text"]]) & (columns["position"] > 2)
        ),
    ],
)
def test_the_documents_text_is_asked_for_in_expressions_and_functions(told, where, monkeypatch):
    monkeypatch.setattr(predicates, "_TEXT_BYTES", 500)

    mask = Predicate(where).mask(told.store(), all_of(told.store()))

    expected = ["Paris" in text for text in told.texts] & (told.positions > 2)
    np.testing.assert_array_equal(mask, expected)


def test_an_expression_is_worked_out_on_few_bytes_of_text_at_once(told, monkeypatch):
    store = told.store()
    monkeypatch.setattr(predicates, "_TEXT_BYTES", 500)

    tables = list(TokenBlock(store, all_of(store)).tables("(match(text) and n > 3)"))

    assert pa.concat_tables(tables)["text"].to_pylist() == told.texts
    assert all(pc.sum(pc.binary_length(table["text"])).as_py() <= 500 for table in tables)
    assert len(tables) > 3


def test_a_text_longer_than_the_limit_comes_row_by_row(told, monkeypatch):
    store = told.store()
    monkeypatch.setattr(predicates, "_TEXT_BYTES", 1)

    tables = list(TokenBlock(store, all_of(store)).tables("text"))

    assert [table.num_rows for table in tables] == [1] * len(store)


def test_a_function_is_given_one_text_for_all_rows_of_a_document(told):
    block = TokenBlock(told.store(), all_of(told.store()))

    texts = block["text"]

    assert texts.tolist() == told.texts
    assert len(set(map(id, texts))) == len(set(told.names))
    assert block["words"].tolist() == [len(text.split()) for text in told.texts]
    assert block["split"].tolist() == told.splits


@pytest.mark.parametrize(
    "where", [pc.field("my col") > 50, lambda columns: columns["my col"] > 50, '"my col" > 50']
)
def test_a_column_may_have_a_name_of_several_words(told, where):
    mask = Predicate(where).mask(told.store(), all_of(told.store()))

    np.testing.assert_array_equal(mask, [len(text) > 50 for text in told.texts])


def test_an_unknown_column_in_a_function_names_the_nearest(told):
    with pytest.raises(InvalidQuery, match=r"no column 'txt'\nhint: did you mean 'text'"):
        Predicate(lambda columns: columns["txt"] == "").mask(told.store(), all_of(told.store()))
