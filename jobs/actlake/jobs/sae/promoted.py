"""Which tokens a direction of the residual stream speaks for, by the direct path to the output.

The final norm multiplies each dimension with its weight, so the weight belongs to the
unembedding: ``logits = W_U (γ ⊙ d̂)`` of a direction d̂ of length 1, less its mean where the norm is
a LayerNorm. What later layers do with the direction is not in it. No name of a module is needed
for that: a norm is linear in a state along one direction, so the head itself computes it, on
``±√D d̂``; the half of the difference is free of biases.

Shapes:  N directions   D width   V vocabulary
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from actlake.platform.models import ModelHead
from actlake.storage.querying.vocabulary import Vocabulary

_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class TokenLogit:
    """A token, and the logit that a direction of length 1 gives it."""

    text: str
    logit: float


@dataclass(frozen=True, slots=True)
class Promoted:
    """What a direction speaks for and against, strongest first."""

    promoted: tuple[TokenLogit, ...]
    suppressed: tuple[TokenLogit, ...]


def direct_logits(head: ModelHead, directions_ND: Tensor) -> Tensor:
    """``W_U (γ ⊙ d̂)``, (N, V) float32 on the CPU; of a soft-capped head, capped."""
    rows_ND = directions_ND.detach().float().cpu()
    length = math.sqrt(rows_ND.shape[1])
    unit_ND = rows_ND / rows_ND.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    parts = []
    for start in range(0, len(unit_ND), _AT_ONCE):
        block = unit_ND[start : start + _AT_ONCE]
        both = torch.cat([block, -block]) * length
        logits_NV = head.logits(both.unsqueeze(0))[0].float().cpu()
        ahead, behind = logits_NV.chunk(2)
        parts.append((ahead - behind) / (2 * length))
    return torch.cat(parts)


def promoted_tokens(
    head: ModelHead, vocabulary: Vocabulary, directions_ND: Tensor, *, number: int = 8
) -> Sequence[Promoted]:
    """The tokens with the largest and the smallest direct logits, for each direction."""
    if not len(directions_ND):
        return []
    logits_NV = direct_logits(head, directions_ND)

    def named(top: Tensor, values: Tensor, sign: int) -> tuple[TokenLogit, ...]:
        return tuple(
            TokenLogit(vocabulary.text(token), sign * value)
            for token, value in zip(top.tolist(), values.tolist(), strict=True)
        )

    number = min(number, logits_NV.shape[1])
    high, low = logits_NV.topk(number), (-logits_NV).topk(number)
    return [
        Promoted(
            named(high.indices[row], high.values[row], 1),
            named(low.indices[row], low.values[row], -1),
        )
        for row in range(len(logits_NV))
    ]
