"""A builder copies what it is given, holds little of it, and leaves nothing lying about."""

import functools
import operator
import sys
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from actlake.storage import (
    Geometry,
    Lease,
    Provenance,
    StoreBuilder,
    StoreRequest,
    open_store,
    verify,
)
from actlake.storage.corpus import Context, Document
from actlake.storage.extents import UnitSet
from actlake.storage.location import locate
from actlake.storage.reading.many import ManyStores
from actlake.storage.reading.predicates import Predicate
from actlake.storage.reading.selection import RowFilter, select_rows


def test_contexts_in_a_buffer_that_is_used_again_are_stored_as_they_were_given(folder):
    request = StoreRequest(layout="documents", context_length=4, splits=("train",))
    ids, characters = np.empty(4, np.int32), np.empty(4, np.int32)
    columns = {"tags": ["first"]}
    with (
        Lease.acquire(locate(folder)) as lease,
        StoreBuilder(lease, request, Provenance(model={"name": "none"})) as builder,
    ):
        for number in range(4):
            columns["tags"][0] = f"tag {number}"
            document = builder.add_document(Document(str(number), "made", "train", None, columns))
            ids[:] = range(4 * number, 4 * number + 4)
            characters[:] = 100 * number
            builder.add_context(Context(ids, np.full(4, document), characters, "train"))
        ids[:] = -7
        builder.finish(lambda rows: Geometry(unit_rows=4))

    store = open_store(folder)
    assert store.tokens["id"][:].tolist() == list(range(16))
    assert store.tokens["char"][:].tolist() == [0] * 4 + [100] * 4 + [200] * 4 + [300] * 4
    tags = store.documents(["tags"])["tags"].to_pylist()
    assert tags == [["tag 0"], ["tag 1"], ["tag 2"], ["tag 3"]]
    assert verify(store).is_whole


REQUEST = StoreRequest(layout="documents", context_length=512, splits=("train",))


def lay_down(lease, texts, *, finish=True):
    """A store of one context of 512 tokens a document."""
    with StoreBuilder(lease, REQUEST, Provenance(model={"name": "none"})) as builder:
        for number, text in enumerate(texts):
            builder.add_document(Document(str(number), "made", "train", text))
            ids = np.arange(512, dtype=np.int32)
            builder.add_context(Context(ids, np.full(512, number), ids, "train"))
        if finish:
            builder.finish(lambda rows: Geometry(unit_rows=512))
        return [path.name for path in (lease.location.root / "partial").rglob("documents-*")]


def long_texts(count):
    """A megabyte of noise each, which no compression makes smaller."""
    noise = np.random.default_rng(0)
    return (noise.bytes(500_000).hex() for _ in range(count))


def test_documents_wait_beside_the_store_and_nowhere_else(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "full disk"))
    monkeypatch.setattr("actlake.storage.document_spool._DOCUMENTS_AT_ONCE", 1)

    with Lease.acquire(locate(folder)) as lease:
        waiting = lay_down(lease, ["some", "text"])

        assert len(waiting) >= 2
        assert not list(folder.rglob("documents-*"))
    assert open_store(folder).documents(["text"])["text"].to_pylist() == ["some", "text"]


def test_what_a_killed_builder_left_of_its_documents_is_removed_by_the_next_driver(
    folder, monkeypatch
):
    monkeypatch.setattr("actlake.storage.document_spool._DOCUMENTS_AT_ONCE", 1)
    monkeypatch.setattr("actlake.storage.document_spool.DocumentSpool.close", lambda self: None)
    lease = Lease.acquire(locate(folder))
    assert lay_down(lease, ["some", "text"], finish=False)

    Lease.acquire(locate(folder), give_up_s=0).release()

    assert not list(folder.rglob("documents-*"))


def test_documents_are_kept_in_pieces_of_few_bytes_however_few_they_are(folder, monkeypatch):
    monkeypatch.setattr("actlake.storage.document_spool._BYTES_AT_ONCE", 2**21)

    with Lease.acquire(locate(folder)) as lease:
        tracemalloc.start()
        lay_down(lease, long_texts(16))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    assert peak < 12 * 2**20  # of 16 MB of text; a text is copied to be hashed and to be spooled
    groups = pq.read_metadata(folder / "documents.parquet")
    assert groups.num_row_groups == 6


def test_verify_holds_a_piece_of_a_file_and_never_the_whole(folder, monkeypatch):
    monkeypatch.setattr(sys.modules[verify.__module__], "_BYTES_AT_ONCE", 2**18)
    with Lease.acquire(locate(folder)) as lease:
        lay_down(lease, long_texts(12))
    store = open_store(folder)
    size = (folder / "documents.parquet").stat().st_size

    tracemalloc.start()
    report = verify(store)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert report.is_whole
    assert report.num_bytes > size > 5 * 2**20
    assert peak < 2**21


@pytest.mark.parametrize("as_function", [True, False])
def test_a_predicate_on_the_text_holds_the_texts_of_few_documents(folder, monkeypatch, as_function):
    monkeypatch.setattr("actlake.storage.document_spool._BYTES_AT_ONCE", 2**20)
    monkeypatch.setattr("actlake.storage.reading.selection._ROWS_AT_ONCE", 1024)
    texts = [f"{number:04d} {text}" for number, text in enumerate(long_texts(16))]
    with Lease.acquire(locate(folder)) as lease:
        lay_down(lease, texts)
    store = ManyStores([open_store(folder)])
    pool = pa.default_memory_pool()
    expected = [row for row in range(16 * 512) if row // 512 % 2]

    def growth():
        """Most bytes that Arrow's pool, which is the whole process's, held more than before."""
        before, seen = pool.bytes_allocated(), []

        def odd(rows):
            seen.append(pool.bytes_allocated() - before)
            return np.array([int(text[3]) % 2 == 1 for text in rows["text"]])

        ends = [pc.starts_with(pc.field("text"), f"{n:04d}") for n in range(1, 16, 2)]
        predicate = Predicate(odd if as_function else functools.reduce(operator.or_, ends))
        only = RowFilter(exclude=None, where=predicate)
        rows = select_rows(store, [UnitSet([(0, 16)])], only)
        assert rows.select(np.arange(len(rows))).tolist() == expected
        return max([*seen, pool.bytes_allocated() - before])

    # Threads of earlier tests may allocate beside it, but hardly each time.
    least = min(growth() for _ in range(3))
    assert least < 6 * 2**20  # of 16 MB of text, two documents a block
