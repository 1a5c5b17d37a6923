"""What the checks of a device share: the device, a folder, sizes that fit, models and stores.

Everything is made here, at random and the same each time: no network, no Ray, no account.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from actlake.jobs.harvest.worker import HarvestWorker, UnitReceipt
from actlake.platform.model_map import save_tiny
from actlake.platform.models import ModelConfig, ResolvedModel, resolve_model
from actlake.platform.models.config import Dtype
from actlake.storage import (
    Context,
    Document,
    Geometry,
    Lease,
    Provenance,
    Site,
    SiteSchema,
    StoreBuilder,
    StoreRequest,
    add_sites,
    open_store,
)
from actlake.storage.dtypes import ActivationDtype
from actlake.storage.location import locate

REPORT = "do not harvest or train on this device; report it with the output of --json"


@dataclass(frozen=True)
class Bench:
    """One device, and room for what is tried on it."""

    device: torch.device
    scratch: Path
    """An empty folder, removed afterwards."""

    @property
    def on_gpu(self) -> bool:
        """Whether it is a CUDA device; on a CPU sizes are a toy's, and no speed is judged."""
        return self.device.type == "cuda"

    @cached_property
    def tiny_llama(self) -> Path:
        """A folder with the tiny model that most checks run."""
        return self.tiny("llama")

    def tiny(self, family: str) -> Path:
        """A folder with a tiny random model of a family."""
        folder = self.scratch / "models" / family
        return folder if folder.exists() else save_tiny(family, folder)

    def resolve(
        self, folder: Path, *, dtype: Dtype = "float32", device: str | None = None
    ) -> ResolvedModel:
        """The model of a folder on this device, or on another one."""
        return resolve_model(
            ModelConfig(name=str(folder), dtype=dtype, device=device or str(self.device))
        )

    def clear(self) -> None:
        """Hand back to the device what its allocator keeps."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()


@dataclass(frozen=True, slots=True)
class Tokens:
    """Sizes of a store of random tokens."""

    contexts: int
    length: int
    """Tokens of the longest context; a third of the contexts is shorter."""
    contexts_per_unit: int
    vocabulary: int = 128

    def lengths(self) -> list[int]:
        """Of each context; the first of each three are whole."""
        short = max(1, 2 * self.length // 3)
        return [short if place % 3 == 2 else self.length for place in range(self.contexts)]


class Harvested:
    """A store of random tokens, and a worker of one stage that fills it, in this process."""

    def __init__(self, worker: HarvestWorker, *, num_units: int) -> None:
        self.num_units = num_units
        self._worker = worker

    def run(self, unit: int) -> UnitReceipt:
        """The receipt of a unit, which is written and not committed; in any thread."""
        return self._worker.run(unit, None)


@contextmanager
def harvesting(
    bench: Bench,
    name: str,
    model: ResolvedModel,
    tokens: Tokens,
    *,
    sites: Sequence[Site],
    batch_tokens: int,
    dtype: ActivationDtype = "float32",
    threads: int = 1,
) -> Iterator[Harvested]:
    """A store below the bench's folder, and a worker that holds all needed layers of a model."""
    folder = bench.scratch / name
    with Lease.acquire(locate(folder)) as lease:
        _lay_tokens(lease, tokens)
        store = open_store(folder)
        add_sites(lease, store, dict.fromkeys(sites, SiteSchema(dim=model.dim, dtype=dtype)), {})
        worker = HarvestWorker(
            store_url=str(folder),
            token=lease.token,
            model=model,
            layers=range(max(site.layer for site in sites) + 1),
            sites=tuple(sites),
            batch_tokens=batch_tokens,
            batching="padded",
            threads=threads,
        )
        yield Harvested(worker, num_units=store.schema.num_units)


def _lay_tokens(lease: Lease, tokens: Tokens) -> None:
    rng = np.random.default_rng(0)
    wanted = StoreRequest(layout="documents", context_length=tokens.length, splits=("train",))
    with StoreBuilder(lease, wanted, Provenance(model={"name": "doctor"})) as builder:
        for place, length in enumerate(tokens.lengths()):
            document = builder.add_document(Document(str(place), "random", "train"))
            builder.add_context(
                Context(
                    rng.integers(0, tokens.vocabulary, length).astype(np.int32),
                    np.full(length, document),
                    np.full(length, -1, np.int32),
                    "train",
                )
            )
        unit_rows = tokens.contexts_per_unit * tokens.length
        builder.finish(lambda _: Geometry(unit_rows=unit_rows))


@contextmanager
def memory_taken(bench: Bench, *, leave_bytes: int) -> Iterator[int]:
    """All of the GPU's free memory but so many bytes is taken within it; how many bytes that is.

    On a CPU nothing is taken: its memory is the machine's.
    """
    if not bench.on_gpu:
        yield 0
        return
    bench.clear()
    free, _ = torch.cuda.mem_get_info(bench.device)
    taken = max(0, free - leave_bytes)
    filling = torch.empty(taken, dtype=torch.uint8, device=bench.device)
    try:
        yield taken
    finally:
        del filling
        bench.clear()
