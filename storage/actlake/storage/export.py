"""Copy chosen sites, splits or rows of a store into a new one.

The new store is whole in itself: it has its own documents, tokens, statistics and fingerprint,
and names its parent in its provenance. Contexts stay whole, since what a row holds depends on
all that came before it in its context: whoever chooses rows gets the contexts that hold them.

A killed export goes on where it stopped, and ends in the same bytes.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actlake.storage.corpus import Context, Document
from actlake.storage.create import TOKENIZER, StoreBuilder, StoreRequest
from actlake.storage.errors import EmptySelection, RowsNotCommitted, StoreExists
from actlake.storage.extents import Extent
from actlake.storage.layout import MANIFEST
from actlake.storage.lease import Lease
from actlake.storage.location import Location, locate
from actlake.storage.provenance import Provenance
from actlake.storage.reading.many import ManyStores
from actlake.storage.reading.predicates import Predicate
from actlake.storage.resume import check_same, use_numerics
from actlake.storage.sites import Site
from actlake.storage.store import ActivationStore, open_store
from actlake.storage.writer import add_sites, write_unit

Array = np.ndarray[Any, Any]
logger = logging.getLogger(__name__)
_CONTEXTS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What an export did."""

    store: ActivationStore
    contexts: int
    rows: int
    units_done: int
    """Units written by this call; 0 when the store was complete already."""


def export_store(
    parent: ActivationStore,
    to: "str | Location",
    *,
    sites: Sequence[str | Site] | None = None,
    splits: Sequence[str] | None = None,
    documents: Sequence[str] | None = None,
    where: Any = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ExportResult:
    """Copy a part of a store into a new store.

    Parameters
    ----------
    to
        Where the new store is made, or an interrupted export of the same goes on.
    sites
        Which sites; by default all.
    splits
        Only contexts of these splits.
    documents
        Only contexts that hold tokens of documents with these ids.
    where
        Only contexts that hold a row of which this predicate is true; see `Predicate`.
    progress
        Called after each unit with the units done and their total.

    Raises
    ------
    SiteNotStored, UnknownSplit, InvalidQuery, EmptySelection
        As their names say.
    RowsNotCommitted
        Chosen rows are not there yet.
    StoreExists, StoreMismatch
        Something else is at `to`.
    """
    wanted = sorted({parent.site(site) for site in (parent.sites if sites is None else sites)})
    for split in splits or ():
        ManyStores([parent]).check_split(split)
    chosen = tuple(s for s in parent.schema.splits if splits is None or s in splits)
    predicate = None if where is None else Predicate(where)
    contexts = _choose(parent, chosen, _of_documents(parent, documents), predicate)
    _check_committed(parent, wanted, contexts)
    location = locate(to)
    _check_place(parent, location)
    provenance = _provenance(parent, chosen, documents, predicate)
    with Lease.acquire(location) as lease:
        store = _lay_out(lease, parent, contexts, chosen, provenance)
        add_sites(lease, store, tuple(wanted), {"exported_from": parent.fingerprint})
        numerics = use_numerics(
            lease,
            {"exported_from": parent.fingerprint, "numerics": list(parent.ledger.numerics)},
        )
        store.refresh()
        missing = list(store.committed(wanted).missing(store.schema.num_units))
        starts = _context_starts(parent, contexts)
        for done, unit in enumerate(missing):
            rows = _parent_rows(starts, store.schema.unit_extent(unit))
            lacking = [site for site in wanted if unit not in store.ledger.covered[site]]
            values = {site: parent[site].take(rows, check=True) for site in lacking}
            lease.ledger.commit(
                write_unit(store, unit, values, token=lease.token, numerics=numerics)
            )
            progress(done + 1, len(missing))
        store.refresh()
    logger.info("Exported %d contexts, %d rows to %s", len(contexts), len(store), store.url)
    return ExportResult(store, len(contexts), len(store), len(missing))


# Choosing.


def _choose(
    parent: ActivationStore,
    splits: Sequence[str],
    documents: Array | None,
    where: Predicate | None,
) -> Array:
    """(n,) int64: the contexts to copy, sorted."""
    codes = [parent.schema.splits.index(split) for split in splits]
    chosen = []
    for block in _context_blocks(parent):
        kept = np.isin(parent.contexts["split"].read(block.start, block.stop), codes)
        starts = parent.contexts["start"].read(block.start, block.stop + 1)
        rows = Extent(int(starts[0]), int(starts[-1]))
        if documents is not None:
            mask = np.isin(parent.tokens["document"].read(rows.start, rows.stop), documents)
            kept &= np.logical_or.reduceat(mask, starts[:-1] - rows.start)
        if where is not None:
            kept &= np.logical_or.reduceat(where.mask(parent, rows), starts[:-1] - rows.start)
        chosen.append(block.start + np.flatnonzero(kept))
    contexts = np.concatenate(chosen)
    if not contexts.size:
        raise EmptySelection(
            f"Nothing of {parent.url} is chosen: no context passes the splits, documents and "
            "predicate\nhint: ask for less"
        )
    return contexts


def _of_documents(parent: ActivationStore, ids: Sequence[str] | None) -> Array | None:
    """The ordinals of documents with these ids, all of which must exist."""
    if ids is None:
        return None
    known = parent.documents(["id"])["id"].to_pylist()
    ordinals = np.flatnonzero(np.isin(known, list(ids)))
    unknown = sorted(set(ids) - {known[ordinal] for ordinal in ordinals})
    if unknown:
        raise EmptySelection(
            f"{parent.url} has no document {unknown[0]!r} ({len(unknown)} of {len(ids)} are "
            "unknown)\nhint: store.documents(['id']) lists them"
        )
    return ordinals


def _context_blocks(parent: ActivationStore) -> Iterator[Extent]:
    total = parent.schema.contexts
    for start in range(0, total, _CONTEXTS_AT_ONCE):
        yield Extent(start, min(start + _CONTEXTS_AT_ONCE, total))


def _check_committed(parent: ActivationStore, sites: Sequence[Site], contexts: Array) -> None:
    committed = parent.committed(sites)
    absent = list(committed.gaps(parent.schema.num_units))
    if not absent:
        return
    edges = np.array(absent, np.int64) * parent.schema.geometry.unit_rows
    starts = parent.contexts["start"].take(contexts)
    stops = parent.contexts["start"].take(contexts + 1)
    lacking = np.zeros(len(contexts), bool)
    for first, last in edges.tolist():
        lacking |= (starts < last) & (stops > first)
    if lacking.any():
        raise RowsNotCommitted(
            f"{int(lacking.sum()):,} of the {len(contexts):,} chosen contexts of {parent.url} "
            "are not committed for all chosen sites\nhint: go on with the harvest, or choose "
            "sites that are complete"
        )


def _check_place(parent: ActivationStore, location: Location) -> None:
    if location.url == parent.location.url:
        raise StoreExists(f"{location.url} is the store that is exported\nhint: give another path")


# Copying.


def _provenance(
    parent: ActivationStore,
    splits: Sequence[str],
    documents: Sequence[str] | None,
    where: Predicate | None,
) -> Provenance:
    return Provenance(
        model=parent.provenance.model,
        tokenizer=parent.provenance.tokenizer,
        corpus={
            "exported_from": {
                "fingerprint": parent.fingerprint,
                "corpus": dict(parent.provenance.corpus),
            },
            "splits": list(splits),
            "documents": None if documents is None else sorted(set(documents)),
            "where": None if where is None else str(where),
        },
    )


def _lay_out(
    lease: Lease,
    parent: ActivationStore,
    contexts: Array,
    splits: tuple[str, ...],
    provenance: Provenance,
) -> ActivationStore:
    """The new store with its corpus, made or found."""
    schema = parent.schema
    request = StoreRequest(
        dim=schema.dim,
        dtype=schema.dtype,
        layout=schema.layout,
        context_length=schema.context_length,
        splits=splits,
        special_ids=schema.special_ids,
        compression=schema.compression,
        nonfinite=schema.nonfinite,
    )
    if lease.location.size(MANIFEST) is not None:
        store = open_store(lease.location)
        check_same(store, request, provenance)
        return store
    with StoreBuilder(
        lease, request, provenance, tokenizer_files=_tokenizer_files(parent)
    ) as builder:
        ordinals = _copy_documents(parent, builder, contexts)
        for number in contexts.tolist():
            builder.add_context(_context(parent, number, ordinals))
        builder.finish()
    return open_store(lease.location)


def _copy_documents(parent: ActivationStore, builder: StoreBuilder, contexts: Array) -> Array:
    """Add the documents that the contexts hold; the new ordinal of each old one, or -1."""
    used = np.zeros(parent.schema.documents, bool)
    for number in contexts.tolist():
        start, stop = parent.contexts["start"].read(number, number + 2).tolist()
        used[parent.tokens["document"].read(start, stop)] = True
    ordinals = np.full(len(used), -1, np.int64)
    # TODO: stream documents.parquet; it is read whole, which matters from some GB of text on.
    for ordinal, row in enumerate(_documents(parent)):
        if used[ordinal]:
            ordinals[ordinal] = builder.add_document(row)
    return ordinals


def _documents(parent: ActivationStore) -> Iterator[Document]:
    for batch in parent.documents().to_batches(max_chunksize=1024):
        for row in batch.to_pylist():
            own = {name: row.pop(name) for name in ("id", "source", "split", "text")}
            yield Document(**own, columns=row)


def _context(parent: ActivationStore, number: int, ordinals: Array) -> Context:
    start, stop = parent.contexts["start"].read(number, number + 2).tolist()
    code = int(parent.contexts["split"].read(number, number + 1)[0])
    return Context(
        parent.tokens["id"].read(start, stop),
        ordinals[parent.tokens["document"].read(start, stop)],
        parent.tokens["char"].read(start, stop),
        parent.schema.splits[code],
    )


def _tokenizer_files(parent: ActivationStore) -> dict[str, bytes]:
    return {
        key.removeprefix(f"{TOKENIZER}/"): parent.location.read(key)
        for key in parent.location.list(TOKENIZER)
    }


def _context_starts(parent: ActivationStore, contexts: Array) -> tuple[Array, Array]:
    """Of each context its first row in the new store (and the end), and in the parent."""
    starts = parent.contexts["start"].take(contexts)
    lengths = parent.contexts["start"].take(contexts + 1) - starts
    return np.cumsum([0, *lengths]), starts


def _parent_rows(starts: tuple[Array, Array], rows: Extent) -> Array:
    """The parent's row of each row of the new store."""
    ours, theirs = starts
    row = np.arange(rows.start, rows.stop)
    context = np.searchsorted(ours, row, side="right") - 1
    found: Array = theirs[context] + (row - ours[context])
    return found
