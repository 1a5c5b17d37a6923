"""docs/store-format.md is enough: a store is read here by that page alone, without our code."""

import hashlib
import json

import google_crc32c
import numpy as np
import pyarrow.parquet as pq
import pytest
from plain_reader import chunk_rows_of, unsealed

from actlake.storage import Lease, open_store
from actlake.storage.location import locate


@pytest.fixture
def manifest(full):
    return unsealed(full / "store.json")


@pytest.fixture
def corpus(full):
    """The ledger's entry of what was laid down."""
    entries = map(unsealed, sorted((full / "ledger").glob("*.json")))
    (entry,) = [entry for entry in entries if entry["kind"] == "corpus"]
    return entry


@pytest.fixture
def sites(full):
    """What the ledger says of each site's rows."""
    entries = map(unsealed, sorted((full / "ledger").glob("*.json")))
    announced = [site for entry in entries for site in entry.get("sites", ())]
    return {site["name"]: site["schema"] for site in announced}


def test_rows_lie_where_the_page_says(full, known, manifest, sites):
    schema, cut = manifest["schema"], manifest["schema"]["geometry"]
    assert sites["resid_post.3"] == {"dim": 6, "dtype": "float32", "compression": "none"}
    row_bytes = sites["resid_post.3"]["dim"] * 4
    chunk_rows = chunk_rows_of(cut, row_bytes)
    chunk_bytes = chunk_rows * row_bytes
    assert chunk_rows == 8

    for row in range(schema["rows"]):
        shard, inside = divmod(row, cut["unit_rows"])
        chunk, place = divmod(inside, chunk_rows)
        data = (full / f"rows.zarr/acts/resid_post.3/c.{shard}.0").read_bytes()
        at = chunk * (chunk_bytes + 4) + place * row_bytes
        values = np.frombuffer(data[at : at + row_bytes], "<f4")
        np.testing.assert_array_equal(values, known.acts[open_store(full).sites[1]][row])


def test_norms_are_those_of_the_decoded_rows(full, known):
    for site, rows in known.acts.items():
        norms = np.linalg.norm(rows.astype(np.float64), axis=1)
        for unit in range(11):
            data = (full / f"rows.zarr/norms/{site}/c.{unit}").read_bytes()
            stored = np.frombuffer(data[: 24 * 4], "<f4")
            here = norms[24 * unit : 24 * (unit + 1)]
            np.testing.assert_allclose(stored[: len(here)], here, rtol=1e-6)
            assert np.isnan(stored[len(here) :]).all()


def test_store_json_repeats_the_ledgers_corpus(manifest, corpus):
    assert manifest == {name: corpus[name] for name in manifest}
    assert set(manifest) == {"format", "schema", "provenance", "fingerprint"}


def test_the_first_corpus_begins_at_row_0_and_is_the_whole_store(corpus):
    for what in ("rows", "contexts", "documents"):
        assert corpus[what] == [0, corpus["schema"][what]]


def test_files_have_the_sizes_and_checksums_that_the_ledgers_corpus_says(full, corpus):
    for key, expected in corpus["files"].items():
        data = (full / key).read_bytes()
        assert expected == {"bytes": len(data), "crc32c": google_crc32c.value(data)}
    of_the_corpus = {f"rows.zarr/{kind}" for kind in ("tokens", "contexts")}
    shards = {p for kind in of_the_corpus for p in (full / kind).rglob("c.*")}
    assert {str(p.relative_to(full)) for p in shards} | {"documents.parquet"} == set(
        corpus["files"]
    )


def test_the_fingerprint_is_of_the_models_revision_and_the_contents(known, manifest, corpus):
    contents = corpus["sha256"]
    lines = [
        json.dumps(
            {"id": d.id, "source": d.source, "split": d.split, "text": d.text, **d.columns},
            sort_keys=True,
        )
        for d in known.documents
    ]

    assert contents["tokens/id"] == hashlib.sha256(known.ids.astype("<i4").tobytes()).hexdigest()
    joined = "".join(f"{line}\n" for line in lines).encode()
    assert contents["documents"] == hashlib.sha256(joined).hexdigest()
    identity = {"model": {"revision": "0"}, "tokenizer": {}}
    payload = json.dumps([identity, contents], sort_keys=True).encode()
    assert manifest["provenance"]["model"] == {"name": "none", "revision": "0"}
    assert manifest["fingerprint"] == hashlib.sha256(payload).hexdigest()


def number_of(data, *, chunks, chunk_bytes, index_bytes):
    checksums = [
        data[(chunk + 1) * (chunk_bytes + 4) - 4 : (chunk + 1) * (chunk_bytes + 4)]
        for chunk in range(chunks)
    ]
    return google_crc32c.value(b"".join(checksums) + data[-index_bytes:-4])


def test_the_ledgers_table_says_of_every_shard_what_the_page_says(full, manifest):
    with Lease.acquire(locate(full)) as lease:
        lease.ledger.merge_all()
    (path,) = (full / "ledger").glob("*.json")
    entry = unsealed(path)
    (table,) = (full / "ledger").glob("*.parquet")
    data = table.read_bytes()
    assert entry["table"] == {"bytes": len(data), "crc32c": google_crc32c.value(data)}
    assert table.stem == f"{path.stem}-{google_crc32c.value(data):08x}"
    assert [entry["first"], entry["number"]] == [1, int(path.stem)]
    assert entry["covered"] == {"resid_post.0": [[0, 11]], "resid_post.3": [[0, 11]]}
    assert entry["released"] == {}

    records = pq.read_table(table).to_pylist()

    assert len(records) == 22
    for record in records:
        site, unit = record["site"], record["unit"]
        shard = (full / f"rows.zarr/acts/{site}/c.{unit}.0").read_bytes()
        rows = min(24, manifest["schema"]["rows"] - 24 * unit)
        number = number_of(shard, chunks=-(-rows // 8), chunk_bytes=8 * 6 * 4, index_bytes=52)
        assert (record["rows_bytes"], record["rows_crc32c"]) == (len(shard), number)
        of_moments = (full / f"moments/{site}/1/0/{unit}.safetensors").read_bytes()
        moments = google_crc32c.value(of_moments).to_bytes(4, "little")
        norms = (full / f"rows.zarr/norms/{site}/c.{unit}").read_bytes()
        number = number_of(norms, chunks=1, chunk_bytes=24 * 4, index_bytes=20)
        moments += number.to_bytes(4, "little")
        assert record["moments_crc32c"] == google_crc32c.value(moments)
        assert record["moments_bytes"] == len(of_moments) + len(norms)


def test_equal_shards_of_other_rows_have_other_numbers(full):
    """CRC32C of the file itself would not tell them apart."""
    paths = [full / f"rows.zarr/acts/resid_post.0/c.{unit}.0" for unit in range(5)]
    whole = {google_crc32c.value(path.read_bytes()) for path in paths}
    numbers = {
        number_of(path.read_bytes(), chunks=3, chunk_bytes=192, index_bytes=52) for path in paths
    }

    assert len(whole) == 1
    assert len(numbers) == 5
