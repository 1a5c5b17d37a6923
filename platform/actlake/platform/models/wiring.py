"""THE table of which module carries which site, for all families.

A block is recognised by the names of its modules, not by its family, so that a new family
built like an old one needs no entry here. `LAYOUTS` has one row for each way of building a
block that is known; `UNLIKE` names the families that have the modules of a row and add
their outputs up in another way. The block's own input and output are ``resid_pre`` and
``resid_post`` in every family, known or not.

The ``…_out`` sites are what is added to the stream: after the norm that Gemma 2 and OLMo 2
put behind a sublayer, times the multiplier of Granite. Because names alone prove nothing,
a stage that is asked for any of them checks on its own weights that
``resid_pre + attn_out + mlp_out = resid_post`` before it hands out a single tensor.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn

from actlake.platform.models.points import Point


@dataclass(frozen=True, slots=True)
class Tap:
    """Where a tensor passes: into or out of a module of a block.

    To read a site is to hook `module` on `side`; to replace it, the hook would return
    another tensor, divided by `factor`.
    """

    module: str
    """Name inside the block; empty for the block itself."""

    side: Literal["in", "out"]

    factor: float = 1.0
    """What the block multiplies the tensor with before it adds it to the stream."""


Wiring = Mapping[Point, Tap]


def into(module: str) -> Tap:
    """What `module` receives."""
    return Tap(module, "in")


def out_of(module: str) -> Tap:
    """What `module` returns; of a tuple, its first element."""
    return Tap(module, "out")


STREAM: Wiring = {"resid_pre": into(""), "resid_post": out_of("")}


def sequential(
    attention: str,
    mlp: str,
    *,
    mid: str,
    attention_norm: str | None = None,
    mlp_norm: str | None = None,
) -> Wiring:
    """The MLP reads the stream after attention was added.

    Parameters
    ----------
    attention, mlp
        The sublayers.
    mid
        The first module that receives the stream between the two: the norm before the MLP,
        or the MLP where there is none.
    attention_norm, mlp_norm
        Norms that a sublayer's output passes before it is added, where there are any.
    """
    return {
        **STREAM,
        "attn_out": out_of(attention_norm or attention),
        "resid_mid": into(mid),
        "mlp_in": into(mlp),
        "mlp_out": out_of(mlp_norm or mlp),
    }


def parallel(attention: str, mlp: str) -> Wiring:
    """Both sublayers read ``resid_pre``; there is no stream between them."""
    return {
        **STREAM,
        "attn_out": out_of(attention),
        "mlp_in": into(mlp),
        "mlp_out": out_of(mlp),
    }


def without(wiring: Wiring, *points: Point) -> Wiring:
    """The same, less the points that no module carries by itself."""
    return {point: tap for point, tap in wiring.items() if point not in points}


# One row: the modules of a block, without dropouts and activation functions, and its wiring.
LAYOUTS: Mapping[frozenset[str], Wiring] = {
    frozenset(modules.split()): wiring
    for modules, wiring in (
        # llama, mistral, qwen2, qwen3, gemma, olmo, phi3, granite, starcoder2, mixtral, deepseek, …
        (
            "self_attn mlp input_layernorm post_attention_layernorm",
            sequential("self_attn", "mlp", mid="post_attention_layernorm"),
        ),
        # The layers of qwen3_next and qwen3_5 with linear attention.
        (
            "linear_attn mlp input_layernorm post_attention_layernorm",
            sequential("linear_attn", "mlp", mid="post_attention_layernorm"),
        ),
        # granitemoe
        (
            "self_attn block_sparse_moe input_layernorm post_attention_layernorm",
            sequential("self_attn", "block_sparse_moe", mid="post_attention_layernorm"),
        ),
        # llama4
        (
            "self_attn feed_forward input_layernorm post_attention_layernorm",
            sequential("self_attn", "feed_forward", mid="post_attention_layernorm"),
        ),
        # apertus
        (
            "self_attn mlp attention_layernorm feedforward_layernorm",
            sequential("self_attn", "mlp", mid="feedforward_layernorm"),
        ),
        # vaultgemma
        (
            "self_attn mlp input_layernorm pre_feedforward_layernorm",
            sequential("self_attn", "mlp", mid="pre_feedforward_layernorm"),
        ),
        # gemma2, gemma3: a norm before and one behind each sublayer
        (
            "self_attn mlp input_layernorm post_attention_layernorm"
            " pre_feedforward_layernorm post_feedforward_layernorm",
            sequential(
                "self_attn",
                "mlp",
                mid="pre_feedforward_layernorm",
                attention_norm="post_attention_layernorm",
                mlp_norm="post_feedforward_layernorm",
            ),
        ),
        # glm4: the same under other names
        (
            "self_attn mlp input_layernorm post_attention_layernorm"
            " post_self_attn_layernorm post_mlp_layernorm",
            sequential(
                "self_attn",
                "mlp",
                mid="post_attention_layernorm",
                attention_norm="post_self_attn_layernorm",
                mlp_norm="post_mlp_layernorm",
            ),
        ),
        # olmo2, olmo3, exaone4: norms behind the sublayers only
        (
            "self_attn mlp post_attention_layernorm post_feedforward_layernorm",
            sequential(
                "self_attn",
                "mlp",
                mid="mlp",
                attention_norm="post_attention_layernorm",
                mlp_norm="post_feedforward_layernorm",
            ),
        ),
        # afmoe
        (
            "self_attn mlp input_layernorm post_attention_layernorm"
            " pre_mlp_layernorm post_mlp_layernorm",
            sequential(
                "self_attn",
                "mlp",
                mid="pre_mlp_layernorm",
                attention_norm="post_attention_layernorm",
                mlp_norm="post_mlp_layernorm",
            ),
        ),
        # lfm2: attention or a short convolution
        (
            "self_attn feed_forward operator_norm ffn_norm",
            sequential("self_attn", "feed_forward", mid="ffn_norm"),
        ),
        (
            "conv feed_forward operator_norm ffn_norm",
            sequential("conv", "feed_forward", mid="ffn_norm"),
        ),
        # jamba: attention or a state space model
        (
            "self_attn feed_forward input_layernorm pre_ff_layernorm",
            sequential("self_attn", "feed_forward", mid="pre_ff_layernorm"),
        ),
        (
            "mamba feed_forward input_layernorm pre_ff_layernorm",
            sequential("mamba", "feed_forward", mid="pre_ff_layernorm"),
        ),
        # gpt2, gpt_neo, gpt_bigcode
        ("attn mlp ln_1 ln_2", sequential("attn", "mlp", mid="ln_2")),
        # opt, xglm, biogpt: the MLP is two bare linear maps
        (
            "self_attn self_attn_layer_norm fc1 fc2 final_layer_norm",
            {
                **sequential("self_attn", "fc1", mid="final_layer_norm"),
                "mlp_out": out_of("fc2"),
            },
        ),
        # falcon before its parallel blocks
        (
            "self_attention mlp input_layernorm post_attention_layernorm",
            sequential("self_attention", "mlp", mid="post_attention_layernorm"),
        ),
        # gpt_neox, unless its `use_parallel_residual` is set, as it mostly is
        (
            "attention mlp input_layernorm post_attention_layernorm",
            sequential("attention", "mlp", mid="post_attention_layernorm"),
        ),
        # mpt: its MLP returns the stream, not what is added to it
        ("norm_1 attn norm_2 ffn", without(sequential("attn", "ffn", mid="norm_2"), "mlp_out")),
        # phi, cohere, cohere2, stablelm with a parallel residual: one norm for both sublayers
        ("self_attn mlp input_layernorm", parallel("self_attn", "mlp")),
        # gptj, codegen
        ("attn mlp ln_1", parallel("attn", "mlp")),
        # falcon, with one or two norms
        ("self_attention mlp input_layernorm", parallel("self_attention", "mlp")),
        ("self_attention mlp ln_attn ln_mlp", parallel("self_attention", "mlp")),
    )
}

# Families with the modules of a row above and another sum.
UNLIKE: Mapping[str, Wiring] = {
    # Attention and MLP are given the stream and return it with their part added.
    "bloom": without(
        sequential("self_attention", "mlp", mid="post_attention_layernorm"), "attn_out", "mlp_out"
    ),
    "openai-gpt": STREAM,  # norms after each addition: the stream itself is normed
    "doge": STREAM,  # a learned weight on the residual
    "minimax": STREAM,  # weights on the residual, per kind of layer
    "minicpm3": STREAM,  # sublayer outputs scaled by depth
    "gpt_neox_japanese": STREAM,  # the last attention bias is added outside the module
}


def wire_block(block: nn.Module, config: Any) -> Wiring:
    """Which points a block has and where each is read; `STREAM` alone where nothing is known.

    Parameters
    ----------
    block
        A decoder block, on any device; its weights are not looked at.
    config
        The Hugging Face configuration of the model it belongs to.
    """
    if config.model_type in UNLIKE:
        return UNLIKE[config.model_type]
    if not getattr(config, "do_layer_norm_before", True):  # opt-350m norms the stream itself
        return STREAM
    layout = frozenset(_modules(block))
    wiring = LAYOUTS.get(layout, STREAM)
    if "attention" in layout and getattr(config, "use_parallel_residual", False):
        wiring = parallel("attention", "mlp")
    return _scaled(wiring, getattr(config, "residual_multiplier", None) or 1.0)


def _modules(block: nn.Module) -> Iterable[str]:
    for name, module in block.named_children():
        if not isinstance(module, nn.Dropout) and name not in ("act_fn", "activation_fn"):
            yield name


def _scaled(wiring: Wiring, factor: float) -> Wiring:
    added: tuple[Point, ...] = ("attn_out", "mlp_out")
    return {
        point: replace(tap, factor=factor) if point in added else tap
        for point, tap in wiring.items()
    }


def is_parallel(wiring: Wiring) -> bool:
    """Whether attention and MLP read the same stream, so that there is no ``resid_mid``."""
    return "mlp_out" in wiring and "resid_mid" not in wiring
