"""A store in a bucket is the store in a folder: the same bytes, batches, answers."""

import asyncio
import os

import numpy as np
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from actlake.storage import Lease, Site, add_sites, export_store, open_store, open_stores, verify
from actlake.storage.errors import StoreNotFound, StoreUnreachable
from actlake.storage.fence import Token
from actlake.storage.location import locate

SITE = "resid_post.3"
TOKEN = Token(1, "0" * 16)


@pytest.fixture
def remote(finished, upload, url):
    """The finished store, copied to a bucket."""
    upload(finished, url)
    return open_store(url)


@pytest.fixture
def local(finished):
    return open_store(finished)


def test_a_store_written_to_a_bucket_has_the_bytes_of_one_written_to_a_folder(
    known, url, finished, download, tree
):
    known.build(url)
    known.fill(url, skip=(2, 5))
    known.fill(url, skip=tuple(set(range(11)) - {2, 5}))

    assert verify(open_store(url)).is_whole
    assert open_store(url).coverage(SITE).is_complete
    assert tree(download(url)) == tree(finished)


def test_a_store_that_grows_is_seen_as_far_as_it_is_committed(known, url):
    with pytest.raises(StoreNotFound):
        open_store(url)
    known.build(url)
    known.fill(url, skip=(4,))

    store = open_store(url)

    assert list(store.committed().gaps(11)) == [(4, 5)]
    assert f"Activation store {url}" in repr(store).replace("\n", "")
    known.fill(url, skip=tuple(set(range(11)) - {4}))
    assert store.refresh().coverage(SITE).is_complete


@pytest.fixture
def with_words(full, upload, url):
    """A store with a tokenizer, in a folder and in a bucket."""
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(50)}, unk_token="w0"))
    (full / "tokenizer").mkdir(exist_ok=True)
    words.save(str(full / "tokenizer" / "tokenizer.json"))
    upload(full, url)
    return open_store(full), open_store(url)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_rows_are_those_of_the_folder(dtype, compression, make_known, folder, upload, url):
    known = make_known(dtype=dtype, rows=120)
    known.build(folder, compression=compression)
    known.fill(folder)
    upload(folder, url)
    local, remote = open_store(folder), open_store(url)
    rows = np.array([119, 3, 3, 70, 0, 26, 71])

    assert remote[SITE].path == "ranges"
    for ours, theirs in ((remote[SITE], local[SITE]), (remote.tokens["id"], local.tokens["id"])):
        assert ours[:].tobytes() == theirs[:].tobytes()
        assert ours[5:60].tobytes() == theirs[5:60].tobytes()
        assert ours.take(rows).tobytes() == theirs.take(rows).tobytes()
        assert ours.chunk(2).tobytes() == theirs.chunk(2).tobytes()
    assert remote.take([], SITE).shape == (0, 6)


def test_a_bucket_is_read_through_zarr_too(remote, local):
    through_zarr = open_store(remote.url, path="zarr")

    assert through_zarr[SITE].path == "zarr"
    np.testing.assert_array_equal(through_zarr[SITE][:], local[SITE][:])


@pytest.mark.parametrize("sites", [SITE, ["resid_post.0", SITE]])
def test_batches_are_those_of_the_folder_bit_for_bit(sites, remote, local):
    how = {"shuffle": "pool", "pool_rows": 100, "seed": 3, "epochs": 2, "split": "train"}

    ours = remote.batches(sites, 16, **how)
    theirs = local.batches(sites, 16, **how)

    with ours, theirs:
        for a, b in zip(ours, theirs, strict=True):
            assert a.rows.tobytes() == b.rows.tobytes()
            for site in [sites] if isinstance(sites, str) else sites:
                left, right = (x.acts if isinstance(sites, str) else x[site] for x in (a, b))
                assert left.tobytes() == right.tobytes()


def test_a_reader_goes_on_in_a_bucket_where_another_stopped_in_a_folder(remote, local):
    how = {"shuffle": "pool", "pool_rows": 100, "seed": 3}
    before = local.batches(SITE, 16, **how)
    for _ in range(5):
        next(before)

    with remote.batches(SITE, 16, state=before.state_dict(), **how) as after:
        assert next(after).rows.tobytes() == next(before).rows.tobytes()


def test_by_itself_a_bucket_is_mixed_in_a_pool(remote):
    batches = remote.batches(SITE, 16)

    assert batches.order.shuffle == "pool"
    assert batches.reason == "acts/resid_post.3 is read by ranges of bytes, chunk by chunk"


def test_a_chunk_is_one_request(remote, bucket, weather):
    store = open_store(remote.url)
    weather.seen.clear()

    with store.batches(SITE, 50, epochs=1, pool_rows=100) as batches:
        rows = sum(len(batch) for batch in batches)

    assert rows >= 200
    assert weather.count("GET", "/acts/") == len(store) // 8 + 1
    assert weather.count("HEAD") == 0


def test_statistics_are_those_of_the_folder(remote, local):
    for how in ({}, {"split": "test"}, {"excluded": None}, {"units": [1, 7]}):
        ours, theirs = (store.moments(SITE, **how) for store in (remote, local))

        assert ours.count == theirs.count
        assert ours.mean.tobytes() == theirs.mean.tobytes()
        assert ours.m2.tobytes() == theirs.m2.tobytes()


def test_questions_get_the_answers_of_the_folder(with_words, tmp_path, monkeypatch):
    local, remote = with_words
    monkeypatch.setenv("ACTLAKE_CACHE", str(tmp_path / "cache"))
    for how in (
        {"token": [7, 12]},
        {"document": "doc-3"},
        {"token": 9, "split": "train", "where": "position >= 3"},
    ):
        ours, theirs = (store.find(**how) for store in (remote, local))

        assert len(ours) > 0
        np.testing.assert_array_equal(ours.rows, theirs.rows)
        np.testing.assert_array_equal(ours.acts(SITE), theirs.acts(SITE))
    query = "select split, count(*) n, avg(t.id) m from tokens t group by split order by split"
    assert remote.sql(query).table() == local.sql(query).table()
    assert remote.documents(["id", "n"]) == local.documents(["id", "n"])


def test_an_index_is_kept_in_the_users_cache_and_made_once(
    with_words, tmp_path, monkeypatch, weather
):
    _, remote = with_words
    monkeypatch.setenv("ACTLAKE_CACHE", str(tmp_path / "cache"))
    open_store(remote.url).find(token=7)
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.index")}
    weather.seen.clear()

    open_store(remote.url).find(token=12)

    assert made
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*.index")} == made
    assert weather.count("PUT") == 0
    assert weather.count("GET", "tokens/id/") == 0


def test_labels_are_attached_in_the_bucket(remote, local):
    table = {"document": ["doc-1", "doc-4"], "mood": ["good", "bad"]}

    remote.attach_labels("mood", table, key="document")

    again = open_store(remote.url)
    assert again.labels("mood").alignment.kept == 2
    found = again.find(where="mood = 'bad'").rows
    np.testing.assert_array_equal(found, local.find(document="doc-4").rows)


def test_a_part_is_exported_from_a_bucket_to_a_bucket(remote, local, bucket, tmp_path):
    to = f"{bucket.url}/exported"

    export_store(remote, to, sites=[SITE], splits=["test"])

    export_store(local, tmp_path / "exported", sites=[SITE], splits=["test"])
    ours, theirs = open_store(to), open_store(tmp_path / "exported")
    assert verify(ours).is_whole
    assert ours.fingerprint == theirs.fingerprint
    assert ours[SITE][:].tobytes() == theirs[SITE][:].tobytes()


def test_stores_of_a_bucket_and_a_folder_are_read_as_one(remote, make_known, folder):
    other = make_known(seed=5)
    other.build(folder)
    other.fill(folder)

    both = open_stores([remote.url, folder])

    rows = np.array([0, 250, 251, 17])
    expected = np.stack([remote[SITE][0], *open_store(folder)[SITE][:2], remote[SITE][17]])
    np.testing.assert_array_equal(both.take(rows, SITE), expected)


def test_a_lazy_xarray_data_set_reads_what_is_asked_for(remote, local):
    lazy = remote.to_xarray()

    values = lazy[SITE].isel(row=slice(30, 50)).values

    np.testing.assert_array_equal(values, local[SITE][30:50])


def test_a_store_is_opened_where_an_event_loop_runs_as_in_notebooks(remote, local):
    async def cell():
        store = open_store(remote.url)
        return store[SITE][:10], repr(store), store._repr_html_()

    rows, text, page = asyncio.run(cell())

    np.testing.assert_array_equal(rows, local[SITE][:10])
    assert remote.url in text
    assert "complete" in page


@pytest.mark.parametrize(
    "deed",
    [
        lambda store: open_store(store.url),
        lambda store: store[SITE][:3],
        lambda store: store[SITE][:],
        lambda store: store[SITE].take([0, 100, 200]),
        lambda store: store.location.read_all(["store.json"] * 9),
        lambda store: store.location.writer(TOKEN).ensure_all([("a", [b"a"]), ("b", [b"b"])]),
        lambda store: pq.read_table(store.location.file("documents.parquet")),
    ],
    ids=["open", "a chunk", "chunks", "rows", "files", "writes", "a seekable file"],
)
def test_a_forked_process_is_refused_since_its_threads_stayed_behind(remote, deed, in_a_fork):
    remote[SITE][:]  # many chunks at once, so that all pools of this process have threads
    remote.location.read_all(["store.json"] * 9)

    answer = in_a_fork(lambda: deed(remote))

    assert isinstance(answer, StoreUnreachable)
    assert "hint: start workers by spawning" in str(answer)


def test_a_ledger_of_many_entries_is_merged_and_read(known, url, monkeypatch):
    known.build(url)
    with Lease.acquire(locate(url)) as lease:
        monkeypatch.setattr(lease.ledger, "_fan_out", 4)
        store = open_store(url)
        add_sites(lease, store, dict.fromkeys((Site(0), Site(3)), known.rows_are), {})
        store.refresh()
        for unit in range(store.schema.num_units):
            known.write(lease, store, unit)
        lease.ledger.merge_all()

    store = open_store(url)
    assert store.coverage(SITE).is_complete
    assert len([key for key in locate(url).list("ledger") if key.endswith(".json")]) == 1


def test_a_killed_export_goes_on_where_it_stopped_and_leaves_the_bytes_of_a_local_one(
    finished, url, bucket, weather, start, wait_for, download, tree, tmp_path
):
    environment = {**bucket.environment, "AWS_ENDPOINT_URL": os.environ["AWS_ENDPOINT_URL"]}
    blocked = "resid_post.3/c.5."
    weather.decide = lambda seen: (
        weather.fault("answer", status=503)
        if seen.method == "PUT" and blocked in seen.path
        else None
    )
    driver = start("export", str(finished), url, env=environment)
    wait_for(lambda: weather.count("PUT", blocked) > 1, "unit 5 was not written")

    driver.kill()
    driver.process.communicate()
    weather.decide = None
    at_kill = list(open_store(url).committed())
    resumed = start("export", str(finished), url, env=environment)
    out = resumed.wait()

    assert at_kill == [0, 1, 2, 3, 4]
    assert resumed.process.returncode == 0, out
    export_store(open_store(finished), tmp_path / "local")
    assert tree(download(url)) == tree(tmp_path / "local")
    assert "of-the-tests" not in out
