"""Checks of speed: what capturing and writing cost beside the bare forward pass.

The model has the blocks of Llama 3 8B (Dubey et al. 2024, arXiv:2407.21783, table 3), as many of
them as fit, and random weights. On a CPU its width is that of a toy and nothing is judged.
"""

import shutil
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actlake.jobs.doctor.check import Finding, compared
from actlake.jobs.doctor.device.bench import REPORT, Bench, Tokens, harvesting
from actlake.jobs.harvest.batches import Batch
from actlake.jobs.harvest.buffers import UnitBuffers
from actlake.jobs.harvest.metering import ORDER, StageUse
from actlake.platform.models import ModelStage, ResolvedModel, load_stage, stage_bytes
from actlake.platform.models.quiet import no_progress_bars
from actlake.storage import Site, SiteSchema
from actlake.storage.summary import human_bytes

LEAST_SHARE = 0.97
"""Of the bare forward pass's speed, with capture."""
MOST_OF_PLAN = 2.0
"""Peak memory over weights and rows: the rest is what blocks compute with."""
_VOCABULARY = 32_000
_BLOCK_BYTES = 2 * 218e6
_UNIT_ROWS = 8192
_ROUNDS = 5


@dataclass(frozen=True)
class LargeModel:
    """The model that is timed, loaded once."""

    bench: Bench

    @cached_property
    def folder(self) -> Path:
        """Written at random."""
        from transformers import LlamaConfig, LlamaForCausalLM

        folder = self.bench.scratch / "models" / "8b"
        wide = self.bench.on_gpu
        config = LlamaConfig(
            hidden_size=4096 if wide else 64,
            intermediate_size=14_336 if wide else 224,
            num_attention_heads=32 if wide else 4,
            num_key_value_heads=8 if wide else 2,
            num_hidden_layers=self._num_layers(),
            vocab_size=_VOCABULARY if wide else 128,
            max_position_embeddings=8192,
        )
        torch.manual_seed(0)
        with torch.device(self.bench.device), no_progress_bars():
            model = LlamaForCausalLM(config).to(self.dtype)
            model.save_pretrained(folder)
        del model
        self.bench.clear()
        return folder

    @property
    def dtype(self) -> torch.dtype:
        """As ``auto`` chooses it."""
        return torch.bfloat16 if self.bench.on_gpu else torch.float32

    @cached_property
    def resolved(self) -> ResolvedModel:
        """The model, found."""
        return self.bench.resolve(self.folder, dtype="auto")

    @cached_property
    def stage(self) -> ModelStage:
        """All of it."""
        return load_stage(self.resolved, range(self.resolved.num_layers), self.sites)

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """Six, the last block's output among them."""
        last = self.resolved.num_layers - 1
        points = ("attn_out", "mlp_out", "resid_post")
        named = {Site(layer, point) for layer in (last // 2, last) for point in points}
        return tuple(sorted(named))

    def _num_layers(self) -> int:
        if not self.bench.on_gpu:
            return 4
        _, memory = torch.cuda.mem_get_info(self.bench.device)
        disk = shutil.disk_usage(self.bench.scratch).free
        return max(2, min(8, int(min(0.3 * memory, 0.5 * disk) / _BLOCK_BYTES)))


class SpeedChecks:
    """The checks that share the large model."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._large = LargeModel(bench)
        self._uses: list[StageUse] = []
        self._length = 512 if bench.on_gpu else 32

    def check_capture(self) -> Iterator[Finding]:
        """Capturing six sites costs next to nothing; the whole worker, by units in flight."""
        tokens = (4096, 16_384, 65_536) if self._bench.on_gpu else (128, 512)
        share = bare_rate = 0.0
        for batch_tokens in tokens:
            bare_s, capture_s = self._seconds(batch_tokens)
            share, bare_rate = bare_s / capture_s, batch_tokens / bare_s
            yield self._judged(
                f"capture of 6 sites, {batch_tokens:,} tokens at once, as a share of the bare "
                f"forward pass ({bare_rate:,.0f} tokens/s)", share,
            )  # fmt: skip
        for threads in (2, 4, 8):
            rate = self._worker_rate(threads, tokens[-1])
            yield Finding(
                "worker", "ok",
                f"{rate:,.0f} tokens/s with {threads} units in flight, captured and written: "
                f"{rate / bare_rate:.0%} of the bare forward pass",
            )  # fmt: skip

    def check_meter(self) -> Iterator[Finding]:
        """Where the time of the worker went, by its own meter."""
        total = {what: sum(use.seconds[what] for use in self._uses) for what in ORDER}
        seconds = sum(total.values())
        shares = ", ".join(f"{what} {total[what] / seconds:.0%}" for what in ORDER)
        held_back = total["write"] > 0.1 * seconds and self._bench.on_gpu
        yield Finding(
            "meter", "warn" if held_back else "ok", f"{shares} of {seconds:.1f} s",
            "writing holds this device back: fewer sites, a faster disk, or `storage.compression: "
            "none`" if held_back else "",
        )  # fmt: skip

    def check_memory(self) -> Iterator[Finding]:
        """How often the host waits for the device in a batch, and peak memory beside the plan."""
        if not self._bench.on_gpu:
            yield Finding(
                "synchronisations",
                "ok",
                "a CPU has no streams to wait for and no memory of its own",
            )
            return
        waits, peak = self._waits_and_peak(16_384)
        yield compared(
            "synchronisations", "times that the host waited for the device in a batch",
            expected="0", seen=f"{waits}", right=waits == 0,
            hint="capture holds the device back; " + REPORT,
        )  # fmt: skip
        model = self._large.resolved
        rows = 16_384 * 2 * model.dim * len(self._large.sites)
        planned = stage_bytes(model, range(model.num_layers)) + rows
        yield compared(
            "memory", f"peak memory of the device, of {human_bytes(planned)} planned for weights "
            "and rows", expected=f"at most {MOST_OF_PLAN:g} times", seen=f"{peak / planned:.2f}",
            right=peak <= MOST_OF_PLAN * planned, hint="give a smaller `batch_tokens`",
        )  # fmt: skip

    def _judged(self, what: str, share: float) -> Finding:
        if self._bench.on_gpu:
            return compared(
                "capture", what, expected=f"at least {LEAST_SHARE}", seen=f"{share:.3f}",
                right=share >= LEAST_SHARE, hint=REPORT,
            )  # fmt: skip
        return Finding("capture", "ok", f"{what}: {share:.3f} (of a toy, and not judged)")

    def _seconds(self, batch_tokens: int) -> tuple[float, float]:
        """Medians of a bare forward pass and of one with capture, in turns."""
        stage, ids_BL, batch = self._large.stage, self._ids(batch_tokens), _whole(batch_tokens)
        module = stage.module

        def bare() -> None:
            with torch.inference_mode():
                module(input_ids=ids_BL.to(self._bench.device), use_cache=False)

        buffers = self._new_buffers(batch_tokens)

        def captured() -> None:
            buffers.begin(batch)
            stage.run(ids_BL, buffers.put)
            buffers.complete()

        took: dict[Callable[[], None], list[float]] = {bare: [], captured: []}
        for turn in range(_ROUNDS + 1):
            for run, seconds in took.items():
                self._wait()
                began = time.perf_counter()
                run()
                self._wait()
                if turn:  # the first warms up
                    seconds.append(time.perf_counter() - began)
        return statistics.median(took[bare]), statistics.median(took[captured])

    def _worker_rate(self, threads: int, batch_tokens: int) -> float:
        """Tokens a second of a harvest worker that so many threads ask for units."""
        units = threads + 4
        row_bytes = 2 * self._large.resolved.dim * len(self._large.sites)
        room = shutil.disk_usage(self._bench.scratch).free // 3
        rows = min(batch_tokens, _UNIT_ROWS, room // (units * row_bytes))
        per_unit = max(1, rows // self._length)
        tokens = Tokens(contexts=units * per_unit, length=self._length, contexts_per_unit=per_unit)
        name = f"speed-{threads}"
        with harvesting(
            self._bench, name, self._large.resolved, tokens,
            sites=self._large.sites, batch_tokens=batch_tokens, dtype="bfloat16",
        ) as made:  # fmt: skip
            made.run(0)
            self._wait()
            began = time.perf_counter()
            with ThreadPoolExecutor(threads) as pool:
                receipts = list(pool.map(made.run, range(1, made.num_units)))
            seconds = time.perf_counter() - began
        shutil.rmtree(self._bench.scratch / name)
        self._uses.extend(receipt.use for receipt in receipts)
        return sum(receipt.num_tokens for receipt in receipts) / seconds

    def _waits_and_peak(self, batch_tokens: int) -> tuple[int, int]:
        stage, ids_BL = self._large.stage, self._ids(batch_tokens).pin_memory()
        buffers, batch = self._new_buffers(batch_tokens), _whole(batch_tokens)
        self._wait()
        torch.cuda.reset_peak_memory_stats(self._bench.device)
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                buffers.begin(batch)
                stage.run(ids_BL, buffers.put)
                buffers.complete()
        finally:
            torch.cuda.set_sync_debug_mode(before)
        self._wait()
        waits = sum("synchroniz" in str(one.message) for one in seen)
        return waits, torch.cuda.max_memory_allocated(self._bench.device)

    def _ids(self, batch_tokens: int) -> Tensor:
        length = min(self._length, batch_tokens)
        generator = torch.Generator().manual_seed(0)
        shape = (batch_tokens // length, length)
        return torch.randint(self._large.resolved.vocab_size, shape, generator=generator)

    def _new_buffers(self, num_rows: int) -> UnitBuffers:
        rows = SiteSchema(dim=self._large.resolved.dim, dtype="bfloat16")
        return UnitBuffers(
            dict.fromkeys(self._large.sites, rows),
            num_rows=num_rows,
            computed=torch.bfloat16,
            device=self._bench.device,
        )

    def _wait(self) -> None:
        if self._bench.on_gpu:
            torch.cuda.synchronize(self._bench.device)


def _whole(batch_tokens: int) -> Batch:
    """A batch all of whose tokens are rows of the unit, in their order."""
    places: Any = np.arange(batch_tokens, dtype=np.int64)
    return Batch(np.zeros((1, batch_tokens), np.int64), places, places, batch_tokens)
