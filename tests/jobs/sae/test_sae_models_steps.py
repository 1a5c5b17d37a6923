"""Steps of SAEs in training: losses, gradients and choices, against SAELens' dense code."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from actlake.jobs.sae import choosing, jumprelu
from actlake.jobs.sae.communicator import ALONE
from actlake.jobs.sae.trainable import build_sae

DIM, LATENTS, ROWS = 24, 96, 70
WIDTHS = [10, 40, 96]

CASES = [
    ("standard", {"l1_coefficient": 0.3}),
    ("gated", {"l1_coefficient": 0.3}),
    ("matching_pursuit", {"max_iterations": 4}),
    ("jumprelu", {"l0_coefficient": 0.7, "jumprelu_bandwidth": 0.4}),
    ("jumprelu", {"jumprelu_ste_to_input": True, "apply_b_dec_to_input": False}),
    ("jumprelu", {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": 9.0}),
    ("jumprelu", {"jumprelu_sparsity_loss_mode": "tanh", "pre_act_loss_coefficient": 1e-3}),
    ("topk", {"k": 5}),
    ("topk", {"k": 2, "rescale_acts_by_decoder_norm": False, "apply_b_dec_to_input": False}),
    ("topk", {"k": 96, "aux_loss_coefficient": 0.3}),
    ("abstopk", {"k": 5}),
    ("batchtopk", {"k": 4.5, "topk_threshold_lr": 0.2}),
    ("batchtopk", {"k": 0.5, "rescale_acts_by_decoder_norm": False}),
    ("batchtopk", {"k": 90.0}),
    ("matryoshka_batchtopk", {"k": 4.5, "matryoshka_widths": WIDTHS}),
    (
        "matryoshka_batchtopk",
        {"k": 4.5, "matryoshka_widths": WIDTHS, "use_matryoshka_aux_loss": True},
    ),
]
"""Every architecture, with every option that changes a step."""


def stirred(module: torch.nn.Module, seed: int = 1) -> None:
    """Move weights away from their special beginning, the same way for the same seed."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            step = 0.05 * torch.randn(weight.shape, generator=random)
            weight += step.abs() if name.endswith("threshold") else step


def rows_of(seed: int, num_rows: int = ROWS, dim: int = DIM) -> Tensor:
    return torch.randn(num_rows, dim, generator=torch.Generator().manual_seed(seed)) * 2 + 0.3


def dead_of(share: float) -> Tensor | None:
    if share == 0:
        return None
    return torch.rand(LATENTS, generator=torch.Generator().manual_seed(4)) < share


@pytest.fixture(params=["one part", "parts of 7 rows"])
def parts(request, monkeypatch) -> None:
    """Rows at once: all of them, or few, so that a batch is computed in parts."""
    if request.param != "one part":
        for module in (choosing, jumprelu):
            monkeypatch.setattr(module, "_CACHE_BYTES", 7 * 4 * LATENTS)
            monkeypatch.setattr(module, "_LEAST_ROWS", 1)


@pytest.mark.parametrize("dead_share", [0, 0.05, 0.7])
@pytest.mark.parametrize(("architecture", "options"), CASES)
@pytest.mark.usefixtures("parts")
def test_losses_gradients_and_firings_are_those_of_saelens(
    saelens, architecture, options, dead_share
) -> None:
    ours = build_sae(architecture, options, d_in=DIM, d_sae=LATENTS, seed=3)
    theirs = saelens.training(architecture, options, DIM, LATENTS, seed=3)
    for (name, mine), (other, drawn) in zip(
        ours.weights.named_parameters(), theirs.named_parameters(), strict=True
    ):
        assert name == other
        assert torch.equal(mine, drawn)
    stirred(ours.weights)
    stirred(theirs)
    coefficients = {name: 0.8 * value for name, (value, _) in ours.coefficients.items()}

    for seed in (5, 6):  # twice, for what is carried from step to step
        x, dead = rows_of(seed), dead_of(dead_share)
        ours.zero_grad()
        theirs.zero_grad()
        output = ours.step(x, coefficients=coefficients, dead=dead)
        output.loss.backward()
        expected = saelens.step(theirs, x, coefficients, dead)
        expected.loss.backward()

        assert output.loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)
        assert set(output.parts) == set(expected.losses)
        for name, part in expected.losses.items():
            assert output.parts[name].item() == pytest.approx(float(part.detach()), rel=1e-5)
        assert torch.equal(output.fired, (expected.feature_acts != 0).sum(0))
        error = (expected.sae_out - x).double().square().sum()
        assert output.squared_error.item() == pytest.approx(error.item(), rel=1e-5)
        for (name, mine), wanted in zip(
            ours.weights.named_parameters(), theirs.parameters(), strict=True
        ):
            assert mine.grad is not None, name
            scale = wanted.grad.abs().max()
            assert (mine.grad - wanted.grad).abs().max() <= 1e-6 * scale, name
    if architecture in ("batchtopk", "matryoshka_batchtopk"):
        assert ours.weights.topk_threshold.item() == pytest.approx(theirs.topk_threshold.item())


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "jumprelu"])
def test_a_step_in_bfloat16_is_nearly_the_one_in_float32(architecture, saelens) -> None:
    options = {} if architecture == "jumprelu" else {"k": 5}
    losses = []

    for enabled in (False, True):
        sae = build_sae(architecture, options, d_in=DIM, d_sae=LATENTS, seed=0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            output = sae.step(rows_of(5), coefficients={"l0": 1.0}, dead=dead_of(0.2))
        output.loss.backward()
        assert all(weight.grad.dtype == torch.float32 for weight in sae.parameters())
        losses.append(output.loss.item())

    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.parametrize("rows", [0.0, float("nan")])
@pytest.mark.parametrize("architecture", ["topk", "abstopk", "batchtopk", "jumprelu"])
def test_rows_of_zeros_or_of_no_numbers_do_not_stop_a_step(architecture, rows, saelens) -> None:
    options = {} if architecture == "jumprelu" else {"k": 3}
    sae = build_sae(architecture, options, d_in=DIM, d_sae=LATENTS, seed=0)
    x = torch.full((ROWS, DIM), rows)

    output = sae.step(x, coefficients={"l0": 1.0}, dead=None)
    output.loss.backward()

    assert output.loss.isnan() == np.isnan(rows)


@given(
    values=arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 6), st.integers(1, 90)),
        elements=st.floats(-4, 4, width=16).map(lambda value: round(value, 1)),
    ),
    k=st.integers(1, 4),
)
@settings(max_examples=150, deadline=None)
def test_the_largest_of_each_row_are_found_also_among_equals(values, k) -> None:
    values = torch.from_numpy(values)
    k = min(k, values.shape[1])

    places = choosing.largest_of_rows(values, k)

    assert all(len(set(row)) == k for row in places.tolist())
    found = values.gather(1, places).sort(1).values
    assert torch.equal(found, values.topk(k, dim=1).values.sort(1).values)


@given(
    values=st.lists(
        st.lists(st.floats(0, 2.0**99, width=32) | st.sampled_from([0.5, 1.0]), max_size=30),
        min_size=1,
        max_size=3,
    ),
    wanted=st.integers(0, 60),
)
@settings(max_examples=60, deadline=None)
def test_workers_keep_the_largest_of_all_and_no_more(values, wanted) -> None:
    tensors = [torch.tensor(mine, dtype=torch.float32) for mine in values]

    kept = together(
        len(values), lambda rank, comm: choosing.keep_largest(tensors[rank], wanted, comm)
    )

    found = torch.cat([mine[places] for mine, places in zip(tensors, kept, strict=True)])
    everything = torch.cat(tensors).sort(descending=True).values
    assert torch.equal(found.sort(descending=True).values, everything[:wanted])


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("topk", {"k": 5}),
        ("batchtopk", {"k": 4.5}),
        ("matryoshka_batchtopk", {"k": 4.5, "matryoshka_widths": WIDTHS}),
        ("jumprelu", {}),
    ],
)
def test_two_workers_have_the_gradients_of_one_on_all_rows(saelens, architecture, options) -> None:
    dead = dead_of(0.2)
    x = rows_of(5) * torch.linspace(0.2, 3, ROWS)[:, None]  # the second worker has larger rows

    saes = [build_sae(architecture, options, d_in=DIM, d_sae=LATENTS, seed=3) for _ in range(3)]
    for sae in saes:
        stirred(sae.weights)

    def gradients(sae, rows: Tensor, comm) -> tuple[list[Tensor], dict[str, Tensor]]:
        sae.step(rows, coefficients={"l0": 1.0}, dead=dead, comm=comm).loss.backward()
        return [weight.grad for weight in sae.parameters()], sae.state_dict()

    whole, state = gradients(saes[2], x, ALONE)
    halves = together(2, lambda rank, comm: gradients(saes[rank], x.chunk(2)[rank], comm))

    for expected, *mine in zip(whole, *(found for found, _ in halves), strict=True):
        mean = torch.stack(mine).mean(0)
        assert (mean - expected).abs().max() <= 1e-6 * expected.abs().max()
    for _, mine in halves:
        assert all(torch.equal(mine[name], value) for name, value in state.items())


def together(size: int, work: Callable) -> list:
    """What `work(rank, comm)` gives in `size` threads that talk to each other."""
    barrier, boxes = threading.Barrier(size, timeout=60), [None] * size

    class Talking:
        def __init__(self, rank: int) -> None:
            self.rank, self.size = rank, size

        def all_gather(self, values: Tensor) -> Tensor:
            boxes[self.rank] = values
            barrier.wait()
            found = torch.stack(boxes)
            barrier.wait()
            return found

        def sum(self, values: Tensor) -> Tensor:
            return self.all_gather(values).sum(0)

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: work(rank, Talking(rank)), range(size)))
