"""Divide a model's layers among stages (pure).

Stages are ranges of layers that follow each other without gaps, from layer 0 to the last
that a wanted site needs; what lies above is loaded by nobody.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise

from actlake.platform.models.errors import InvalidSplit
from actlake.platform.models.source import ResolvedModel
from actlake.storage.sites import Site


def num_layers_needed(sites: Iterable[Site]) -> int:
    """How many layers, from the bottom, have to run for these sites."""
    return max(site.stored.layer for site in sites) + 1


def layer_bytes(model: ResolvedModel, num_layers: int) -> list[int]:
    """Bytes of parameters of each of the first layers; the token embedding counts with layer 0."""
    stages = [range(layer, layer + 1) for layer in range(num_layers)]
    shared = model.anatomy.shared_params * model.dtype.value.itemsize
    return [stage_bytes(model, layers) - shared for layers in stages]


def stage_bytes(model: ResolvedModel, layers: range) -> int:
    """Bytes of parameters that a stage of these layers will hold, in the model's dtype.

    Known from shapes alone: no weight is read.
    """
    return model.anatomy.stage_params(layers) * model.dtype.value.itemsize


def split_layers(
    num_layers: int, num_stages: int, *, weights: Sequence[float] | None = None
) -> list[range]:
    """Divide the layers so that the heaviest stage is as light as it can be.

    Parameters
    ----------
    num_layers
        Layers to run, from the bottom; see `num_layers_needed`.
    num_stages
        How many ranges to make; each gets at least one layer.
    weights
        What each layer weighs, such as `layer_bytes` for memory; all the same if left out,
        which balances compute.

    Raises
    ------
    InvalidSplit
        There are fewer layers than stages, or no stages.
    """
    if not 1 <= num_stages <= num_layers:
        raise InvalidSplit(
            f"{num_layers} layers cannot be divided among {num_stages} stages\n"
            f"hint: use from 1 to {num_layers} stages, or harvest a higher layer"
        )
    costs = [1.0] * num_layers if weights is None else list(weights)
    assert len(costs) == num_layers, (len(costs), num_layers)
    bounds = _lightest_bounds(costs, num_stages)
    return [range(start, stop) for start, stop in pairwise(bounds)]


def _lightest_bounds(costs: Sequence[float], num_stages: int) -> list[int]:
    """Dynamic programme over stages and layers; of equal maxima the more even division."""
    below = [sum(costs[:i]) for i in range(len(costs) + 1)]
    # best[i]: the heaviest stage, the sum of squares and the bounds of the first i layers.
    best = [(float(total), float(total) ** 2, [0, i]) for i, total in enumerate(below)]
    for stages in range(2, num_stages + 1):
        longer = list(best)
        for i in range(stages, len(below)):
            longer[i] = min(
                (max(best[j][0], below[i] - below[j]),
                 best[j][1] + (below[i] - below[j]) ** 2,
                 [*best[j][2], i])
                for j in range(stages - 1, i)
            )  # fmt: skip
        best = longer
    return best[-1][2]


def pipeline_idle(work: Sequence[float], num_batches: int) -> float:
    """Share of the stages' time in which they have nothing to do.

    Batches follow each other through a chain whose slowest stage sets the pace; the others wait
    for it, and all wait while the chain fills and empties. With equal stages this is GPipe's
    bubble, (S - 1) / (B + S - 1) (Huang et al. 2019, arXiv:1811.06965, section 2.3).

    Parameters
    ----------
    work
        Time of each stage for a batch, in any unit.
    num_batches
        Batches that pass without a pause.
    """
    slots = num_batches + len(work) - 1
    return 1 - num_batches * sum(work) / (len(work) * slots * max(work))


def check_split(stages: Sequence[range], num_layers: int) -> None:
    """Refuse stages that do not cover exactly the layers to run, in order.

    Parameters
    ----------
    stages
        As chosen by the user.
    num_layers
        Layers to run, from the bottom; see `num_layers_needed`.

    Raises
    ------
    InvalidSplit
        There is a gap, an overlap, an empty stage, or another number of layers.
    """
    written = ", ".join(f"[{stage.start}, {stage.stop})" for stage in stages) or "none"
    bounds = [0, *(stage.stop for stage in stages)]
    follow = all(
        stage.start == start and stage.stop > start and stage.step == 1
        for stage, start in zip(stages, bounds, strict=False)
    )
    if not follow or bounds[-1] != num_layers:
        raise InvalidSplit(
            f"The stages {written} do not cover layers [0, {num_layers}) in order\n"
            f"hint: let each stage begin where the one before ends, the first at 0 and the "
            f"last to end at {num_layers}; the wanted sites need nothing above"
        )
