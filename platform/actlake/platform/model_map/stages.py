"""A model with every layer a stage of its own, so that every place it can be cut at is cut."""

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from actlake.platform.models.errors import ModelNotSupported
from actlake.platform.models.interventions import Intervention
from actlake.platform.models.loading import load_stage
from actlake.platform.models.source import ResolvedModel
from actlake.platform.models.stage import ModelStage
from actlake.platform.models.wiring import STREAM
from actlake.storage.sites import Site

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LayerStage:
    """One layer as a stage, handing out all it has, or the stream alone."""

    stage: ModelStage

    refused: str
    """Why it does not hand out what is inside the block; empty where it does."""


def load_layers(model: ResolvedModel) -> list[LayerStage]:
    """Load every layer as a stage; one whose sums do not hold gives the stream alone.

    Raises
    ------
    ModelError
        See `load_stage`.
    """
    sites = model.sites()
    return [_load_layer(model, layer, sites) for layer in range(model.num_layers)]


def _load_layer(model: ResolvedModel, layer: int, sites: Sequence[Site]) -> LayerStage:
    layers = range(layer, layer + 1)
    try:
        return LayerStage(load_stage(model, layers, sites), "")
    except ModelNotSupported as error:
        stream = [site for site in sites if site.layer != layer or site.point in STREAM]
        if len(stream) == len(sites):
            raise
        return LayerStage(load_stage(model, layers, stream), str(error).partition("\nhint: ")[0])


def run_stages(
    stages: Iterable[ModelStage],
    inputs: Tensor,
    keep: Collection[Site] | None = None,
    interventions: Sequence[Intervention] = (),
) -> dict[Site, Tensor]:
    """Run stages that follow each other; copies of the sites to keep, (B, L, D) each.

    Parameters
    ----------
    inputs
        What the first of the stages takes: token ids, or what leaves the layer below it.
    keep
        All that are handed out, if left out.
    """
    seen: dict[Site, Tensor] = {}

    def capture(site: Site, acts_BLD: Tensor) -> None:
        if keep is None or site in keep:
            assert site not in seen, f"{site} was handed out twice"
            seen[site] = acts_BLD.clone()

    flowing: Tensor | None = inputs
    for stage in stages:
        assert flowing is not None
        flowing = stage.run(flowing, capture, interventions)
    return seen
