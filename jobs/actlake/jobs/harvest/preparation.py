"""Before the model runs: the store at the path, made or found, with its rows fixed."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actlake.jobs.harvest.config import HarvestConfig
from actlake.jobs.harvest.planning import unit_rows_at_most
from actlake.platform.config import to_dict
from actlake.platform.corpus import (
    Beginning,
    Packed,
    Progress,
    corpus_provenance,
    lay_out,
    resolve_beginning,
)
from actlake.platform.models import ResolvedModel, load_tokenizer, save_tokenizer
from actlake.storage import (
    ActivationStore,
    Lease,
    Provenance,
    StoreBuilder,
    StoreRequest,
    open_store,
)
from actlake.storage.create import MANIFEST
from actlake.storage.location import LocalFolder
from actlake.storage.resume import check_same
from actlake.storage.sealed import crc32c


@dataclass(frozen=True, slots=True)
class Wanted:
    """The store that a config asks for, as far as that is known before the text is read."""

    request: StoreRequest
    provenance: Provenance
    beginning: Beginning
    tokenizer: Any
    tokenizer_files: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A store whose rows are fixed, and what is to be said of them."""

    store: ActivationStore
    beginning: Beginning
    """With what its contexts begin, and why."""


def wanted_store(config: HarvestConfig, model: ResolvedModel) -> Wanted:
    """Work out what the store at the path should be; reads the tokenizer, no text."""
    tokenizer = load_tokenizer(model)
    files = _tokenizer_files(tokenizer)
    corpus = config.corpus
    beginning = resolve_beginning(corpus.bos, tokenizer)
    request = StoreRequest(
        dim=model.dim,
        dtype=config.storage.dtype,
        layout="packed" if isinstance(corpus.layout, Packed) else "documents",
        context_length=corpus.context_length,
        splits=tuple(corpus.splits.names),
        special_ids=tuple(sorted(set(tokenizer.all_special_ids))),
        compression=config.storage.compression,
        nonfinite=config.storage.nonfinite,
    )
    provenance = Provenance(
        model={
            "name": model.name if model.commit else Path(model.name).name,
            "revision": model.revision,
            "family": model.family,
            "dtype": model.dtype_name,
        },
        tokenizer={
            "class": type(tokenizer).__name__,
            "crc32c": {name: f"{crc32c(data):08x}" for name, data in sorted(files.items())},
        },
        corpus=corpus_provenance(corpus, beginning),
    )
    return Wanted(request, provenance, beginning, tokenizer, files)


def prepare_store(
    lease: Lease, config: HarvestConfig, model: ResolvedModel, *, threads: int, progress: Progress
) -> Prepared:
    """Open the store at the lease's location, laying the corpus down first where there is none.

    Raises
    ------
    StoreMismatch
        The store there holds other rows; the differences are in the message.
    CorpusError
        The text is refused.
    """
    wanted = wanted_store(config, model)
    if lease.location.size(MANIFEST) is not None:
        store = open_store(lease.location)
        check_same(store, wanted.request, wanted.provenance)
        return Prepared(store, wanted.beginning)
    with StoreBuilder(
        lease, wanted.request, wanted.provenance, tokenizer_files=wanted.tokenizer_files
    ) as builder:
        lay_out(config.corpus, wanted.tokenizer, builder, progress)
        builder.finish(unit_rows=unit_rows_at_most(config, model, threads=threads))
    return Prepared(open_store(lease.location), wanted.beginning)


@contextmanager
def scratch_store(
    config: HarvestConfig, model: ResolvedModel, *, threads: int, progress: Progress
) -> Iterator[Prepared]:
    """The store of a config with its corpus but no activations, for a plan; gone afterwards."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="actlake-plan-"))
        lease = stack.enter_context(Lease.acquire(LocalFolder(Path(folder))))
        yield prepare_store(lease, config, model, threads=threads, progress=progress)


def harvest_request(config: HarvestConfig, *, threads: int) -> dict[str, Any]:
    """What is kept in the ledger with the sites, so that damaged units can be computed again."""
    asked = to_dict(config)
    kept = ("model", "corpus", "storage", "batch_tokens", "stages", "pipeline")
    return {key: asked[key] for key in kept} | {"threads": threads}


def _tokenizer_files(tokenizer: Any) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory(prefix="actlake-tokenizer-") as folder:
        save_tokenizer(tokenizer, Path(folder))
        return {
            path.name: path.read_bytes()
            for path in sorted(Path(folder).iterdir())
            if path.is_file()
        }
