"""Prove that what a stage hands out adds up to the stream.

The wiring of a block is recognised by the names of its modules, and a family may have the
names of another and a sum of its own. So a few tokens are run through the weights that were
loaded, before any site inside a block is handed out. It costs one pass over eight tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from actlake.platform.models.errors import ModelNotSupported
from actlake.platform.models.points import Point
from actlake.platform.models.source import ResolvedModel
from actlake.platform.models.stage import ModelStage
from actlake.platform.models.wiring import STREAM, Wiring
from actlake.storage.sites import Site

NUM_TOKENS = 8

TOLERANCE = 4.0
"""How much of the dtype's rounding a sum may be off; see `Sum.error`."""


@dataclass(frozen=True, slots=True)
class Sum:
    """Points of a block that add up to another of it."""

    parts: tuple[Point, ...]
    whole: Point

    def __str__(self) -> str:
        """As it is written: ``resid_pre + attn_out = resid_mid``."""
        return f"{' + '.join(self.parts)} = {self.whole}"

    def sites(self, layer: int) -> set[Site]:
        """Its terms in a layer, under their stored names."""
        return {Site(layer, point).stored for point in (*self.parts, self.whole)}

    def error(self, layer: int, seen: Mapping[Site, Tensor], dtype: torch.dtype) -> float:
        """How far it is from true in a layer, in units of what `dtype` rounds of its terms.

        The largest over all entries; those that are no numbers are not judged here.

        Parameters
        ----------
        seen
            The sites of the layer, under their stored names, in float32.
        dtype
            What the model computed in.
        """
        parts = [seen[Site(layer, point).stored] for point in self.parts]
        whole = seen[Site(layer, self.whole)]
        error = (sum(parts) - whole).abs()
        scale = whole.abs() + sum(part.abs() for part in parts)
        off = torch.where(error > 0, error / (torch.finfo(dtype).eps * scale), 0.0)
        return float(off.max())


SUMS = (
    Sum(("resid_pre", "attn_out"), "resid_mid"),
    Sum(("resid_mid", "mlp_out"), "resid_post"),
    Sum(("resid_pre", "attn_out", "mlp_out"), "resid_post"),
)


def sums_of(wiring: Wiring) -> list[Sum]:
    """The sums whose points a block has, all of them."""
    return [one for one in SUMS if {*one.parts, one.whole} <= wiring.keys()]


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
    for one in sums_of(model.anatomy.wirings[layer]):
        if one.error(layer, seen, model.dtype.value) > TOLERANCE:
            raise ModelNotSupported(
                f"In layer {layer} of {model.name} (family {model.family}) it does not hold that "
                f"{one}: the family adds its sublayers up in a way actlake does not know\n"
                f"hint: resid_pre and resid_post are right in every family; harvest those, and "
                f"report the family so that it gets a row in the wiring table"
            )
