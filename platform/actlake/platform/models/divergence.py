"""How much what a model predicts has changed: cross-entropy and divergence, a number a token.

Both are in nats, computed in float32 whatever the logits' dtype, and not averaged: which
tokens count, and how they are grouped, is the caller's to say.

Shapes:  B contexts in the batch   L tokens in a context   V vocabulary
"""

from torch import Tensor
from torch.nn.functional import cross_entropy


def token_cross_entropy(logits_BLV: Tensor, ids_BL: Tensor) -> Tensor:
    """``-log p(token i + 1 | tokens up to i)`` at position i, (B, L - 1), nats."""
    predicted = logits_BLV[:, :-1].float().transpose(1, 2)
    return cross_entropy(predicted, ids_BL[:, 1:].to(logits_BLV.device), reduction="none")


def token_divergence(logits_BLV: Tensor, other_BLV: Tensor) -> Tensor:
    """KL(p ‖ p') of what is predicted at each position, (B, L), nats.

    ``p`` is of the first logits, the reference, ``p'`` of the others. Equal logits give
    exactly 0.
    """
    log_p = logits_BLV.float().log_softmax(-1)
    log_q = other_BLV.float().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)
