"""A row is what the model computes on its context alone, in every family, or it is found out."""

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actlake.jobs.harvest.batches import BATCHINGS, Batching
from actlake.jobs.harvest.trial import BOUNDS
from actlake.jobs.harvest.trial_worker import TrialUnit, TrialWorker, row_error
from actlake.platform.cluster import run_chain
from actlake.platform.models import ModelConfig, resolve_model

from .conftest import COMMON, GROUPED, TINY, save_tiny

SAMPLE = list(np.random.default_rng(0).integers(3, 128, (4, 48)).astype(np.int32))
LONG_ROPE: dict[str, Any] = COMMON | {
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "original_max_position_embeddings": 32,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 32,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
    },
}


def errors_of(
    folder: Path, *, stages: int = 1, context_length: int = 48, dtype: str = "float32"
) -> Mapping[Batching, float]:
    """By batching the worst row of any site, relative to its size."""
    model = resolve_model(ModelConfig(name=str(folder), device="cpu", dtype=dtype))
    bounds = [model.num_layers * stage // stages for stage in range(stages + 1)]
    trial = TrialUnit.of(SAMPLE, context_length=context_length, batch_tokens=512)
    chain = [
        TrialWorker(
            model=model,
            layers=range(start, stop),
            sites=tuple(model.sites()),
            trial=trial,
            threads=1,
        )
        for start, stop in itertools.pairwise(bounds)
    ]
    return {
        batching: max(
            error for receipt in run_chain(chain, number) for error in receipt.errors.values()
        )
        for number, batching in enumerate(BATCHINGS)
    }


@pytest.mark.parametrize("family", TINY)
def test_in_every_family_a_context_among_others_padded_and_cut_has_the_rows_it_has_alone(
    family: str, tiny_folder: Callable[..., Path]
) -> None:
    assert max(errors_of(tiny_folder(family)).values()) <= BOUNDS["float32"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "mixtral"])
def test_so_it_is_in_two_stages_and_in_half_precision(
    family: str, dtype: str, tiny_folder: Callable[..., Path]
) -> None:
    assert max(errors_of(tiny_folder(family), stages=2, dtype=dtype).values()) <= BOUNDS[dtype]


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("gemma3_text", TINY["gemma3_text"] | {"use_bidirectional_attention": True}),
        ("llama", COMMON | GROUPED | {"is_causal": False}),
        ("phi3", LONG_ROPE),
    ],
    ids=["attention looks ahead in windows", "attention looks ahead", "frequencies by length"],
)
def test_a_family_whose_rows_depend_on_their_neighbours_is_found_out_in_every_dtype(
    family: str,
    settings: dict[str, Any],
    dtype: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(TINY, family, settings)

    errors = errors_of(save_tiny(family, tmp_path / family), dtype=dtype)

    assert errors["padded"] > 2 * BOUNDS[dtype]
    assert errors["equal_length"] <= BOUNDS[dtype]


def test_frequencies_that_change_from_a_length_on_are_right_below_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TINY, "phi3", LONG_ROPE)
    folder = save_tiny("phi3", tmp_path / "phi3")

    assert errors_of(folder, context_length=32)["padded"] <= BOUNDS["float32"]
    assert errors_of(folder, context_length=33)["padded"] > 0.1


def test_experts_that_take_so_many_tokens_and_no_more_need_contexts_alone(
    tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    forward = MixtralSparseMoeBlock.forward

    def with_capacity(self: Any, hidden_BLD: Any) -> Any:
        out_BLD = forward(self, hidden_BLD).clone()
        out_BLD.view(-1, out_BLD.shape[-1])[60:] = 0  # what the experts have no room for
        return out_BLD

    monkeypatch.setattr(MixtralSparseMoeBlock, "forward", with_capacity)

    errors = errors_of(tiny_folder("mixtral"))

    assert errors["padded"] > 0.1
    assert errors["equal_length"] > 0.1
    assert errors["alone"] == 0.0


def test_a_model_that_draws_random_numbers_is_not_the_same_twice(
    tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers.models.llama.modeling_llama import LlamaMLP

    forward = LlamaMLP.forward
    noisy = lambda self, x: forward(self, x) + 0.1 * torch.randn_like(x)  # noqa: E731
    monkeypatch.setattr(LlamaMLP, "forward", noisy)

    assert errors_of(tiny_folder("llama"))["alone"] > BOUNDS["float32"]


def test_the_error_of_rows_is_relative_and_sees_what_is_not_finite() -> None:
    alone = np.array([[3.0, 4.0], [0.0, 0.0], [np.inf, np.nan]], np.float32)

    assert row_error(alone.copy(), alone) == 0.0
    assert row_error(alone + np.float32([[0.5, 0], [0, 0], [0, 0]]), alone) == pytest.approx(0.1)
    assert row_error(alone + np.float32([[0, 0], [0, 1e-9], [0, 0]]), alone) == np.inf
    assert row_error(np.where(np.isfinite(alone), alone, 1), alone) == np.inf
