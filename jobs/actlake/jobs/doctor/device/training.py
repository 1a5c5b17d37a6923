"""The check of training: an SAE learns on the device as on a CPU, and sparsely as densely."""

import statistics
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from actlake.jobs.doctor.check import Finding, compared
from actlake.jobs.doctor.device.bench import REPORT, Bench
from actlake.jobs.sae import means as named
from actlake.jobs.sae.communicator import ALONE
from actlake.jobs.sae.config import OptimizerConfig, SAESpec
from actlake.jobs.sae.dense import DenseSAE
from actlake.jobs.sae.trainable import TrainableSAE, build_sae
from actlake.jobs.sae.trainee import StepOptions, Trainee
from actlake.storage import Site
from actlake.storage.errors import MissingExtra

MOST_OF_CURVE = 0.01
"""Largest difference of a step's loss from the CPU's, as a share."""
MOST_OF_GRADIENT = 1e-3
"""‖sparse - dense‖ / ‖dense‖ of each parameter's gradient."""
_STEPS = 40


def check_training(bench: Bench) -> Iterator[Finding]:
    """A top-k SAE: its curve beside a CPU's, its gradients beside SAELens', and its speed."""
    try:
        build_sae("topk", {"k": 1}, d_in=2, d_sae=2, seed=0)
    except MissingExtra as missing:
        says, _, hint = str(missing).partition("\nhint: ")
        yield Finding("SAE training", "warn", f"not tried. {says}", hint)
        return
    rows, dim, latents = (1024, 256, 4096) if bench.on_gpu else (128, 32, 128)
    batches = _batches(rows, dim)
    here, there = (
        _losses(batches, latents, torch.device(device)) for device in (bench.device, "cpu")
    )
    difference = max(abs(a - b) / b for a, b in zip(here, there, strict=True))
    yield compared(
        "SAE training", f"largest difference of {_STEPS} losses from a CPU's",
        expected=f"at most {MOST_OF_CURVE:.0%}", seen=f"{difference:.1e}",
        right=difference <= MOST_OF_CURVE, hint=REPORT,
    )  # fmt: skip
    error = _gradient_error(batches[0].to(bench.device), latents)
    yield compared(
        "SAE training", "gradients of sparse top-k, against SAELens' dense ones",
        expected=f"at most {MOST_OF_GRADIENT:g}", seen=f"{error:.1e}",
        right=error <= MOST_OF_GRADIENT, hint=REPORT,
    )  # fmt: skip
    yield _speed(bench)


def _batches(rows: int, dim: int) -> list[Tensor]:
    """Rows with some structure, so that there is something to learn."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(4 * dim, dim, generator=generator)
    return [
        torch.relu(torch.randn(rows, 4 * dim, generator=generator) - 2) @ directions
        for _ in range(_STEPS)
    ]


def _losses(batches: list[Tensor], latents: int, device: torch.device) -> list[float]:
    spec = SAESpec(
        name="doctor", site=Site(0), architecture="topk", d_sae=latents, options={"k": 16},
        start_at_mean=False, dead_after_rows=10**9,
        optimizer=OptimizerConfig(learning_rate=1e-3, schedule="constant", warm_up=0.0),
    )  # fmt: skip
    rows, dim = batches[0].shape
    model = build_sae("topk", {"k": 16}, d_in=dim, d_sae=latents, seed=0, device=device)
    options = StepOptions(steps=len(batches), batch_rows=rows, micro_batches=1, autocast=False)
    trainee = Trainee(
        spec, model, options, variance=torch.full((1,), float(dim), device=device), device=device
    )
    losses = []
    for step, rows_ND in enumerate(batches):
        trainee.step((rows_ND.to(device), None), step, ALONE)
        losses.append(trainee.logged(step + 1)[named.LOSS])
    return losses


def _pair(dim: int, latents: int, device: torch.device) -> tuple[TrainableSAE, DenseSAE]:
    """The same SAE, computed sparsely by us and densely by SAELens."""
    sparse = build_sae("topk", {"k": 16}, d_in=dim, d_sae=latents, seed=0, device=device)
    weights = build_sae("topk", {"k": 16}, d_in=dim, d_sae=latents, seed=0, device=device).weights
    return sparse, DenseSAE(sparse.form, weights)


def _gradient_error(rows_ND: Tensor, latents: int) -> float:
    pair = _pair(rows_ND.shape[1], latents, rows_ND.device)
    for sae in pair:
        _learn(sae, rows_ND)
    sparse, dense = (dict(sae.weights.named_parameters()) for sae in pair)
    errors = []
    for name, parameter in dense.items():
        ours, theirs = sparse[name].grad, parameter.grad
        assert ours is not None, name
        assert theirs is not None, name
        errors.append(float((ours - theirs).norm() / theirs.norm()))
    return max(errors)


def _learn(sae: TrainableSAE, rows_ND: Tensor) -> None:
    loss = sae.step(rows_ND, coefficients={}, dead=None).loss
    loss.backward()  # type: ignore[no-untyped-call]


def _speed(bench: Bench) -> Finding:
    rows, dim, latents = (4096, 4096, 65_536) if bench.on_gpu else (128, 32, 128)
    rows_ND = torch.randn(rows, dim, device=bench.device)
    rates = []
    for sae in _pair(dim, latents, bench.device):
        took = []
        for turn in range(6):
            sae.zero_grad(set_to_none=True)
            if bench.on_gpu:
                torch.cuda.synchronize(bench.device)
            began = time.perf_counter()
            _learn(sae, rows_ND)
            if bench.on_gpu:
                torch.cuda.synchronize(bench.device)
            if turn:
                took.append(time.perf_counter() - began)
        rates.append(rows / statistics.median(took))
    ours, theirs = rates
    return Finding(
        "SAE training", "ok",
        f"{ours:,.0f} rows/s forward and backward with {latents:,} latents of width {dim:,}, "
        f"SAELens {theirs:,.0f}: {ours / theirs:.1f} times"
        + ("" if bench.on_gpu else " (of a toy, and not judged)"),
    )  # fmt: skip
