"""Try a stage before any weight or text is read: run its layers alone, without memory.

Families' loops over their blocks look into blocks, count them, or hand on more than the hidden
state. A stage has stand-ins in the place of the blocks that others have, and some loops fail on
those. That is found out on fake tensors, which have shapes and no values.

Shapes:  B contexts in the batch   L tokens in a context   D width of the stream
"""

import logging
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from actlake.platform.models.anatomy import build_without_memory
from actlake.platform.models.flow import asks_for_values, fake_tensors
from actlake.platform.models.foreign import foreign_errors
from actlake.platform.models.numerics import Resolved
from actlake.platform.models.source import ResolvedModel
from actlake.platform.models.stage import ModelStage
from actlake.platform.models.stand_ins import leave_out_of_stage
from actlake.storage.sites import Site

logger = logging.getLogger(__name__)

_SHAPE = (2, 8)


def try_stage(model: ResolvedModel, layers: range, sites: Iterable[Site]) -> None:
    """Run some layers of a model by themselves, on fake tensors.

    Parameters
    ----------
    sites
        All sites of the harvest, as for `load_stage`.

    Raises
    ------
    ModelNotSupported
        They do not run without the others.
    """
    whole = build_without_memory(model.model_class, model.whole_config)
    leave_out_of_stage(whole, model.anatomy, layers)
    nowhere = replace(model, device=Resolved("meta", "no memory is needed"))
    decoder = whole.get_submodule(model.anatomy.decoder)
    stage = ModelStage(decoder, nowhere, layers, sites)
    with (
        fake_tensors(),
        foreign_errors(
            f"run layers [{layers.start}, {layers.stop}) of {model.name} (family {model.family}) "
            f"without its other layers",
            hint="harvest the last layer too, in one stage; or choose another family",
        ),
    ):
        inputs = torch.zeros(_SHAPE, dtype=torch.int64, device="meta")
        if layers.start > 0:
            inputs = torch.zeros(*_SHAPE, model.dim, device="meta")
        try:
            stage.run(inputs, _look)
        except RuntimeError as error:
            if not asks_for_values(error):
                raise
            # `check_flow` has warned of it; the stage is tried with values before text is laid out.
            logger.info(
                "Layers [%d, %d) of %s could not be tried without weights: they ask for values",
                layers.start, layers.stop, model.name,
            )  # fmt: skip


def _look(site: Site, acts_BLD: Tensor) -> None:
    assert acts_BLD.shape[:2] == _SHAPE, (site, acts_BLD.shape)
