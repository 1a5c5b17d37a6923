"""Before the model runs: the store at the path, made or found, with its rows fixed."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from actlake.jobs.harvest.batches import Batching
from actlake.jobs.harvest.config import HarvestConfig
from actlake.jobs.harvest.planning import site_schemas, stored_sites, unit_rows_at_most
from actlake.jobs.harvest.readings import Reading, readings_of
from actlake.jobs.harvest.sample import Array, sample_of_corpus, sample_of_store
from actlake.jobs.harvest.segments import attach_segments
from actlake.jobs.harvest.trial import Trial
from actlake.jobs.harvest.trying import try_contexts
from actlake.platform.cluster.worker_plan import WorkerPlan
from actlake.platform.config import to_dict
from actlake.platform.corpus import (
    Beginning,
    CorpusError,
    CorpusReport,
    Packed,
    Progress,
    corpus_provenance,
    emitted_tokens,
    lay_out,
    open_template,
    resolve_beginning,
    special_tokens_said,
)
from actlake.platform.models import (
    ResolvedModel,
    load_tokenizer,
    tokenizer_digest,
    tokenizer_file,
)
from actlake.storage import (
    ActivationStore,
    Lease,
    Provenance,
    StoreBuilder,
    StoreRequest,
    open_store,
)
from actlake.storage.add_sites import check_sites
from actlake.storage.errors import StoreMismatch
from actlake.storage.location import LocalFolder
from actlake.storage.provenance import differences
from actlake.storage.resume import check_same
from actlake.storage.schema import plan_geometry
from actlake.storage.site_schema import SiteSchema
from actlake.storage.sites import Site


@dataclass(frozen=True, slots=True)
class Wanted:
    """The store that a config asks for, as far as that is known before the text is read."""

    request: StoreRequest
    sites: Mapping[Site, SiteSchema]
    provenance: Provenance
    beginning: Beginning
    tokenizer: Any


@dataclass(frozen=True, slots=True)
class Prepared:
    """A store whose rows are fixed, and what is to be said of them."""

    store: ActivationStore
    beginning: Beginning
    """With what its contexts begin, and why."""
    special_tokens: str
    """What special tokens that are written in the text are; how many, where it was laid out."""
    batching: Batching
    """Which of them are run together, from its first unit to its last."""
    trial: Trial | None
    """What the model did on a few contexts; None where it was tried before."""


def wanted_store(config: HarvestConfig, model: ResolvedModel) -> Wanted:
    """Work out what the store at the path should be; reads the tokenizer, no text.

    Raises
    ------
    VocabularyTooSmall
        The tokenizer has tokens that the model knows nothing of.
    """
    tokenizer = load_tokenizer(model)
    corpus = config.corpus
    beginning = resolve_beginning(corpus.bos, tokenizer)
    template = open_template(corpus, tokenizer, beginning)
    model.check_tokens(emitted_tokens(corpus, tokenizer))
    request = StoreRequest(
        layout="packed" if isinstance(corpus.layout, Packed) else "documents",
        context_length=corpus.context_length,
        splits=tuple(corpus.splits.names),
        special_ids=tuple(sorted(set(tokenizer.all_special_ids))),
        nonfinite=config.storage.nonfinite,
    )
    provenance = Provenance(
        model={
            "name": model.name if model.commit else Path(model.name).name,
            "revision": model.revision,
            "family": model.family,
            "dtype": model.dtype_name,
        },
        tokenizer={"class": type(tokenizer).__name__, "sha256": tokenizer_digest(tokenizer)},
        corpus=corpus_provenance(corpus, beginning, template),
    )
    return Wanted(request, site_schemas(config, model), provenance, beginning, tokenizer)


def prepare_store(
    lease: Lease,
    config: HarvestConfig,
    model: ResolvedModel,
    workers: WorkerPlan,
    *,
    progress: Progress,
) -> Prepared:
    """Open the store at the lease's location, laying the corpus down first where there is none.

    Before that the model is tried on a few contexts, and again where a store takes new sites.

    Raises
    ------
    StoreMismatch
        The store there holds other rows; the differences are in the message.
    CorpusError
        The text is refused.
    RowsNotIndependent
        The model's rows depend on more than their context.
    """
    if lease.ledger.state.corpora:
        store = open_store(lease.location)
        found = store_as_found(store, config, model, workers, progress=progress)
        attach_segments(store)
        return found
    wanted = wanted_store(config, model)
    sample = sample_of_corpus(config.corpus, wanted.tokenizer)
    trial = try_contexts(
        config, model, workers, sample, readings=_readings(sample, config, model, wanted)
    )
    rows = unit_rows_at_most(config, model, threads=workers.threads)
    store, report = lay_down(lease, config, wanted, progress, unit_rows=rows)
    attach_segments(store)
    said = special_tokens_said(report.special_tokens_are, report.special_tokens)
    return Prepared(store, wanted.beginning, said, trial.batching, trial)


def store_as_found(
    store: ActivationStore,
    config: HarvestConfig,
    model: ResolvedModel,
    workers: WorkerPlan,
    *,
    progress: Progress,
) -> Prepared:
    """A store that is there already, if it is the one that a config asks for.

    Raises
    ------
    StoreMismatch
        It holds other rows; the differences are in the message.
    RowsNotIndependent
        The model's rows depend on more than their context, as those of the store are run.
    """
    wanted = wanted_store(config, model)
    _check_same(store, config, wanted, progress)
    return as_run_before(store, config, model, workers, wanted)


def as_run_before(
    store: ActivationStore,
    config: HarvestConfig,
    model: ResolvedModel,
    workers: WorkerPlan,
    wanted: Wanted,
) -> Prepared:
    """A store with how its contexts are run, tried again where it takes what it had not yet."""
    said = special_tokens_said(config.corpus.special_tokens_are)
    fixed = batching_of(store)
    if fixed is not None and not _has_untried(store, config):
        return Prepared(store, wanted.beginning, said, fixed, None)
    sample = sample_of_store(store)
    readings = _readings(sample, config, model, wanted) if fixed is None else {}
    trial = try_contexts(config, model, workers, sample, readings=readings, fixed=fixed)
    return Prepared(store, wanted.beginning, said, trial.batching, trial)


def _readings(
    sample: Sequence[Array], config: HarvestConfig, model: ResolvedModel, wanted: Wanted
) -> Mapping[str, Reading]:
    """The forms of the sample whose loss is wanted."""
    if not config.check:
        return {}
    positions = model.max_positions
    return readings_of(
        sample,
        wanted.beginning,
        wanted.tokenizer,
        max_positions=positions,
        in_template="chat_template" in wanted.provenance.corpus,
    )


def batching_of(store: ActivationStore) -> Batching | None:
    """How the contexts of a store are run; None where no unit of it was begun by a harvest."""
    known = [numerics["batching"] for numerics in store.ledger.numerics if "batching" in numerics]
    return known[-1] if known else None


def _has_untried(store: ActivationStore, config: HarvestConfig) -> bool:
    """Whether rows are to be computed of sites, or with numerics, that the store had not."""
    covered = store.ledger.covered
    if not all(covered.get(site) for site in stored_sites(config.sites)):
        return True
    complete = len(store.committed(config.sites)) == store.schema.num_units
    return config.allow_other_numerics and not complete


@contextmanager
def scratch_store(
    config: HarvestConfig, model: ResolvedModel, workers: WorkerPlan, *, progress: Progress
) -> Iterator[Prepared]:
    """The store of a config with its corpus but no activations, for a plan; gone afterwards."""
    with scratch_lease() as lease:
        yield prepare_store(lease, config, model, workers, progress=progress)


@contextmanager
def scratch_lease() -> Iterator[Lease]:
    """Of a temporary folder, gone afterwards."""
    with (
        tempfile.TemporaryDirectory(prefix="actlake-plan-") as folder,
        Lease.acquire(LocalFolder(Path(folder))) as lease,
    ):
        yield lease


def lay_down(
    lease: Lease,
    config: HarvestConfig,
    wanted: Wanted,
    progress: Progress,
    *,
    unit_rows: int,
    known: Iterable[str] = (),
) -> tuple[ActivationStore, CorpusReport]:
    """Read the text into a new store.

    Parameters
    ----------
    unit_rows
        At most so many rows in a unit.
    known
        As for `lay_out`.
    """
    files = {"tokenizer.json": tokenizer_file(wanted.tokenizer)}
    with StoreBuilder(lease, wanted.request, wanted.provenance, tokenizer_files=files) as builder:
        report = lay_out(config.corpus, wanted.tokenizer, builder, progress, known=known)
        row_bytes = max(schema.row_bytes for schema in wanted.sites.values())
        builder.finish(
            partial(
                plan_geometry,
                row_bytes=row_bytes,
                context_length=config.corpus.context_length,
                num_sites=len(wanted.sites),
                unit_rows_at_most=unit_rows,
            )
        )
    return open_store(lease.location), report


def _check_same(
    store: ActivationStore, config: HarvestConfig, wanted: Wanted, progress: Progress
) -> None:
    """Refuse a store that holds other rows than are asked for.

    The rows of a store are fixed, so its text is not needed any more: where the source is asked
    for in words that its harvest recorded, nothing is read. Where it is not, the text decides.
    """
    check_same(store, wanted.request, wanted.provenance)
    check_sites(store, wanted.sites)
    source = to_dict(config.corpus)["source"]
    requests = [group.request for group in store.ledger.groups]
    recorded = [request["corpus"]["source"] for request in requests if "corpus" in request]
    if any(not differences(words, source) for words in recorded):
        return
    if why := _why_another_text(store, config, wanted, progress):
        known = recorded[-1] if recorded else store.provenance.corpus.get("source", {})
        lines = differences(known, source, path="corpus.source")
        raise StoreMismatch(
            f"The source of {store.url} was given in other words, and {why}\n"
            + "\n".join(lines)
            + "\nhint: give another path for a new store; in the words of its own harvest a store "
            "is gone on with, also where its text is no longer there"
        )


def _why_another_text(
    store: ActivationStore, config: HarvestConfig, wanted: Wanted, progress: Progress
) -> str:
    """Lay the text down elsewhere, and compare: what is wrong, or nothing."""
    try:
        with scratch_lease() as lease:
            again, _ = lay_down(lease, config, wanted, progress, unit_rows=store.schema.rows)
            hashes = again.ledger.corpora[0].sha256
            is_there = any(corpus.sha256 == hashes for corpus in store.ledger.corpora)
            return "" if is_there else "its text is another:"
    except CorpusError as error:
        problem, _, _ = str(error).partition("\nhint:")
        return f"its text cannot be compared: {problem}"


def harvest_request(config: HarvestConfig, *, threads: int) -> dict[str, Any]:
    """What is kept in the ledger with the sites, so that damaged units can be computed again."""
    asked = to_dict(config)
    kept = ("model", "corpus", "storage", "batch_tokens", "stages", "pipeline")
    return {key: asked[key] for key in kept} | {"threads": threads}
