"""Latents one after the other, each the one that explains most of what is left.

Matching pursuit (Mallat and Zhang 1993) with the stopping rules of SAELens' architecture of that
name: a row is done when what is left is short enough, or when a step brings no new latent.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def pursue(centred: Tensor, decoder: Tensor, config: Mapping[str, Any]) -> Tensor:
    """(B, F) latents of (B, D) rows.

    Parameters
    ----------
    centred
        Rows, the bias subtracted already.
    decoder
        (F, D) directions; encoder and decoder are tied.
    config
        ``residual_threshold``, ``max_iterations`` (None: D) and ``stop_on_duplicate_support``.
    """
    enough = float(config.get("residual_threshold", 1e-2))
    most = config.get("max_iterations") or decoder.shape[1]
    until_no_new = bool(config.get("stop_on_duplicate_support", True))
    left = centred.clone()
    latents = centred.new_zeros(len(centred), len(decoder))
    active = torch.zeros_like(latents, dtype=torch.bool)
    going = torch.ones(len(centred), 1, dtype=torch.bool, device=centred.device)
    for _ in range(int(most)):
        best = (left @ decoder.t()).relu_().max(dim=1, keepdim=True).indices
        directions = decoder[best[:, 0]]
        values = (left * directions).sum(1, keepdim=True).relu_() * going
        latents.scatter_add_(1, best, values)
        left = left - values * directions
        if until_no_new:
            is_new = ~active.gather(1, best) & (latents.gather(1, best) != 0)
            active.scatter_(1, best, latents.gather(1, best) != 0)
            going = going & is_new
        if enough > 0:
            going = going & (left.norm(dim=1, keepdim=True) >= enough)
        if not going.any():
            break
    return latents
