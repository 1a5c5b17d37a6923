"""``actlake harvest --append``: a finished store takes the corpus of a config as well.

The text is laid out beside the store first, in a temporary folder, so that whatever is refused is
refused before anything changes, and a plan knows its numbers. Only then it is copied over.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from actlake.jobs.harvest.config import HarvestConfig
from actlake.jobs.harvest.planning import site_schemas
from actlake.jobs.harvest.preparation import (
    Prepared,
    Wanted,
    as_run_before,
    lay_down,
    scratch_lease,
    wanted_store,
)
from actlake.jobs.harvest.segments import attach_segments
from actlake.platform.cluster.worker_plan import WorkerPlan
from actlake.platform.corpus import Progress
from actlake.platform.models import ResolvedModel
from actlake.storage import ActivationStore, Lease, Provenance, Site, open_store
from actlake.storage.add_sites import check_sites
from actlake.storage.append import (
    MAY_DIFFER,
    append_corpus,
    check_addition,
    check_can_be_appended_to,
    next_gap,
    open_as_driver,
    place_of_corpus,
)
from actlake.storage.errors import StoreMismatch, StoreNotFound
from actlake.storage.ledger import read_state
from actlake.storage.location import Location
from actlake.storage.querying.document_table import document_batches
from actlake.storage.resume import check_same


@dataclass(frozen=True, slots=True)
class PlannedAddition:
    """What would be appended, laid out where it is gone afterwards."""

    prepared: Prepared
    sites: tuple[Site, ...]
    """The store's."""
    to: str
    """What it comes after, in words."""


def prepare_addition(
    lease: Lease,
    config: HarvestConfig,
    model: ResolvedModel,
    workers: WorkerPlan,
    *,
    progress: Progress,
) -> Prepared:
    """The store with the config's corpus as its last, appended now or before.

    Raises
    ------
    StoreNotFound
        There is no store yet.
    RowsNotCommitted
        It is not finished, and what is missing is not of this corpus.
    StoreMismatch, StoreExists, InvalidSchema
        This corpus cannot be appended to it; nothing was changed.
    CorpusError
        The text is refused.
    """
    if not lease.ledger.state.corpora:
        raise _nothing_there(lease.location)
    store = open_as_driver(lease)
    wanted = _wanted(store, config, model)
    with _laid_out(store, config, wanted, progress) as (addition, is_there):
        if not is_there:
            store = append_corpus(lease, addition)
    attach_segments(store)
    return as_run_before(store, replace(config, sites=store.sites), model, workers, wanted)


@contextmanager
def planned_addition(
    location: Location,
    config: HarvestConfig,
    model: ResolvedModel,
    workers: WorkerPlan,
    *,
    progress: Progress,
) -> Iterator[PlannedAddition]:
    """What `prepare_addition` would append, for a plan; raises what it would."""
    if not read_state(location).corpora:
        raise _nothing_there(location)
    store = open_store(location)
    wanted = _wanted(store, config, model)
    with _laid_out(store, config, wanted, progress) as (addition, is_there):
        rows = store.schema.num_rows
        to = f"to {rows:,} rows of {store.url}, from row {next_gap(store.schema).rows.stop:,}"
        if is_there:
            addition, to = store, f"to {store.url} already; it goes on"
        else:
            check_addition(store, addition)
        every_site = replace(config, sites=store.sites)
        run = as_run_before(store, every_site, model, workers, wanted)
        yield PlannedAddition(replace(run, store=addition), store.sites, to)


def _nothing_there(location: Location) -> StoreNotFound:
    return StoreNotFound(
        f"There is no store at {location.url} to append to\n"
        "hint: leave --append out: the first corpus makes the store"
    )


def _wanted(store: ActivationStore, config: HarvestConfig, model: ResolvedModel) -> Wanted:
    """What the config asks for, if the store can take it; its text is not read yet."""
    wanted = wanted_store(config, model)
    check_same(store, wanted.request, wanted.provenance, may_differ=MAY_DIFFER)
    for group in store.ledger.groups:
        if "model" not in group.request:
            raise StoreMismatch(
                f"{group.sites[0]} of {store.url} was not computed by a harvest, which could not "
                "compute it for further rows\nhint: make another store of the new text"
            )
    if _is_given_as_ids(store.provenance) != _is_given_as_ids(wanted.provenance):
        raise StoreMismatch(
            f"Documents of {store.url} and those to be appended are not given alike: the ones as "
            "texts, the others as token ids (corpus.source.ids_column)\n"
            "hint: give both alike, or make another store of the new ones"
        )
    if new := [site for site in wanted.sites if site not in store]:
        raise StoreMismatch(
            f"{new[0]} is no site of {store.url}, which has {', '.join(map(str, store.sites))}\n"
            "hint: append the corpus to these first; then leave --append out to add the site"
        )
    check_sites(store, site_schemas(config, model))
    return wanted


@contextmanager
def _laid_out(
    store: ActivationStore, config: HarvestConfig, wanted: Wanted, progress: Progress
) -> Iterator[tuple[ActivationStore, bool]]:
    """The corpus in a store of its own, gone afterwards; whether it is the store's last already."""
    *earlier, last = store.ledger.corpora
    if earlier and _source(wanted) == last.provenance.corpus.get("source"):
        before = store.as_of(earlier[-1].fingerprint)
        assert before is not None, store.url
        with _scratch(before, config, wanted, progress) as addition:
            if place_of_corpus(store, addition) == len(earlier):
                yield addition, True
                return
    check_can_be_appended_to(store)
    with _scratch(store, config, wanted, progress) as addition:
        yield addition, False


def _is_given_as_ids(provenance: Provenance) -> bool:
    return provenance.corpus.get("source", {}).get("ids_column") is not None


def _source(wanted: Wanted) -> object:
    return wanted.provenance.corpus.get("source")


@contextmanager
def _scratch(
    store: ActivationStore, config: HarvestConfig, wanted: Wanted, progress: Progress
) -> Iterator[ActivationStore]:
    """The corpus as it would come after what the store holds."""
    with scratch_lease() as lease:
        unit_rows = store.schema.geometry.unit_rows
        known = _texts(store) if config.corpus.deduplicate else ()
        yield lay_down(lease, config, wanted, progress, unit_rows=unit_rows, known=known)[0]


def _texts(store: ActivationStore) -> Iterator[str]:
    """The texts of all documents.

    Raises
    ------
    StoreMismatch
        They were not kept.
    """
    for _, batch in document_batches(store, ["text"]):
        for text in batch["text"].to_pylist():
            if text is None:
                raise StoreMismatch(
                    f"The documents of {store.url} are without text, so that nobody can tell which "
                    "of the new ones are there already (corpus.deduplicate)\n"
                    "hint: make another store of the new text"
                )
            yield text
