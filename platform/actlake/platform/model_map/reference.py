"""The whole model as transformers itself runs it: what ours is compared with.

Nothing of how actlake cuts, loads or hooks a model is used here but the number of its blocks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from actlake.platform.models.errors import ModelNotSupported
from actlake.platform.models.quiet import no_progress_bars
from actlake.platform.models.source import ResolvedModel
from actlake.storage.sites import Site

# Shapes:  B contexts in the batch   L tokens in a context   D width of the stream   V vocabulary


@dataclass(frozen=True, slots=True)
class Reference:
    """What the whole model computes on some tokens, on the model's device and in its dtype."""

    stream: Mapping[Site, Tensor]
    """``resid_pre.0`` and ``resid_post`` of every layer, (B, L, D)."""

    logits_BLV: Tensor


def run_whole(model: ResolvedModel, ids_BL: Tensor) -> Reference:
    """Load the model with transformers alone, run it once, and let go of it.

    Raises
    ------
    ModelNotSupported
        transformers cannot load or run it, or has no list of its blocks.
    """
    try:
        whole = _load(model)
        blocks = _blocks(whole, model.num_layers)
    except (ValueError, RuntimeError, OSError, ImportError, LookupError) as error:
        raise ModelNotSupported(
            f"transformers does not load {model.name} as a whole model to compare with: {error}\n"
            f"hint: load it with transformers alone, to see whether this version can"
        ) from error
    stream: dict[Site, Tensor] = {}

    def going_in(module: nn.Module, args: Any, kwargs: Any) -> None:
        entering = args[0] if args else kwargs["hidden_states"]
        stream[Site(0, "resid_pre")] = entering.clone()

    def coming_out(layer: int) -> Any:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            leaving = output[0] if isinstance(output, (tuple, list)) else output
            stream[Site(layer)] = leaving.clone()

        return keep

    blocks[0].register_forward_pre_hook(going_in, with_kwargs=True)
    for layer, block in enumerate(blocks):
        block.register_forward_hook(coming_out(layer))
    with torch.inference_mode():
        output = whole(input_ids=ids_BL.to(model.device.value), use_cache=False)
    return Reference(stream, output.logits)


def _load(model: ResolvedModel) -> nn.Module:
    device = model.device.value
    with no_progress_bars():
        # The class that the loader takes: transformers' own choice leaves out models of which text
        # is a part.
        whole = model.model_class.from_pretrained(
            model.location,
            revision=model.commit or "main",
            dtype=model.dtype.value,
            attn_implementation=model.attention.value,
            device_map=None if device == "cpu" else {"": torch.device(device)},
            trust_remote_code=model.trust_remote_code,
            use_safetensors=True,
        )
    assert isinstance(whole, nn.Module)
    return whole.eval()


def _blocks(whole: Any, num_layers: int) -> nn.ModuleList:
    decoder = whole.get_decoder()
    for part in (decoder, whole):  # what ModernBERT calls its decoder is its unembedding
        for module in part.modules():
            if isinstance(module, nn.ModuleList) and len(module) == num_layers:
                return module
    raise LookupError(f"there is no list of {num_layers} blocks in {type(decoder).__name__}")
