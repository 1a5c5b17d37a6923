"""The indexes hold exactly what a scan would find, and never serve another corpus."""

import json
import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actlake.storage import open_store
from actlake.storage.errors import StoreNotWritable
from actlake.storage.location import LocalFolder
from actlake.storage.querying.token_index import DocumentRuns, TokenIndex, plan_runs, plan_tokens

token_ids = st.lists(st.integers(0, 12), min_size=1, max_size=200)


def blocks_of(values, size, dtype=np.int32):
    array = np.array(values, dtype)
    return [array[i : i + size] for i in range(0, len(array), size)]


def made(plan):
    values = np.concatenate([np.asarray(piece).astype(np.int64) for piece in plan.pieces])
    cuts = np.cumsum([length for _, length in plan.arrays.values()])
    assert cuts[-1] == len(values)
    return np.split(values, cuts[:-1])


def numbered(blocks, gap):
    """Each with its first row; before the last there are `gap` rows that are not."""
    starts = np.cumsum([0, *map(len, blocks)])
    starts[len(blocks) - 1 :] += gap
    return list(zip(starts.tolist(), blocks, strict=False))


def row_numbers(blocks):
    return [start + i for start, block in blocks for i in range(len(block))]


gaps = st.sampled_from([0, 0, 3, 100])


@given(ids=token_ids, block=st.integers(1, 50), at_once=st.integers(1, 80), gap=gaps)
def test_every_token_has_the_rows_that_a_scan_finds_whatever_fits_in_memory(
    ids, block, at_once, gap
):
    blocks = numbered(blocks_of(ids, block), gap)
    plan = plan_tokens(lambda: iter(blocks), rows_at_once=at_once)

    index = TokenIndex(*made(plan))

    rows = row_numbers(blocks)
    for token in range(14):
        expected = [row for row, other in zip(rows, ids, strict=True) if other == token]
        assert index.rows(token).tolist() == expected
        assert index.count(token) == len(expected)


@given(
    documents=st.lists(st.integers(0, 6), min_size=1, max_size=100),
    block=st.integers(1, 30),
    asked=st.lists(st.integers(0, 7), max_size=5),
    gap=gaps,
)
def test_every_document_has_the_rows_that_a_scan_finds(documents, block, asked, gap):
    blocks = numbered(blocks_of(documents, block, np.int64), gap)
    plan = plan_runs(iter(blocks), documents=8)

    runs = DocumentRuns(*made(plan))

    numbers = row_numbers(blocks)
    for document in range(8):
        expected = [row for row, d in zip(numbers, documents, strict=True) if d == document]
        assert runs.rows(document).tolist() == expected
    which, rows = runs.rows_of_each(np.array(asked, np.int64))
    expected = [(i, row) for i, d in enumerate(asked) for row in runs.rows(d).tolist()]
    assert list(zip(which.tolist(), rows.tolist(), strict=True)) == expected


def test_an_index_is_made_once_and_kept_beside_the_store(told, caplog):
    with caplog.at_level(logging.INFO):
        first = told.store().lookup.tokens.rows(int(told.ids[0]))
        again = told.store().lookup.tokens.rows(int(told.ids[0]))

    assert (told.folder / "index" / "tokens.index").is_file()
    assert [r.message.startswith("Made the index") for r in caplog.records].count(True) == 1
    np.testing.assert_array_equal(first, np.flatnonzero(told.ids == told.ids[0]))
    np.testing.assert_array_equal(first, again)
    assert not list(told.folder.rglob("*.partial"))


def test_an_index_of_another_corpus_is_made_again(make_told):
    whole, other = make_told(), make_told(cut=5)
    whole.store().lookup.tokens.rows(0)
    stale = (whole.folder / "index" / "tokens.index").read_bytes()
    (other.folder / "index").mkdir()
    (other.folder / "index" / "tokens.index").write_bytes(stale)

    for token in np.unique(other.ids):
        rows = other.store().lookup.tokens.rows(int(token))
        np.testing.assert_array_equal(rows, np.flatnonzero(other.ids == token))


@pytest.mark.parametrize("damage", [b"", b"{", b'{"format": 1}\n', b"\x00" * 500])
def test_a_file_that_is_no_index_is_made_again(told, damage):
    (told.folder / "index").mkdir()
    (told.folder / "index" / "tokens.index").write_bytes(damage)

    rows = told.store().lookup.tokens.rows(int(told.ids[3]))

    np.testing.assert_array_equal(rows, np.flatnonzero(told.ids == told.ids[3]))


def test_a_truncated_index_is_made_again(told):
    told.store().lookup.tokens.rows(0)
    path = told.folder / "index" / "tokens.index"
    path.write_bytes(path.read_bytes()[:-200])

    rows = told.store().lookup.tokens.rows(int(told.ids[-1]))

    np.testing.assert_array_equal(rows, np.flatnonzero(told.ids == told.ids[-1]))


class ReadOnly(LocalFolder):
    """As a disk that is mounted read-only."""

    def write(self, key, parts):
        raise StoreNotWritable(f"Cannot write {key}")


def test_the_index_of_a_read_only_store_lies_in_the_users_cache(told, cache, monkeypatch):
    from actlake.storage.querying import index_file

    def folders(path):
        return ReadOnly(path) if path.parent == told.folder else LocalFolder(path)

    monkeypatch.setattr(index_file, "LocalFolder", folders)

    rows = told.store().find(token=int(told.ids[2]))

    np.testing.assert_array_equal(rows.rows, np.flatnonzero(told.ids == told.ids[2]))
    assert len(list(cache.rglob("tokens.index"))) == 1
    assert not (told.folder / "index").exists()


def test_where_nothing_can_be_written_the_error_names_the_cache(told, monkeypatch):
    from actlake.storage.querying import index_file

    monkeypatch.setattr(index_file, "LocalFolder", ReadOnly)

    with pytest.raises(StoreNotWritable, match=r"no place for the index[\s\S]*ACTLAKE_CACHE"):
        told.store().find(token=1)


def test_the_index_is_no_part_of_what_the_store_is(told):
    before = told.store().fingerprint
    manifest = (told.folder / "store.json").read_bytes()

    told.store().find(token=1)
    told.store().find(document_number=0)

    assert open_store(told.folder).fingerprint == before
    assert (told.folder / "store.json").read_bytes() == manifest
    assert json.loads(manifest)["content"]["fingerprint"] == before
