"""Encoding and decoding where only a few latents of each row are active.

Of a batch of B rows, N = B·k pairs (row, latent) are chosen; everything else is zero and gets no
gradient. So beside the pre-activations, which every latent needs to be chosen or not, nothing is
ever multiplied densely:

    reconstruction      for each row, a weighted sum of k decoder rows
    d loss / d value    for each pair, the product of the row's gradient and a decoder row
    d loss / d W_dec    for each latent, a weighted sum of the gradients of the rows that chose it
    d loss / d W_enc    for each latent, a weighted sum of the inputs of the rows that chose it

The three sums are `torch.nn.functional.embedding_bag`, whose kernels keep a bag's sum in
registers; sums by latent run over the pairs sorted by latent. Measured on 2 cores with B = 4,096,
k = 32, d_in = 576, d_sae = 4,608: 7 ms a sum, against 34 ms for a CSR product, 250 ms for
``index_add_`` and 230 ms for the dense product. The same calls run on CUDA.

Shapes:  B rows   N chosen pairs   D width in   O width out   F latents
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


@dataclass(frozen=True, eq=False)
class Chosen:
    """The pairs (row, latent) that are active in a batch, sorted by row."""

    rows: Tensor
    """(N,) int64, ascending."""
    latents: Tensor
    """(N,) int64."""
    before: Tensor
    """(N,) pre-activations, not rescaled."""
    num_rows: int
    num_latents: int

    @cached_property
    def starts(self) -> Tensor:
        """(B,) where each row's pairs begin."""
        return starts_of(self.rows, self.num_rows)

    @cached_property
    def by_latent(self) -> tuple[Tensor, Tensor, Tensor]:
        """The pairs sorted by latent: their order (N,), rows (N,), and starts (F,)."""
        latents, order = torch.sort(self.latents, stable=True)
        return order, self.rows[order], starts_of(latents, self.num_latents)

    def sum_by_latent(self, values: Tensor, of_rows: Tensor) -> Tensor:
        """(F, C) for each latent, the sum of ``values[n] * of_rows[rows[n]]`` over its pairs."""
        order, rows, starts = self.by_latent
        return weighted_sums(values[order], of_rows, rows, starts)

    def count(self, active: Tensor) -> Tensor:
        """(F,) int64: in how many rows each latent is active, given (N,) which pairs are."""
        return torch.bincount(self.latents[active], minlength=self.num_latents)


def starts_of(ascending: Tensor, size: int) -> Tensor:
    """(size,) where each number's run begins in an ascending list of numbers below `size`."""
    counts = torch.bincount(ascending, minlength=size)
    return counts.cumsum(0) - counts


def weighted_sums(values: Tensor, table: Tensor, places: Tensor, starts: Tensor) -> Tensor:
    """(len(starts), C) the sum of ``values[n] * table[places[n]]`` over each run of n."""
    if len(places) == 0:
        return table.new_zeros(len(starts), table.shape[1])
    return embedding_bag(places, table, starts, mode="sum", per_sample_weights=values)


def inner_products(rows_of: Tensor, table: Tensor, chosen_rows: Tensor, places: Tensor) -> Tensor:
    """(N,) the products ``rows_of[chosen_rows[n]] · table[places[n]]``.

    The gradient of `embedding_bag` by its weights; called by its own name because autograd would
    compute the sums once more to get at it.
    """
    if len(places) == 0:
        return table.new_zeros(0)
    starts = starts_of(chosen_rows, len(rows_of))
    products: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        rows_of.contiguous(), table, places, starts, chosen_rows, 0
    )
    return products


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, decoder: Tensor, bags: Tensor, num_bags: int, chosen: Chosen
    ) -> Tensor:
        ctx.save_for_backward(values, decoder, bags)
        ctx.chosen = chosen
        return weighted_sums(values, decoder, chosen.latents, starts_of(bags, num_bags))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        values, decoder, bags = ctx.saved_tensors
        chosen: Chosen = ctx.chosen
        by_value = by_decoder = None
        if ctx.needs_input_grad[0]:
            by_value = inner_products(gradient, decoder, bags, chosen.latents)
        if ctx.needs_input_grad[1]:
            order, _, starts = chosen.by_latent
            by_decoder = weighted_sums(values[order], gradient.contiguous(), bags[order], starts)
        return by_value, by_decoder, None, None, None


def decode(values: Tensor, decoder: Tensor, chosen: Chosen) -> Tensor:
    """(B, O) for each row, the sum of its values times decoder rows; no bias.

    Parameters
    ----------
    values
        (N,) activations of the chosen pairs.
    decoder
        (F, O) W_dec.
    chosen
        The pairs.
    """
    result: Tensor = _Decode.apply(values, decoder, chosen.rows, chosen.num_rows, chosen)  # type: ignore[no-untyped-call]
    return result


def decode_bags(
    values: Tensor, decoder: Tensor, bags: Tensor, num_bags: int, chosen: Chosen
) -> Tensor:
    """(num_bags, O) as `decode`, but pair n is summed into bag ``bags[n]``, ascending."""
    result: Tensor = _Decode.apply(values, decoder, bags, num_bags, chosen)  # type: ignore[no-untyped-call]
    return result


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        centred: Tensor,
        encoder: Tensor,
        bias: Tensor,
        input_bias: Tensor | None,
        chosen: Chosen,
    ) -> Tensor:
        ctx.save_for_backward(centred, encoder)
        ctx.chosen = chosen
        return chosen.before.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        centred, encoder = ctx.saved_tensors
        chosen: Chosen = ctx.chosen
        by_encoder = chosen.sum_by_latent(gradient, centred).t().contiguous()
        order, _, starts = chosen.by_latent
        ones = gradient.new_ones(len(centred), 1)
        by_bias = weighted_sums(gradient[order], ones, chosen.by_latent[1], starts)[:, 0]
        # The input bias is subtracted from every row, so its gradient needs no product by row.
        by_input_bias = -(encoder @ by_bias) if ctx.needs_input_grad[3] else None
        return None, by_encoder, by_bias, by_input_bias, None


def encode_at(
    centred: Tensor, encoder: Tensor, bias: Tensor, input_bias: Tensor | None, chosen: Chosen
) -> Tensor:
    """(N,) the pre-activations of the chosen pairs, as something that has a gradient.

    Parameters
    ----------
    centred
        (B, D) inputs, the input bias subtracted already. They get no gradient.
    encoder, bias
        (D, F) W_enc and (F,) b_enc.
    input_bias
        (D,) what was subtracted from the inputs, to get its gradient; None where nothing was.
    chosen
        The pairs, and their pre-activations.
    """
    result: Tensor = _Encode.apply(centred, encoder, bias, input_bias, chosen)  # type: ignore[no-untyped-call]
    return result


class _EncodeSome(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        centred: Tensor,
        encoder: Tensor,
        bias: Tensor,
        input_bias: Tensor | None,
        latents: Tensor,
        before: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(centred, encoder, latents)
        return before.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        centred, encoder, latents = ctx.saved_tensors
        by_encoder = torch.zeros_like(encoder)
        by_encoder[:, latents] = centred.t() @ gradient
        by_bias = encoder.new_zeros(encoder.shape[1])
        by_bias[latents] = gradient.sum(0)
        by_input_bias = -(encoder @ by_bias) if ctx.needs_input_grad[3] else None
        return None, by_encoder, by_bias, by_input_bias, None, None


def encode_some(
    centred: Tensor,
    encoder: Tensor,
    bias: Tensor,
    input_bias: Tensor | None,
    latents: Tensor,
    before: Tensor,
) -> Tensor:
    """(B, M) the pre-activations of some latents at every row, with a gradient.

    As `encode_at`, for the M `latents` given; `before` (B, M) are the pre-activations.
    """
    result: Tensor = _EncodeSome.apply(centred, encoder, bias, input_bias, latents, before)  # type: ignore[no-untyped-call]
    return result
