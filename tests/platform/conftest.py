"""Tiny models with random weights, one of each way of building a block; one embedded Ray."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from actlake.platform.cluster import ClusterConfig, Session, session

# Four layers, width 32, 128 tokens in the vocabulary. Sliding windows are longer than the tests'
# contexts in some and shorter in others, so that both masks are met.
COMMON = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": 128,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
GPT2 = {
    "n_embd": 32, "n_layer": 4, "n_head": 4, "vocab_size": 128, "n_positions": 64,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
TINY: dict[str, dict[str, Any]] = {
    "llama": COMMON | GROUPED,
    "gpt2": GPT2,
    "gpt_neox": COMMON | {"use_parallel_residual": True},
    "gemma2": COMMON | GROUPED | {"sliding_window": 4},
    "gemma3_text": COMMON | GROUPED | {"sliding_window": 4, "sliding_window_pattern": 2},
    "qwen3": COMMON | GROUPED,
    "mistral": COMMON | GROUPED | {"sliding_window": 32},
    "phi": COMMON,
    "olmo2": COMMON | {"num_key_value_heads": 2},
    "granite": COMMON
    | {"num_key_value_heads": 2, "residual_multiplier": 0.22, "embedding_multiplier": 12.0},
    "mixtral": COMMON | GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": COMMON
    | GROUPED
    | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    "gpt_oss": COMMON
    | GROUPED
    | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4},
    "cohere": COMMON | {"num_key_value_heads": 2},
    "falcon": COMMON | {"bias": True},
    "opt": COMMON | {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {"hidden_size": 32, "n_layer": 4, "n_head": 4, "vocab_size": 128},
    "ctrl": GPT2 | {"dff": 48},
}


def save_tiny(family: str, folder: Path, **changes: Any) -> Path:
    """Write a model with weights from seed 0; they are large enough for every sum to show."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**TINY[family], "initializer_range": 0.2, **changes})
    model = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms at 1 and biases at 0 would hide a wrong wiring
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``tiny_folder("gemma2")``: the folder of a tiny model of that family, made once."""
    made: dict[str, Path] = {}

    def folder(family: str, **changes: Any) -> Path:
        key = f"{family}{sorted(changes.items())}"
        if key not in made:
            made[key] = save_tiny(family, tmp_path_factory.mktemp(family), **changes)
        return made[key]

    return folder


@pytest.fixture(scope="module")
def ray_session() -> Iterator[Session]:
    """An embedded cluster of 4 logical CPUs, of one module: other tests want clusters of their own.

    No process of it outlives the module.
    """
    before = set(psutil.Process().children(recursive=True))

    with session(ClusterConfig(address="local", num_cpus=4, object_store_mb=128)) as cluster:
        yield cluster

    started = set(psutil.Process().children(recursive=True)) - before
    _, left = psutil.wait_procs(started, timeout=10)
    for process in left:
        if "wandb-core" not in process.name():  # a tracker's, started meanwhile, ends by itself
            process.kill()


@pytest.fixture(autouse=True)
def _stop_is_not_set(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "ray_session" in request.fixturenames:
        request.getfixturevalue("ray_session").stop.clear()
