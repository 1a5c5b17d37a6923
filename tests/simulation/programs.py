"""What processes do in a simulation: the product's own steps, in the order of its jobs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from simulation.corpora import (
    CONTEXT_LENGTH,
    DIM,
    SITES,
    TOKEN_SHARD_ROWS,
    UNIT_ROWS,
    Corpus,
    activations,
)

from actlake.storage import (
    ActivationStore,
    Geometry,
    Lease,
    Provenance,
    Site,
    SiteSchema,
    StoreBuilder,
    StoreRequest,
    Token,
    VerifyReport,
    add_sites,
    open_store,
    verify,
    write_unit,
)
from actlake.storage.append import append_corpus, open_as_driver, place_of_corpus
from actlake.storage.errors import StoreDamaged
from actlake.storage.export import export_store
from actlake.storage.ledger_records import ShardRecord
from actlake.storage.location import Location
from actlake.storage.release import release_units
from actlake.storage.repair import own_rows, restore_metadata, restore_shards, restore_totals
from actlake.storage.resume import check_same, use_numerics
from actlake.storage.stored_moments import sum_up, sum_up_around
from actlake.storage.verify import undersized
from actlake.storage.writer import free_missing


@dataclass(frozen=True)
class Seen:
    """What a reader was told: it stays true."""

    fingerprint: str
    ids: bytes
    documents: tuple[str, ...]
    rows: dict[tuple[Site, int], bytes]
    """Of each committed (site, unit)."""


def harvest(
    location: Location,
    corpus: Corpus,
    *,
    sites: tuple[Site, ...] = SITES,
    most_units: int = 99,
    merges: bool = True,
    on_token: Callable[[Token], None] = lambda token: None,
) -> None:
    """Fill a store, or go on filling it; as `actlake.jobs.harvest`."""
    with Lease.acquire(location) as lease:
        on_token(lease.token)
        store = _prepare(lease, corpus)
        add_sites(
            lease,
            store,
            dict.fromkeys(sites, SiteSchema(dim=DIM, dtype="float32")),
            {"corpus": corpus.name},
        )
        store.refresh()
        lost = list(undersized(store, sites))
        numerics = use_numerics(lease, {"device": "simulated"})
        _fill(lease, store, sites, numerics, most_units=most_units)
        sum_up(lease, sites)
        if merges:
            lease.ledger.merge_all()
        if lost:
            _refuse_lost(restore_shards(lease, store, lost, model_rows(store)))


def append(location: Location, addition: Location) -> None:
    """Add a corpus to a finished store, and fill it; as `actlake harvest --append`.

    What is missing of what was there is filled first, as the one who appends is told to do.
    """
    with Lease.acquire(location) as lease:
        store, new = open_as_driver(lease), open_store(addition)
        numerics = use_numerics(lease, {"device": "simulated"})
        _fill(lease, store, store.sites, numerics)
        if place_of_corpus(store.refresh(), new) is None:
            store = append_corpus(lease, new)
            _fill(lease, store, store.sites, numerics)
        sum_up(lease, store.sites)
        lease.ledger.merge_all()


def release(location: Location, units: Mapping[Site, Iterable[int]]) -> None:
    """Give the rows of units up."""
    with Lease.acquire(location) as lease:
        release_units(lease, open_store(lease.location), units)


def _fill(
    lease: Lease,
    store: ActivationStore,
    sites: Sequence[Site],
    numerics: int,
    *,
    most_units: int = 99,
) -> None:
    """Compute and commit units that are missing."""
    free_missing(lease, store, sites)
    for unit in list(store.schema.units.without(store.committed(sites)))[:most_units]:
        lacking = [site for site in sites if unit not in store.ledger.covered[site]]
        _commit(lease, store, unit, lacking, numerics)


def lay_down(location: Location, corpus: Corpus, *, like: Corpus) -> None:
    """A store of a corpus, without sites, to be appended to one of `like`."""
    with Lease.acquire(location) as lease:
        _prepare(lease, corpus, like=like)


def _prepare(lease: Lease, corpus: Corpus, *, like: Corpus | None = None) -> ActivationStore:
    """The store with its corpus, made or found; as `prepare_store` of the harvest."""
    request = StoreRequest(
        layout="documents",
        context_length=CONTEXT_LENGTH,
        splits=("all",),
    )
    said = {"name": (like or corpus).name, "source": corpus.name}
    provenance = Provenance(model={"name": "simulated"}, corpus=said)
    if lease.ledger.state.corpora:
        store = open_store(lease.location)
        check_same(store, request, provenance)
        return store
    tokenizer = {"tokenizer.json": b"{}"}
    with StoreBuilder(
        lease,
        request,
        provenance,
        tokenizer_files=tokenizer,
        token_chunk_rows=TOKEN_SHARD_ROWS,
        token_shard_rows=TOKEN_SHARD_ROWS,
    ) as builder:
        for document in corpus.documents():
            builder.add_document(document)
        for context in corpus.contexts():
            builder.add_context(context)
        builder.finish(lambda rows: Geometry(unit_rows=UNIT_ROWS))
    return open_store(lease.location)


def _commit(
    lease: Lease, store: ActivationStore, unit: int, sites: Iterable[Site], numerics: int
) -> None:
    rows = model(store, unit, sites)
    records = write_unit(store, unit, rows, token=lease.token, numerics=numerics)
    lease.ledger.commit(records)
    sum_up_around(lease, records)


def model(store: ActivationStore, unit: int, sites: Iterable[Site]) -> dict[Site, Any]:
    """The activations of a unit, from the tokens that the store holds."""
    ids = store.tokens["id"][store.schema.unit_extent(unit).slice()]
    return {site: activations(ids, site) for site in sites}


def model_rows(store: ActivationStore) -> Callable[[ShardRecord], Any]:
    """What the model gives again for a damaged shard."""
    return lambda record: model(store, record.unit, [record.site])[record.site]


def read(location: Location) -> Seen:
    """Read all that is committed."""
    store = open_store(location)
    rows = {
        (site, unit): store[site][store.schema.unit_extent(unit).slice()].tobytes()
        for site in store.sites
        for unit in store.ledger.readable(site)
    }
    return Seen(
        store.fingerprint,
        np.asarray(store.tokens["id"][:]).tobytes(),
        tuple(store.documents(["text"])["text"].to_pylist()),
        rows,
    )


@dataclass(frozen=True)
class Verified:
    """What `verify` said of what it had opened."""

    report: VerifyReport
    fingerprint: str
    covered: dict[Site, list[tuple[int, int]]]


def check(location: Location) -> Verified:
    """Open the store and verify it."""
    store = open_store(location)
    covered = {site: store.ledger.covered[site].runs() for site in store.sites}
    return Verified(verify(store), store.fingerprint, covered)


def repair(location: Location) -> None:
    """Make damaged files again what was committed; as `actlake verify --repair`."""
    store = open_store(location)
    report = verify(store)
    if report.is_whole:
        return
    of_moments = [damage.record for damage in report.damaged if damage.rows_are_whole]
    of_rows = [damage.record for damage in report.damaged if not damage.rows_are_whole]
    with Lease.acquire(location) as lease:
        restore_metadata(lease)
        lost = restore_shards(lease, store, of_moments, own_rows(store))
        lost |= restore_shards(lease, store, of_rows, model_rows(store))
        restore_totals(lease, store)
    _refuse_lost(lost)


def _refuse_lost(lost: Mapping[ShardRecord, str]) -> None:
    if lost:
        raise StoreDamaged(f"Not restored: {lost}\nhint: the model is another")


def export(parent: Location, location: Location) -> None:
    """Copy a finished store's first site."""
    export_store(open_store(parent), location, sites=SITES[0])


def write_late(location: Location, token: Token, *, spoil: float = 0.0) -> None:
    """Write unit 0 as a worker of the driver with that token, when nobody waits for it.

    `spoil` is added to its activations, as another processor's last bits.
    """
    store = open_store(location)
    rows = {site: values + spoil for site, values in model(store, 0, SITES).items()}
    write_unit(store, 0, rows, token=token)
