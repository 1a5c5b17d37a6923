"""Add a corpus to a finished store, as a further stretch of its rows.

    append_corpus(lease, addition)   # `addition`: a store of the new corpus, with or without rows

The new rows begin where a unit and a shard of the token arrays begin, so that no file of the old
ones is touched; the row numbers between, and the context numbers between, are a gap: they belong
to nothing. The corpus is there with its entry in the ledger. After that the files that repeat the
ledger are replaced (`actlake.storage.metadata`), and the units of all sites are missing until a
harvest has filled them.
"""

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from actlake.storage.corpus import Document
from actlake.storage.corpus_record import CorpusRecord, FileRecord, documents_key
from actlake.storage.create import request_of, scratch_of, spooling
from actlake.storage.document_spool import DocumentSpool
from actlake.storage.errors import (
    FormatTooNew,
    InvalidSchema,
    KeyTaken,
    RowsNotCommitted,
    StoreDamaged,
    StoreExists,
    StoreMismatch,
)
from actlake.storage.extents import Extent, num_blocks
from actlake.storage.index_columns import COLUMNS, IndexColumn
from actlake.storage.lease import Lease
from actlake.storage.parent import Origin
from actlake.storage.provenance import appended_fingerprint
from actlake.storage.querying.document_table import document_batches, document_schema
from actlake.storage.resume import check_same
from actlake.storage.schema import Gap, StoreSchema
from actlake.storage.sealed import crc32c
from actlake.storage.store import ActivationStore, open_store

logger = logging.getLogger(__name__)
_ROWS_AT_ONCE = 2**20
_OWN_COLUMNS = ("id", "source", "split", "text")
MAY_DIFFER = ("sample", "max_documents", "max_tokens")
"""Fields of a corpus, beside its source, in which what is appended may differ."""


def append_corpus(lease: Lease, addition: ActivationStore) -> ActivationStore:
    """Lay the corpus of another store down after this one's; the store, opened anew.

    Killed at any moment, the store is as it was, or has all of the new corpus.

    Raises
    ------
    RowsNotCommitted, StoreMismatch, StoreExists, InvalidSchema, FormatTooNew
        As `check_addition`; nothing was changed.
    LeaseLost
        Another driver has taken over.
    """
    store = open_as_driver(lease)
    check_addition(store, addition)
    _free_strays(lease, store)
    corpus = _Laying(lease, store, addition).lay_down()
    lease.ledger.append(corpus.as_json())
    lease.write_metadata()
    logger.info(
        "Appended %d rows to %s, from row %d", len(corpus.rows), store.url, corpus.rows.start
    )
    return open_as_driver(lease)


def open_as_driver(lease: Lease) -> ActivationStore:
    """Open the store of a lease: with what its driver knows of, and no more.

    Raises
    ------
    LeaseLost
        A later driver has begun, and may have added what this one does not know of.
    """
    store = open_store(lease.location)
    lease.ledger.refuse_if_overtaken()
    return store


def check_addition(store: ActivationStore, addition: ActivationStore) -> None:
    """Refuse a corpus that cannot be appended; reads tokens of neither.

    Raises
    ------
    RowsNotCommitted
        The store is not finished.
    StoreMismatch
        It is of another model, tokenizer, layout, … or is an export.
    StoreExists
        The corpus, or a document of it, is in the store already.
    InvalidSchema
        A column of its documents is of another type than the store's.
    FormatTooNew
        The store has sites that this version cannot read.
    """
    if len(addition.ledger.corpora) != 1:
        raise StoreMismatch(
            f"{addition.url} was appended to itself, and one corpus is appended at a time\n"
            "hint: append its corpora one after the other, from their texts"
        )
    check_can_be_appended_to(store)
    check_same(store, request_of(addition.schema), addition.provenance, may_differ=MAY_DIFFER)
    if (place := place_of_corpus(store, addition)) is not None:
        which = "its first" if place == 0 else f"appended as its {place + 1}."
        raise StoreExists(
            f"The corpus is in {store.url} already: {which} corpus has the same tokens\n"
            "hint: append another text; to add sites to the store, leave --append out"
        )
    _check_columns(document_schema(store), document_schema(addition))
    there = set(store.lookup.document_ids.tolist())
    if twice := [name for name in addition.lookup.document_ids.tolist() if name in there]:
        raise StoreExists(
            f"{len(twice):,} of {addition.schema.documents:,} documents have ids that are in "
            f"{store.url} already: {', '.join(map(repr, twice[:3]))}"
            f"{', …' if len(twice) > 3 else ''}\n"
            "hint: append a text without them, or with ids of its own (corpus.source.id_column)"
        )


def check_can_be_appended_to(store: ActivationStore) -> None:
    """Refuse to append to a store that is not finished, or not a harvest; see `check_addition`."""
    if store.unknown_sites:
        raise FormatTooNew(
            f"{store.url} has sites that this actlake cannot read: "
            f"{', '.join(store.unknown_sites)}\nhint: pip install --upgrade actlake"
        )
    if any(Origin.of(group.request) for group in store.ledger.groups):
        raise StoreMismatch(
            f"{store.url} is an export, which is a copy of a part of another store\n"
            "hint: append to the store that it was exported from, and export again"
        )
    for site in store.sites:
        if not (coverage := store.coverage(site)).is_complete:
            raise RowsNotCommitted(
                f"{store.url} is not finished, {site}: {coverage}\n"
                "hint: finish it first: the command that began it goes on where it stopped"
            )


def place_of_corpus(store: ActivationStore, addition: ActivationStore) -> int | None:
    """Which corpus of the chain, from 0, has the same tokens in the same contexts; or None."""
    asked = addition.ledger.corpora[0].sha256
    for place, corpus in enumerate(store.ledger.corpora):
        if all(corpus.sha256[name] == asked[name] for name in ("tokens/id", "contexts/start")):
            return place
    return None


def next_gap(schema: StoreSchema) -> Gap:
    """The numbers that are left out before the next stretch."""
    geometry = schema.geometry
    shard = geometry.token_shard_rows
    free = num_blocks(block=shard, total=schema.rows) * shard
    start = num_blocks(block=geometry.unit_rows, total=free) * geometry.unit_rows
    first = num_blocks(block=shard, total=schema.contexts + 1) * shard  # one more boundary
    return Gap(Extent(schema.rows, start), Extent(schema.contexts, first))


class _Laying:
    """One corpus on its way into the store."""

    def __init__(self, lease: Lease, store: ActivationStore, addition: ActivationStore) -> None:
        self._lease = lease
        self._store = store
        self._addition = addition
        old, new, gap = store.schema, addition.schema, next_gap(store.schema)
        self._rows = Extent(gap.rows.stop, gap.rows.stop + new.num_rows)
        self._contexts = Extent(gap.contexts.stop, gap.contexts.stop + new.num_contexts)
        self._documents = Extent(old.documents, old.documents + new.documents)
        self._schema = replace(
            old,
            rows=self._rows.stop,
            contexts=self._contexts.stop,
            documents=self._documents.stop,
            gaps=(*old.gaps, gap),
        )
        self._files: dict[str, FileRecord] = {}

    def lay_down(self) -> CorpusRecord:
        """Write all files of it; what the ledger is to say."""
        sha256 = dict(self._addition.ledger.corpora[0].sha256)
        for name, column in self._lay_tokens_down().items():
            if column.sha256 != sha256[name]:
                raise StoreDamaged(
                    f"{name} of {self._addition.url} does not hold the values that were laid down\n"
                    "hint: make that store again"
                )
        self._lay_documents_down()
        return CorpusRecord(
            schema=self._schema,
            provenance=self._addition.provenance,
            fingerprint=appended_fingerprint(self._store.fingerprint, contents=sha256),
            rows=self._rows,
            contexts=self._contexts,
            documents=self._documents,
            sha256=sha256,
            files=self._files,
        )

    def _lay_tokens_down(self) -> dict[str, IndexColumn]:
        geometry = self._schema.geometry
        cut = (geometry.token_chunk_rows, geometry.token_shard_rows)
        counted_from = {
            "tokens/document": self._documents.start,
            "contexts/start": self._rows.start,
        }
        columns = {
            name: IndexColumn(
                self._write,
                name,
                cut,
                first=(self._rows if name.startswith("tokens/") else self._contexts).start,
                less=counted_from.get(name, 0),
            )
            for name in COLUMNS
        }
        for name, values in self._values():
            columns[name].append(values + counted_from.get(name, 0))
        for spec in (*self._schema.tokens().values(), *self._schema.context_arrays().values()):
            columns[spec.name].finish(spec)
        return columns

    def _values(self) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
        """What the new arrays hold, counted from their own beginning."""
        given = self._addition
        for rows in given.schema.blocks(_ROWS_AT_ONCE):
            for name, array in given.tokens.items():
                yield f"tokens/{name}", array.read(rows.start, rows.stop)
        before = 0
        for contexts in given.schema.context_blocks(_ROWS_AT_ONCE):
            yield "contexts/split", given.contexts["split"].read(contexts.start, contexts.stop)
            edges = given.contexts["start"].read(contexts.start, contexts.stop + 1)
            yield "contexts/start", edges[:-1] - edges[0] + before
            before += int(edges[-1] - edges[0])
        yield "contexts/start", np.array([before])

    def _lay_documents_down(self) -> None:
        """Write the documents' file."""
        with ExitStack() as stack, spooling(self._lease):
            spool = DocumentSpool(scratch_of(self._lease, stack))
            stack.callback(spool.close)
            names = document_schema(self._addition).names
            for _, batch in document_batches(self._addition, names):
                for row in batch.to_pylist():
                    own = {name: row.pop(name) for name in _OWN_COLUMNS}
                    present = {name: value for name, value in row.items() if value is not None}
                    spool.add(Document(**own, columns=present))
            self._write(documents_key(len(self._store.ledger.corpora)), [spool.as_parquet()])

    def _write(self, key: str, parts: list[Any]) -> None:
        try:
            self._lease.writer.ensure(key, parts)
        except KeyTaken as error:
            raise StoreExists(
                f"{key} in {self._store.url} is of another corpus, which was being appended and "
                "never was; in a bucket it cannot be taken away\n"
                "hint: append that corpus first; or, when nobody writes to this place, delete this "
                "object, and run the same command again"
            ) from error
        size = sum(memoryview(part).nbytes for part in parts)
        self._files[key] = FileRecord(bytes=size, crc32c=crc32c(*parts))


def _check_columns(stored: pa.Schema, asked: pa.Schema) -> None:
    for field in asked:
        if field.name not in stored.names:
            continue
        known = stored.field(field.name).type
        if field.type != known and not pa.types.is_null(field.type) and not pa.types.is_null(known):
            raise InvalidSchema(
                f"The documents' column {field.name!r} is {known} in the store, and {field.type} "
                "in what is appended\nhint: give it one type in both"
            )


def _free_strays(lease: Lease, store: ActivationStore) -> None:
    """Take away what an append that was killed has left; in a bucket it stays."""
    if not lease.writer.takes_away:
        return
    schema = store.schema
    specs = (*schema.tokens().values(), *schema.context_arrays().values())
    laid_down = {key for corpus in store.ledger.corpora for key in corpus.files}
    laid_down |= {spec.metadata_key for spec in specs}
    strays = [
        key for spec in specs for key in lease.location.list(spec.folder) if key not in laid_down
    ]
    next_documents = documents_key(len(store.ledger.corpora))
    lease.writer.free([*strays, next_documents])
