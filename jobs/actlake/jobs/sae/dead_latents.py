"""Latents that no longer fire: counted in rows, and brought back.

Shapes:  B rows, of all workers   D width   F latents   K dead latents
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from actlake.jobs.sae.communicator import Communicator
from actlake.platform.seeds import Seeds

RESAMPLED = ("standard",)
"""Architectures without an auxiliary loss, whose dead latents can be given new weights."""

_ENCODER_SHARE = 0.2
_MOST_ROWS = 1_000_000


def dead_window(asked: int | None, training_rows: int) -> int:
    """Rows without a firing after which a latent of a training is dead; see `SAESpec`."""
    return asked or max(1, min(_MOST_ROWS, training_rows // 10))


def dead_name(rows: int) -> str:
    """What a dead share is called: of how many rows the latents were silent in all.

    Of fewer rows more latents are dead, so two shares compare only where this name is the same.
    """
    return f"dead_in_{rows}_rows"


class Firing:
    """Rows that have passed since each latent fired.

    In rows and not in steps, so that batch size and number of workers change nothing. Within a
    batch order means nothing: a latent that fired in it starts at 0.
    """

    def __init__(self, num_latents: int, *, dead_after_rows: int, device: torch.device) -> None:
        self.rows_since = torch.zeros(num_latents, dtype=torch.int64, device=device)
        self.dead_after_rows = dead_after_rows

    def count(self, fired: Tensor, rows: int) -> None:
        """Note a batch of `rows` rows, of all workers; `fired` is (F,), rows a latent fired in."""
        self.rows_since = torch.where(fired > 0, 0, self.rows_since + rows)

    @property
    def dead(self) -> Tensor:
        """(F,) bool."""
        return self.rows_since >= self.dead_after_rows


class Reconstructs(Protocol):
    """What turns rows into their reconstruction."""

    def __call__(self, rows: Tensor) -> Tensor: ...  # noqa: D102


@dataclass(frozen=True)
class Weights:
    """The four tensors of a standard SAE, by SAELens' names."""

    encoder: torch.nn.Parameter
    """(D, F)"""
    encoder_bias: torch.nn.Parameter
    """(F,)"""
    decoder: torch.nn.Parameter
    """(F, D)"""
    decoder_bias: torch.nn.Parameter
    """(D,)"""

    @classmethod
    def of(cls, model: torch.nn.Module) -> "Weights":
        """Find them in a model, however deep they are."""
        found = {name.rsplit(".", 1)[-1]: part for name, part in model.named_parameters()}
        return cls(found["W_enc"], found["b_enc"], found["W_dec"], found["b_dec"])


@torch.no_grad()
def resample(
    weights: Weights,
    optimizer: torch.optim.Optimizer,
    dead: Tensor,
    rows_BD: Tensor,
    reconstruct: Reconstructs,
    *,
    seeds: Seeds,
    purpose: str,
    comm: Communicator,
) -> int:
    """Give dead latents new weights, towards rows that are reconstructed badly; how many.

    Bricken et al. 2023, "Towards Monosemanticity", appendix "Neuron Resampling": a row is drawn
    for each with a probability proportional to its squared loss; the decoder direction becomes
    that row, the encoder direction too, with 0.2 of the mean norm of the living ones; the bias
    and Adam's moments become 0. Unlike there, rows are taken less the decoder bias, as the
    encoder sees them; the decoder's row gets the mean norm of the living ones and not 1, because
    SAELens does not keep decoders at norm 1; and rows are drawn from one batch.
    """
    index_K = dead.nonzero().flatten()
    if not len(index_K):
        return 0
    everyones_BD = comm.all_gather(rows_BD).flatten(0, 1)
    loss_B = (reconstruct(everyones_BD) - everyones_BD).square().sum(-1)
    share_B = loss_B.double().square().cpu()
    if not float(share_B.sum()) > 0:
        return 0
    drawn_K = torch.multinomial(
        share_B, len(index_K), replacement=True, generator=seeds.torch(purpose)
    )
    chosen_KD = everyones_BD[drawn_K.to(rows_BD.device)] - weights.decoder_bias
    unit_KD = torch.nn.functional.normalize(chosen_KD, dim=-1)
    decoder_norm = _mean_norm(weights.decoder, dead)
    encoder_norm = _mean_norm(weights.encoder.T, dead) * _ENCODER_SHARE
    weights.decoder[index_K] = unit_KD * decoder_norm
    weights.encoder[:, index_K] = unit_KD.T * encoder_norm
    weights.encoder_bias[index_K] = 0
    for parameter, place in (
        (weights.decoder, (index_K,)),
        (weights.encoder, (slice(None), index_K)),
        (weights.encoder_bias, (index_K,)),
    ):
        for moment in ("exp_avg", "exp_avg_sq"):
            if moment in optimizer.state[parameter]:
                optimizer.state[parameter][moment][place] = 0
    return len(index_K)


def _mean_norm(vectors_FD: Tensor, dead: Tensor) -> Tensor:
    """Of the living ones; of all where none lives."""
    norms_F = torch.linalg.vector_norm(vectors_FD, dim=-1)
    chosen: Tensor = norms_F[~dead] if bool((~dead).any()) else norms_F
    return chosen.mean()
