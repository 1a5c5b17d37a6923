"""How many tokens go through a model at once, where nobody says."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actlake.jobs.harvest import HarvestConfig, batch_budget
from actlake.jobs.harvest.batch_budget import (
    LEAST,
    MOST,
    UNKNOWN_MEMORY,
    tokens_that_fit,
    with_batch_tokens,
)
from actlake.platform.cluster import Resources
from actlake.platform.cluster.worker_plan import WorkerPlan
from actlake.platform.model_map import save_tiny
from actlake.platform.models import ModelConfig, ResolvedModel, resolve_model
from actlake.storage import Site
from actlake.storage.ledger_state import LedgerState

GB = 2**30
ON_CPU = WorkerPlan("cpu", 2, Resources(cpus=2))


def on_gpu(device_bytes: int | None) -> WorkerPlan:
    return WorkerPlan("cuda", 2, Resources(cpus=2, gpus=1), device_bytes)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ResolvedModel:
    return resolve_model(ModelConfig(name=str(save_tiny("llama", tmp_path_factory.mktemp("m")))))


def config(batch_tokens: int | None = None) -> HarvestConfig:
    return HarvestConfig(
        store="unused",
        model=ModelConfig(name="unused"),
        sites=(Site(3),),
        batch_tokens=batch_tokens,
    )


def chosen(model: ResolvedModel, workers: WorkerPlan, state: LedgerState | None = None) -> int:
    return with_batch_tokens(config(), model, workers, state or LedgerState()).batch_budget


sizes = st.integers(min_value=0, max_value=200 * GB)


@given(sizes, sizes, st.integers(min_value=1, max_value=10 * 2**20))
def test_a_power_of_two_that_fits_into_a_quarter_of_what_is_left(
    total: int, weights: int, token: int
) -> None:
    tokens = tokens_that_fit(total_bytes=total, weight_bytes=weights, token_bytes=token)

    assert tokens & (tokens - 1) == 0
    assert LEAST <= tokens <= MOST
    room = (0.9 * total - weights) / 4
    assert tokens == LEAST or tokens * token <= room
    assert tokens == MOST or 2 * tokens * token > room - token


@given(sizes, sizes, st.integers(min_value=1, max_value=10 * 2**20))
def test_more_memory_never_makes_batches_smaller(total: int, weights: int, token: int) -> None:
    less, more = (
        tokens_that_fit(total_bytes=size, weight_bytes=weights, token_bytes=token)
        for size in (total, total + GB)
    )

    assert less <= more


def test_an_8b_model_in_bfloat16_gets_large_batches_on_large_cards_only() -> None:
    block = 218_112_000  # parameters of a block of Llama 3 8B, of width 4,096
    token, weights = 2 * block // 4096 * 2, 32 * block * 2

    fitting = {
        memory: tokens_that_fit(total_bytes=memory * GB, weight_bytes=weights, token_bytes=token)
        for memory in (24, 40, 80, 141)
    }

    assert fitting == {24: 8192, 40: 16_384, 80: 65_536, 141: 65_536}


def test_on_a_cpu_there_are_2048_whatever_its_memory(model: ResolvedModel) -> None:
    assert chosen(model, ON_CPU) == 2048


def test_a_gpu_whose_memory_nobody_knows_is_taken_for_a_small_one(
    model: ResolvedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_budget, "_token_bytes", lambda *arguments: 200_000)

    assert chosen(model, on_gpu(None)) == chosen(model, on_gpu(UNKNOWN_MEMORY)) == 16_384
    assert chosen(model, on_gpu(80 * GB)) == 65_536


def test_what_the_user_says_is_taken(model: ResolvedModel) -> None:
    asked = with_batch_tokens(config(777), model, on_gpu(80 * GB), LedgerState())

    assert asked.batch_budget == 777


def test_a_store_that_has_units_goes_on_with_its_number_on_another_card(
    model: ResolvedModel,
) -> None:
    state = LedgerState(numerics=[{"batch_tokens": 4096}, {"batch_tokens": 16_384}])

    assert chosen(model, on_gpu(8 * GB), state) == 16_384
    assert chosen(model, ON_CPU, state) == 16_384


def test_eager_attention_leaves_room_for_its_scores(model: ResolvedModel, tmp_path: Path) -> None:
    eager = resolve_model(replace(ModelConfig(name=model.location), attention="eager"))
    long = replace(config(), corpus=replace(config().corpus, context_length=65_536))

    fused, scored = (
        with_batch_tokens(long, one, on_gpu(8 * GB), LedgerState()).batch_budget
        for one in (model, eager)
    )

    assert scored < fused
