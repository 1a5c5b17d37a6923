"""Measure a model: cut it at every layer, compare, add up, edit, and predict.

Shapes:  B contexts in the batch   L tokens in a context   D width of the stream
"""

import logging
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from actlake.platform.model_map.edits import Edits
from actlake.platform.model_map.found import HeadFound, LayerFound, ModelMap, PointFound
from actlake.platform.model_map.reference import Reference, run_whole
from actlake.platform.model_map.stages import LayerStage, load_layers, run_stages
from actlake.platform.models.errors import ModelNotSupported
from actlake.platform.models.head import ModelHead, load_head
from actlake.platform.models.points import point_of
from actlake.platform.models.source import ResolvedModel
from actlake.platform.models.sums import sums_of
from actlake.storage.sites import Site

logger = logging.getLogger(__name__)


def probe_ids(model: ResolvedModel, *, contexts: int = 2, length: int = 12) -> Tensor:
    """Random token ids, (B, L), int64, for a model without a tokenizer; the same each time."""
    length = min(length, model.max_positions or length)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(model.vocab_size, (contexts, length), generator=generator)


def measure_model(model: ResolvedModel, ids_BL: Tensor) -> ModelMap:
    """Run a model in every way that actlake does, on a few tokens, and compare.

    transformers loads the whole model once; when that is let go of, it is loaded in stages of one
    layer each, so memory for one copy is enough. Each site takes a pass from its layer upwards.

    Parameters
    ----------
    model
        From `resolve_model`.
    ids_BL
        Token ids: of text where there is a tokenizer, else from `probe_ids`.

    Raises
    ------
    ModelError
        It cannot be loaded, whole or in stages. A head, or points inside a block, that are
        refused do not raise: the map has the reason.
    """
    reference = run_whole(model, ids_BL)
    loaded = load_layers(model)
    stages = [one.stage for one in loaded]
    seen = run_stages(stages, ids_BL)
    head, head_found = _head(model, seen, reference)
    edits = None if head is None else Edits(stages, head, ids_BL, seen)
    layers = []
    for one in loaded:
        found = _layer(model, one, seen, reference)
        if edits is not None:
            found = _edited(found, edits)
        logger.info("Measured layer %d, of 0 to %d", found.layer, model.num_layers - 1)
        layers.append(found)
    return ModelMap(
        name=model.name,
        family=model.family,
        revision=model.revision,
        dtype=model.dtype_name,
        device=model.device.value,
        attention=model.attention.value,
        dim=model.dim,
        tokens=(ids_BL.shape[0], ids_BL.shape[1]),
        layers=tuple(layers),
        head=head_found,
    )


def _head(
    model: ResolvedModel, seen: Mapping[Site, Tensor], reference: Reference
) -> tuple[ModelHead | None, HeadFound]:
    try:
        head = load_head(model)
    except ModelNotSupported as error:
        return None, HeadFound(difference=None, refused=str(error).partition("\nhint: ")[0])
    logits_BLV = head.logits(seen[Site(model.num_layers - 1)])
    return head, HeadFound(difference=_difference(logits_BLV, reference.logits_BLV))


def _layer(
    model: ResolvedModel, one: LayerStage, seen: Mapping[Site, Tensor], reference: Reference
) -> LayerFound:
    (layer,) = one.stage.layers
    terms = {site: acts_BLD.float() for site, acts_BLD in seen.items()
             if site.layer in (layer - 1, layer)}  # fmt: skip
    return LayerFound(
        layer=layer,
        points={
            point_of(site): _point(seen[site], reference.stream.get(site))
            for site in one.stage.sites
        },
        sums={
            str(total): total.error(layer, terms, model.dtype.value)
            for total in sums_of(model.anatomy.wirings[layer])
            if total.sites(layer) <= terms.keys()
        },
        refused=one.refused,
    )


def _point(acts_BLD: Tensor, reference_BLD: Tensor | None) -> PointFound:
    return PointFound(
        norm=float(acts_BLD.double().norm(dim=-1).mean()),
        largest=float(acts_BLD.abs().max()),
        difference=None if reference_BLD is None else _difference(acts_BLD, reference_BLD),
    )


def _difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs.double()).abs().max())


def _edited(found: LayerFound, edits: Edits) -> LayerFound:
    points = {}
    for point, one in found.points.items():
        site = Site(found.layer, point)
        moved, error = edits.edit(site)
        points[point] = replace(
            one, put_back=edits.put_back(site), moved=moved, sums_after_edit=error
        )
    return replace(found, points=points)
