"""Prove that what a stage hands out adds up to the stream.

The wiring of a block is recognised by the names of its modules, and a family may have the
names of another and a sum of its own. So a few tokens are run through the weights that were
loaded, before any site inside a block is handed out. It costs one pass over eight tokens.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from actlake.platform.models.errors import ModelNotSupported
from actlake.platform.models.source import ResolvedModel
from actlake.platform.models.stage import ModelStage
from actlake.platform.models.wiring import STREAM
from actlake.storage.sites import Point, Site

NUM_TOKENS = 8


def check_sums(stage: ModelStage) -> None:
    """Run a few tokens through the stage and compare the sums, to the dtype's rounding.

    Only layers with a site inside the block are checked; the stream itself needs no proof.

    Raises
    ------
    ModelNotSupported
        They are not equal.
    """
    layers = {site.layer for site in stage.sites if site.point not in STREAM}
    if not layers:
        return
    wirings = stage.model.anatomy.wirings
    added: tuple[Point, ...] = ("attn_out", "resid_mid", "mlp_out")
    sites = [Site(layer, "resid_pre") for layer in layers]
    sites += [Site(layer, "resid_post") for layer in layers]
    sites += [Site(layer, point) for layer in layers for point in added if point in wirings[layer]]
    seen: dict[Site, Tensor] = {}
    inputs = _probe(stage)
    probe = ModelStage(stage.module, stage.model, stage.layers, sites)
    probe.run(inputs, lambda site, tensor: seen.update({site: tensor.float().clone()}))
    if stage.layers.start > 0:
        seen[Site(stage.layers.start, "resid_pre").stored] = inputs.float()
    for layer in sorted(layers):
        _check_layer(stage.model, layer, seen)


def _probe(stage: ModelStage) -> Tensor:
    """Token ids, or hidden states, for the stage to run; the same each time."""
    if stage.layers.start == 0:
        return torch.arange(NUM_TOKENS, device=stage.device).unsqueeze(0) % stage.model.vocab_size
    generator = torch.Generator().manual_seed(0)
    hidden_BLD = torch.randn(1, NUM_TOKENS, stage.model.dim, generator=generator)
    return hidden_BLD.to(stage.device, stage.model.dtype.value)


def _check_layer(model: ResolvedModel, layer: int, seen: Mapping[Site, Tensor]) -> None:
    before, after = seen[Site(layer, "resid_pre").stored], seen[Site(layer, "resid_post")]
    mid, attn, mlp = (
        seen.get(Site(layer, point)) for point in ("resid_mid", "attn_out", "mlp_out")
    )
    sums: list[tuple[str, list[Tensor], Tensor]] = []
    if attn is not None and mid is not None:
        sums.append(("resid_pre + attn_out = resid_mid", [before, attn], mid))
    if mid is not None and mlp is not None:
        sums.append(("resid_mid + mlp_out = resid_post", [mid, mlp], after))
    if attn is not None and mlp is not None:
        sums.append(("resid_pre + attn_out + mlp_out = resid_post", [before, attn, mlp], after))
    for formula, parts, whole in sums:
        if not _add_up(parts, whole, model.dtype.value):
            raise ModelNotSupported(
                f"In layer {layer} of {model.name} (family {model.family}) it does not hold that "
                f"{formula}: the family adds its sublayers up in a way actlake does not know\n"
                f"hint: resid_pre and resid_post are right in every family; harvest those, and "
                f"report the family so that it gets a row in the wiring table"
            )


def _add_up(parts: list[Tensor], whole: Tensor, dtype: torch.dtype) -> bool:
    """Whether the parts sum to the whole but for the dtype's rounding; NaNs are not judged here."""
    error = (sum(parts) - whole).abs()
    scale = whole.abs() + sum(part.abs() for part in parts)
    return not bool((error > 4 * torch.finfo(dtype).eps * scale).any())
