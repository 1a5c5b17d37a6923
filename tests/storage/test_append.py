"""A finished store takes a further corpus: no old file changes, all readers know of the gap."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from plain_reader import PlainReader

from actlake.storage import (
    ActlakeError,
    Extent,
    Lease,
    Provenance,
    Site,
    add_sites,
    export_store,
    open_store,
    open_stores,
    verify,
)
from actlake.storage.append import append_corpus, next_gap
from actlake.storage.errors import (
    InvalidSchema,
    RowsNotCommitted,
    RowsOutOfRange,
    StateMismatch,
    StoreExists,
    StoreMismatch,
)
from actlake.storage.location import locate
from actlake.storage.release import release_units
from actlake.storage.repair import own_rows, restore_metadata, restore_shards
from actlake.storage.schema import Geometry, StoreSchema

SITES = (Site(0), Site(3))
SITE = Site(3)
# 250 rows in units of 24 and token shards of 64: the next shard is at 256, the next unit at 264.
BEGINS = 264


@pytest.fixture
def later(make_known):
    """What is appended, in plain arrays."""
    return make_known(rows=130, seed=1, called="later")


@pytest.fixture
def addition(later, tmp_path):
    later.build(tmp_path / "addition")
    return open_store(tmp_path / "addition")


def append(folder, addition):
    with Lease.acquire(locate(folder)) as lease:
        return append_corpus(lease, addition)


def fill(folder, later, sites=SITES):
    """Write the units of the appended rows; as a harvest."""
    with Lease.acquire(locate(folder)) as lease:
        store = open_store(folder)
        for unit in store.schema.units.without(store.committed(sites)):
            rows = store.schema.unit_extent(unit)
            own = Extent(rows.start - BEGINS, rows.stop - BEGINS).slice()
            write(lease, store, unit, {site: later.acts[site][own] for site in sites})


def write(lease, store, unit, rows):
    from actlake.storage.writer import write_unit

    lease.ledger.commit(write_unit(store, unit, rows, token=lease.token))


@pytest.fixture
def appended(full, addition, later):
    append(full, addition)
    fill(full, later)
    return full


def files_of(folder):
    """What two equal stores have in common."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).parts[0] not in ("ledger", "log", "index")
    }


# What it is.


def test_plain_zarr_and_parquet_read_both_corpora_and_the_gap_between(appended, known, later):
    group = zarr.open_group(str(appended / "rows.zarr"), mode="r")

    ids = group["tokens/id"][:]
    np.testing.assert_array_equal(ids[:250], known.ids)
    np.testing.assert_array_equal(ids[BEGINS:], later.ids)
    for name in ("id", "document", "position", "char"):
        assert (group[f"tokens/{name}"][250:BEGINS] == -1).all()
        assert group[f"tokens/{name}"].shape == (BEGINS + 130,)
    np.testing.assert_array_equal(group["tokens/document"][BEGINS:], 9 + later.document)
    for site in SITES:
        rows = group[f"acts/{site}"][:]
        np.testing.assert_array_equal(rows[:250], known.acts[site])
        assert np.isnan(rows[250:BEGINS]).all()
        np.testing.assert_array_equal(rows[BEGINS:], later.acts[site])
        norms = group[f"norms/{site}"][:]
        assert np.isnan(norms[250:BEGINS]).all()
        np.testing.assert_allclose(
            norms[BEGINS:], np.linalg.norm(later.acts[site], axis=1), rtol=1e-6
        )
    first = len(known.contexts)
    begins = -(-(first + 1) // 64) * 64
    starts = group["contexts/start"][:]
    assert starts[first] == 250
    assert (starts[first + 1 : begins] == -1).all()
    lengths = [len(context) for context in later.contexts]
    np.testing.assert_array_equal(starts[begins:], BEGINS + np.cumsum([0, *lengths]))
    assert (group["contexts/split"][first:begins] == -1).all()
    old = pq.read_table(appended / "documents.parquet")
    new = pq.read_table(appended / "documents-000002.parquet")
    assert old["id"].to_pylist() == [f"doc-{n}" for n in range(9)]
    assert new["id"].to_pylist() == [f"later-{n}" for n in range(9)]


def test_a_reader_written_from_the_page_alone_reads_both_corpora(appended, known, later):
    reader = PlainReader(appended)

    assert reader.stretches("rows") == [(0, 250), (BEGINS, BEGINS + 130)]
    ids = reader.tokens("id")
    assert ids[:250].tolist() + ids[BEGINS:].tolist() == [*known.ids, *later.ids]
    assert (ids[250:BEGINS] == -1).all()
    first, second = reader.stretches("contexts")
    starts = reader.index("contexts/start", "<i8", "contexts", more=1)
    assert starts[second[0]] == BEGINS
    assert starts[[first[1], second[1]]].tolist() == [250, BEGINS + 130]
    for site in map(str, SITES):
        assert reader.coverage(site) == (17, 17, 17)
        rows = [reader.rows(site, unit) for unit in sorted(reader.covered[site])]
        expected = [known.acts[Site.parse(site)], later.acts[Site.parse(site)]]
        np.testing.assert_array_equal(np.concatenate(rows), np.concatenate(expected))
        assert [len(reader.norms(site, unit)) for unit in (10, 11)] == [10, 24]


def test_only_metadata_of_the_old_files_is_replaced(full, addition, later):
    before = files_of(full)

    append(full, addition)
    fill(full, later)

    after = files_of(full)
    changed = {key for key in before if after.get(key) != before[key]}
    assert changed
    assert all(key == "store.json" or key.endswith("/zarr.json") for key in changed)


def test_the_manifest_says_where_the_gaps_are(appended, known):
    content = json.loads((appended / "store.json").read_text())["content"]

    contexts = len(known.contexts)
    begins = -(-(contexts + 1) // 64) * 64
    assert content["schema"]["gaps"] == [{"rows": [250, BEGINS], "contexts": [contexts, begins]}]
    assert content["schema"]["rows"] == BEGINS + 130


@given(
    rows=st.integers(1, 10_000),
    contexts=st.integers(1, 3_000),
    unit_rows=st.integers(1, 400),
    token_chunk=st.integers(1, 40),
    token_chunks=st.integers(1, 9),
    new_rows=st.integers(1, 2_000),
    new_contexts=st.integers(1, 500),
)
def test_new_rows_begin_at_the_first_border_that_is_of_units_and_after_a_token_shard(
    rows, contexts, unit_rows, token_chunk, token_chunks, new_rows, new_contexts
):
    geometry = Geometry(
        unit_rows=unit_rows,
        token_chunk_rows=token_chunk,
        token_shard_rows=token_chunk * token_chunks,
    )
    schema = StoreSchema(
        rows=rows, contexts=contexts, documents=1, layout="packed", context_length=9,
        splits=("all",), special_ids=(), geometry=geometry,
    )  # fmt: skip
    gap = next_gap(schema)
    unit, shard = geometry.unit_rows, geometry.token_shard_rows

    start = next(i for i in range(rows, 10**6) if i % unit == 0 and i // shard * shard >= rows)
    assert gap.rows == Extent(rows, start)
    first = next(i for i in range(contexts + 1, 10**6) if i % shard == 0)
    assert gap.contexts == Extent(contexts, first)

    grown = replace(schema, rows=start + new_rows, contexts=first + new_contexts, gaps=(gap,))
    there = np.zeros(grown.rows, bool)
    there[:rows] = there[start:] = True
    assert grown.num_rows == rows + new_rows
    assert grown.num_contexts == contexts + new_contexts
    covered = np.zeros(grown.rows, int)
    for number in grown.units:
        extent = grown.unit_extent(number)
        assert len(extent)
        assert (there[extent.slice()]).all()
        covered[extent.slice()] += 1
    np.testing.assert_array_equal(covered, there)
    assert sum(map(len, grown.rows_of(grown.units))) == rows + new_rows
    assert [len(block) for block in grown.blocks(7)] == [
        len(block) for stretch in grown.stretches for block in stretch.rows.pieces(7)
    ]
    assert StoreSchema.from_json(json.loads(json.dumps(grown.as_json()))) == grown
    for spec in (grown.tokens()["id"], grown.context_arrays()["start"]):
        held = sum(len(spec.held_in(Extent(0, spec.shape[0]))) for _ in [0])
        assert held == 2 or gap.rows.start == gap.rows.stop


# Those who read it.


def test_no_count_has_the_gap(appended, known, later):
    store = open_store(appended)

    coverage = store.coverage(SITE)
    assert (coverage.rows, coverage.total_rows) == (380, 380)
    assert coverage.units == coverage.total_units == 11 + 6
    assert coverage.is_complete
    assert "380 tokens" in repr(store)
    assert f"{len(known.contexts) + len(later.contexts)} contexts" in repr(store)
    assert "18 documents" in repr(store)
    rows = np.concatenate([known.acts[SITE], later.acts[SITE]]).astype(np.float64)
    moments = store.moments(SITE, excluded=None)
    assert moments.count == 380
    np.testing.assert_allclose(moments.mean, rows.mean(axis=0))
    splits = np.concatenate([known.split, later.split])
    assert store.lookup.rows_per_split() == {
        "train": int((splits == "train").sum()), "test": int((splits == "test").sum())
    }  # fmt: skip
    assert store.documents(["id"])["id"].to_pylist()[8:10] == ["doc-8", "later-0"]
    assert verify(store).is_whole
    assert verify(store).missing == {}


def test_questions_find_rows_of_both_and_never_of_the_gap(appended, known, later):
    store = open_store(appended)

    ids = np.full(BEGINS + 130, -1)
    ids[:250], ids[BEGINS:] = known.ids, later.ids
    for token in range(50):
        assert store.find(token=token).rows.tolist() == np.flatnonzero(ids == token).tolist()
    row = int(store.find(document="later-3").rows[0])
    assert row >= BEGINS
    assert store.find(document="later-3").table()["document_id"].to_pylist()[0] == "later-3"
    everything = store.find(where="true").rows
    np.testing.assert_array_equal(everything, np.flatnonzero(ids >= 0))
    counted = pa.table(
        store.sql(
            "select count(*) as n, min(id) as least, count(distinct context) as c from tokens"
        )
    ).to_pylist()
    contexts = len(known.contexts) + len(later.contexts)
    assert counted == [{"n": 380, "least": int(ids[ids >= 0].min()), "c": contexts}]
    joined = pa.table(store.sql(
        "select d.id, count(*) as n from tokens join documents d using (document_number) "
        "group by d.id"
    )).to_pylist()  # fmt: skip
    names = [*(f"doc-{n}" for n in known.document), *(f"later-{n}" for n in later.document)]
    assert {line["id"]: line["n"] for line in joined} == {n: names.count(n) for n in set(names)}
    assert store.find(split="test").rows.tolist() == [
        *np.flatnonzero(known.split == "test"),
        *(BEGINS + np.flatnonzero(later.split == "test")),
    ]
    with pytest.raises(RowsOutOfRange, match=r"no row 250: .* begin again at 264\nhint:"):
        store.find(token=1) | type(store.find(token=1))(store, [3, 250])


def test_a_row_shows_itself_with_what_stands_around_it_in_its_context(appended, later):
    from actlake.storage.querying.passages import _ids_around

    store = open_store(appended)

    last, at = _ids_around(store, 249, before=40, after=40)
    first, place = _ids_around(store, BEGINS, before=40, after=40)
    assert -1 not in last
    assert place == 0
    assert first == later.contexts[0].ids.tolist()[:41]
    assert at == len(last) - 1


@pytest.mark.parametrize("path", ["mapped", "zarr"])
def test_rows_of_the_gap_are_refused_or_nan_and_their_tokens_are_minus_one(appended, later, path):
    store = open_store(appended, path=path)

    for ask in (lambda: store[SITE][250], lambda: store[SITE][:], lambda: store[SITE][255:260],
                lambda: store[SITE].take([3, 263])):  # fmt: skip
        with pytest.raises(RowsOutOfRange, match=r"has no row 2\d\d: .* appended to[\s\S]*hint:"):
            ask()
    read = store[SITE].read(240, 270, missing="nan")
    assert np.isnan(read).any(axis=1).tolist() == [False] * 10 + [True] * 14 + [False] * 6
    np.testing.assert_array_equal(read[-6:], later.acts[SITE][:6])
    taken = store[SITE].take([249, 250, 263, 264], missing="nan")
    assert np.isnan(taken).any(axis=1).tolist() == [False, True, True, False]
    assert store.tokens["id"][[249, 250, 263]].tolist()[1:] == [-1, -1]
    assert (store.tokens["position"][250:264] == -1).all()
    assert store.lookup.contexts(np.array([249, 250, 263])).tolist()[1:] == [-1, -1]
    for ask in (store.contexts_of, store.splits_of):
        with pytest.raises(RowsOutOfRange, match="not all of one stretch"):
            ask(Extent(240, 270))
    with pytest.raises(RowsOutOfRange, match="not all of one stretch"):
        store.text(240, 270)
    assert "appended     130 tokens from row 264" in repr(store)


@pytest.mark.parametrize("path", ["mapped", "zarr"])
def test_batches_hold_every_row_of_both_once(appended, known, later, path):
    store = open_store(appended, path=path)
    there = [*range(250), *range(BEGINS, BEGINS + 130)]

    for shuffle in ("exact", "pool", "none"):
        batches = store.batches(SITE, 19, shuffle=shuffle, exclude=None, epochs=1, pool_rows=60)
        found = list(batches)
        rows = np.concatenate([batch.rows for batch in found])
        assert sorted(rows.tolist()) == there
        acts = np.concatenate([batch.acts for batch in found])
        np.testing.assert_array_equal(acts, store[SITE].take(rows))
    kept = store.batches(SITE, 1, split="train", epochs=1)
    of_train = [known.split == "train", later.split == "train"]
    expected = sum(
        int((of & ~k.excluded).sum()) for of, k in zip(of_train, (known, later), strict=True)
    )
    assert kept.num_rows == expected


def test_a_store_that_was_appended_to_exports_rows_of_both(appended, later, tmp_path):
    store = open_store(appended)

    copy = export_store(store, str(tmp_path / "copy"), splits="test").store

    rows = store.find(split="test").rows
    np.testing.assert_array_equal(copy[SITE][:], store[SITE].take(rows))
    assert copy.documents(["id"])["id"].to_pylist()[-1].startswith("later-")
    assert verify(copy).is_whole


def test_an_export_that_was_begun_before_goes_on_with_the_rows_it_began_with(
    full, addition, later, tmp_path, caplog
):
    undisturbed = export_store(open_store(full), str(tmp_path / "undisturbed")).store
    killed = str(tmp_path / "killed")

    def die(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_store(open_store(full), killed, progress=die)
    append(full, addition)
    fill(full, later)

    copy = export_store(open_store(full), killed).store

    assert files_of(tmp_path / "killed") == files_of(tmp_path / "undisturbed")
    assert copy.fingerprint == undisturbed.fingerprint
    assert "has 130 rows more than when the export to" in caplog.text


def test_labels_stay_and_those_of_new_rows_can_be_attached(full, addition, later):
    store = open_store(full)
    store.attach_labels("mood", {"document": ["doc-1"], "mood": ["good"]}, key="document")
    found = store.find(where="mood.mood = 'good'").rows

    append(full, addition)
    fill(full, later)

    store = open_store(full)
    assert store.find(where="mood.mood = 'good'").rows.tolist() == found.tolist()
    store.attach_labels("row", {"row": [BEGINS], "x": [1]}, key="row")
    assert store.find(where="row.x = 1").rows.tolist() == [BEGINS]
    refused = pytest.raises(ActlakeError, match="1 out of range")
    with refused:
        store.attach_labels("gap", {"row": [251], "x": [1]}, key="row")


def test_several_stores_of_which_one_was_appended_to_are_read_as_one(
    appended, make_known, later, tmp_path
):
    third = make_known(rows=40, seed=5, called="third")
    third.build(tmp_path / "third")
    third.fill(tmp_path / "third")
    both = open_stores([appended, tmp_path / "third"])

    rows = both.find(where="true").rows
    assert len(rows) == 420
    batches = both.batches(SITE, 7, exclude=None, epochs=1)
    assert sorted(r for b in batches for r in b.rows.tolist()) == rows.tolist()
    assert pa.table(both.sql("select count(*) as n from tokens")).to_pylist() == [{"n": 420}]


# Sites, repair, release.


def test_a_site_is_added_to_all_rows_that_there_are(appended, known, later):
    new = Site(5)
    rows = np.zeros((BEGINS + 130, 6), np.float32)
    with Lease.acquire(locate(appended)) as lease:
        store = open_store(appended)
        add_sites(lease, store, {new: known.rows_are}, {})
        for unit in store.schema.units:
            write(lease, store, unit, {new: rows[store.schema.unit_extent(unit).slice()]})

    store = open_store(appended)
    assert store.coverage(new).is_complete
    assert store.coverage(new).rows == 380
    assert verify(store).is_whole


def test_a_damaged_unit_of_either_corpus_is_found_and_repaired(appended):
    whole = files_of(appended)
    units = [10, 11 + 3]
    for unit in units:
        path = appended / f"moments/{SITE}/1/0/{unit}.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    (appended / "rows.zarr/tokens/id/zarr.json").unlink()

    store = open_store(appended)
    report = verify(store)
    assert sorted(damage.record.unit for damage in report.damaged) == units
    with Lease.acquire(locate(appended)) as lease:
        assert restore_metadata(lease) == 1
        records = [damage.record for damage in report.damaged]
        assert restore_shards(lease, store, records, own_rows(store)) == {}
    assert files_of(appended) == whole


def test_a_changed_token_of_the_second_corpus_is_found(appended):
    path = appended / "rows.zarr/tokens/id/c.4"
    path.write_bytes(path.read_bytes()[:-1] + b"x")

    (problem,) = verify(open_store(appended)).problems
    assert "tokens/id/c.4 fails its CRC32C" in str(problem)


def test_appended_units_are_released_like_others(appended, later):
    with Lease.acquire(locate(appended)) as lease:
        release_units(lease, open_store(appended), {SITE: [12]})

    store = open_store(appended)
    assert verify(store).is_whole
    assert store.coverage(SITE).rows == 380 - 24
    assert 12 * 24 not in store.batches(SITE, 1, exclude=None, shuffle="none").selected.select(
        np.arange(356)
    )


# Those who opened it before.


def test_who_opened_the_store_before_keeps_what_it_was(full, addition, later):
    before = open_store(full)
    fingerprint, text = before.fingerprint, repr(before)

    append(full, addition)
    assert before.refresh().fingerprint == fingerprint
    assert repr(before) == text
    fill(full, later)

    before.refresh()
    assert repr(before) == text
    assert before.coverage(SITE).is_complete
    assert len(before) == 250
    assert before.batches(SITE, 5, exclude=None).num_rows == 250
    assert verify(before).is_whole
    assert verify(before).shards == 2 * 11
    assert before.documents(["id"]).num_rows == 9
    now = open_store(full)
    assert now.fingerprint != fingerprint
    assert now.as_of(fingerprint).fingerprint == fingerprint
    assert now.as_of("0" * 64) is None


def test_a_reader_goes_on_over_the_rows_it_began_with_and_says_that_there_are_more(
    full, addition, later, caplog
):
    begun = open_store(full).batches(SITE, 16, seed=3, epochs=2)
    first = [next(begun).rows.tolist() for _ in range(4)]
    state = json.loads(json.dumps(begun.state_dict()))
    rest = [batch.rows.tolist() for batch in begun]

    append(full, addition)
    fill(full, later)

    resumed = open_store(full).batches(SITE, 16, seed=3, epochs=2, state=state)
    assert [batch.rows.tolist() for batch in resumed] == rest
    assert first
    assert re.search(
        r"has 130 rows more than when .* began[\s\S]*hint: begin without a state", caplog.text
    )
    assert resumed.state_dict()["stores"] == state["stores"]
    other = dict(state, stores=[state["stores"][0] | {"fingerprint": "f" * 64}])
    with pytest.raises(StateMismatch, match="fingerprint"):
        open_store(full).batches(SITE, 16, seed=3, epochs=2, state=other)


# What is refused, before anything has changed.


def refused(folder, addition, kind, words):
    before = files_of(folder)
    with pytest.raises(kind, match=words):
        append(folder, addition)
    assert files_of(folder) == before
    assert len(open_store(folder).ledger.corpora) == 1


def test_an_unfinished_store_is_not_appended_to(known, folder, addition):
    known.build(folder)
    known.fill(folder, skip=(4,))

    refused(
        folder, addition, RowsNotCommitted, r"not finished, .* 10 of 11 units[\s\S]*hint: finish"
    )


def test_a_corpus_that_is_there_already_is_not_appended(full, known, tmp_path):
    known.build(tmp_path / "same")
    refused(full, open_store(tmp_path / "same"), StoreExists, "in .* already: its first corpus")


def test_documents_that_are_there_already_are_named(full, make_known, tmp_path):
    other = make_known(rows=60, seed=4)
    other.build(tmp_path / "other")
    refused(
        full, open_store(tmp_path / "other"), StoreExists, "9 of 9 documents have ids .*'doc-0'"
    )


def test_another_model_or_layout_is_named(full, make_known, tmp_path):
    other = make_known(rows=60, seed=4, called="other")
    other.build(tmp_path / "packed", layout="packed")
    refused(
        full, open_store(tmp_path / "packed"), StoreMismatch, 'layout: stored "documents", asked'
    )


def test_a_column_of_another_type_is_named(full, make_known, tmp_path):
    other = make_known(rows=60, seed=4, called="other")
    other.documents = [replace(d, columns={"n": "nine"}) for d in other.documents]
    other.build(tmp_path / "typed")
    refused(full, open_store(tmp_path / "typed"), InvalidSchema, "column 'n' is int64 .* string")


def test_an_export_is_not_appended_to(full, addition, tmp_path):
    export_store(open_store(full), str(tmp_path / "copy"), sites=SITE)
    refused(tmp_path / "copy", addition, StoreMismatch, "is an export[\\s\\S]*hint: append to")


def test_new_columns_of_documents_are_null_in_the_others(full, make_known, tmp_path):
    other = make_known(rows=60, seed=4, called="other")
    other.documents = [replace(d, columns={"tone": "dry"}) for d in other.documents]
    other.build(tmp_path / "toned")
    append(full, open_store(tmp_path / "toned"))

    store = open_store(full)
    table = store.documents(["tone", "n"])
    assert table["tone"].to_pylist() == [None] * 9 + ["dry"] * 9
    assert table["n"].to_pylist() == [*range(9)] + [None] * 9
    assert pa.table(
        store.sql("select count(tone) as t, count(n) as n from documents")
    ).to_pylist() == [{"t": 9, "n": 9}]


# Again and again.


def test_a_store_is_appended_to_twice(appended, make_known, later, tmp_path):
    third = make_known(rows=50, seed=6, called="third")
    third.build(tmp_path / "third")
    append(appended, open_store(tmp_path / "third"))

    store = open_store(appended)
    assert [len(s.rows) for s in store.schema.stretches] == [250, 130, 50]
    assert store.coverage(SITE).rows == 380
    assert not store.coverage(SITE).is_complete
    assert verify(store).is_whole
    begins = store.schema.stretches[2].rows.start
    np.testing.assert_array_equal(store.tokens["id"][begins:], third.ids)
    assert store.documents(["id"])["id"].to_pylist()[18:] == [f"third-{n}" for n in range(9)]


def test_a_lost_or_older_manifest_is_made_again_after_an_append(full, addition, later):
    older = files_of(full)
    append(full, addition)
    newer = files_of(full)
    for key, data in older.items():  # as after a driver that was killed right after its entry
        (full / key).write_bytes(data)

    assert verify(open_store(full)).is_whole
    Lease.acquire(locate(full)).release()
    assert files_of(full) == newer


def test_what_a_killed_append_has_left_does_not_stand_in_the_way(
    full, addition, make_known, tmp_path
):
    other = make_known(rows=170, seed=9, called="other")
    other.build(tmp_path / "other")
    clean = tmp_path / "clean"
    shutil.copytree(full, clean)
    append(clean, addition)
    with pytest.raises(KeyboardInterrupt):
        die_before_the_entry(full, open_store(tmp_path / "other"))

    append(full, addition)

    assert files_of(full) == files_of(clean)


def die_before_the_entry(folder, addition):
    with Lease.acquire(locate(folder)) as lease:

        def die(entry):
            raise KeyboardInterrupt

        lease.ledger.append = die
        append_corpus(lease, addition)


def test_provenance_of_each_corpus_is_kept(appended):
    assert [corpus.provenance for corpus in open_store(appended).ledger.corpora] == [
        Provenance(model={"name": "none", "revision": "0"})
    ] * 2
