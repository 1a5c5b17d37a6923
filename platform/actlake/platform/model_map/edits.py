"""Edit a site and measure what that does: an edit that moves nothing proves nothing.

Shapes:  B contexts in the batch   L tokens in a context   D width of the stream
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from actlake.platform.model_map.stages import run_stages
from actlake.platform.models.divergence import token_divergence
from actlake.platform.models.head import ModelHead
from actlake.platform.models.interventions import Intervention, replace_with
from actlake.platform.models.points import Point, point_of
from actlake.platform.models.stage import ModelStage
from actlake.platform.models.sums import sums_of
from actlake.storage.sites import Site


class Edits:
    """The clean pass of a model, and what becomes of it when one site is changed.

    Parameters
    ----------
    stages
        One for each layer.
    seen
        What they hand out, unchanged.
    """

    def __init__(
        self,
        stages: Sequence[ModelStage],
        head: ModelHead,
        ids_BL: Tensor,
        seen: Mapping[Site, Tensor],
    ) -> None:
        self._stages = stages
        self._head = head
        self._ids_BL = ids_BL
        self._seen = seen
        self._last = Site(len(stages) - 1)
        self._logits_BLV = head.logits(seen[self._last])

    def put_back(self, site: Site) -> bool:
        """Whether the model's own tensor in its own place changes nothing of it, to the bit.

        What leaves the layer is compared; all above it follows from that.
        """
        leaving = Site(site.layer)
        own = replace_with(site, self._seen[site])
        after = self._run(own, {leaving}, upto=site.layer + 1)
        return torch.equal(after[leaving], self._seen[leaving])

    def edit(self, site: Site) -> tuple[float, float | None]:
        """Add to each row a direction of its own length.

        Returns
        -------
        moved
            Mean KL divergence of what is predicted from what was, in nats a token.
        error
            The worst of the sums that have the edited tensor as a part, in roundings; None
            where there is none.
        """
        own_BLD = self._seen[site]
        generator = torch.Generator().manual_seed(0)
        direction_D = torch.randn(own_BLD.shape[-1], generator=generator, dtype=torch.float64)
        direction_D = (direction_D / direction_D.norm()).to(own_BLD.device)
        wide_BLD = own_BLD.double()
        lengths_BL1 = wide_BLD.norm(dim=-1, keepdim=True)
        edited_BLD = (wide_BLD + lengths_BL1 * direction_D).to(own_BLD.dtype)
        after = self._run(replace_with(site, edited_BLD))
        logits_BLV = self._head.logits(after[self._last])
        # Doubles: where little moves, float32 would show its own rounding.
        moved = float(token_divergence(self._logits_BLV.double(), logits_BLV.double()).mean())
        return moved, self._error(site, after | {site: edited_BLD})

    def _error(self, site: Site, after: Mapping[Site, Tensor]) -> float | None:
        """The worst sum over an edited site; `after` has there what was meant to be put there."""
        # What leaves a block is a part of the next one's sums.
        layer = site.layer + (site.point == "resid_post")
        point: Point = "resid_pre" if site.point == "resid_post" else point_of(site)
        if layer == len(self._stages):
            return None
        terms = {one: acts_BLD.float() for one, acts_BLD in {**self._seen, **after}.items()
                 if one.layer in (layer - 1, layer)}  # fmt: skip
        dtype = self._head.model.dtype.value
        sums = sums_of(self._head.model.anatomy.wirings[layer])
        errors = [
            one.error(layer, terms, dtype)
            for one in sums
            if point in one.parts and one.sites(layer) <= terms.keys()
        ]
        return max(errors, default=None)

    def _run(
        self, change: Intervention, keep: set[Site] | None = None, *, upto: int | None = None
    ) -> dict[Site, Tensor]:
        """From the edited layer upwards, since what lies below is as it was."""
        layer = change.site.layer
        inputs = self._seen[Site(layer - 1)] if layer else self._ids_BL
        return run_stages(self._stages[layer:upto], inputs, keep, [change])
