"""A single wrong byte anywhere is found and named."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actlake.storage import Lease, Site, open_store, verify, write_unit, writer
from actlake.storage.corpus_record import CorpusRecord
from actlake.storage.errors import ActlakeError, StoreDamaged
from actlake.storage.ledger import read_shards
from actlake.storage.location import locate
from actlake.storage.verify import undersized

ONE_OF_EACH = [
    "store.json",
    "documents.parquet",
    "rows.zarr/zarr.json",
    "rows.zarr/acts/zarr.json",
    "rows.zarr/acts/resid_post.3/zarr.json",
    "rows.zarr/tokens/id/zarr.json",
    "rows.zarr/tokens/id/c.0",
    "rows.zarr/tokens/document/c.3",
    "rows.zarr/tokens/position/c.1",
    "rows.zarr/tokens/char/c.2",
    "rows.zarr/contexts/start/c.0",
    "rows.zarr/contexts/split/c.0",
    "rows.zarr/acts/resid_post.0/c.5.0",
    "rows.zarr/acts/resid_post.3/c.10.0",
    "moments/resid_post.0/1/0/4.safetensors",
    "moments/resid_post.3/1/0/10.safetensors",
    "rows.zarr/norms/resid_post.3/zarr.json",
    "rows.zarr/norms/resid_post.0/c.10",
]
_OF_UNITS = ("rows.zarr/acts/r", "moments", "rows.zarr/norms/r")
SHARDS = [name for name in ONE_OF_EACH if name.startswith(_OF_UNITS)]
SHARDS = [name for name in SHARDS if not name.endswith(".json")]


def flip(path, *, at=None):
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(len(data))
    at = int(rng.integers(0, len(data))) if at is None else at
    # In JSON a space may become another kind of space and mean the same; 0x80 is never a space.
    data[at] ^= 0x80 if path.suffix == ".json" else int(rng.integers(1, 256))
    path.write_bytes(bytes(data))


def problems(folder):
    try:
        return [str(problem) for problem in verify(open_store(folder)).problems]
    except ActlakeError as error:
        return [str(error)]


def place(name):
    """Site and unit of a shard's file."""
    parts = name.split("/")
    site, number = (1, 0) if parts[0] == "moments" else (2, 1)
    return f"{parts[site]}, unit {parts[-1].split('.')[number]}"


def array_of(name):
    """The array of a shard's file, whatever the site."""
    return Path(name.replace("resid_post.0", "SITE").replace("resid_post.3", "SITE")).parent


def test_a_whole_store_has_no_problems(full, known):
    report = verify(open_store(full))

    assert (report.is_whole, report.shards, report.missing) == (True, 22, {})
    assert report.num_bytes > 2 * known.rows * 6 * 4


def test_shards_of_every_array_are_tried_below(full):
    paths = [*(full / "rows.zarr").rglob("c.*"), *(full / "moments").rglob("*.safetensors")]
    every = {str(path.relative_to(full)) for path in paths}
    tried = {name for name in ONE_OF_EACH if "/c." in name or "safetensors" in name}

    assert tried <= every
    assert {array_of(name) for name in tried} == {array_of(name) for name in every}


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_one_flipped_byte_is_found_and_its_file_is_named(full, name):
    flip(full / name)

    found = problems(full)

    assert len(found) == 1
    assert (place(name) if name in SHARDS else Path(name).name) in found[0]


@pytest.mark.parametrize("name", SHARDS)
def test_every_byte_of_a_shard_is_covered(full, name):
    size = (full / name).stat().st_size

    for at in {0, 1, size // 2, size - 21, size - 20, size - 5, size - 1}:
        flip(full / name, at=at)
        assert [place(name) in words for words in problems(full)] == [True], at
        flip(full / name, at=at)  # the same byte, turned back
        assert problems(full) == [], at


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.parametrize("cut", ["missing", "truncated", "empty"])
def test_a_file_that_is_missing_or_cut_short_is_found(full, name, cut):
    path = full / name
    data = path.read_bytes()
    path.unlink()
    if cut != "missing":
        path.write_bytes(data[: len(data) // 2] if cut == "truncated" else b"")

    found = problems(full)

    assert len(found) == 1
    assert (place(name) if name in SHARDS else Path(name).name) in found[0]


@pytest.mark.parametrize("at", [0, 20, -20, -1])
def test_a_flipped_byte_of_the_ledger_is_found(full, at):
    entries = sorted((full / "ledger").glob("*.json"))
    flip(entries[4], at=at % entries[4].stat().st_size)

    (words,) = problems(full)

    assert entries[4].name in words


@pytest.mark.parametrize("cut", [None, 0, 500])
def test_a_damaged_table_of_the_ledger_is_found(full, cut):
    with Lease.acquire(locate(full)) as lease:
        lease.ledger.merge_all()
    (table,) = (full / "ledger").glob("*.parquet")
    if cut is None:
        table.unlink()
    else:
        flip(table, at=cut)

    (words,) = problems(full)

    assert table.name in words


def test_each_damaged_shard_is_named_once_with_what_it_must_be_again(full):
    records = {(r.site, r.unit): r for r in read_shards(locate(full), open_store(full).sites)}
    for name in SHARDS:
        flip(full / name)

    damaged = verify(open_store(full)).damaged

    assert {f"{d.record.site}, unit {d.record.unit}" for d in damaged} == set(map(place, SHARDS))
    assert len(damaged) == len(set(map(place, SHARDS)))
    for damage in damaged:
        record = damage.record
        assert record == records[record.site, record.unit]
        of_rows = f"rows.zarr/acts/{record.site}/c.{record.unit}.0" in SHARDS
        assert damage.rows_are_whole == (not of_rows)


def test_files_that_are_what_was_committed_and_contradict_each_other_are_not_called_damaged(
    known, folder
):
    known.build(folder)
    known.fill(folder, skip=(3,))
    with Lease.acquire(locate(folder)) as lease:
        store = open_store(folder)
        extent = store.schema.unit_extent(3).slice()
        rows = {site: acts[extent] for site, acts in known.acts.items()}
        records = write_unit(store, 3, rows, token=lease.token)
        lease.ledger.commit([replace(record, infinite=1) for record in records])

    report = verify(open_store(folder))

    assert report.damaged == ()
    assert {problem.kind for problem in report.problems} == {"contents"}
    assert "the ledger says 1" in str(report.problems[0])


def test_norms_that_are_not_those_of_the_rows_are_found(known, folder, monkeypatch):
    measured = writer.moments_by_group

    def wrong(*given, **how):
        moments, norms = measured(*given, **how)
        norms[7] *= 1.0001
        return moments, norms

    known.build(folder)
    with monkeypatch.context() as patched:
        patched.setattr(writer, "moments_by_group", wrong)
        known.fill(folder, skip=tuple(range(1, 11)))

    problems = verify(open_store(folder)).problems
    assert {(p.kind, p.unit) for p in problems} == {("contents", 0)}
    assert "its moments (norms) are not those of its rows" in str(problems[0])


def test_units_that_are_not_committed_are_no_problem_but_are_listed(known, folder):
    known.build(folder)
    known.fill(folder, skip=(2, 3))

    report = verify(open_store(folder))

    assert report.is_whole
    assert {str(site): list(units) for site, units in report.missing.items()} == {
        "resid_post.0": [2, 3],
        "resid_post.3": [2, 3],
    }


def test_a_resume_finds_shards_that_were_lost_or_cut_short_without_reading_them(full):
    (full / "rows.zarr/acts/resid_post.0/c.5.0").unlink()
    shard = full / "rows.zarr/acts/resid_post.3/c.10.0"
    shard.write_bytes(shard.read_bytes()[:-1])

    store = open_store(full)
    lost = [(str(record.site), record.unit) for record in undersized(store, store.sites)]

    assert sorted(lost) == [("resid_post.0", 5), ("resid_post.3", 10)]


def test_a_resume_looks_at_the_files_of_the_sites_it_is_asked_for_only(full, monkeypatch):
    store = open_store(full)
    listed, sizes = [], type(store.location).sizes
    monkeypatch.setattr(
        type(store.location),
        "sizes",
        lambda location, folder: listed.append(folder) or sizes(location, folder),
    )

    assert not list(undersized(store, [Site(3)]))
    assert [folder.rpartition("/")[2] for folder in listed] == ["resid_post.3"]


def test_rows_that_were_exchanged_with_valid_checksums_are_found(full):
    first, second = (full / f"rows.zarr/acts/resid_post.0/c.{unit}.0" for unit in (1, 2))
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)

    assert [words.split(": ")[0] for words in problems(full)] == [
        "resid_post.0, unit 1",
        "resid_post.0, unit 2",
    ]
    assert "whole, but not what was committed" in problems(full)[0]


@pytest.mark.parametrize("path", ["mapped", "zarr"])
def test_reading_a_damaged_shard_says_so_and_never_gives_fill_values(full, path):
    shard = full / "rows.zarr/acts/resid_post.3/c.2.0"
    data = shard.read_bytes()
    shard.unlink()
    with pytest.raises(StoreDamaged, match=r"resid_post.3/c.2.0 is missing[\s\S]*hint: .*verify"):
        open_store(full, path=path)["resid_post.3"][:]

    flipped = bytearray(data)
    flipped[40] ^= 1
    shard.write_bytes(bytes(flipped))
    with pytest.raises(StoreDamaged, match=r"resid_post.3/c.2.0[\s\S]*hint: .*verify"):
        open_store(full, path=path)["resid_post.3"].take([50], check=True)

    shard.write_bytes(data[:-1])
    with pytest.raises(StoreDamaged, match=r"resid_post.3/c.2.0[\s\S]*hint: .*verify"):
        open_store(full, path=path)["resid_post.3"][48:50]


def test_adding_sites_to_a_finished_store_leaves_its_bytes_untouched(known, full, tree):
    before = tree(full)
    stamps = {name: (full / name).stat().st_mtime_ns for name in before}
    added = Site(5, "mlp_out")
    known.acts[added] = known.acts[Site(3)] * 2

    known.fill(full, (added,), skip=(10,))

    after = tree(full)
    assert {name: after[name] for name in before} == before
    assert {name: (full / name).stat().st_mtime_ns for name in before} == stamps
    assert all(str(added) in name for name in set(after) - set(before))
    store = open_store(full)
    assert [str(store.coverage(site)) for site in store.sites] == [
        "11 of 11 units committed",
        "11 of 11 units committed",
        "10 of 11 units committed",
    ]
    np.testing.assert_array_equal(store[added][:200], known.acts[added][:200])


def test_a_sealed_file_may_be_reformatted_but_not_changed(full):
    path = full / "store.json"
    path.write_text(json.dumps(json.loads(path.read_text())))
    assert len(open_store(full)) == 250

    path.write_text(path.read_text().replace('"rows": 250', '"rows": 251'))
    with pytest.raises(StoreDamaged, match=r"store.json has changed since it was written: CRC32C"):
        open_store(full)


def test_values_that_are_not_those_of_the_fingerprint_are_found_though_all_checksums_fit(full):
    store = open_store(full)
    (corpus,) = store.ledger.corpora
    for name in ("tokens/id", "contexts/start"):
        other = replace(corpus, sha256={**corpus.sha256, name: "0" * 64})
        store.ledger.corpora = [other]
        (problem,) = verify(store).problems
        assert str(problem) == f"{name} does not hold the values that were laid down"


@pytest.mark.parametrize(
    "key",
    [
        "../secret",
        "/etc/hostname",
        "tokenizer/..",
        "tokenizer/../../secret",
        "rows.zarr/acts/x/c.0",
    ],
)
def test_a_ledger_that_names_a_file_beside_the_corpus_is_refused(full, key):
    (corpus,) = open_store(full).ledger.corpora
    entry = corpus.as_json()
    entry["files"][key] = {"bytes": 1, "crc32c": 0}

    with pytest.raises(StoreDamaged, match=r"names a file that is no part of one: .*\nhint:"):
        CorpusRecord.from_json(entry)
