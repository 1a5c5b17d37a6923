"""Crosscoders: one set of latents that reads several sites and reconstructs all of them.

Of S sites of width D, encoders add up and decoders are apart (Lindsey et al. 2024, "Sparse
Crosscoders for Cross-Layer Features and Model Diffing", transformer-circuits.pub):

    f = act(Σ_s x_s W_enc,s + b_enc)        x̂_s = f W_dec,s + b_dec,s

The loss is the sum of the sites' squared errors, each site in its own scale. With the sites side
by side in one row of S·D numbers this is an autoencoder of such rows, and is computed as one:
``W_enc`` (S·D, F), ``W_dec`` (F, S·D), ``b_dec`` (S·D,). What differs is by what latents are
compared where they are chosen: pre-activations times the *sum over sites* of the decoder's norms,
as Minder et al. 2025, "Overcoming Sparsity Artifacts in Crosscoders" (arXiv:2504.02922).

How they are saved, and what of it SAELens can load, is told in ``docs/sae-format.md``.
"""

import torch
from torch import nn

from actlake.jobs.sae.trainable import Form
from actlake.jobs.sae.transcoder import Weights


def crosscoder_weights(form: Form) -> Weights:
    """First weights: each site's part of a decoder row has the norm asked for; encoders are tied.

    The encoder is the transposed decoder over the number of sites, so that pre-activations begin
    as large as those of an SAE.
    """
    decoder = nn.init.kaiming_uniform_(torch.empty(form.d_sae, form.num_sites * form.d_in))
    norm = form.options.decoder_init_norm
    if norm is not None:
        by_site = torch.unflatten(decoder, 1, (form.num_sites, -1))
        decoder = (by_site / by_site.norm(dim=2, keepdim=True) * norm).flatten(1)
    encoder = decoder.t().contiguous() / form.num_sites
    return Weights(form, encoder, decoder)
