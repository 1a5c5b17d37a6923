"""Does the model go on as if nothing had happened? Replace the target by the transported source.

For some test contexts, at positions drawn at random, the target site is replaced while the
model runs, and what it then predicts is compared with the undisturbed run: the change of the
cross-entropy in nats a token, and KL(p ‖ p'), over all tokens from the first replaced one on.
With a token offset it is position i + offset that is replaced, where it counts and is of the
same document as i: the rows that the map was fitted on.
Beside the transported state stand the replacements it has to beat: zero, the mean, the source
itself (identity), and the map's bias alone. ``own`` puts back what was there: exactly 0.

Shapes:  B contexts   L tokens   D width
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actlake.jobs.jackknife import Interval, jackknife_mean
from actlake.jobs.transport.operators import AffineMap
from actlake.jobs.transport.pairs import Pair
from actlake.jobs.whole_contexts import WholeContext
from actlake.platform.models import (
    Capture,
    ModelChain,
    replace_with,
    token_cross_entropy,
    token_divergence,
)
from actlake.platform.seeds import Seeds
from actlake.storage import Site

CONDITIONS = ("own", "transported", "identity", "mean", "bias", "zero")


@dataclass(frozen=True, slots=True)
class CausalScore:
    """What a replacement does to the predictions."""

    pair: Pair
    condition: str
    delta_ce: Interval
    """Nats a token, over the clean run's."""
    divergence: Interval
    """KL(p ‖ p'), nats a token."""
    replaced: int
    """Positions of the target that were replaced."""


def score_causally(
    chain: ModelChain,
    contexts: Sequence[WholeContext],
    maps: Mapping[Pair, tuple[AffineMap, AffineMap]],
    *,
    share: float,
    seeds: Seeds,
    conditions: Sequence[str] = CONDITIONS,
    on_run: Callable[[], None] = lambda: None,
) -> list[CausalScore]:
    """Run every pair under every condition.

    Parameters
    ----------
    chain
        The model; its stages hand out every source and target of `maps`.
    contexts
        From `contexts_of_split`.
    maps
        Of each pair the map to test and the mean map, whose bias is the target's mean.
    share
        Of the allowed positions that are replaced in a context; at least one.
    """
    sums = {
        (pair, condition): np.zeros((len(contexts), 3)) for pair in maps for condition in conditions
    }
    replaced = dict.fromkeys(maps, 0)
    generator = seeds.torch("which positions are replaced")
    for number, context in enumerate(contexts):
        ids_BL = context.ids.unsqueeze(0)
        drawn = torch.rand(context.allowed.shape, generator=generator)
        where_L = context.allowed & (drawn < share)
        if not where_L.any():
            where_L = context.allowed.clone()
        seen: dict[Site, Tensor] = {}
        clean_BLV = chain.logits(ids_BL, capture=_keeper(seen))
        clean_ce = token_cross_entropy(clean_BLV, ids_BL)
        for pair, (fitted, mean) in maps.items():
            where_BL = _targets(context, where_L, pair.offset).unsqueeze(0)
            replaced[pair] += int(where_BL.sum())
            if not where_BL.any():
                continue
            for condition in conditions:
                stand_in = _stand_in(condition, pair, seen, fitted, mean)
                logits_BLV = chain.logits(ids_BL, [replace_with(pair.target, stand_in, where_BL)])
                first = int(where_BL[0].nonzero()[0])
                delta = (token_cross_entropy(logits_BLV, ids_BL) - clean_ce)[0, first:]
                divergence = token_divergence(clean_BLV, logits_BLV)[0, first:-1]
                sums[pair, condition][number] = (
                    float(delta.sum()), float(divergence.sum()), len(delta),
                )  # fmt: skip
                on_run()
    return [
        CausalScore(
            pair,
            condition,
            jackknife_mean(found[:, 0], found[:, 2]),
            jackknife_mean(found[:, 1], found[:, 2]),
            replaced[pair],
        )
        for (pair, condition), found in sums.items()
    ]


def _keeper(seen: dict[Site, Tensor]) -> Capture:
    def keep(site: Site, acts_BLD: Tensor) -> None:
        seen[site] = acts_BLD.clone()

    return keep


def _targets(context: WholeContext, sources_L: Tensor, offset: int) -> Tensor:
    """(L,) bool: the positions i + offset that are replaced, of sources i.

    Both must count and be of one document; what would be beyond an end of the context is not.
    """
    length = len(sources_L)
    targets_L = torch.zeros_like(sources_L)
    source = sources_L.nonzero().flatten()
    target = source + offset
    inside = (target >= 0) & (target < length)
    source, target = source[inside], target[inside]
    counts = context.allowed[target] & (context.documents[source] == context.documents[target])
    targets_L[target[counts]] = True
    return targets_L


def _stand_in(
    condition: str,
    pair: Pair,
    seen: Mapping[Site, Tensor],
    fitted: AffineMap,
    mean: AffineMap,
) -> Tensor:
    target_BLD = seen[pair.target.stored]
    source_BLD = torch.roll(seen[pair.source.stored], pair.offset, dims=1)
    if condition == "own":
        return target_BLD
    if condition == "zero":
        return torch.zeros_like(target_BLD)
    if condition == "identity":
        return source_BLD
    constant = {"mean": mean.bias, "bias": fitted.bias}
    if condition in constant:
        return _tensor(constant[condition], target_BLD).expand_as(target_BLD)
    return source_BLD @ _tensor(fitted.weight, target_BLD).T + _tensor(fitted.bias, target_BLD)


def _tensor(values: "np.ndarray[Any, Any]", like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like.device, like.dtype)
