"""How much what a model predicts has changed: cross-entropy and divergence, a number a token.

Both are in nats, computed in float32 or, of wider logits, in their dtype, and not averaged:
which tokens count, and how they are grouped, is the caller's to say.

Shapes:  B contexts in the batch   L tokens in a context   V vocabulary
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from actlake.platform.models.errors import VocabularyTooSmall


def token_cross_entropy(logits_BLV: Tensor, ids_BL: Tensor) -> Tensor:
    """``-log p(token i + 1 | tokens up to i)`` at position i, (B, L - 1), nats.

    Raises
    ------
    VocabularyTooSmall
        A token is beyond the logits: the head has fewer rows than the embedding.
    """
    num_logits = logits_BLV.shape[-1]
    if ids_BL.numel() and int(ids_BL.max()) >= num_logits:
        raise VocabularyTooSmall(
            f"The head predicts {num_logits:,} tokens, and the text holds token "
            f"{int(ids_BL.max())}, which the embedding knows and the head does not\n"
            "hint: this model cannot be scored on this text; leave the token out of it"
        )
    predicted = _wide(logits_BLV[:, :-1]).transpose(1, 2)
    return cross_entropy(predicted, ids_BL[:, 1:].to(logits_BLV.device), reduction="none")


def token_divergence(logits_BLV: Tensor, other_BLV: Tensor) -> Tensor:
    """KL(p ‖ p') of what is predicted at each position, (B, L), nats.

    ``p`` is of the first logits, the reference, ``p'`` of the others. Equal logits give
    exactly 0.
    """
    log_p = _wide(logits_BLV).log_softmax(-1)
    log_q = _wide(other_BLV).log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _wide(logits_BLV: Tensor) -> Tensor:
    return logits_BLV.to(torch.promote_types(logits_BLV.dtype, torch.float32))
