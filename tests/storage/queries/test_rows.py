"""Rows read, show and combine themselves; what they hold is what the store holds."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import polars
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actlake.storage import Site, export_store, open_store
from actlake.storage.errors import (
    EmptySelection,
    InvalidQuery,
    NotInStore,
    RowsNotCommitted,
    RowsOutOfRange,
    StoreDamaged,
    StoreError,
)
from actlake.storage.querying.passages import marked
from actlake.storage.querying.rows import Rows

SITE = Site(2)
numbers = st.lists(st.integers(0, 99))


class Hundred:
    """As much of a store as a set of rows asks for."""

    fingerprint = url = "hundred"
    schema = SimpleNamespace(documents=1, contexts=1, gaps=())

    def __len__(self):
        return 100


@given(a=numbers, b=numbers)
def test_rows_combine_as_sets_do(a, b):
    store = Hundred()
    left, right = Rows(store, np.array(a, int)), Rows(store, np.array(b, int))

    assert list(left) == sorted(set(a))
    assert list(left & right) == sorted(set(a) & set(b))
    assert list(left | right) == sorted(set(a) | set(b))
    assert list(left - right) == sorted(set(a) - set(b))
    assert list(left ^ right) == sorted(set(a) ^ set(b))
    assert all((row in left) == (row in a) for row in range(-1, 101))


def test_rows_of_different_stores_do_not_combine():
    other = Hundred()
    other.fingerprint = "other"

    with pytest.raises(InvalidQuery, match="not the same tokens"):
        Rows(Hundred(), [1]) & Rows(other, [1])


@pytest.mark.parametrize("deed", ["__and__", "__or__", "__sub__", "__xor__"])
def test_rows_combine_with_rows_only(deed):
    rows = Rows(Hundred(), [1])

    assert getattr(rows, deed)([1, 2]) is NotImplemented


@pytest.mark.parametrize("rows", [[-1], [100], [[1]], [0.5]])
def test_rows_that_do_not_exist_are_refused(rows):
    with pytest.raises(RowsOutOfRange):
        Rows(Hundred(), rows)


def test_activations_are_those_of_the_rows(told):
    rows = told.store().find(text="Paris", at="all")

    np.testing.assert_array_equal(rows.acts(SITE), told.acts[rows.rows])
    np.testing.assert_array_equal(rows.acts([SITE])[SITE], told.acts[rows.rows])


def test_rows_that_are_not_committed_are_refused_left_out_or_nan(make_told):
    told = make_told(skip=(1,))
    rows = told.store().find(where="row < 40")

    with pytest.raises(RowsNotCommitted, match="unit 1 not committed"):
        rows.acts(SITE)
    there = rows.committed(SITE)
    assert there.rows.tolist() == [*range(16), *range(32, 40)]
    np.testing.assert_array_equal(there.acts(SITE), told.acts[there.rows])
    assert np.isnan(rows.acts(SITE, missing="nan")[16:32]).all()
    with pytest.raises(InvalidQuery, match="missing is 'raise' or 'nan', not 'foo'"):
        rows.acts(SITE, missing="foo")


def test_the_table_says_what_each_row_is(told):
    rows = told.store().find(where="row % 3 = 0")

    table = rows.table()

    assert table["row"].to_pylist() == list(rows)
    assert table["id"].to_pylist() == told.ids[rows.rows].tolist()
    assert table["document_id"].to_pylist() == [told.names[row] for row in rows]
    assert table["position"].to_pylist() == told.positions[rows.rows].tolist()
    assert table["split"].to_pylist() == [told.splits[row] for row in rows]
    contexts = np.cumsum(told.positions == 0) - 1
    assert table["context"].to_pylist() == contexts[rows.rows].tolist()
    pandas = table.to_pandas()
    assert isinstance(pandas, pd.DataFrame)
    assert polars.DataFrame(polars.from_arrow(table)).shape == pandas.shape


def test_a_sample_is_drawn_from_the_rows_and_is_the_same_for_a_seed(told):
    rows = told.store().find(split="train")

    sample = rows.sample(7, seed=3)

    assert len(sample) == 7
    assert set(sample) <= set(rows)
    assert sample == rows.sample(7, seed=3)
    assert sample != rows.sample(7, seed=4)
    assert rows.sample(10_000, seed=0) == rows


def test_every_row_shows_in_its_own_context_only(told):
    store = told.store()
    contexts = np.cumsum(told.positions == 0) - 1
    everything = store.find(where="true")

    passages = everything.context(3, 4, limit=None)

    assert len(passages) == len(told.ids)
    for row, passage in zip(everything, passages.lines, strict=True):
        around = [
            other
            for other in range(row - 3, row + 5)
            if 0 <= other < len(contexts) and contexts[other] == contexts[row]
        ]
        whole = told.tokenizer.decode(told.ids[around].tolist(), skip_special_tokens=False)
        assert passage.before + passage.token + passage.after == whole
        assert passage.document == told.names[row]


def test_the_mark_takes_in_the_whole_of_a_character_that_tokens_share(told):
    ids = told.tokenizer.encode("a 🦊b", add_special_tokens=False).ids
    pieces = [told.tokenizer.decode([token]) for token in ids]
    assert sum("\ufffd" in piece for piece in pieces) > 1

    for place, piece in enumerate(pieces):
        before, token, after = marked(told.tokenizer, ids, place)
        assert before + token + after == "a 🦊b"
        assert ("🦊" in token) == ("\ufffd" in piece)


def test_text_and_html_mark_the_token(told):
    passages = told.store().find(text="York", document="york").context(2, 2, limit=1)

    assert "⟦" in repr(passages)
    assert repr(passages).endswith("more rows")
    assert "<mark>" in passages._repr_html_()
    assert "\n" not in str(passages[0])


def test_a_documents_markup_is_escaped(told):
    store = told.store()
    store.lookup.document_ids[:] = "<script>"

    assert "<script>" not in store.find(text="Paris")._repr_html_()


def test_without_a_tokenizer_rows_show_their_ids(make_told):
    told = make_told(keep_tokenizer=False)
    rows = told.store().find(document="york")

    passage = rows.context(1, 1)[1]

    row = rows.rows[1]
    assert str(passage) == f"{told.ids[row - 1]} ⟦{told.ids[row]}⟧ {told.ids[row + 1]}"
    assert f"⟦{told.ids[row]}⟧" in repr(rows)
    assert f"<mark>{told.ids[row]}</mark>" in rows._repr_html_()


def test_rows_introduce_themselves(told):
    text = repr(told.store().find(text="Paris", split="train"))

    assert re_headline(text) == "8 rows in 4 documents (train 8): text 'Paris', split 'train'"


def re_headline(text):
    return text.split("\n", 1)[0]


@pytest.mark.parametrize("deed", ["acts", "sample", "context"])
def test_nothing_can_be_done_with_no_rows_and_the_error_says_what_found_none(told, deed):
    none = told.store().find(text="London")
    deeds = {
        "acts": lambda: none.acts(SITE),
        "sample": lambda: none.sample(1, seed=0),
        "context": none.context,
    }

    with pytest.raises(EmptySelection, match=r"No row of .* is found by text 'London'\nhint"):
        deeds[deed]()
    assert none.table().num_rows == 0


def test_a_store_without_a_tokenizer_knows_its_tokens_by_their_ids(make_told):
    told = make_told(keep_tokenizer=False)
    store = told.store()
    token = int(told.ids[4])

    assert store.find(token=token).rows.tolist() == np.flatnonzero(told.ids == token).tolist()
    assert store.find(text="Paris") == make_told().store().find(text="Paris")
    assert store.find(token=token).table()["token"].to_pylist()[0] == f"<id {token}>"
    assert len(store.sql("SELECT * FROM vocabulary")) == 0
    with pytest.raises(NotInStore, match=r"no token 4000; the store has no tokenizer\nhint: "):
        store.find(token=4000)
    with pytest.raises(NotInStore, match=r"' Paris' is no token: .* no tokenizer\nhint: give"):
        store.find(token=" Paris")
    with pytest.raises(InvalidQuery, match=r"without text, and has no tokenizer"):
        make_told(keep_tokenizer=False, keep_text=False).store().find(text="Paris")


def test_a_tokenizer_that_is_lost_is_no_store_without_one(make_told, tmp_path):
    store = make_told().store()
    (Path(store.url) / "tokenizer" / "tokenizer.json").unlink()
    store = open_store(store.url)

    with pytest.raises(StoreDamaged, match=r"holds no tokenizer/tokenizer\.json"):
        store.find(token=4000)
    with pytest.raises(StoreError, match=r"tokenizer\.json"):
        export_store(store, tmp_path / "copy")
