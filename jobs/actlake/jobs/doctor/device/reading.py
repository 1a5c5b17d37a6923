"""The check of reading: batches on the device are those of the store."""

import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from actlake.jobs.doctor.check import Finding, compared
from actlake.jobs.doctor.device.bench import REPORT, Bench
from actlake.platform.torch_batches import TorchBatches
from actlake.storage import ActivationStore, Site, open_store
from actlake.storage.write_store import write_store

SITE = Site(0)


def check_batches(bench: Bench) -> Iterator[Finding]:
    """`TorchBatches` on the device equals the same on the CPU, however far ahead it reads."""
    contexts, length, dim = (64, 512, 1024) if bench.on_gpu else (16, 64, 32)
    rows_ND = np.random.default_rng(0).standard_normal((contexts * length, dim), np.float32)
    store = write_store(
        bench.scratch / "rows",
        [np.zeros(length, np.int32)] * contexts,
        {SITE: rows_ND.astype(np.float16)},
        provenance="doctor",
    )
    rows_per_batch = length * contexts // 16
    expected = [
        batch.acts.clone()
        for batch in _batches(store, rows_per_batch, torch.device("cpu"), prefetch=0)
    ]
    for prefetch in (0, 3):
        seen = _slowly_kept(bench, store, rows_per_batch, prefetch=prefetch)
        equal = sum(map(torch.equal, expected, seen)) if len(seen) == len(expected) else 0
        yield compared(
            "batches", f"batches that equal the CPU's, {prefetch} ahead, a slow consumer",
            expected=f"{len(expected)} of {len(expected)}", seen=f"{equal} of {len(expected)}",
            right=equal == len(expected), hint=REPORT,
        )  # fmt: skip


def _batches(
    store: ActivationStore, rows_per_batch: int, device: torch.device, *, prefetch: int
) -> TorchBatches:
    batches = open_store(store.url).batches(SITE, rows_per_batch, seed=0, epochs=1)
    return TorchBatches(batches, device=device, prefetch=prefetch)


def _slowly_kept(
    bench: Bench, store: ActivationStore, rows_per_batch: int, *, prefetch: int
) -> list[Tensor]:
    """Batches as a consumer sees them that lags behind, on a GPU on a stream of its own."""
    kept: list[Tensor] = []
    stream = torch.cuda.Stream(bench.device) if bench.on_gpu else None  # type: ignore[no-untyped-call]
    with (
        torch.cuda.stream(stream),  # nothing, where there is none
        _batches(store, rows_per_batch, bench.device, prefetch=prefetch) as batches,
    ):
        for batch in batches:
            if bench.on_gpu:
                _busy(20_000_000)  # cycles: about ten milliseconds
            else:
                time.sleep(0.002)
            kept.append(batch.acts.clone())
    if bench.on_gpu:
        torch.cuda.synchronize(bench.device)
    return [acts_ND.cpu() for acts_ND in kept]


def _busy(cycles: int) -> None:
    """Keep the current stream busy; torch has it for its own tests."""
    torch.cuda._sleep(cycles)  # type: ignore[no-untyped-call]
