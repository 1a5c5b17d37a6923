"""Families with blocks or checkpoints of their own kind: cut anywhere, to the bits of the whole."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from actlake.platform.model_map import save_tiny
from actlake.platform.models import ModelConfig, load_head, load_stage, resolve_model
from actlake.platform.models.anatomy import max_positions_of
from actlake.storage.sites import Site

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
    "num_hidden_layers": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.2,
}  # fmt: skip
SEEN = {
    "depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32,
    "out_hidden_size": 32, "deepstack_visual_indexes": [0], "num_position_embeddings": 16,
}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "head_dim": 8, "num_key_value_heads": 4, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "moe_intermediate_size": 24, "n_group": 1, "topk_group": 1,
    "index_n_heads": 2, "index_head_dim": 16, "index_topk": 4, "first_k_dense_replace": 1,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "falcon_h1": (
        "FalconH1ForCausalLM",
        SMALL | {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8},
    ),
    "modernbert-decoder": ("ModernBertDecoderForCausalLM", SMALL),
    "glm_moe_dsa": ("GlmMoeDsaForCausalLM", SMALL | LATENT),
    "qwen2_vl": (
        "Qwen2VLForConditionalGeneration",
        {
            "text_config": SMALL | {"model_type": "qwen2_vl_text", "rope_parameters": ROPE},
            "vision_config": SEEN,
        },
    ),
    "qwen3_vl": (
        "Qwen3VLForConditionalGeneration",
        {
            "text_config": SMALL
            | {"model_type": "qwen3_vl_text", "rope_parameters": ROPE, "head_dim": 8},
            "vision_config": SEEN,
        },
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_stages_and_head_of_these_families_are_the_whole_models(
    family: str, tmp_path: Path
) -> None:
    import transformers
    from transformers import AutoConfig

    name, settings = FAMILIES[family]
    torch.manual_seed(0)
    whole = getattr(transformers, name)(AutoConfig.for_model(family, **settings)).float().eval()
    whole.save_pretrained(tmp_path)
    model = resolve_model(ModelConfig(name=str(tmp_path), device="cpu", dtype="float32"))
    sites = [Site(layer) for layer in range(4)]
    ids_BL = torch.arange(3, 15)[None]
    seen: dict[Site, torch.Tensor] = {}
    theirs: list[torch.Tensor] = []
    decoder = whole.get_submodule(model.anatomy.decoder)
    for block in decoder.get_submodule(model.anatomy.blocks):
        block.register_forward_hook(
            lambda _, args, out: theirs.append(out[0] if isinstance(out, tuple) else out)
        )

    with torch.no_grad():
        logits_BLV = whole(input_ids=ids_BL, use_cache=False).logits
    flowing = ids_BL
    for layers in (range(1), range(1, 3), range(3, 4)):
        stage = load_stage(model, layers, sites)
        flowing = stage.run(flowing, lambda site, acts: seen.update({site: acts.clone()}))

    for site, expected_BLD in zip(sites, theirs, strict=True):
        torch.testing.assert_close(seen[site], expected_BLD, rtol=0, atol=0)
    torch.testing.assert_close(load_head(model).logits(seen[sites[-1]]), logits_BLV)


def test_the_head_finds_out_what_a_block_returns_though_one_context_would_hide_it(
    tmp_path: Path,
) -> None:
    """The loop of the first GPT takes the first of what a block returns, and gives it its shape."""
    model = resolve_model(ModelConfig(name=str(save_tiny("openai-gpt", tmp_path)), device="cpu"))
    unknown = replace(model, anatomy=replace(model.anatomy, block_output=None))
    hidden_BLD = torch.randn(3, 5, model.dim, generator=torch.Generator().manual_seed(0))

    logits_BLV = load_head(unknown).logits(hidden_BLD)

    torch.testing.assert_close(logits_BLV, load_head(model).logits(hidden_BLD), rtol=0, atol=0)
    assert logits_BLV.shape == (3, 5, model.vocab_size)


def test_positions_that_have_no_end_by_their_number_are_without_one() -> None:
    from transformers import XLNetConfig

    assert XLNetConfig().max_position_embeddings == -1
    assert max_positions_of(XLNetConfig()) is None
