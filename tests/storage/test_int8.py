"""int8 rows in a store: what others read of them, and what is written, released and repaired."""

import pickle

import google_crc32c
import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr

from actlake.storage import (
    Lease,
    Site,
    export_store,
    open_store,
    open_stores,
    verify,
    write_store,
    write_unit,
)
from actlake.storage.block_scales import encode_rows
from actlake.storage.errors import NonFiniteActivations, RowsNotCommitted, RowsReleased
from actlake.storage.location import locate
from actlake.storage.release import release_units
from actlake.storage.repair import own_rows, restore_shards
from actlake.storage.writer import restore_unit

SITE = Site(3)
DIM = 150
ACTS, SCALES = "rows.zarr/acts/resid_post.3/c.1.0", "rows.zarr/scales/resid_post.3/c.1.0"


@pytest.fixture
def known(make_known):
    return make_known(dtype="int8", dim=DIM)


@pytest.fixture
def store(known, folder):
    known.build(folder)
    known.fill(folder)
    return open_store(folder)


def test_zarr_and_numpy_alone_read_the_rows_by_the_pages_formula(store, known, folder):
    root = zarr.open_group(folder / "rows.zarr", mode="r")
    codes, scales = (root[kind]["resid_post.3"][:] for kind in ("acts", "scales"))

    rows = codes * np.repeat(scales.astype(np.float32), 64, axis=1)[:, :DIM]

    assert (codes.dtype, scales.dtype, scales.shape) == (np.int8, np.float16, (250, 3))
    np.testing.assert_array_equal(rows, known.acts[SITE])
    assert dict(root["acts/resid_post.3"].attrs) == {
        "scales": "scales/resid_post.3",
        "columns_per_scale": 64,
    }


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("path", ["auto", "zarr"])
def test_every_way_of_reading_gives_the_decoded_rows(known, folder, compression, path):
    known.build(folder, compression=compression)
    known.fill(folder)
    store, rows = open_store(folder, path=path), known.acts[SITE]
    mask = known.positions == 3
    some = np.array([249, 3, 3, 70, 0])

    array = store[SITE]

    assert (array.shape, array.dtype, array.ndim, len(array)) == ((250, DIM), np.float32, 2, 250)
    for key in (slice(None), slice(5, 60), slice(200, 3, -7), some, mask, 17, -1, (4, 9), ...):
        np.testing.assert_array_equal(array[key], rows[key])
    np.testing.assert_array_equal(np.asarray(array), rows)
    np.testing.assert_array_equal(array.take(some, check=True, ahead=True), rows[some])
    np.testing.assert_array_equal(array.chunk(31, check=True), rows[248:])
    out = np.empty((5, DIM), np.float32)
    assert array.take(some, out=out) is out
    np.testing.assert_array_equal(out, rows[some])


def test_codes_and_scales_are_there_as_stored(store, known):
    codes, scales = encode_rows(known.acts[SITE])

    np.testing.assert_array_equal(store[SITE].codes[3:9], codes[3:9])
    np.testing.assert_array_equal(store[SITE].scales[3:9], scales[3:9])


@pytest.mark.parametrize("shuffle", ["exact", "pool", "none"])
@pytest.mark.parametrize("path", ["auto", "zarr"])
def test_batches_of_one_or_of_two_stores_hold_the_decoded_rows(
    known, make_known, folder, tmp_path, path, shuffle
):
    other = make_known(dtype="int8", dim=DIM, seed=1)
    for each, where in ((known, folder), (other, tmp_path / "other")):
        each.build(where)
        each.fill(where)
    stores = open_stores([folder, tmp_path / "other"], path=path)
    rows = np.concatenate([known.acts[SITE], other.acts[SITE]])

    batches = stores.batches(SITE, 32, shuffle=shuffle, pool_rows=100, epochs=1, last="ragged")

    seen = 0
    for batch in batches:
        np.testing.assert_array_equal(batch.acts, rows[batch.rows])
        seen += len(batch)
    assert seen == (~np.concatenate([known.excluded, other.excluded])).sum()
    np.testing.assert_array_equal(stores.take([499, 3], SITE), rows[[499, 3]])


def test_a_pickled_array_reads_in_another_process_what_it_read_here(store, known):
    again = pickle.loads(pickle.dumps(store[SITE]))

    np.testing.assert_array_equal(again[:], known.acts[SITE])


def test_moments_and_norms_are_of_the_decoded_rows(store, known):
    values = known.acts[SITE].astype(np.float64)

    moments = store.moments(SITE, excluded=None)

    np.testing.assert_allclose(moments.mean, values.mean(axis=0), rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(moments.variance, values.var(axis=0), rtol=1e-10)
    np.testing.assert_allclose(store.norms(SITE)[:], np.linalg.norm(values, axis=1), rtol=1e-7)
    assert verify(store).is_whole


def test_rows_that_are_not_there_are_refused_or_nan(known, folder):
    known.build(folder)
    known.fill(folder, skip=(1,))
    array = open_store(folder)[SITE]

    with pytest.raises(RowsNotCommitted, match=r"acts/resid_post.3: unit 1 not committed"):
        array[30]
    assert np.isnan(array.read(24, 48, missing="nan")).all()
    np.testing.assert_array_equal(array.read(0, 24, missing="nan"), known.acts[SITE][:24])


def test_the_ledgers_record_is_of_both_files_as_the_page_says(store, folder):
    with Lease.acquire(locate(folder)) as lease:
        lease.ledger.merge_all()
    (table,) = (folder / "ledger").glob("*.parquet")
    (record,) = (
        row
        for row in pq.read_table(table).to_pylist()
        if (row["site"], row["unit"]) == ("resid_post.3", 1)
    )
    files = [(folder / key).read_bytes() for key in (ACTS, SCALES)]

    numbers = []
    for data, row_bytes in zip(files, (DIM, 6), strict=True):
        ends = [(chunk + 1) * (8 * row_bytes + 4) for chunk in range(3)]
        checksums = b"".join(data[end - 4 : end] for end in ends)
        numbers.append(google_crc32c.value(checksums + data[-52:-4]).to_bytes(4, "little"))
    assert record["rows_bytes"] == sum(map(len, files))
    assert record["rows_crc32c"] == google_crc32c.value(b"".join(numbers))


@pytest.mark.parametrize("key", [ACTS, SCALES])
@pytest.mark.parametrize("cut", [False, True])
def test_damage_of_codes_or_scales_is_found_and_repaired_to_the_same_bytes(
    store, known, folder, tree, key, cut
):
    before = tree(folder)
    data = bytearray((folder / key).read_bytes())
    data[9] ^= 1
    (folder / key).write_bytes(data[:-1] if cut else data)

    report = verify(open_store(folder))

    (damage,) = report.damaged
    assert (damage.record.site, damage.record.unit) == (SITE, 1)
    assert key in str(report.problems[0])
    with Lease.acquire(locate(folder)) as lease:
        rows = {SITE: known.acts[SITE][24:48]}
        assert restore_unit(store, 1, rows, [damage.record], token=lease.token)
    assert tree(folder) == before


def test_moments_are_worked_out_again_from_the_decoded_rows(store, folder):
    key = folder / "rows.zarr/norms/resid_post.3/c.1"
    data = bytearray(key.read_bytes())
    data[0] ^= 1
    key.write_bytes(data)
    (damage,) = verify(open_store(folder)).damaged

    with Lease.acquire(locate(folder)) as lease:
        assert restore_shards(lease, store, [damage.record], own_rows(store)) == {}
    assert verify(open_store(folder)).is_whole


def test_released_are_the_codes_and_the_scales_and_nothing_else(store, folder, tree):
    before = tree(folder / "rows.zarr")

    with Lease.acquire(locate(folder)) as lease:
        release_units(lease, store, {SITE: [1]})

    gone = {"acts/resid_post.3/c.1.0", "scales/resid_post.3/c.1.0"}
    after = tree(folder / "rows.zarr")
    assert after == {name: content for name, content in before.items() if name not in gone}
    assert gone <= set(before)
    with pytest.raises(RowsReleased):
        store.refresh()[SITE][30]
    assert verify(open_store(folder)).is_whole


def test_an_export_holds_the_same_codes_and_scales(store, tmp_path):
    copy = export_store(store, tmp_path / "copy").store

    assert copy.schema_of(SITE) == store.schema_of(SITE)
    for ours, theirs in (
        (copy[SITE].codes, store[SITE].codes),
        (copy[SITE].scales, store[SITE].scales),
    ):
        np.testing.assert_array_equal(ours[:], theirs[:])


def test_a_store_of_floats_is_written_again_as_int8_and_back(tmp_path):
    rows = np.random.default_rng(0).normal(size=(60, DIM)).astype(np.float16)
    contexts = [np.arange(20)] * 3
    first = write_store(tmp_path / "a", contexts, {SITE: rows}, provenance="m")

    small = write_store(tmp_path / "b", contexts, {SITE: first[SITE]}, provenance="m", dtype="int8")
    wide = write_store(tmp_path / "c", contexts, {SITE: small[SITE]}, provenance="m")

    off = small[SITE][:] - rows
    assert (off**2).mean() < 1e-4 * rows.astype(np.float32).var()
    assert str(small.schema_of(SITE)) == "int8 × 150"
    assert small.schema_of(SITE).row_bytes == 150 + 3 * 2
    assert str(wide.schema_of(SITE)) == "float32 × 150"
    np.testing.assert_array_equal(wide[SITE][:], small[SITE][:])


def test_an_int8_site_is_added_to_a_store_of_floats_and_leaves_its_bytes(make_known, folder, tree):
    known = make_known(dtype="float16", dim=DIM)
    known.build(folder)
    known.fill(folder, (Site(0),))
    before = tree(folder)

    known.dtype = "int8"
    known.fill(folder, (SITE,))

    after, store = tree(folder), open_store(folder)
    assert {name: after[name] for name in before} == before
    assert [str(store.schema_of(site)) for site in store.sites] == ["float16 × 150", "int8 × 150"]
    assert verify(store).is_whole


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (1e30, r"1 infinite values and 63 NaNs; int8 holds numbers up to 8.319\S+\nhint: store b"),
        (np.inf, r"1 infinite values and 63 NaNs"),
        (np.nan, r"0 infinite values and 64 NaNs[\s\S]*hint: NaN comes from the model"),
    ],
)
def test_values_that_int8_does_not_hold_are_refused(known, folder, value, words):
    known.build(folder)
    known.fill(folder, skip=(1,))
    store, rows = open_store(folder), known.acts[SITE][24:48].copy()
    rows[5, 70] = value

    with Lease.acquire(locate(folder)) as lease, pytest.raises(NonFiniteActivations, match=words):
        write_unit(store, 1, {SITE: rows}, token=lease.token)


def test_values_that_int8_does_not_hold_are_counted_where_that_is_asked_for(known, folder):
    known.acts[SITE][30, 70] = np.inf
    known.acts[SITE][31, 0] = np.nan
    known.build(folder, nonfinite="count")
    known.fill(folder)
    store = open_store(folder)

    rows = store[SITE][:]

    assert rows[30, 70] == np.inf
    assert np.isnan(rows).sum() == 63 + 64
    assert verify(store).is_whole


def test_integers_are_not_taken_for_codes(tmp_path):
    rows = np.arange(-60, 60, dtype=np.int8).reshape(20, 6)

    with pytest.raises(ValueError, match="are int8\nhint: say how they are to be stored"):
        write_store(tmp_path / "a", [np.arange(20)], {SITE: rows}, provenance="m")
