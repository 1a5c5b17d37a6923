"""Moments are one file a unit, and of many units a few files, whoever adds them up and when."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from actlake.storage import (
    Lease,
    Site,
    UnitSet,
    add_sites,
    open_store,
    verify,
)
from actlake.storage.errors import StoreDamaged
from actlake.storage.location import LocalFolder, locate
from actlake.storage.repair import own_rows, restore_shards, restore_totals
from actlake.storage.stored_moments import largest_blocks, sum_up, sum_up_around
from actlake.storage.writer import write_unit

SITE = Site(3)
NUM_UNITS = 70
UNIT_ROWS = 4
TOTALS = [f"moments/{SITE}/32/0/{number}.safetensors" for number in (0, 1)]


def rows():
    values = np.random.default_rng(0).normal(size=(NUM_UNITS * UNIT_ROWS, 5)) * 1e3
    return values.astype(np.float32)


@pytest.fixture
def folder(many_units, tmp_path):
    return shutil.copytree(many_units, tmp_path / "store")


def bits(moments):
    """All that they say, to the last bit."""
    return (moments.count, moments.mean.tobytes(), moments.m2.tobytes(), moments.norm_sum)


def flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def test_a_site_of_a_unit_is_three_files(folder):
    files = Counter(
        path.relative_to(folder).parts[0] for path in folder.rglob("*")
        if path.name in ("c.5.0", "c.5", "5.safetensors")
        and "tokens" not in path.parts and "contexts" not in path.parts
    )  # fmt: skip

    assert files == {"rows.zarr": 2, "moments": 1}


def test_the_library_of_the_format_reads_what_numpy_says_of_the_rows(folder):
    values = rows()[5 * UNIT_ROWS : 6 * UNIT_ROWS].astype(np.float64)
    kept = values[1:]  # but for position 0

    stored = load_file(folder / f"moments/{SITE}/1/0/5.safetensors")

    assert {name: array.shape for name, array in stored.items()} == {
        "count": (1, 2), "mean": (1, 2, 5), "m2": (1, 2, 5), "norm_sum": (1, 2)
    }  # fmt: skip
    assert stored["count"].tolist() == [[3, 1]]
    np.testing.assert_allclose(stored["mean"][0, 0], kept.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(stored["m2"][0, 0], 3 * kept.var(axis=0), rtol=1e-12)
    np.testing.assert_allclose(stored["norm_sum"][0, 0], np.linalg.norm(kept, axis=1).sum())


def test_moments_of_all_units_read_the_totals_and_what_is_left(folder, monkeypatch):
    read = []
    reading = LocalFolder.read
    monkeypatch.setattr(
        LocalFolder, "read", lambda place, key: read.append(key) or reading(place, key)
    )
    store = open_store(folder)
    read.clear()

    moments = store.moments(SITE)

    assert read == TOTALS + [f"moments/{SITE}/1/0/{unit}.safetensors" for unit in range(64, 70)]
    np.testing.assert_allclose(
        moments.mean, rows()[np.arange(280) % 4 > 0].mean(axis=0, dtype=float)
    )


def test_a_sum_has_the_same_bits_with_totals_and_without(folder):
    with_totals = bits(open_store(folder).moments(SITE, excluded=None))
    for name in TOTALS:
        (folder / name).unlink()

    assert bits(open_store(folder).moments(SITE, excluded=None)) == with_totals


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(units=st.sets(st.integers(0, NUM_UNITS - 1), min_size=1))
def test_moments_of_some_units_are_numpys_of_their_rows(many_units, units):
    chosen = np.concatenate([np.arange(4 * u, 4 * u + 4) for u in sorted(units)])
    values = rows()[chosen].astype(np.float64)

    moments = open_store(many_units).moments(SITE, excluded=None, units=units)

    assert moments.count == len(chosen)
    np.testing.assert_allclose(moments.mean, values.mean(axis=0), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(moments.m2, len(chosen) * values.var(axis=0), rtol=1e-9)


@given(units=st.sets(st.integers(0, 5000)), more=st.integers(0, 3), size=st.integers(0, 2100))
def test_the_largest_blocks_are_the_units_and_no_others_and_no_two_of_them_are_one(
    units, more, size
):
    given = UnitSet((unit, unit + 1) for unit in units)
    given.add(1024 * more, 1024 * more + size)

    blocks = list(largest_blocks(given))

    assert UnitSet((block.start, block.stop) for block in blocks) == given
    assert sum(block.units for block in blocks) == len(given)
    assert blocks == sorted(blocks, key=lambda block: block.start)
    assert not any(given.covers(block.whole.start, block.whole.stop) for block in blocks)


def test_a_harvest_that_was_killed_leaves_totals_to_the_next_which_ends_in_the_same_bytes(
    many_units, folder, tree
):
    for name in TOTALS:
        (folder / name).unlink()
    with Lease.acquire(locate(folder)) as lease:
        sum_up(lease, [SITE])

    assert tree(folder) == tree(many_units)


def test_a_total_is_written_when_its_last_unit_is_committed_whichever_that_is(many_units, tmp_path):
    folder = tmp_path / "store"
    source = open_store(many_units)
    values = rows()
    blank = {Site(4): source.schema_of(SITE)}
    shutil.copytree(many_units, folder)
    with Lease.acquire(locate(folder)) as lease:
        store = open_store(folder)
        add_sites(lease, store, blank, {})
        total = folder / "moments/resid_post.4/32/0/0.safetensors"
        for unit in (*range(8, 32), *range(8)):
            assert not total.exists(), unit
            of_unit = {Site(4): values[4 * unit : 4 * unit + 4]}
            records = write_unit(store, unit, of_unit, token=lease.token)
            lease.ledger.commit(records)
            sum_up_around(lease, records)

    of_first = load_file(many_units / TOTALS[0])
    of_second = load_file(total)
    assert {name: array.tobytes() for name, array in of_first.items()} == {
        name: array.tobytes() for name, array in of_second.items()
    }


def test_a_damaged_total_is_named_and_mended_and_the_sum_is_right_meanwhile(folder, tree, caplog):
    whole, expected = tree(folder), bits(open_store(folder).moments(SITE))
    flip(folder / TOTALS[1])

    store = open_store(folder)
    assert bits(store.moments(SITE)) == expected
    assert "32/0/1.safetensors" in caplog.text
    (problem,) = verify(store).problems
    assert (problem.kind, problem.site) == ("metadata", SITE)
    assert "32/0/1.safetensors is not what its units add up to" in str(problem)
    with Lease.acquire(locate(folder)) as lease:
        assert restore_totals(lease, store) == 1
    assert tree(folder) == whole


def test_a_total_of_other_units_with_a_valid_checksum_is_not_believed(folder, caplog):
    expected = bits(open_store(folder).moments(SITE))
    shutil.copy(folder / TOTALS[0], folder / TOTALS[1])

    assert bits(open_store(folder).moments(SITE)) == expected
    assert "another file under this name" in caplog.text


def test_moments_of_a_unit_that_are_damaged_or_gone_are_said_to_be(folder):
    path = folder / f"moments/{SITE}/1/0/66.safetensors"
    flip(path)
    with pytest.raises(StoreDamaged, match=r"1/0/66.safetensors[\s\S]*CRC32C[\s\S]*hint: .*verify"):
        open_store(folder).moments(SITE)
    path.unlink()
    with pytest.raises(StoreDamaged, match=r"1/0/66.safetensors is missing[\s\S]*hint: .*verify"):
        open_store(folder).moments(SITE)


def test_damaged_moments_of_a_unit_and_its_total_are_mended_together(folder, tree):
    whole = tree(folder)
    for name in (f"moments/{SITE}/1/0/40.safetensors", TOTALS[1]):
        flip(folder / name)
    store = open_store(folder)
    with Lease.acquire(locate(folder)) as lease:
        records = [damage.record for damage in verify(store).damaged]
        assert restore_shards(lease, store, records, own_rows(store)) == {}
        restore_totals(lease, store)

    assert [record.unit for record in records] == [40]
    assert tree(folder) == whole


def test_reading_moments_of_many_units_takes_no_mappings(folder):
    def mappings():
        return Path("/proc/self/maps").read_text().count(str(folder))

    store = open_store(folder)
    for unit in range(NUM_UNITS):
        store.moments(SITE, units=[unit])

    assert mappings() == 0
