"""Copy chosen sites, splits or rows of a store into a new one.

The new store is whole in itself: it has its own documents, tokens, statistics and fingerprint,
and names its parent in its provenance. Contexts stay whole, since what a row holds depends on
all that came before it in its context: whoever chooses rows gets the contexts that hold them.

A killed export goes on where it stopped, and ends in the same bytes.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from actlake.storage.add_sites import add_sites
from actlake.storage.corpus import Context, Document
from actlake.storage.corpus_record import TOKENIZER
from actlake.storage.create import StoreBuilder, request_of
from actlake.storage.errors import (
    EmptySelection,
    InvalidQuery,
    RowsNotCommitted,
    StoreDamaged,
    StoreExists,
)
from actlake.storage.extents import Extent
from actlake.storage.lease import Lease
from actlake.storage.ledger import read_state
from actlake.storage.ledger_records import ShardRecord
from actlake.storage.location import Location, locate
from actlake.storage.parent import Origin
from actlake.storage.provenance import Provenance
from actlake.storage.querying.arguments import document_numbers_of, ids_of
from actlake.storage.querying.document_table import document_batches, document_schema
from actlake.storage.reading.predicates import Predicate
from actlake.storage.repair import restore_shards
from actlake.storage.resume import check_same, use_numerics
from actlake.storage.schema import plan_geometry
from actlake.storage.sites import Site
from actlake.storage.store import ActivationStore, open_store
from actlake.storage.stored_moments import sum_up
from actlake.storage.verify import undersized
from actlake.storage.writer import free_missing, write_unit

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
    restored: int = 0
    """Shards that were missing or cut short, and were copied again."""


def export_store(
    parent: ActivationStore,
    to: "str | Location",
    *,
    sites: str | Site | Sequence[str | Site] | None = None,
    splits: str | Sequence[str] | None = None,
    documents: str | int | Sequence[str | int] | None = None,
    document_numbers: int | Sequence[int] | None = None,
    where: Any = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ExportResult:
    """Copy a part of a store into a new store.

    Parameters
    ----------
    to
        Where the new store is made, or an interrupted export of the same goes on.
    sites
        Which sites, or which one; by default all.
    splits
        Only contexts of these splits, or of this one.
    documents
        Only contexts that hold tokens of these documents, or of this one, by their ids.
    document_numbers
        The same by the documents' places in `parent`, from 0.
    where
        Only contexts that hold a row of which this predicate is true; see `Predicate`.
    progress
        Called after each unit with the units done and their total.

    Raises
    ------
    SiteNotStored, UnknownSplit, NotInStore, EmptySelection
        As their names say.
    InvalidQuery
        The predicate cannot be worked out, a list is empty, or `parent` is not one store.
    RowsNotCommitted
        Chosen rows are not there yet.
    StoreExists, StoreMismatch
        Something else is at `to`, such as an export for which the same words chose other rows.
    """
    _check_parent(parent)
    location = locate(to)
    _check_place(parent, location)
    parent = _as_begun(parent, location)
    wanted = sorted({parent.site(site) for site in _listed("sites", sites, parent.sites)})
    chosen = _splits(parent, _listed("splits", splits, parent.schema.splits))
    numbers = _document_numbers(parent, documents, document_numbers)
    predicate = None if where is None else Predicate(where)
    if predicate is not None:
        predicate.prepare(parent)
    contexts = _Contexts.of(parent, _choose(parent, chosen, numbers, predicate))
    _check_committed(parent, wanted, contexts)
    provenance = _provenance(parent, chosen, numbers, predicate, contexts)
    with Lease.acquire(location) as lease:
        store = _lay_out(lease, parent, contexts, chosen, wanted, provenance)
        forms = {site: parent.schema_of(site) for site in wanted}
        origin = Origin(parent.fingerprint, parent.url)
        add_sites(lease, store, forms, {"exported_from": origin.as_json()})
        numerics = use_numerics(
            lease,
            {"exported_from": parent.fingerprint, "numerics": list(parent.ledger.numerics)},
        )
        store.refresh()
        free_missing(lease, store, wanted)
        missing = list(store.schema.units.without(store.committed(wanted)))
        for done, unit in enumerate(missing):
            rows = contexts.parent_rows(store.schema.unit_extent(unit))
            lacking = [site for site in wanted if unit not in store.ledger.covered[site]]
            values = {site: parent[site].take(rows, check=True) for site in lacking}
            records = write_unit(store, unit, values, token=lease.token, numerics=numerics)
            lease.ledger.commit(records)
            progress(done + 1, len(missing))
        sum_up(lease, wanted)
        restored = _restore_lost(lease, store.refresh(), parent, contexts, wanted)
    logger.info("Exported %d contexts, %d rows to %s", len(contexts), len(store), store.url)
    return ExportResult(store, len(contexts), len(store), len(missing), restored)


@dataclass(frozen=True, slots=True)
class _Contexts:
    """The contexts to copy, in order."""

    numbers: Array
    """(n,) int64, as the parent numbers them."""
    starts: Array
    """(n,) int64, their first rows in the parent."""
    edges: Array
    """(n + 1,) int64, their first rows in the copy, and the end of the last."""

    @classmethod
    def of(cls, parent: ActivationStore, numbers: Array) -> "_Contexts":
        starts = parent.contexts["start"].take(numbers)
        lengths = parent.contexts["start"].take(numbers + 1) - starts
        return cls(numbers, starts, np.append(0, np.cumsum(lengths)))

    def __len__(self) -> int:
        return len(self.numbers)

    def identity(self) -> dict[str, Any]:
        """Which they are, in few words; JSON."""
        return _selection(self.numbers.astype("<i8").tobytes(), len(self))

    def parent_rows(self, rows: Extent) -> Array:
        """(n,) int64: the parent's row of each of these rows of the copy."""
        row = np.arange(rows.start, rows.stop)
        context = np.searchsorted(self.edges, row, side="right") - 1
        found: Array = self.starts[context] + (row - self.edges[context])
        return found

    def blocks(self) -> Iterator[tuple[slice, Array]]:
        """Some at a time: their places in `numbers`, and the parent's rows of all of them."""
        for block in Extent(0, len(self)).pieces(_CONTEXTS_AT_ONCE):
            rows = Extent(int(self.edges[block.start]), int(self.edges[block.stop]))
            yield block.slice(), self.parent_rows(rows)


# Choosing.


def _check_parent(parent: object) -> None:
    if not isinstance(parent, ActivationStore):
        raise InvalidQuery(
            f"An opened store is exported, not {type(parent).__name__}\n"
            "hint: give what open_store returns; several stores are exported one by one"
        )


def _listed(name: str, given: Any, default: Sequence[Any] = ()) -> list[Any]:
    """What was given, of which one may stand alone; the default for None."""
    if given is None:
        return list(default)
    listed = [given] if isinstance(given, str | int | np.integer | Site) else list(given)
    if not listed:
        raise InvalidQuery(
            f"An empty list of {name} chooses nothing to export\n"
            f"hint: give at least one, or leave `{name}` out for all"
        )
    return listed


def _splits(parent: ActivationStore, names: Sequence[str]) -> tuple[str, ...]:
    """These splits, in the parent's order."""
    codes = sorted({parent.split_code(name) for name in names})
    return tuple(parent.schema.splits[code] for code in codes)


def _document_numbers(parent: ActivationStore, ids: Any, numbers: Any) -> Array | None:
    """(n,) int64, sorted: the numbers of the documents that are named; None: all of them."""
    chosen: Array | None = None
    if ids is not None:
        names = ids_of("documents", _listed("documents", ids))
        chosen = np.array(sorted(map(parent.lookup.document_number, set(names))), np.int64)
    if numbers is not None:
        places = _listed("document_numbers", numbers)
        total = parent.schema.documents
        by_number = document_numbers_of("document_numbers", places, total, of=parent.url)
        chosen = by_number if chosen is None else np.intersect1d(chosen, by_number)
    return chosen


def _choose(
    parent: ActivationStore,
    splits: Sequence[str],
    documents: Array | None,
    where: Predicate | None,
) -> Array:
    """(n,) int64: the contexts to copy, sorted."""
    codes = [parent.schema.splits.index(split) for split in splits]
    chosen = []
    for block in parent.schema.context_blocks(_CONTEXTS_AT_ONCE):
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


def _check_committed(parent: ActivationStore, sites: Sequence[Site], contexts: _Contexts) -> None:
    readable = parent.readable(sites)
    absent = parent.schema.rows_of(parent.schema.units.without(readable))
    if not absent:
        return
    stops = contexts.starts + np.diff(contexts.edges)
    lacking = np.zeros(len(contexts), bool)
    for rows in absent:
        lacking |= (contexts.starts < rows.stop) & (stops > rows.start)
    if lacking.any():
        raise RowsNotCommitted(
            f"{int(lacking.sum()):,} of the {len(contexts):,} chosen contexts of {parent.url} "
            "are not there for all chosen sites\nhint: go on with the harvest, or choose "
            "sites that are complete"
        )


def _check_place(parent: ActivationStore, location: Location) -> None:
    if location.url == parent.location.url:
        raise StoreExists(f"{location.url} is the store that is exported\nhint: give another path")


def _as_begun(parent: ActivationStore, location: Location) -> ActivationStore:
    """The store that is exported, as it was when an export that is there already began."""
    there = read_state(location).corpora
    before = parent.as_of(str(there[0].provenance.corpus.get("exported_from"))) if there else None
    if before is None or before is parent:
        return parent
    logger.warning(
        "%s\nhint: export to another path for all of them",
        parent.grown_since(before, f"the export to {location.url} began"),
    )
    return before


# Copying.


def _provenance(
    parent: ActivationStore,
    splits: Sequence[str],
    documents: Array | None,
    where: Predicate | None,
    contexts: _Contexts,
) -> Provenance:
    """Which contexts of which store; in ``source`` the words that chose them.

    The words do not decide: a predicate on labels chooses other contexts once the labels are
    replaced, two functions may have one name, and other words may choose the same contexts.
    """
    return Provenance(
        model=parent.provenance.model,
        tokenizer=parent.provenance.tokenizer,
        corpus={
            "source": {
                "corpus": dict(parent.provenance.corpus),
                "splits": list(splits),
                "documents": None if documents is None else _named(parent, documents),
                "where": None if where is None else str(where),
            },
            "exported_from": parent.fingerprint,
            "contexts": contexts.identity(),
        },
    )


def _named(parent: ActivationStore, documents: Array) -> dict[str, Any]:
    names = sorted(parent.lookup.document_ids[documents].tolist())
    return _selection("".join(f"{name}\n" for name in names).encode(), len(names))


def _selection(numbers_or_names: bytes, count: int) -> dict[str, Any]:
    """Which ones were chosen, in few words; JSON."""
    return {"count": count, "sha256": hashlib.sha256(numbers_or_names).hexdigest()}


def _restore_lost(
    lease: Lease,
    store: ActivationStore,
    parent: ActivationStore,
    contexts: _Contexts,
    sites: Sequence[Site],
) -> int:
    """Copy again what the ledger has and the disk has not; how many shards.

    Raises
    ------
    StoreDamaged
        The parent's rows are damaged, or others than were copied.
    """

    def rows_of(record: ShardRecord) -> Array:
        rows = contexts.parent_rows(store.schema.unit_extent(record.unit))
        return parent[record.site].take(rows, check=True)

    lost = list(undersized(store, sites))
    for record, why in restore_shards(lease, store, lost, rows_of).items():
        raise StoreDamaged(
            f"{record.site}, unit {record.unit} of {store.url} is missing or cut short, and cannot "
            f"be copied again from {parent.url}: {why}\nhint: export to another path"
        )
    return len(lost)


def _lay_out(
    lease: Lease,
    parent: ActivationStore,
    contexts: _Contexts,
    splits: tuple[str, ...],
    sites: Sequence[Site],
    provenance: Provenance,
) -> ActivationStore:
    """The new store with its corpus, made or found."""
    schema = parent.schema
    request = replace(request_of(schema), splits=splits)
    if lease.ledger.state.corpora:
        store = open_store(lease.location)
        check_same(store, request, provenance)
        return store
    with StoreBuilder(
        lease, request, provenance, tokenizer_files=_tokenizer_files(parent)
    ) as builder:
        numbers = _copy_documents(parent, builder, contexts)
        for context in _copied(parent, contexts, numbers):
            builder.add_context(context)
        row_bytes = max(parent.schema_of(site).row_bytes for site in sites)
        builder.finish(
            partial(
                plan_geometry,
                row_bytes=row_bytes,
                context_length=schema.context_length,
                num_sites=len(sites),
            )
        )
    return open_store(lease.location)


def _copy_documents(parent: ActivationStore, builder: StoreBuilder, contexts: _Contexts) -> Array:
    """Add the documents that the contexts hold; the new number of each old one, or -1."""
    used = np.zeros(parent.schema.documents, bool)
    for _, rows in contexts.blocks():
        used[parent.tokens["document"].take(rows, check=True)] = True
    numbers = np.full(len(used), -1, np.int64)
    for number, document in _documents(parent, used):
        numbers[number] = builder.add_document(document)
    return numbers


def _documents(parent: ActivationStore, used: Array) -> Iterator[tuple[int, Document]]:
    """The documents that are used, in order, each with its number."""
    for first, batch in document_batches(parent, document_schema(parent).names):
        places = np.flatnonzero(used[first : first + batch.num_rows])
        rows = batch.take(pa.array(places)).to_pylist()
        for place, row in zip(places.tolist(), rows, strict=True):
            own = {name: row.pop(name) for name in ("id", "source", "split", "text")}
            yield first + place, Document(**own, columns=row)


def _copied(parent: ActivationStore, contexts: _Contexts, numbers: Array) -> Iterator[Context]:
    """The contexts, their documents by the new numbers."""
    for block, rows in contexts.blocks():
        cuts = contexts.edges[block][1:] - contexts.edges[block.start]
        ids, documents, chars = (
            np.split(parent.tokens[name].take(rows, check=True), cuts)
            for name in ("id", "document", "char")
        )
        codes = parent.contexts["split"].take(contexts.numbers[block]).tolist()
        for n, code in enumerate(codes):
            yield Context(ids[n], numbers[documents[n]], chars[n], parent.schema.splits[code])


def _tokenizer_files(parent: ActivationStore) -> dict[str, bytes]:
    return {
        key.removeprefix(f"{TOKENIZER}/"): parent.location.read(key)
        for key in parent.tokenizer_files
    }
