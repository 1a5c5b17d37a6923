"""What a training will do and need, before it does it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from actlake.jobs.sae.checkpoint import Checkpoints
from actlake.jobs.sae.config import SAEConfig, SAESpec
from actlake.jobs.sae.opening import Opened
from actlake.storage.summary import human_bytes

_SPARSE = ("topk", "batchtopk", "matryoshka_batchtopk")
"""Architectures of which only the active latents are computed after the encoder."""

# Passes over a product of rows and encoder: forward only; or forward and backward of both sides.
_PRODUCTS_SPARSE, _PRODUCTS_DENSE = 1.6, 5.0
_ADAM_BYTES = 28
"""Read and written for each parameter of a step."""
_BYTES_PER_S = 8e9
_LIBRARY_BYTES = 700 * 2**20
"""Of torch and SAELens in a process."""
_PROBE_ROWS, _PROBE_S = 256, 0.05


@dataclass(frozen=True)
class SAEPlan:
    """A training in numbers."""

    specs: tuple[SAESpec, ...]
    """The SAEs, with names."""
    rows: int
    """That each of them sees."""
    rows_of_epoch: int
    steps: int
    done: int
    """Steps that a checkpoint has behind it."""
    batch_rows: int
    held_out_rows: int
    workers: int
    device: str
    parameters: int
    """Of all SAEs."""
    memory_bytes: int
    """Of a worker, about."""
    result_bytes: int
    checkpoint_bytes: int
    """All that are kept, and one that is being written."""
    seconds: float | None
    """A guess, from a product measured now; None where other machines compute."""
    warnings: tuple[str, ...] = ()
    chosen: str | None = None
    """Of which rows, in words, and how many of each split; None where all take part."""
    massive: str | None = None
    """The massive rows that are left out."""

    def __str__(self) -> str:
        names = [str(spec.name) for spec in self.specs]
        shown = ", ".join(names[:4]) + (f", … ({len(names):,} in all)" if len(names) > 4 else "")
        epochs = self.rows / self.rows_of_epoch
        done = f"; {self.done:,} are done" if self.done else ""
        duration = "not guessed: a cluster's machines compute"
        if self.seconds is not None:
            duration = f"about {_duration(self.seconds)}, a guess"
        sharing = f", {self.workers} workers" if self.workers > 1 else ""
        return "\n".join(
            [
                f"SAEs      {shown}: {self.parameters:,} parameters",
                f"rows      {self.rows:,} of {self.rows_of_epoch:,} in the split "
                f"({epochs:.2f} epochs), {self.held_out_rows:,} held out",
                *([f"where     {self.chosen}"] if self.chosen else []),
                *([f"massive   {self.massive}"] if self.massive else []),
                f"steps     {self.steps:,} of {self.batch_rows:,} rows on "
                f"{self.device}{sharing}{done}",
                f"memory    about {human_bytes(self.memory_bytes)} a worker",
                f"files     {human_bytes(self.result_bytes)} of weights, "
                f"{human_bytes(self.checkpoint_bytes)} of checkpoints",
                f"time      {duration}",
                *(f"warning   {warning}" for warning in self.warnings),
            ]
        )


def plan_opened(opened: Opened) -> SAEPlan:
    """The plan of a configuration that is open."""
    config, dim = opened.config, opened.dim
    parameters = sum(num_parameters(spec, dim) for spec in opened.specs)
    largest = max(_worker_parameters(opened.specs, config, dim))
    done = min(last_steps(config, opened.out) or [0])
    left = (opened.steps - done) / max(opened.steps, 1)
    return SAEPlan(
        specs=opened.specs,
        rows=opened.steps * config.batch_rows,
        rows_of_epoch=opened.num_rows,
        steps=opened.steps,
        done=done,
        batch_rows=config.batch_rows,
        held_out_rows=opened.held_out_rows,
        workers=config.workers,
        device=f"{config.device} of a cluster" if opened.joins else str(opened.device),
        parameters=parameters,
        memory_bytes=_LIBRARY_BYTES + 16 * largest + _step_bytes(opened),
        result_bytes=4 * parameters,
        checkpoint_bytes=12 * parameters * (config.checkpoint.keep + 1),
        seconds=None if opened.joins else left * _seconds(opened),
        warnings=tuple(opened.warnings),
        chosen=None if opened.chosen is None else str(opened.chosen),
        massive=str(opened.massive) if opened.massive and len(opened.massive.anywhere) else None,
    )


def checkpoint_folders(config: SAEConfig, out: Path) -> list[Path]:
    """Where each worker that has SAEs of its own keeps its checkpoints."""
    if config.spread == "rows":
        return [out / "checkpoints"]
    number = config.workers
    return [out / "checkpoints" / f"{worker}-of-{number}" for worker in range(number)]


def last_steps(config: SAEConfig, out: Path) -> list[int]:
    """Steps of the last checkpoint of each, 0 where there is none."""
    folders = checkpoint_folders(config, out)
    return [max(Checkpoints(folder, keep=1).steps(), default=0) for folder in folders]


def shares(specs: Sequence[SAESpec], config: SAEConfig) -> list[tuple[SAESpec, ...]]:
    """The SAEs of each worker: all of them, or some where they are spread."""
    if config.spread == "rows":
        return [tuple(specs)] * config.workers
    return [tuple(specs[worker :: config.workers]) for worker in range(config.workers)]


def num_parameters(spec: SAESpec, dim: int) -> int:
    """About: of encoder, decoder and biases."""
    read = len(spec.inputs) * dim
    written = dim if spec.target is not None else read
    return (read + written + 2) * spec.d_sae + written


def _worker_parameters(specs: Sequence[SAESpec], config: SAEConfig, dim: int) -> list[int]:
    return [sum(num_parameters(spec, dim) for spec in share) for share in shares(specs, config)]


def _step_bytes(opened: Opened) -> int:
    """Rows read ahead, and what one SAE has in memory in a step."""
    config, dim = opened.config, opened.dim
    rows = config.batch_rows // (config.workers if config.spread == "rows" else 1)
    sites = len({site for spec in opened.specs for site in spec.all_sites})
    ahead = 4 * rows * dim * 4 * sites
    part = rows // config.micro_batches
    latents = max(
        part * (64 if spec.architecture in _SPARSE else 4 * spec.d_sae) * 4 for spec in opened.specs
    )
    return ahead + latents + 3 * part * dim * 4


def _seconds(opened: Opened) -> float:
    """Of all steps: products at the measured speed, and Adam at that of memory."""
    config, dim = opened.config, opened.dim
    flops = 0.0
    for spec in opened.specs:
        passes = _PRODUCTS_SPARSE if spec.architecture in _SPARSE else _PRODUCTS_DENSE
        flops += passes * 2 * len(spec.inputs) * dim * spec.d_sae * config.batch_rows
    adam = _ADAM_BYTES * sum(num_parameters(spec, dim) for spec in opened.specs) / _BYTES_PER_S
    speed = _flops_per_s(dim, opened.specs[0].d_sae, opened.device)
    faster = config.workers if opened.device.type != "cpu" or config.spread == "saes" else 1
    return opened.steps * (flops / speed + adam) / faster


def _flops_per_s(dim: int, width: int, device: torch.device) -> float:
    width = min(width, 8192)
    rows = torch.ones(_PROBE_ROWS, dim, device=device)
    weights = torch.ones(dim, width, device=device)
    float((rows @ weights)[0, 0])  # the first one is slow
    began, products = time.perf_counter(), 0
    while time.perf_counter() - began < _PROBE_S:
        float((rows @ weights)[0, 0])
        products += 1
    return products * 2 * _PROBE_ROWS * dim * width / (time.perf_counter() - began)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
