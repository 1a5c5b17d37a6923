"""Run units through one stage of the model and write the stage's sites.

A plain class that knows nothing of Ray: `actlake.platform.cluster` puts it in an actor, tests
call it. The first stage reads tokens from the store; later ones receive hidden states. Every
stage writes its own sites straight to the store, and only receipts go to the driver.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from actlake.jobs.harvest.batches import Batch, Batching, run_to, unit_batches
from actlake.jobs.harvest.buffers import UnitBuffers
from actlake.jobs.harvest.metering import Meter, StageUse
from actlake.platform.cluster import DeviceOutOfMemory, Send, device_fault
from actlake.platform.cores import processor_name
from actlake.platform.models import ResolvedModel, load_stage
from actlake.storage import Extent, Site, Token, open_store, restore_unit, write_unit
from actlake.storage.ledger_records import ShardRecord
from actlake.storage.moments import Moments


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitReceipt:
    """What one stage did for one unit."""

    records: list[ShardRecord]
    """To be committed by the driver; of a committed unit, the shards that were restored."""
    num_bytes: int
    """Bytes written."""
    num_tokens: int
    """Tokens computed: the unit's rows, and the beginnings of contexts that straddle in."""
    compute_s: float
    write_s: float
    norms: dict[str, float]
    """``norm/<site>``: mean norm of the unit's rows, position 0 and special ids left out."""
    numerics: dict[str, Any]
    """What the bits depend on, read where they were made."""
    use: StageUse
    """What the stage did since its last receipt, whichever units that was for."""


@dataclass(slots=True)
class _Open:
    """A unit on its way through a stage."""

    batches: list[Batch]
    buffers: UnitBuffers | None
    compute_s: float = 0.0

    def complete(self) -> None:
        if self.buffers is not None:
            self.buffers.complete()


class HarvestWorker:
    """One stage of a harvest; see `actlake.platform.cluster.StageWorker`.

    With `damaged`, the records of committed shards, it is asked for the units of those only, and
    their files are written again instead (`restore_unit`).

    Computing is locked, writing is not: while one unit is written, the next is computed.
    """

    def __init__(
        self,
        *,
        store_url: str,
        token: Token,
        model: ResolvedModel,
        layers: range,
        sites: tuple[Site, ...],
        batch_tokens: int,
        batching: Batching,
        threads: int,
        damaged: tuple[ShardRecord, ...] = (),
    ) -> None:
        self._damaged: dict[tuple[Site, int], ShardRecord] = {
            (record.site, record.unit): record for record in damaged
        }
        self._store = open_store(store_url)
        self._token = token
        token.check(self._store.location)
        self._batch_tokens = batch_tokens
        self._batching = batching
        self._stage = load_stage(model, layers, sites, threads=threads)
        self._numerics = numerics_here(
            model, threads=threads, batch_tokens=batch_tokens, batching=batching
        )
        self._lock = threading.Lock()
        self._meter = Meter()
        self._open: dict[int, _Open] = {}

    def run(self, unit: int, send: Send | None) -> UnitReceipt:
        """First stage: all batches of a unit, through the layers, then on to the next stage."""
        with self._lock:
            work = self._begin(unit)
            for number, batch in enumerate(work.batches):
                leaving_BLD = self._compute(work, batch, torch.from_numpy(batch.ids))
                if send is not None:
                    assert leaving_BLD is not None
                    with self._meter.doing("send"):
                        send((number, leaving_BLD))
            self._complete(work)
        return self._write(unit, work)

    def receive(self, unit: int, message: tuple[int, Tensor], send: Send | None) -> None:
        """Later stages: one batch's hidden state, (B, L, D)."""
        number, hidden_BLD = message
        with self._lock:
            if unit not in self._open:
                self._open[unit] = self._begin(unit)
            work = self._open[unit]
            leaving_BLD = self._compute(work, work.batches[number], hidden_BLD)
        if send is not None:
            assert leaving_BLD is not None
            with self._meter.doing("send"):
                send((number, leaving_BLD))

    def finish(self, unit: int) -> UnitReceipt:
        """Later stages: write the unit."""
        with self._lock:
            work = self._open.pop(unit)
            self._complete(work)
        return self._write(unit, work)

    def _complete(self, work: _Open) -> None:
        """Wait for what was only handed to a GPU, which is computing too."""
        with self._meter.doing("compute"):
            work.complete()

    def _begin(self, unit: int) -> _Open:
        extent = self._store.schema.unit_extent(unit)
        contexts = self._store.contexts_of(extent)
        starts = self._store.contexts["start"].read(contexts.start, contexts.stop + 1)
        how, budget = self._batching, self._batch_tokens
        ids = self._store.tokens["id"].read(int(starts[0]), run_to(starts, extent, how))
        batches = unit_batches(starts, ids, extent, batch_tokens=budget, batching=how)
        return _Open(list(batches), self._new_buffers(extent))

    def _new_buffers(self, extent: Extent) -> UnitBuffers | None:
        if not self._stage.sites:
            return None
        return UnitBuffers(
            {site: self._store.schema_of(site) for site in self._stage.sites},
            num_rows=len(extent),
            computed=self._stage.model.dtype.value,
            device=self._stage.device,
        )

    def _compute(self, work: _Open, batch: Batch, inputs: Tensor) -> Tensor | None:
        started = time.monotonic()
        with self._meter.doing("compute"), self._saying_what_fits():
            if work.buffers is None:
                leaving_BLD = self._stage.run(inputs, _nothing)
            else:
                work.buffers.begin(batch)
                leaving_BLD = self._stage.run(inputs, work.buffers.put)
        work.compute_s += time.monotonic() - started
        return leaving_BLD

    @contextmanager
    def _saying_what_fits(self) -> Iterator[None]:
        """Where a batch does not fit into memory, say which setting makes batches smaller."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            fault = device_fault(error)
            if not isinstance(fault, DeviceOutOfMemory):
                raise
            raise DeviceOutOfMemory(
                f"{fault}\nhint: batches of {self._batch_tokens:,} tokens are too large here; give "
                f"`batch_tokens: {max(1, self._batch_tokens // 2)}` (no batch is smaller than one "
                "context). Last bits may depend on it: a store that has units goes on with another "
                "number only with `allow_other_numerics: true`"
            ) from error

    def _write(self, unit: int, work: _Open) -> UnitReceipt:
        started = time.monotonic()
        records: list[ShardRecord] = []
        norms: dict[str, float] = {}

        def keep_norm(site: Site, moments: list[Moments]) -> None:
            kept = moments[::2]  # the others are of excluded rows: see `row_groups`
            if count := sum(group.count for group in kept):
                norms[f"norm/{site}"] = sum(group.norm_sum for group in kept) / count

        if work.buffers is not None:
            with self._meter.doing("write"):
                rows = work.buffers.to_host()
                work.buffers = None
                if self._damaged:
                    expected = [self._damaged[site.stored, unit] for site in rows]
                    records = restore_unit(self._store, unit, rows, expected, token=self._token)
                else:
                    records = write_unit(
                        self._store, unit, rows, token=self._token, on_moments=keep_norm
                    )
        return UnitReceipt(
            records=records,
            num_bytes=sum(record.rows_bytes + record.moments_bytes for record in records),
            num_tokens=sum(batch.num_tokens for batch in work.batches),
            compute_s=work.compute_s,
            write_s=time.monotonic() - started,
            norms=norms,
            numerics=self._numerics,
            use=self._meter.take(gpu_bytes=_gpu_bytes(self._stage.device)),
        )


def _gpu_bytes(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def numerics_here(
    model: ResolvedModel, *, threads: int, batch_tokens: int, batching: Batching
) -> dict[str, Any]:
    """All that may change the last bits of an activation, as far as this machine can tell."""
    import transformers

    device = model.device.value
    hardware = (
        torch.cuda.get_device_name(device)
        if device.startswith("cuda")
        else f"{torch.backends.cpu.get_cpu_capability()} {processor_name()}".strip()
    )
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": device.partition(":")[0],
        "hardware": hardware,
        "dtype": model.dtype_name,
        "attention": model.attention.value,
        "threads": threads if device == "cpu" else 0,
        "batch_tokens": batch_tokens,
        "batching": batching,
    }


def _nothing(site: Site, acts_BLD: Tensor) -> None:
    raise AssertionError(f"a stage without sites saw {site}")
