"""The family of top-k: topk, abstopk, batchtopk, matryoshka_batchtopk; sparse in both directions.

The losses are those of SAELens' training classes, and so are their gradients, to the rounding of
float32. One thing is left out because it is nothing: where pre-activations are rescaled by the
decoder's norms to be compared, and divided by them again to be decoded, the norms cancel, so only
the choice depends on them, and they get no gradient.

Shapes:  B rows   N chosen pairs   D width in   O width out   F latents   L nested levels
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from actlake.jobs.sae.architectures import (
    BatchTopKOptions,
    MatryoshkaOptions,
    TopKOptions,
    training_widths,
)
from actlake.jobs.sae.choosing import Encoder, Kept, choose_by_batch, choose_by_row
from actlake.jobs.sae.communicator import ALONE, Communicator
from actlake.jobs.sae.sparse import Chosen, decode, decode_bags, encode_at, encode_some
from actlake.jobs.sae.trainable import Form, StepOutput, TrainableSAE

FAMILY = ("topk", "abstopk", "batchtopk", "matryoshka_batchtopk")
AUX_LOSS = "auxiliary_reconstruction_loss"


class _Levels(NamedTuple):
    """Reconstructions by the first ``widths[l]`` latents, (L, B, O); the last is by all."""

    widths: tuple[int, ...]
    reconstructions: Tensor


class TopKSAE(TrainableSAE):
    """An SAE of the family, computed sparsely."""

    def __init__(self, form: Form, weights: nn.Module) -> None:
        super().__init__(form, weights)
        options = form.options
        assert isinstance(options, TopKOptions | BatchTopKOptions)
        self.options = options
        self.widths: tuple[int, ...] = (form.d_sae,)
        if isinstance(options, MatryoshkaOptions):
            self.widths = training_widths(options, form.d_sae)

    @property
    def threshold(self) -> Tensor:
        """What a latent must exceed once training has ended, where there is such a thing."""
        threshold: Tensor = self.weights.get_buffer("topk_threshold")
        return threshold

    @property
    def has_threshold(self) -> bool:
        """Whether the form used after training has a threshold in place of k."""
        return "topk_threshold" in dict(self.weights.named_buffers())

    @torch.no_grad()
    def scales(self) -> Tensor | None:
        """(F,) what pre-activations are multiplied by to be compared: norms, summed over sites."""
        if not self.options.rescale_acts_by_decoder_norm:
            return None
        decoder = self.weights.get_parameter("W_dec")
        norms: Tensor = torch.unflatten(decoder, 1, (self.num_sites, -1)).norm(dim=2).sum(1)
        return norms

    def step(
        self,
        x: Tensor,
        y: Tensor | None = None,
        *,
        coefficients: Mapping[str, float],
        dead: Tensor | None,
        comm: Communicator = ALONE,
    ) -> StepOutput:
        """Losses of a batch; see `TrainableSAE.step`."""
        rows, targets = self.flat(x, y)
        decoder, input_bias = self.weights.get_parameter("W_dec"), self._input_bias()
        encoder, bias = self.weights.get_parameter("W_enc"), self.weights.get_parameter("b_enc")
        with torch.no_grad():
            centred = rows if input_bias is None else rows - input_bias
            scales = self.scales()
            kept = Kept.of(_places(dead, rows.device), centred)
            chosen = self._choose(Encoder(encoder, bias, scales), centred, kept, comm)
        values = encode_at(centred, encoder, bias, input_bias, chosen)
        if self.architecture != "abstopk":
            values = values.relu()
        levels = self._decode(values, decoder, chosen)
        squared = (levels.reconstructions - targets).square()
        losses = squared.sum(2).mean(1)
        parts = {"mse_loss": losses[-1]}
        dead_values = encode_some(centred, encoder, bias, input_bias, kept.latents, kept.before)
        parts[AUX_LOSS] = self._auxiliary(dead_values, kept.latents, scales, levels, targets)
        parts |= {
            f"inner_mse_loss_{width}": loss
            for width, loss in zip(self.widths[:-1], losses[:-1], strict=True)
        }
        with torch.no_grad():
            active = values != 0
            if self.has_threshold:
                self._follow_threshold(values, scales, chosen, comm)
        return StepOutput(
            loss=torch.stack(list(parts.values())).sum(),
            parts={name: part.detach() for name, part in parts.items()},
            fired=chosen.count(active),
            squared_error=self.by_site(squared[-1].detach()),
            num_rows=len(rows),
        )

    @torch.no_grad()
    def compared(self, x: Tensor) -> Iterator[Tensor]:
        """(R, F) what is compared when latents are chosen, some rows at a time.

        On a CPU all parts are the same memory: use one before asking for the next.
        """
        rows, bias = x.flatten(1), self._input_bias()
        get = self.weights.get_parameter
        encoder = Encoder(get("W_enc"), get("b_enc"), self.scales())
        for _, before in encoder.parts(rows if bias is None else rows - bias):
            yield encoder.scaled(before, out=before)

    def _input_bias(self) -> Tensor | None:
        if self.form.is_transcoder or not self.options.apply_b_dec_to_input:
            return None
        return self.weights.get_parameter("b_dec")

    def _choose(self, encoder: Encoder, centred: Tensor, kept: Kept, comm: Communicator) -> Chosen:
        if isinstance(self.options, BatchTopKOptions):
            return choose_by_batch(encoder, centred, self.options.k, kept=kept, comm=comm)
        by_magnitude = self.architecture == "abstopk"
        return choose_by_row(encoder, centred, self.options.k, kept=kept, by_magnitude=by_magnitude)

    def _decode(self, values: Tensor, decoder: Tensor, chosen: Chosen) -> _Levels:
        bias = self.weights.get_parameter("b_dec")
        if len(self.widths) == 1:
            return _Levels(self.widths, (decode(values, decoder, chosen) + bias)[None])
        widths = torch.tensor(self.widths, device=values.device)
        level = torch.bucketize(chosen.latents, widths, right=True)
        order = torch.sort(level, stable=True).indices
        bags = level[order] * chosen.num_rows + chosen.rows[order]
        by_level = Chosen(
            chosen.rows[order],
            chosen.latents[order],
            chosen.before[order],
            chosen.num_rows,
            chosen.num_latents,
        )
        num_bags = len(self.widths) * chosen.num_rows
        sums = decode_bags(values[order], decoder, bags, num_bags, by_level)
        return _Levels(
            self.widths, torch.unflatten(sums, 0, (len(self.widths), -1)).cumsum(0) + bias
        )

    def _auxiliary(
        self,
        values: Tensor,
        latents: Tensor,
        scales: Tensor | None,
        levels: _Levels,
        targets: Tensor,
    ) -> Tensor:
        """The loss of dead latents, which learn what the living leave over.

        Gao et al. 2024, "Scaling and evaluating sparse autoencoders" (arXiv:2406.04093), A.2,
        with the scaling of SAELens: half as many latents a row as targets are wide, and less
        weight where fewer are dead. In a matryoshka SAE it can be a loss for each level.
        """
        each = isinstance(self.options, MatryoshkaOptions) and self.options.use_matryoshka_aux_loss
        widths = levels.widths if each else levels.widths[-1:]
        reconstructions = levels.reconstructions[-len(widths) :]
        total = targets.new_zeros(())
        for below, width, reconstruction in zip(
            (0, *widths), widths, reconstructions, strict=False
        ):
            mine = (latents >= below) & (latents < width)
            some = latents[mine]
            if len(some):
                residual = (targets - reconstruction).detach()
                compared = None if scales is None else scales[some]
                total = total + self._auxiliary_of(values[:, mine], some, compared, residual)
        return self.options.aux_loss_coefficient * total

    def _auxiliary_of(
        self, values: Tensor, latents: Tensor, scales: Tensor | None, residual: Tensor
    ) -> Tensor:
        most = residual.shape[1] // 2
        k = min(most, len(latents))
        if k < len(latents):
            compared = values.detach() if scales is None else values.detach() * scales
            if self.architecture == "abstopk":
                compared = compared.abs()
            places = torch.topk(compared, k, dim=1, sorted=False).indices
            values = values * torch.zeros_like(values).scatter_(1, places, 1.0)
        decoder = self.weights.get_parameter("W_dec")[latents]
        loss = (values @ decoder - residual).square().sum(1).mean()
        return loss * min(len(latents) / most, 1.0)

    def _follow_threshold(
        self, values: Tensor, scales: Tensor | None, chosen: Chosen, comm: Communicator
    ) -> None:
        """Move the threshold towards the smallest value chosen by any worker."""
        scaled = values if scales is None else values * scales[chosen.latents]
        positive = scaled[scaled > 0]
        none = scaled.new_full((1,), torch.inf)
        smallest = comm.all_gather(torch.cat([positive, none]).min()).min()
        if torch.isfinite(smallest):
            rate = getattr(self.options, "topk_threshold_lr", THRESHOLD_RATE)
            self.threshold.mul_(1 - rate).add_(rate * smallest.double())


THRESHOLD_RATE = 0.01
"""Of topk transcoders, whose form after training has a threshold; SAELens' default elsewhere."""


def _places(mask: Tensor | None, device: torch.device) -> Tensor:
    if mask is None:
        return torch.zeros(0, dtype=torch.int64, device=device)
    return torch.where(mask)[0]
