"""Ids are ids, whatever they look like and whatever type they are written in.

The documents here are called by whole numbers that are not their places in the store, so that an
id taken for a place is another document.
"""

import decimal

import numpy as np
import pandas as pd
import polars
import pyarrow as pa
import pytest

from actlake.storage import (
    Context,
    Document,
    Geometry,
    Site,
    write_store,
)
from actlake.storage.errors import InvalidQuery, LabelsMisaligned, NotInStore
from actlake.storage.export import export_store
from actlake.storage.reading.many import open_stores

IDS = ("3", "2", "0", "1", "17", "017")
TOKENS = 4
SPAN = ("document", "start", "stop")


def rows_of(*ids, first=0):
    places = sorted(IDS.index(name) for name in ids)
    return [first + place * TOKENS + i for place in places for i in range(TOKENS)]


def make(folder, tokenizer, text="abcd"):
    """A context of four tokens, a character each, for every document of `IDS`."""
    corpus = []
    for number, name in enumerate(IDS):
        ids = np.array([tokenizer.token_to_id(letter) for letter in text], np.int32)
        characters = np.arange(TOKENS, dtype=np.int32)
        corpus.append(Document(name, "made", "train", text, {}))
        corpus.append(Context(ids, np.full(TOKENS, number, np.int64), characters, "train"))
    return write_store(
        folder,
        corpus,
        {Site(0): np.zeros((TOKENS * len(IDS), 2), np.float32)},
        provenance="none",
        tokenizer=tokenizer.to_str(),
        geometry=Geometry(unit_rows=8),
    )


@pytest.fixture
def store(tmp_path, tokenizer):
    return make(tmp_path / "store", tokenizer)


WAYS_TO_WRITE = {
    "text": ["2", "3", "1"],
    "int64": pa.array([2, 3, 1]),
    "uint8": pa.array([2, 3, 1], pa.uint8()),
    "whole floats": [2.0, 3.0, 1.0],
    "whole decimals": pa.array([decimal.Decimal(n) for n in (2, 3, 1)], pa.decimal128(5, 0)),
    "categories": pa.array([2, 3, 1]).dictionary_encode(),
    "categories of text": pa.array(["2", "3", "1"]).dictionary_encode(),
}


@pytest.mark.parametrize("written", WAYS_TO_WRITE)
def test_labels_of_whole_number_ids_are_of_the_documents_with_these_ids(store, written):
    table = pa.table({"document": WAYS_TO_WRITE[written], "label": ["two", "three", "one"]})

    labels = store.attach_labels("kind", table, key="document")

    of_row = dict(zip(labels.rows.tolist(), labels.values().tolist(), strict=True))
    expected = {"2": "two", "3": "three", "1": "one"}
    assert of_row == {row: word for name, word in expected.items() for row in rows_of(name)}


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame({"document": [2, None, 0], "label": [2, 9, 0]}),
        pd.DataFrame({"document": [2, None, 0], "label": [2, 9, 0]}).astype({"document": "Int64"}),
        polars.DataFrame({"document": [2, None, 0], "label": [2, 9, 0]}),
    ],
    ids=["floats for a gap", "pandas' own integers", "polars"],
)
def test_a_gap_among_ids_does_not_change_what_they_mean(store, frame):
    labels = store.attach_labels("kind", frame, key="document", misaligned="drop")

    assert labels.rows.tolist() == rows_of("2", "0")
    assert labels.alignment.missing_keys == 1


def test_spans_are_in_the_documents_with_these_ids(store):
    spans = {"document": [2, 3], "start": [1, 0], "stop": [2, 1], "label": ["b", "a"]}
    by_number = {"document_number": [1, 0], **{k: spans[k] for k in ("start", "stop", "label")}}

    labels = store.attach_labels("spans", spans, key=SPAN)
    again = store.attach_labels("again", by_number, key=("document_number", "start", "stop"))

    assert labels.rows.tolist() == [rows_of("3")[0], rows_of("2")[1]]
    assert labels.to_arrow().equals(again.to_arrow())


def test_an_id_in_a_csv_file_is_text_however_it_looks(store, tmp_path):
    (tmp_path / "t.csv").write_text("document,label\n017,07\n17,7\n2,07\n")

    labels = store.attach_labels("kind", tmp_path / "t.csv", key="document")

    of_row = dict(zip(labels.rows.tolist(), labels.values().tolist(), strict=True))
    expected = {"017": "07", "17": "7", "2": "07"}
    assert of_row == {row: word for name, word in expected.items() for row in rows_of(name)}


def test_numbers_in_a_csv_file_that_are_written_as_such_stay_numbers(store, tmp_path):
    (tmp_path / "t.csv").write_text("document,whole,part,word\n2,-7,0.5,\n3,,1e3,x\n")

    table = store.attach_labels("kind", tmp_path / "t.csv", key="document").table()

    assert table.to_pylist() == [
        {"document_number": 0, "whole": None, "part": 1000.0, "word": "x"},
        {"document_number": 1, "whole": -7, "part": 0.5, "word": ""},
    ]


def test_ids_that_are_not_there_are_refused_and_it_is_said_how_they_were_understood(store):
    some = {"document": [2, 4], "label": [1, 2]}
    none = {"document": [4, 5], "label": [1, 2]}

    with pytest.raises(
        LabelsMisaligned, match=r"1 of 2 .*1 unknown[\s\S]*compared as text.*`docum"
    ):
        store.attach_labels("kind", some, key="document")
    with pytest.raises(LabelsMisaligned, match=r"No label[\s\S]*hint: `document` is taken for ids"):
        store.attach_labels("kind", none, key="document", misaligned="drop")
    assert store.attach_labels("kind", some, key="document", misaligned="drop").alignment.kept == 1


def test_ids_of_two_types_in_one_column_are_refused(store):
    with pytest.raises(InvalidQuery, match="The labels are no table"):
        store.attach_labels("kind", {"document": [2, "3"], "label": [1, 2]}, key="document")


@pytest.mark.parametrize("asked", [2, "2", np.int32(2), [2], np.array([2]), pd.Series(["2"])])
def test_a_document_is_found_by_its_id_in_any_type(store, asked):
    assert store.find(document=asked).rows.tolist() == rows_of("2")


def test_leading_zeros_belong_to_an_id(store):
    assert store.find(document=17).rows.tolist() == rows_of("17")
    assert store.find(document="017").rows.tolist() == rows_of("017")


def test_the_place_of_a_document_is_asked_for_by_name(store):
    assert store.find(document_number=2).rows.tolist() == rows_of("0")
    with pytest.raises(NotInStore, match=r"no document '4'[\s\S]*document_number=4 asks for"):
        store.find(document=4)


def test_in_several_stores_an_id_is_each_stores_document_of_that_id(store, tmp_path, tokenizer):
    both = open_stores([store.url, make(tmp_path / "other", tokenizer, text="dcba").url])
    first = len(store)

    assert both.find(document=2).rows.tolist() == rows_of("2") + rows_of("2", first=first)
    assert both.find(document_number=len(IDS) + 1).rows.tolist() == rows_of("2", first=first)


def test_in_sql_a_document_has_a_number_and_an_id_and_no_name_is_both(store):
    store.attach_labels("kind", {"document": [2], "label": ["two"]}, key="document")

    assert store.find(where="document_id = '2'").rows.tolist() == rows_of("2")
    assert store.find(where="document_number = 2").rows.tolist() == rows_of("0")
    assert store.find(where="label = 'two'").rows.tolist() == rows_of("2")
    joined = "select distinct id from documents join kind using (document_number)"
    assert store.sql(joined).table()["id"].to_pylist() == ["2"]
    for ambiguous in ("document = 2", "document = '2'"):
        with pytest.raises(InvalidQuery, match="document_number"):
            store.find(where=ambiguous)


def test_predicates_and_tables_name_the_number_and_the_id(store):
    def rows(where):
        batches = store.batches("resid_post.0", 4, where=where, exclude=None, epochs=1)
        return sorted(row for batch in batches for row in batch.rows.tolist())

    assert rows(lambda block: block["document_id"] == "2") == rows_of("2")
    assert rows(lambda block: block["document_number"] == 2) == rows_of("0")
    with pytest.raises(InvalidQuery, match=r"no column 'document'"):
        rows(lambda block: block["document"] == 2)
    table = store.find(document=2).table().select(["document_number", "document_id"])
    assert table.to_pylist() == [{"document_number": 1, "document_id": "2"}] * TOKENS


def test_an_export_takes_documents_by_id_and_by_number(store, tmp_path):
    by_id = export_store(store, tmp_path / "a", documents=[2, "017"]).store
    by_number = export_store(store, tmp_path / "b", document_numbers=[2]).store

    assert by_id.documents(["id"])["id"].to_pylist() == ["2", "017"]
    assert by_number.documents(["id"])["id"].to_pylist() == ["0"]


def test_zeros_and_ones_for_all_rows_are_not_taken_for_the_first_two_rows(store):
    mask = (np.arange(len(store)) >= 8).astype(int)

    with pytest.raises(InvalidQuery, match=r"zeros and ones[\s\S]*astype\(bool\)"):
        store.batches("resid_post.0", 4, where=mask, exclude=None)
    kept = store.batches("resid_post.0", 4, where=mask.astype(bool), exclude=None, epochs=1)
    assert sorted(row for batch in kept for row in batch.rows.tolist()) == list(
        range(8, len(store))
    )
