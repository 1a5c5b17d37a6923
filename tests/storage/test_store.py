"""What was written is what is read, by us and by every other reader of Zarr."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorstore
import xarray
import zarr

from actlake.storage import Lease, Site, open_store
from actlake.storage.dtypes import ACTIVATION_DTYPES, numpy_dtype
from actlake.storage.errors import (
    RowsNotCommitted,
    RowsOutOfRange,
    SiteNotStored,
    StoreNotFound,
)
from actlake.storage.location import locate

SITE = Site(3)


@pytest.fixture(params=["mapped", "zarr"])
def path(request):
    return request.param


def as_float(values):
    return np.asarray(values).astype(np.float32)


@pytest.mark.parametrize("dtype", ACTIVATION_DTYPES)
def test_rows_come_back_as_they_were_written(make_known, folder, dtype, path):
    known = make_known(dtype=dtype)
    known.build(folder)
    known.fill(folder)

    store = open_store(folder, path=path)

    assert store[SITE].path == path
    assert store[SITE].dtype == numpy_dtype(dtype)
    np.testing.assert_array_equal(as_float(store[SITE][:]), as_float(known.acts[SITE]))
    rows = np.random.default_rng(1).integers(0, known.rows, 500)
    np.testing.assert_array_equal(
        as_float(store[SITE].take(rows)), as_float(known.acts[SITE][rows])
    )


def test_tokens_contexts_and_documents_come_back(known, full, path):
    store = open_store(full, path=path)

    np.testing.assert_array_equal(store.tokens["id"][:], known.ids)
    np.testing.assert_array_equal(store.tokens["position"][:], known.positions)
    np.testing.assert_array_equal(store.tokens["document"][:], known.document)
    starts = np.cumsum([0, *(len(c) for c in known.contexts)])
    np.testing.assert_array_equal(store.contexts["start"][:], starts)
    splits = [store.schema.splits[code] for code in store.contexts["split"][:]]
    assert splits == [c.split for c in known.contexts]
    documents = store.documents()
    assert documents["id"].to_pylist() == [d.id for d in known.documents]
    assert documents["n"].to_pylist() == list(range(9))


@pytest.mark.parametrize("dtype", ACTIVATION_DTYPES)
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_zarr_and_tensorstore_read_the_same_numbers(make_known, folder, dtype, compression):
    known = make_known(dtype=dtype)
    known.build(folder, compression=compression)
    known.fill(folder)

    by_zarr = zarr.open_group(folder / "rows.zarr", mode="r")[f"acts/{SITE}"]
    by_tensorstore = tensorstore.open(
        {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": str(folder / "rows.zarr" / "acts" / str(SITE))},
        },
        read=True,
    ).result()
    ours = open_store(folder)[SITE]

    assert ours.path == ("mapped" if compression == "none" else "zarr")
    for values in (by_zarr[:], by_tensorstore.read().result(), ours[:]):
        np.testing.assert_array_equal(as_float(values), as_float(known.acts[SITE]))


def test_xarray_reads_named_dimensions(known, full):
    with xarray.open_zarr(full / "rows.zarr", group="acts", consolidated=False) as acts:
        assert acts[str(SITE)].dims == ("row", "dim")
        np.testing.assert_array_equal(acts[str(SITE)].values, known.acts[SITE])
    with xarray.open_zarr(full / "rows.zarr", group="tokens", consolidated=False) as tokens:
        assert tokens["id"].dims == ("row",)
        assert tokens["id"].dtype == np.int32
        np.testing.assert_array_equal(tokens["id"].values, known.ids)


def test_chunks_that_are_all_zero_are_stored(make_known, folder, path):
    known = make_known()
    known.acts[SITE][:] = 0
    known.build(folder)
    known.fill(folder)

    assert (open_store(folder, path=path)[SITE][:] == 0).all()
    assert (zarr.open_group(folder / "rows.zarr", mode="r")[f"acts/{SITE}"][:] == 0).all()


def test_a_missing_unit_reads_as_nan_and_never_as_zeros(known, folder, path):
    known.build(folder)
    known.fill(folder, skip=(4,))
    store = open_store(folder, path=path)
    gap = store.schema.unit_extent(4).slice()
    expected = known.acts[SITE].copy()
    expected[gap] = np.nan

    np.testing.assert_array_equal(store[SITE].read(0, known.rows, missing="nan"), expected)
    shuffled = np.random.default_rng(0).permutation(known.rows)
    np.testing.assert_array_equal(store[SITE].take(shuffled, missing="nan"), expected[shuffled])
    by_zarr = zarr.open_group(folder / "rows.zarr", mode="r")[f"acts/{SITE}"][:]
    np.testing.assert_array_equal(by_zarr, expected)


def test_rows_that_are_not_committed_are_refused_by_name(known, folder, path):
    known.build(folder)
    known.fill(folder, skip=(4, 6))
    store = open_store(folder, path=path)

    assert str(store.coverage(SITE)) == "9 of 11 units committed"
    assert store.coverage(SITE).rows == known.rows - 48
    with pytest.raises(RowsNotCommitted, match=r"unit 4, 6 not committed; 9 of 11 units are"):
        store[SITE][:]
    with pytest.raises(RowsNotCommitted, match="unit 4 not committed"):
        store[SITE].take([3, 100, 4])
    np.testing.assert_array_equal(store[SITE][:96], known.acts[SITE][:96])


def test_a_shard_without_its_ledger_record_is_not_served(known, full, path):
    known_rows = known.acts[SITE][:24]
    (full / "ledger").rename(full / "elsewhere")
    known.fill(full, skip=(0,))

    store = open_store(full, path=path)

    assert (full / "rows.zarr/acts/resid_post.3/c.0.0").is_file()
    assert np.isnan(store[SITE].read(0, 24, missing="nan")).all()
    by_zarr = zarr.open_group(full / "rows.zarr", mode="r")[f"acts/{SITE}"][:24]
    np.testing.assert_array_equal(by_zarr, known_rows)  # whole, so no foreign reader is misled


def test_a_broken_file_of_a_unit_that_is_not_committed_is_never_looked_at(known, full, path):
    shard = full / "rows.zarr/acts/resid_post.3/c.1.0"
    shard.write_bytes(bytes(len(shard.read_bytes())))
    with Lease.acquire(locate(full)) as lease:
        lease.ledger.revoke([(SITE, 1)])
    expected = known.acts[SITE].copy()
    expected[24:48] = np.nan
    store = open_store(full, path=path)

    np.testing.assert_array_equal(store[SITE].read(0, 250, missing="nan"), expected)
    np.testing.assert_array_equal(store[SITE].take(range(250), missing="nan"), expected)


@pytest.mark.parametrize("excluded", [False, True, None])
@pytest.mark.parametrize("split", [None, "train", "test"])
def test_moments_equal_numpys_on_the_rows(known, full, split, excluded):
    rows = np.ones(known.rows, bool)
    if split is not None:
        rows &= known.split == split
    if excluded is not None:
        rows &= known.excluded == excluded
    values = known.acts[SITE][rows].astype(np.float64)

    moments = open_store(full).moments(SITE, split=split, excluded=excluded)

    assert moments.count == rows.sum() > 10
    np.testing.assert_allclose(moments.mean, values.mean(axis=0), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(moments.variance, values.var(axis=0), rtol=1e-12)
    assert moments.mean_norm == pytest.approx(np.linalg.norm(values, axis=1).mean(), rel=1e-12)


def test_the_default_exclusion_is_position_0_and_special_ids(known, full):
    store = open_store(full)

    from actlake.storage import Extent

    np.testing.assert_array_equal(store.excluded(Extent(0, known.rows)), known.excluded)
    np.testing.assert_array_equal(store.excluded(Extent(70, 99)), known.excluded[70:99])


def test_resid_pre_opens_what_is_stored_as_the_resid_post_before_it(known, full):
    store = open_store(full)

    np.testing.assert_array_equal(store["resid_pre.4"][:], known.acts[SITE])
    assert "resid_pre.4" in store
    assert "resid_pre.0" not in store


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([250], "There is no row 250; acts/resid_post.3 has 250 rows"),
        ([3, -1], "There is no row -1"),
        ([0.5], "one-dimensional array of integers, not 1-dimensional float64"),
        ([[1]], "not 2-dimensional"),
    ],
)
def test_rows_that_do_not_exist_are_refused(full, rows, words, path):
    with pytest.raises(RowsOutOfRange, match=words):
        open_store(full, path=path)[SITE].take(rows)


def test_indexing_works_as_on_numpy(known, full, path):
    array = open_store(full, path=path)[SITE]
    expected = known.acts[SITE]

    for key in (
        5,
        -1,
        slice(20, 60),
        slice(10, 90, 7),
        slice(30, 5),
        [3, 3, 200],
        (slice(0, 9), 2),
    ):
        np.testing.assert_array_equal(array[key], expected[key])
    np.testing.assert_array_equal(array[expected[:, 0] > 1], expected[expected[:, 0] > 1])
    assert array.shape == expected.shape
    assert array.take([]).shape == (0, 6)


def test_an_unknown_site_names_the_nearest_one(full):
    with pytest.raises(SiteNotStored, match=r"resid_post\.2[\s\S]*did you mean 'resid_post\.[03]'"):
        open_store(full)["resid_post.2"]


def test_a_path_that_is_not_a_store_says_so(tmp_path):
    with pytest.raises(StoreNotFound, match=r"no activation store at .*nowhere.*\n.*hint"):
        open_store(tmp_path / "nowhere")


def test_documents_are_plain_parquet(known, full):
    table = pq.read_table(full / "documents.parquet")

    assert table["text"].to_pylist()[3] == "text of 3"
    assert table["split"].to_pylist() == [d.split for d in known.documents]


def test_the_summary_says_what_is_there(full):
    text = repr(open_store(full))

    assert "resid_post.3" in text
    assert "11 of 11 units committed" in text
    assert "250 tokens" in text
    assert "<table>" in open_store(full)._repr_html_()


def test_mapped_files_keep_no_handle_open(full, path):
    store = open_store(full, path=path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    rows = store[SITE][:]

    assert len(rows) == 250
    assert len(list(Path("/proc/self/fd").iterdir())) == before
