"""What a unit may hold, and what is refused before a byte of it is written."""

import numpy as np
import pytest

from actlake.storage import Lease, Site, Token, add_sites, open_store, verify, write_unit
from actlake.storage.errors import AlreadyCommitted, InvalidSchema, KeyTaken, NonFiniteActivations
from actlake.storage.location import locate
from actlake.storage.writer import free_missing, free_unit

SITE = Site(3)
NOBODY = Token(1, "a1")  # for what is refused before anything is written


@pytest.fixture
def make_store(make_known, folder):
    def make(**request):
        known = make_known(dtype=request.pop("dtype", "float16"))
        known.build(folder, **request)
        known.fill(folder, (SITE,), skip=(0,))
        return open_store(folder)

    return make


def with_value(store, value, *, times=2):
    rows = np.ones((24, store.schema_of(SITE).dim), np.float32)
    rows[5, :times] = value
    return {SITE: rows}


@pytest.mark.parametrize(
    ("dtype", "value", "words"),
    [
        ("float16", 70_000, r"Unit 0 of resid_post.3 [\s\S]*up to 65504\nhint: store bfloat16"),
        ("float16", np.nan, r"0 infinite values and 2 NaNs[\s\S]*hint: NaN comes from the model"),
        ("bfloat16", np.inf, r"2 infinite values[\s\S]*hint: infinities come from the model"),
        ("float32", -np.inf, r"2 infinite values[\s\S]*or set nonfinite to 'count'"),
    ],
)  # fmt: skip
def test_values_that_are_not_finite_are_refused_and_nothing_is_written(
    make_store, folder, tree, dtype, value, words
):
    store = make_store(dtype=dtype)
    before = tree(folder)

    with pytest.raises(NonFiniteActivations, match=words):
        write_unit(store, 0, with_value(store, value), token=NOBODY)

    assert tree(folder) == before


def test_values_that_are_not_finite_are_counted_where_that_is_asked_for(make_store, folder):
    store = make_store(nonfinite="count")
    rows = with_value(store, 1e6)
    rows[SITE][7, 0] = np.nan

    with Lease.acquire(locate(folder)) as lease:
        (record,) = write_unit(store, 0, rows, token=lease.token)
        lease.ledger.commit([record])

    assert (record.infinite, record.nan) == (2, 1)
    stored = open_store(folder)[SITE][:24]
    assert (np.isinf(stored).sum(), np.isnan(stored).sum()) == (2, 1)


def test_the_largest_float16_is_not_an_overflow(make_store, folder):
    store = make_store()

    with Lease.acquire(locate(folder)) as lease:
        (record,) = write_unit(store, 0, with_value(store, -65504), token=lease.token)

    assert (record.infinite, record.nan) == (0, 0)


@pytest.mark.parametrize("shape", [(23, 6), (24, 5), (24,), (0, 6)])
def test_rows_of_another_shape_are_refused(make_store, shape):
    with pytest.raises(InvalidSchema, match=r"Unit 0 of resid_post.3 has shape \(24, 6\), and \("):
        write_unit(make_store(), 0, {SITE: np.ones(shape, np.float32)}, token=NOBODY)


@pytest.mark.parametrize("unit", [-1, 11])
def test_a_unit_that_does_not_exist_is_refused(make_store, unit):
    with pytest.raises(
        InvalidSchema, match=rf"There is no unit {unit} in .*; it has units 0 to 10"
    ):
        write_unit(make_store(), unit, {SITE: np.ones((24, 6))}, token=NOBODY)


def test_a_committed_unit_is_never_written_again(make_store, folder, tree):
    store = make_store()
    before = tree(folder)

    with pytest.raises(AlreadyCommitted, match=r"Unit 1 of resid_post.3[\s\S]*hint: .*--repair"):
        write_unit(store, 1, {SITE: np.ones((24, 6))}, token=NOBODY)

    assert tree(folder) == before


def test_sites_are_written_under_their_stored_names(make_store, folder):
    store, rows = make_store(), {Site(4, "resid_pre"): np.ones((24, 6))}
    with Lease.acquire(locate(folder)) as lease:
        (record,) = write_unit(store, 0, rows, token=lease.token)

    assert record.site == Site(3)


def test_adding_sites_twice_is_adding_them_once(make_store, folder):
    store = make_store()
    with Lease.acquire(locate(folder)) as lease:
        before = lease.ledger.state.last
        rows = store.schema_of(SITE)
        add_sites(lease, store, {SITE: rows, Site(4, "resid_pre"): rows}, {})

        assert lease.ledger.state.last == before


@pytest.mark.parametrize("is_committed", [True, False], ids=["committed", "in flight"])
def test_a_late_worker_of_the_same_driver_writes_nothing_over_anothers_files(
    make_store, folder, tree, is_committed
):
    late = make_store()  # which has not heard of the commit
    with Lease.acquire(locate(folder)) as lease:
        store = open_store(folder)
        records = write_unit(store, 0, {SITE: np.ones((24, 6))}, token=lease.token)
        if is_committed:
            lease.ledger.commit(records)
        before = tree(folder)

        with pytest.raises(KeyTaken, match=r"moments.* holds other bytes\nhint: another process"):
            write_unit(late, 0, {SITE: np.full((24, 6), 2.0)}, token=lease.token)
        assert tree(folder) == before

        if not is_committed:  # its own bytes are found there, and are as good
            again = write_unit(late, 0, {SITE: np.ones((24, 6))}, token=lease.token)
            assert again == records


def test_a_unit_that_is_handed_out_again_may_come_out_otherwise(make_store, folder):
    store = make_store()
    with Lease.acquire(locate(folder)) as lease:
        write_unit(store, 0, {SITE: np.ones((24, 6))}, token=lease.token)  # and its worker dies
        free_unit(lease, store, 0, (SITE,))

        rows = {SITE: np.full((24, 6), 2.0)}
        lease.ledger.commit(write_unit(store, 0, rows, token=lease.token))
        free_unit(lease, store, 0, (SITE,))  # which is for what is not committed
        free_missing(lease, store, (SITE,))

    assert (open_store(folder)[SITE][:24] == 2).all()
    assert verify(open_store(folder)).is_whole
