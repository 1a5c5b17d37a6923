"""Released units: their rows are given up, all else stays, and nobody takes them for damage."""

import shutil

import numpy as np
import pytest

from actlake.storage import Lease, Site, export_store, open_store, verify
from actlake.storage.errors import RowsNotCommitted, RowsReleased, SiteNotStored
from actlake.storage.location import locate
from actlake.storage.release import release_units
from actlake.storage.repair import restore_shards
from actlake.storage.verify import undersized
from actlake.storage.writer import free_missing, write_unit

SITE = Site(3)


@pytest.fixture
def released(full):
    """`full`, of which units 2 and 4 of one site are released."""
    with Lease.acquire(locate(full)) as lease:
        release_units(lease, open_store(full), {SITE: [2, 4]})
    return full


def shard(folder, unit):
    return folder / f"rows.zarr/acts/{SITE}/c.{unit}.0"


def test_released_rows_leave_the_disk_and_are_said_to_be_released(released, known):
    store = open_store(released)
    words = (
        r"rows of unit 2 of .*resid_post.3 in .* were released, on purpose[\s\S]*hint: read other"
    )

    assert [shard(released, unit).exists() for unit in range(5)] == [True, True, False, True, False]
    for ask in (lambda: store[SITE][48:50], lambda: store[SITE].take([7, 49]),
                lambda: store[SITE].chunk(6)):  # fmt: skip
        with pytest.raises(RowsReleased, match=words):
            ask()
    np.testing.assert_array_equal(store[SITE][:48], known.acts[SITE][:48])
    np.testing.assert_array_equal(store[Site(0)][:], known.acts[Site(0)])
    assert np.isnan(store[SITE].read(0, 250, missing="nan")).any(axis=1).nonzero()[0].tolist() == [
        *range(48, 72), *range(96, 120)
    ]  # fmt: skip
    assert str(store.coverage(SITE)) == "11 of 11 units committed, 2 of them released"
    assert store.coverage(SITE).rows == 250 - 48
    assert store.coverage(SITE).is_complete
    assert not store.coverage(SITE).is_readable
    assert "2 of them released" in repr(store)


def test_rows_that_are_released_while_a_store_is_verified_are_no_damage(full):
    store = open_store(full)

    with Lease.acquire(locate(full)) as lease:
        release_units(lease, open_store(full), {SITE: [2, 4]})

    assert verify(store).problems == ()
    shard(full, 5).unlink()
    assert [problem.unit for problem in verify(store).problems] == [5]


def test_moments_tokens_and_records_of_released_units_stay(full, known):
    before = open_store(full)
    expected = before.moments(SITE, excluded=None)
    with Lease.acquire(locate(full)) as lease:
        release_units(lease, before, {SITE: range(11)})
        lease.ledger.merge_all()
    store = open_store(full)

    found = store.moments(SITE, excluded=None)
    assert found.count == expected.count == 250
    np.testing.assert_array_equal(found.mean, expected.mean)
    np.testing.assert_array_equal(store.norms(SITE)[:], before.norms(SITE)[:])
    np.testing.assert_array_equal(store.tokens["id"][:], known.ids)
    assert store.committed([SITE]).runs() == [(0, 11)]
    assert store.readable([SITE]).runs() == []


def test_verify_takes_no_released_unit_for_missing_or_damaged(released):
    report = verify(open_store(released))

    assert report.is_whole
    assert report.missing == {}
    assert {site: units.runs() for site, units in report.released.items()} == {
        SITE: [(2, 3), (4, 5)]
    }
    assert list(undersized(open_store(released), {SITE})) == []


def test_verify_finds_what_is_damaged_of_a_released_unit_and_repair_writes_no_rows(released, known):
    path = released / f"moments/{SITE}/1/0/2.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    store = open_store(released)
    (damage,) = verify(store).damaged

    with Lease.acquire(locate(released)) as lease:
        lost = restore_shards(lease, store, [damage.record], lambda r: known.acts[SITE][48:72])

    assert (damage.record.unit, damage.rows_are_whole, lost) == (2, False, {})
    assert verify(open_store(released)).is_whole
    assert not shard(released, 2).exists()


def test_readers_go_around_released_units(released):
    rows = [
        batch.rows
        for batch in open_store(released).batches(SITE, 16, exclude=None, epochs=1, last="ragged")
    ]

    assert sorted(np.concatenate(rows).tolist()) == [
        *range(48), *range(72, 96), *range(120, 250)
    ]  # fmt: skip


def test_a_store_that_was_opened_before_says_released_and_not_damaged(full):
    before = open_store(full)
    with Lease.acquire(locate(full)) as lease:
        release_units(lease, open_store(full), {SITE: [2]})

    for ask in (lambda: before[SITE][50], lambda: before[SITE].chunk(7)):
        with pytest.raises(RowsReleased):
            ask()


def test_a_released_unit_is_not_exported(released, tmp_path):
    with pytest.raises(RowsNotCommitted, match="are not there for all chosen sites"):
        export_store(open_store(released), str(tmp_path / "copy"), sites=SITE)


def test_releasing_twice_is_releasing_once_and_removes_what_a_killed_release_left(full):
    kept = full.parent / "kept"
    shutil.copy(shard(full, 2), kept)
    with Lease.acquire(locate(full)) as lease:
        release_units(lease, open_store(full), {SITE: [2]})
        shutil.copy(kept, shard(full, 2))
        last = lease.ledger.state.last
        release_units(lease, open_store(full), {SITE: [2]})

        assert lease.ledger.state.last == last
        assert not shard(full, 2).exists()
        shutil.copy(kept, shard(full, 2))
        assert verify(open_store(full)).is_whole
        assert free_missing(lease, open_store(full), [SITE]) == 1
        assert not shard(full, 2).exists()


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        ({SITE: [3]}, RowsNotCommitted, r"Unit 3 of resid_post.3 is not committed[\s\S]*hint:"),
        ({Site(1): [0]}, SiteNotStored, "No activations of resid_post.1"),
    ],
)
def test_what_is_not_committed_cannot_be_released(known, folder, asked, error, words):
    known.build(folder)
    known.fill(folder, skip=(3,))
    with Lease.acquire(locate(folder)) as lease, pytest.raises(error, match=words):
        release_units(lease, open_store(folder), asked)
    assert verify(open_store(folder)).released == {}


def test_a_released_unit_is_never_written_again(released, known):
    with Lease.acquire(locate(released)) as lease, pytest.raises(ValueError, match="is committed"):
        known.write(lease, open_store(released), 2)
    with Lease.acquire(locate(released)) as lease, pytest.raises(ValueError, match="is committed"):
        write_unit(open_store(released), 2, {SITE: known.acts[SITE][48:72]}, token=lease.token)
