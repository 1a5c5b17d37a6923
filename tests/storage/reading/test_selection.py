"""Which rows take part: as NumPy says, on sets of any shape."""

import numpy as np
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actlake.storage import Extent, UnitSet, open_store
from actlake.storage.errors import EmptySelection, InvalidQuery, UnknownSplit
from actlake.storage.reading.many import ManyStores
from actlake.storage.reading.predicates import Predicate
from actlake.storage.reading.selection import Bitmap, RowFilter, Runs, select_rows


def as_bitmap(rows, total):
    mask = np.zeros(-(-total // 512) * 512, bool)
    mask[rows] = True
    return Bitmap(np.packbits(mask, bitorder="little").view(np.uint64))


def as_runs(rows, total):
    mask = np.zeros(total + 2, np.int8)
    mask[np.asarray(rows, np.int64) + 1] = 1
    edges = np.flatnonzero(np.diff(mask)).reshape(-1, 2)
    return Runs(map(tuple, edges.tolist()))


@settings(deadline=None)
@given(
    total=st.integers(1, 3000) | st.integers(1, 60_000),
    density=st.sampled_from([0.01, 0.3, 0.9, 1.0]),
    bursts=st.integers(0, 6),
    seed=st.integers(0, 1000),
    make=st.sampled_from([as_bitmap, as_runs]),
)
def test_a_row_set_counts_and_finds_its_rows(total, density, bursts, seed, make):
    rng = np.random.default_rng(seed)
    mask = rng.random(total) < density
    for start in rng.integers(0, total, bursts):  # rows far from each other, and close together
        mask[start : start + total // 4] = False
        mask[start : start + 40] = True
    rows = np.flatnonzero(mask)
    start, stop = sorted(rng.integers(0, total + 1, 2).tolist())

    row_set = make(rows, total)

    assert len(row_set) == len(rows)
    shuffled = rng.permutation(len(rows))
    np.testing.assert_array_equal(row_set.select(shuffled), rows[shuffled])
    edges = np.arange(total + 1)
    np.testing.assert_array_equal(row_set.rank(edges), np.searchsorted(rows, edges))
    np.testing.assert_array_equal(
        row_set.between(start, stop), rows[(rows >= start) & (rows < stop)]
    )
    assert row_set.checksum() == make(rows, total).checksum()


def expected_rows(known, split, exclude, units):
    kept = np.ones(known.rows, bool)
    kept &= np.isin(np.arange(known.rows) // 24, list(units))
    if split is not None:
        kept &= known.split == split
    if exclude is not None:
        kept &= ~known.excluded
    return np.flatnonzero(kept)


@pytest.mark.parametrize("exclude", ["default", None])
@pytest.mark.parametrize("split", [None, "train", "test"])
@pytest.mark.parametrize("units", [range(11), [0, 3, 4, 10]])
def test_split_exclusion_and_committed_units_select_what_numpy_does(
    known, full, split, exclude, units
):
    stores = ManyStores([open_store(full)])
    committed = [UnitSet([(unit, unit + 1) for unit in units])]

    rows = select_rows(stores, committed, RowFilter(split, exclude))

    expected = expected_rows(known, split, exclude, units)
    np.testing.assert_array_equal(rows.select(np.arange(len(rows))), expected)


PREDICATES = {
    "sql": "position >= 4 AND id < 30",
    "arrow": (pc.field("position") >= 4) & (pc.field("id") < 30),
    "function": lambda columns: (columns["position"] >= 4) & (columns["id"] < 30),
}


@pytest.mark.parametrize("kind", [*PREDICATES, "rows"])
def test_a_predicate_may_be_sql_arrow_a_function_or_rows(known, full, kind):
    expected = (known.positions >= 4) & (known.ids < 30)
    where = PREDICATES.get(kind, np.flatnonzero(expected)[::-1])

    mask = Predicate(where).mask(open_store(full), Extent(7, 240))

    np.testing.assert_array_equal(mask, expected[7:240])


@pytest.mark.parametrize("where", ["n % 2 = 0 AND split = 'train'", "N%2=0 and Split='train'"])
def test_a_predicate_knows_the_documents_columns(known, full, where):
    expected = (known.document % 2 == 0) & (known.split == "train")

    mask = Predicate(where).mask(open_store(full), Extent(0, known.rows))

    np.testing.assert_array_equal(mask, expected)


def test_the_documents_id_is_not_the_tokens(known, full):
    mask = Predicate("document_id = 'doc-3' or id = 5").mask(
        open_store(full), Extent(0, known.rows)
    )

    np.testing.assert_array_equal(mask, (known.document == 3) | (known.ids == 5))


@pytest.mark.parametrize(
    ("where", "words"),
    [
        (
            "positon > 3",
            r"positon[\s\S]*hint: there are tokens\(row, id, document_number, position",
        ),
        ("position >", r"where='position >' is not valid SQL"),
        ("read_text('/etc/passwd') = ''", r"cannot be answered"),
        ("'neither'", r"cannot be answered"),
        (pc.field("nothing") > 3, r"nothing"),
        (lambda columns: columns["posit"] > 3, r"no column 'posit'\nhint: did you mean 'position'"),
        (lambda columns: columns["position"], r"gave int32 of shape .*\n.*one boolean a row"),
        (3.5, r"cannot be float"),
    ],
)
def test_a_predicate_that_cannot_be_worked_out_says_why(full, where, words):
    with pytest.raises(InvalidQuery, match=words):
        Predicate(where).mask(open_store(full), Extent(0, 50))


def test_an_unknown_split_names_the_nearest(full):
    stores = ManyStores([open_store(full)])

    with pytest.raises(UnknownSplit, match=r"no split 'tets'.*\nhint: did you mean 'test'"):
        select_rows(stores, [UnitSet([(0, 11)])], RowFilter("tets"))


@pytest.mark.parametrize(
    ("units", "where", "words"),
    [
        ([], None, "0 rows are committed[\\s\\S]*wait for the harvest"),
        ([(0, 11)], "position > 99", "250 rows are committed, and none passes .*position > 99"),
    ],
)
def test_an_empty_selection_says_what_emptied_it(full, units, where, words):
    stores = ManyStores([open_store(full)])
    where = None if where is None else Predicate(where)

    with pytest.raises(EmptySelection, match=words):
        select_rows(stores, [UnitSet(units)], RowFilter(None, "default", where))
