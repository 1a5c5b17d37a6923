"""Transcoders: latents of one site that reconstruct another; and weights that are ours alone.

SAELens can use transcoders, and has no class that trains them. Parameters are named and shaped as
in its inference classes, and drawn as there, with the decoder's rows brought to the norm that its
training classes begin with, and the encoder's columns to the same:

    W_enc (d_in, d_sae)   b_enc (d_sae,)   W_dec (d_sae, d_out)   b_dec (d_out,)
    threshold (d_sae,)                 of jumprelu
    topk_threshold ()     float64      of topk and batchtopk: what a latent must exceed in use

The losses are those of the SAE of the same architecture, with the other site's rows as targets.
The decoder's bias is not subtracted from the inputs: it belongs to another place. Since SAELens
has no top-k transcoder, one that was trained with top-k is used, and saved, with a threshold, as
SAEs trained with batch top-k are (`actlake.jobs.sae.inference_form`).
"""

import torch
from torch import Tensor, nn

from actlake.jobs.sae.architectures import JumpReLUOptions
from actlake.jobs.sae.trainable import Form


class Weights(nn.Module):
    """Parameters of an encoder and a decoder, and the threshold that belongs to them."""

    def __init__(self, form: Form, encoder: Tensor, decoder: Tensor) -> None:
        super().__init__()
        self.W_enc = nn.Parameter(encoder)
        self.b_enc = nn.Parameter(encoder.new_zeros(encoder.shape[1]))
        self.W_dec = nn.Parameter(decoder)
        self.b_dec = nn.Parameter(decoder.new_zeros(decoder.shape[1]))
        if isinstance(form.options, JumpReLUOptions):
            first = form.options.jumprelu_init_threshold
            self.threshold = nn.Parameter(torch.full((form.d_sae,), first))
        elif has_threshold(form):
            self.register_buffer("topk_threshold", torch.zeros((), dtype=torch.float64))


def has_threshold(form: Form) -> bool:
    """Whether top-k becomes a threshold after training."""
    return form.architecture not in ("topk", "abstopk") or form.is_transcoder


def transcoder_weights(form: Form) -> Weights:
    """First weights of a transcoder: encoder and decoder drawn apart."""
    decoder = with_norm(_drawn(form.d_sae, form.d_out), form.options.decoder_init_norm)
    encoder = with_norm(_drawn(form.d_sae, form.d_in), form.options.decoder_init_norm)
    return Weights(form, encoder.t().contiguous(), decoder)


def _drawn(rows: int, columns: int) -> Tensor:
    return nn.init.kaiming_uniform_(torch.empty(rows, columns))


def with_norm(rows: Tensor, norm: float | None) -> Tensor:
    """Rows brought to a norm; None leaves them as they are."""
    return rows if norm is None else rows / rows.norm(dim=1, keepdim=True) * norm
