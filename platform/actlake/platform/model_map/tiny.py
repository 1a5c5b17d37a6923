"""A tiny random model of any family of transformers, shrunk from the defaults of its config class.

Sizes are recognised by their names, as blocks are by those of their modules: a new family that
calls its width ``hidden_size`` needs no entry here. Weights are large, and norms and biases are
moved from ones and zeros, so that every term of a sum shows.
"""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from actlake.platform.models.anatomy import model_class
from actlake.platform.models.errors import ModelError, ModelNotFound, NoTinyModel
from actlake.platform.models.quiet import no_progress_bars
from actlake.storage.errors import nearest

MOST_PARAMETERS = 150_000_000

# Four layers of width 32 in 4 heads of 8, two of them for keys; four experts of which two are used.
# Windows are shorter than the contexts of `probe_ids`.
_SIZES: Mapping[int, str] = {
    0: "pad_token_id num_nextn_predict_layers num_kv_shared_layers",
    1: "bos_token_id n_shared_experts num_shared_experts moe_num_shared_experts"
    " first_k_dense_replace num_dense_layers",
    2: "depth eos_token_id num_key_value_heads num_kv_heads num_experts_per_tok"
    " num_experts_per_token moe_topk moe_k n_group topk_group linear_num_key_heads"
    " swa_num_key_value_heads num_expert_group encoder_layers",
    4: "num_hidden_layers n_layer n_layers num_layers num_blocks decoder_layers"
    " num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads"
    " encoder_attention_heads linear_num_value_heads linear_num_heads index_n_heads"
    " swa_num_attention_heads num_experts n_routed_experts num_local_experts moe_num_experts"
    " index_topk zero_expert_num mamba_dt_rank time_step_rank rotary_dim",
    8: "head_dim v_head_dim qk_nope_head_dim qk_rope_head_dim linear_key_head_dim dim_head"
    " linear_value_head_dim linear_head_dim index_head_dim swa_head_dim kv_channels d_head"
    " attention_head_dim mamba_d_head mamba_head_dim mamba_headdim query_pre_attn_scalar"
    " hidden_size_per_layer_input sliding_window sliding_window_size attention_window_size"
    " chunk_size mamba_chunk_size attention_chunk_size window_size local_attention"
    " mamba_n_heads mamba_num_heads",
    16: "kv_lora_rank q_lora_rank mamba_d_state ssm_state_size state_size qk_head_dim",
    32: "hidden_size n_embd d_model embedding_dim word_embed_proj_dim attention_hidden_size emb_dim"
    " lru_width mamba_d_ssm router_hidden_size embedding_size input_embedding_size"
    " output_embedding_size embed_dim out_hidden_size",
    48: "intermediate_size ffn_dim dff dim_ff moe_intermediate_size intermediate_size_mlp"
    " shared_expert_intermediate_size shared_intermediate_size ffn_hidden_size d_inner"
    " expert_ffn_hidden_size dense_intermediate_size moe_shared_expert_intermediate_size"
    " shared_experts_intermediate_size decoder_ffn_dim encoder_ffn_dim feed_forward_size",
    64: "max_position_embeddings n_positions max_seq_len n_ctx",
    128: "vocab_size unpadded_vocab_size vocab_size_per_layer_input encoder_hash_byte_group_vocab",
}
_SIZE_OF = {name: size for size, names in _SIZES.items() for name in names.split()}

# Their positions have three axes though their defaults do not say so.
_SECTIONED = (
    "glm4v_text", "glm_ocr_text", "hunyuan_vl_text", "paddleocr_vl_text",
    "qwen2_5_omni_text", "qwen2_5_vl_text", "qwen2_vl_text",
)  # fmt: skip

# What follows from no name: sizes that have to fit each other.
_SHARED_BLOCKS: Mapping[str, Any] = {
    "layers_block_type": ["linear_attention", "hybrid"] * 2,
    "attention_head_dim": 16, "attention_hidden_size": 64, "num_key_value_heads": 4,
}  # fmt: skip
_ROPE = {"rope_type": "default", "rope_theta": 1e4}
_PARTICULAR: Mapping[str, Mapping[str, Any]] = {
    "chameleon": {"vocabulary_map": {"<image>": 3}},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE}},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "diffusion_gemma_text": {"top_k_experts": 2},
    "emu3": {"vocabulary_map": {"<image>": 3}},
    "ernie4_5_vl_moe_text": {"moe_intermediate_size": [48, 48]},
    "falcon_h1": {"mamba_d_ssm": 64},
    "glm4v_moe_text": {"rope_parameters": {**_ROPE, "mrope_section": [1, 1, 0]}},
    "glm5_next_text": {"index_kpool": 2, "qk_rope_head_dim": 0},
    "gpt_neo": {
        "attention_types": [[["global", "local"], 2]],
        "attention_layers": ["global", "local"] * 2,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8},
    "mistral4": {"head_dim": 16},
    "molmo2_adapter": {"vision_feature_layer": [1, 0]},
    "qwen4_exp_text": {
        "indexer_budget": 4, "indexer_compress_ratio": 2, "indexer_n_heads": 2,
        "indexer_head_dim": 8, "indexer_kv_heads": 1, "ngram_vocab_size_base": 128,
    },
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 8]},
    "xmod": {"default_language": "en_XX"},
    "zamba": _SHARED_BLOCKS,
    "zamba2": {**_SHARED_BLOCKS, "n_mamba_heads": 8, "mamba_headdim": 8},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip


def tiny_config(family: str) -> Any:
    """The configuration of a tiny decoder of a family, as transformers names it.

    Raises
    ------
    ModelNotFound
        transformers has no such family.
    """
    from transformers import CONFIG_MAPPING

    if family not in CONFIG_MAPPING:
        raise ModelNotFound(
            f"transformers has no family {family!r}\n" + nearest(family, list(CONFIG_MAPPING))
        )
    return _shrunk(buildable(CONFIG_MAPPING[family]()))


def buildable(whole: Any) -> Any:
    """The configuration of the text decoder where transformers builds it by itself, else `whole`.

    Parameters
    ----------
    whole
        The configuration of a whole model.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    decoder = whole.get_text_config(decoder=True)
    return decoder if type(decoder) in MODEL_FOR_CAUSAL_LM_MAPPING else whole


def _shrunk(default: Any) -> Any:
    """The same kind of configuration, made again with small sizes; so are those inside it."""
    written = default.to_dict()
    taken = inspect.signature(type(default)).parameters
    changes: dict[str, Any] = {
        name: size for name, size in _SIZE_OF.items() if name in written or name in taken
    }
    if "initializer_range" in written:
        changes["initializer_range"] = 0.2
    if "kv_lora_rank" in written:  # latent attention has keys for every head
        changes["num_key_value_heads"] = changes["num_attention_heads"]
    if "is_decoder" in written:
        changes["is_decoder"] = True
    if "mrope_section" in str(written.get("rope_parameters")) or default.model_type in _SECTIONED:
        changes["rope_parameters"] = {**_ROPE, "mrope_section": [2, 1, 1]}
    for name in type(default).sub_configs:
        if inner := getattr(default, name, None):
            changes[name] = _shrunk(inner)
    return type(default)(**changes | dict(_PARTICULAR.get(default.model_type, {})))


def save_tiny(family: str, folder: Path) -> Path:
    """Write a tiny model of a family with random weights, the same each time.

    Raises
    ------
    ModelNotFound
        transformers has no such family.
    NoTinyModel
        None comes of its defaults.
    ModelNotSupported
        It is no decoder, or needs more than a stage is given.
    """
    try:
        return _save(tiny_config(family), folder)
    except ModelError:
        raise
    except Exception as error:  # families check their sizes in ways of their own
        raise NoTinyModel(
            f"No tiny decoder of the family {family!r} comes of its defaults: "
            f"{type(error).__name__}: {error}\n"
            f"hint: measure a real model of it"
        ) from error


def _save(config: Any, folder: Path) -> Path:
    cls = model_class(config, location="", commit=None, trust_remote_code=False)
    with torch.device("meta"):
        skeleton = cls(config)
    size = sum(parameter.numel() for parameter in skeleton.parameters())
    if size > MOST_PARAMETERS:
        raise ValueError(f"{size:,} parameters are left")
    torch.manual_seed(0)
    with no_progress_bars():
        model = cls(config).float()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(folder)
    return folder
