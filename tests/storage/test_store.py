"""What was written is what is read, by us and by every other reader of Zarr."""

import multiprocessing
import operator
import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorstore
import xarray
import zarr

from actlake.storage import Lease, Site, open_store, write_unit
from actlake.storage.dtypes import ACTIVATION_DTYPES, numpy_dtype
from actlake.storage.errors import (
    InvalidSite,
    RowsNotCommitted,
    RowsOutOfRange,
    SiteNotStored,
    StoreError,
    StoreNotFound,
    UnknownSplit,
    nearest,
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
    assert store[SITE].dtype == numpy_dtype("float32" if dtype == "int8" else dtype)
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

    def by_zarr(name):
        return zarr.open_group(folder / "rows.zarr", mode="r")[name][:]

    def by_tensorstore(name):
        place = {"driver": "file", "path": str(folder / "rows.zarr" / name)}
        array = tensorstore.open({"driver": "zarr3", "kvstore": place}, read=True).result()
        return array.read().result()

    def rows(read):
        values = as_float(read(f"acts/{SITE}"))
        if dtype != "int8":
            return values
        return values * np.repeat(as_float(read(f"scales/{SITE}")), 64, axis=1)[:, : known.dim]

    ours = open_store(folder)[SITE]

    assert ours.path == ("mapped" if compression == "none" else "ranges")
    for values in (rows(by_zarr), rows(by_tensorstore), ours[:]):
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
    for path in (full / "ledger").glob("*.json"):
        if '"units"' in path.read_text():
            path.unlink()  # as in a backup of an hour before
    known.fill(full, skip=(0,))

    store = open_store(full, path=path)

    assert (full / "rows.zarr/acts/resid_post.3/c.0.0").is_file()
    assert np.isnan(store[SITE].read(0, 24, missing="nan")).all()
    by_zarr = zarr.open_group(full / "rows.zarr", mode="r")[f"acts/{SITE}"][:24]
    np.testing.assert_array_equal(by_zarr, known_rows)  # whole, so no foreign reader is misled


def test_a_broken_file_of_a_unit_that_is_not_committed_is_never_looked_at(known, folder, path):
    known.build(folder)
    known.fill(folder, skip=(1,))
    whole = folder / "rows.zarr/acts/resid_post.3/c.0.0"
    whole.with_name("c.1.0").write_bytes(bytes(len(whole.read_bytes())))
    expected = known.acts[SITE].copy()
    expected[24:48] = np.nan
    store = open_store(folder, path=path)

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


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int8"])
def test_norms_are_of_the_rows_as_they_are_stored(make_known, folder, path, dtype):
    known = make_known(dtype=dtype)
    known.build(folder)
    known.fill(folder, skip=(3,))
    norms = open_store(folder, path=path).norms(SITE)
    expected = np.linalg.norm(known.acts[SITE].astype(np.float64), axis=1)
    expected[72:96] = np.nan

    assert (norms.shape, norms.dtype) == ((250,), np.float32)
    np.testing.assert_allclose(norms.read(0, 250, missing="nan"), expected, rtol=1e-7)
    with pytest.raises(RowsNotCommitted, match=r"norms/resid_post.3: unit 3 not committed"):
        norms[80]


def test_a_norm_that_float32_does_not_hold_is_infinite(known, folder):
    known.acts[SITE][5] = 3e38
    known.build(folder)
    known.fill(folder)

    norms = open_store(folder).norms(SITE)
    assert norms[5] == np.inf
    assert np.isfinite(norms[6:]).all()


@pytest.mark.parametrize("unit", [4, 11, -1])
def test_moments_of_a_unit_that_is_not_committed_are_refused_though_its_files_are_there(
    known, folder, unit
):
    known.build(folder)
    known.fill(folder, skip=(4,))
    store = open_store(folder)
    rows = known.acts[SITE][store.schema.unit_extent(4).slice()]
    with Lease.acquire(locate(folder)) as lease:
        write_unit(store, 4, {SITE: rows}, token=lease.token)  # and dies before the commit

    words = rf"Unit {unit} of resid_post.3 is not committed .*; 10 of 11 units committed\nhint: "
    with pytest.raises(RowsNotCommitted, match=words):
        store.moments(SITE, units=[0, unit])
    assert store.moments(SITE, units=[0, 10]).count > 0


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


@pytest.mark.parametrize("name", ["foo", "", "resid_pst.3", "resid_post.7", 3, None])
def test_what_is_no_stored_site_is_not_in_the_store(full, name):
    assert name not in open_store(full)


@pytest.mark.parametrize("name", ["Foo", "resid_post.x y", 3, None])
def test_a_name_that_is_no_sites_is_refused_as_every_error_of_a_store(full, name):
    with pytest.raises(StoreError, match=r"Cannot read the site .*\nhint: ") as refused:
        open_store(full)[name]
    assert refused.type is InvalidSite


@pytest.mark.parametrize(
    ("name", "near"),
    [("resid_pst.3", "did you mean 'resid_post.3'"), ("foo", "there is resid_post.0, resid_post")],
)
def test_a_site_that_is_not_stored_is_refused_with_the_nearest(full, name, near):
    with pytest.raises(SiteNotStored, match=rf"No activations of {name} in .*\nhint: {near}"):
        open_store(full)[name]


@pytest.mark.parametrize("split", ["tst", 3, None, ["test"]])
def test_an_unknown_split_is_refused_with_the_splits_there_are(full, split):
    store = open_store(full)

    with pytest.raises(UnknownSplit, match=r"no split .* in .*\nhint: .*test"):
        store.split_code(split)


def test_moments_of_an_unknown_split_are_refused_with_the_nearest(full):
    with pytest.raises(UnknownSplit, match=r"no split 'tst' in .*\nhint: did you mean 'test'"):
        open_store(full).moments(SITE, split="tst")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        (None, "hint: did you mean 'none'?"),
        (3, "hint: there is exact, none, None"),
        (b"exact", "hint: did you mean 'exact'?"),
        ([], "hint: there is exact, none, None"),
    ],
)
def test_a_hint_is_given_for_a_value_of_any_type(name, hint):
    known = ["exact", "none"] if name is None else ["exact", "none", None]

    assert nearest(name, known) == hint


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([250], "There is no row 250; there are 250 in acts/resid_post.3"),
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


@pytest.mark.parametrize("name", ["r[/x]", "r[bold]x", "r:100:"])
def test_a_path_is_shown_as_it_is(known, tmp_path, name):
    known.build(tmp_path / name)

    assert repr(open_store(tmp_path / name)).startswith(f"Activation store {tmp_path / name}\n")


def test_what_a_model_is_called_is_shown_as_it_is(full):
    store = open_store(full)
    store.provenance.model["name"] = "[red]gpt2[/]"

    assert "[red]gpt2[/]" in repr(store)


@pytest.mark.parametrize("pick", [lambda store: store[SITE], lambda store: store.tokens["id"]])
def test_another_process_reads_what_it_is_sent(full, pick, path):
    store = open_store(full, path=path)
    array = pick(store)
    expected = array[20:60]

    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        read = process.submit(operator.getitem, array, slice(20, 60)).result()

    np.testing.assert_array_equal(read, expected)


def test_a_pickled_store_reads_what_was_committed_when_it_was_opened(known, folder, path):
    known.build(folder)
    known.fill(folder, skip=(4,))
    store = open_store(folder, path=path)
    rows, ids = store[SITE].read(0, known.rows, missing="nan"), store.lookup.document_ids
    sent = pickle.dumps(store)
    known.fill(folder, skip=tuple(unit for unit in range(11) if unit != 4))

    other = pickle.loads(sent)

    assert other[SITE].path == path
    np.testing.assert_array_equal(other[SITE].read(0, known.rows, missing="nan"), rows)
    np.testing.assert_array_equal(other.lookup.document_ids, ids)
    with pytest.raises(RowsNotCommitted, match="unit 4 not committed"):
        other[SITE][:]
    np.testing.assert_array_equal(other.refresh()[SITE][:], known.acts[SITE])


def test_a_pickled_array_holds_no_rows(make_known, folder):
    known = make_known(dim=4000, rows=48)
    known.build(folder)
    known.fill(folder)
    array = open_store(folder)[SITE]
    num_bytes = array[:].nbytes

    assert len(pickle.dumps(array)) < num_bytes / 20


def test_a_place_in_a_bucket_is_pickled_without_its_clients(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    sent = pickle.dumps(locate("s3://bucket/prefix"))

    assert pickle.loads(sent).url == "s3://bucket/prefix"
    assert b"S3Store" not in sent
    assert b"a-secret" not in sent


def test_mapped_files_keep_no_handle_open(full, path):
    store = open_store(full, path=path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    rows = store[SITE][:]

    assert len(rows) == 250
    assert len(list(Path("/proc/self/fd").iterdir())) == before
