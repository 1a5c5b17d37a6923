"""Several stores are asked as one; the oracle is a scan of their rows, one after the other."""

import numpy as np
import pytest

from actlake.storage.errors import InvalidQuery, NotInStore, UnknownSplit
from actlake.storage.reading.many import open_stores

SITE = "resid_post.2"


@pytest.fixture
def pair(make_told):
    """Two stores of the same documents, the second cut short and in shorter windows."""
    return [make_told(), make_told(cut=7, length=12)]


@pytest.fixture
def both(pair):
    return open_stores([told.folder for told in pair])


def through(pair, column):
    return np.concatenate([np.asarray(getattr(told, column)) for told in pair])


def documents_through(pair):
    first = pair[0].store().schema.documents
    return np.concatenate([pair[0].documents, pair[1].documents + first])


@pytest.mark.parametrize(
    ("criteria", "expected"),
    [
        ({"token": 5}, lambda pair: through(pair, "ids") == 5),
        ({"document": "york"}, lambda pair: through(pair, "names") == "york"),
        (
            {"document_number": [1, 8]},
            lambda pair: np.isin(documents_through(pair), [1, 8]),
        ),
        ({"split": "test"}, lambda pair: through(pair, "splits") == "test"),
        ({"where": "position < 2"}, lambda pair: through(pair, "positions") < 2),
        ({"where": "row % 7 = 3"}, lambda pair: np.arange(len(through(pair, "ids"))) % 7 == 3),
        (
            {"split": "train", "document": "snow", "where": "position > 3"},
            lambda pair: (through(pair, "names") == "snow") & (through(pair, "positions") > 3),
        ),
    ],
)
def test_what_is_found_in_several_stores_is_what_a_scan_finds(pair, both, criteria, expected):
    rows = both.find(**criteria)

    assert rows.rows.tolist() == np.flatnonzero(expected(pair)).tolist()


def test_text_is_found_in_every_store(pair, both):
    alone = [told.store().find(text="New York").rows for told in pair]

    rows = both.find(text="New York")

    assert rows.rows.tolist() == [*alone[0], *(alone[1] + len(pair[0].ids))]
    assert all(map(len, alone))


def test_rows_of_several_stores_read_and_show_themselves(pair, both):
    acts, ids = through(pair, "acts"), through(pair, "ids")
    rows = both.find(document="york")

    table = rows.committed(SITE).table()

    np.testing.assert_array_equal(rows.acts(SITE), acts[rows.rows])
    assert table["row"].to_pylist() == rows.rows.tolist()
    assert table["id"].to_pylist() == ids[rows.rows].tolist()
    assert table["document_number"].to_pylist() == documents_through(pair)[rows.rows].tolist()
    assert set(table["document_id"].to_pylist()) == {"york"}
    assert [line.row for line in rows.context(limit=None)] == rows.rows.tolist()
    assert f"{len(rows):,} rows in 2 documents (test {len(rows):,})" in repr(rows)
    assert (rows - both.find(where="position > 0")).count == sum(
        (told.positions[np.array(told.names) == "york"] == 0).sum() for told in pair
    )


def test_sql_sees_all_stores_numbered_through(pair, both):
    which = np.repeat([0, 1], [len(told.ids) for told in pair])

    table = both.sql(
        "select row, store, document_number, id, split from tokens order by row"
    ).table()
    contexts = both.sql("select count(distinct context) as n from tokens").table()

    assert table["row"].to_pylist() == list(range(len(both)))
    assert table["store"].to_pylist() == which.tolist()
    assert table["document_number"].to_pylist() == documents_through(pair).tolist()
    assert table["id"].to_pylist() == through(pair, "ids").tolist()
    assert table["split"].to_pylist() == through(pair, "splits").tolist()
    assert contexts["n"].to_pylist() == [sum(told.store().schema.contexts for told in pair)]


def test_sql_joins_each_stores_tokens_with_its_documents(pair, both):
    rows = both.sql(
        "select row from tokens join documents using (document_number, store) "
        "join vocabulary on vocabulary.id = tokens.id "
        "where documents.id = 'snow' and store = 1"
    ).rows()

    expected = (through(pair, "names") == "snow") & (rows_of_second(pair))
    assert rows.rows.tolist() == np.flatnonzero(expected).tolist()
    np.testing.assert_array_equal(rows.acts(SITE), through(pair, "acts")[expected])


def rows_of_second(pair):
    return np.arange(len(through(pair, "ids"))) >= len(pair[0].ids)


def test_labels_of_several_stores_are_one_table(pair, both):
    first, second = both.stores
    first.attach_labels("kind", {"document": ["york"], "kind": ["city"]}, key="document")
    second.attach_labels("kind", {"document": ["snow"], "kind": ["sky"]}, key="document")
    second.attach_labels("marks", {"row": [3], "x": [1]}, key="row")

    kinds = (
        both.sql("select document_number, kind, store from kind order by store").table().to_pylist()
    )
    marks = both.sql("select row, x, store from marks").table().to_pylist()

    documents = first.schema.documents
    assert kinds == [
        {"document_number": 1, "kind": "city", "store": 0},
        {"document_number": documents + 2, "kind": "sky", "store": 1},
    ]
    assert marks == [{"row": len(first) + 3, "x": 1, "store": 1}]
    assert both.find(where="kind = 'sky'") == both.find(where="document_id = 'snow'") - both.find(
        where=f"row < {len(first)}"
    )


def test_labels_that_one_store_has_are_asked_for_in_all(pair, both):
    marks = {"row": [3, 5], "x": [1, 2]}
    both.stores[1].attach_labels("marks", marks, key="row")
    both.stores[0].attach_labels("kind", {"document": ["york"], "kind": ["city"]}, key="document")
    first = len(both.stores[0])

    def read(where):
        batches = both.batches(SITE, 4, where=where, exclude=None, epochs=1, last="ragged")
        return np.sort(np.concatenate([batch.rows for batch in batches])).tolist()

    for where, expected in {
        "x >= 1": [first + 3, first + 5],
        "marks.x = 2": [first + 5],
        "row in (select row from marks)": [first + 3, first + 5],
        "kind = 'city'": np.flatnonzero(np.array(pair[0].names) == "york").tolist(),
        "x is null and row % 50 = 1": [row for row in range(len(both)) if row % 50 == 1],
    }.items():
        assert both.find(where=where).rows.tolist() == expected
        assert read(where) == expected
        assert both.stores[1].find(where="x >= 1").rows.tolist() == [3, 5]
    with pytest.raises(InvalidQuery, match="hint: there are tokens"):
        both.stores[0].find(where="x >= 1")


def test_labels_that_cannot_be_one_table_are_refused(both):
    first, second = both.stores
    first.attach_labels("kind", {"document": ["york"], "kind": ["city"]}, key="document")
    second.attach_labels("kind", {"row": [3], "kind": ["city"]}, key="row")

    with pytest.raises(InvalidQuery, match=r"kind .*keyed by document_number and by row\nhint: "):
        both.sql("select * from kind")


def test_what_no_store_has_is_refused(both):
    with pytest.raises(NotInStore, match=r"no document 'yrk'"):
        both.find(document="yrk")
    with pytest.raises(NotInStore, match=r"no document number 12; .* has 12"):
        both.find(document_number=12)
    with pytest.raises(NotInStore, match=r"no token 4000"):
        both.find(token=4000)
    with pytest.raises(UnknownSplit, match=r"did you mean 'test'"):
        both.find(split="tst")


@pytest.mark.parametrize(
    "where",
    ["kind = 'city'", "kind.kind = 'city' and x > 1", "row in (select row from marks)", "row > 90"],
)
def test_batches_take_the_rows_that_find_finds(pair, both, where):
    for store in both.stores:
        labels = {"document": ["york", "snow"], "kind": ["city", "sky"]}
        store.attach_labels("kind", labels, key="document")
        marked = store.find(document="york").rows[:9]
        store.attach_labels("marks", {"row": marked, "x": np.arange(len(marked))}, key="row")

    batches = both.batches(SITE, 4, where=where, exclude=None, epochs=1, last="ragged")
    alone = both.stores[0].batches(SITE, 4, where=where, exclude=None, epochs=1, last="ragged")

    rows = np.sort(np.concatenate([batch.rows for batch in batches]))
    rows_alone = np.sort(np.concatenate([batch.rows for batch in alone]))
    assert rows.tolist() == both.find(where=where).rows.tolist()
    assert rows_alone.tolist() == both.stores[0].find(where=where).rows.tolist()
    assert 0 < len(rows_alone) < len(rows) < len(both)


def test_batches_refuse_a_predicate_in_the_words_that_find_does(both):
    words = []
    for ask in (
        lambda where: both.find(where=where),
        lambda where: both.batches(SITE, 4, where=where),
    ):
        with pytest.raises(InvalidQuery) as refused:
            ask("positon > 3")
        words.append(str(refused.value))

    assert words[0] == words[1]
    assert "hint: there are tokens(row, id, document_number" in words[0]
