"""Sparse autoencoders that can be trained: one step at a time, by whoever has rows.

    sae = build_sae("topk", {"k": 32}, d_in=576, d_sae=4608, seed=0)
    output = sae.step(x_BD, coefficients={}, dead=None)
    output.loss.backward()
    optimizer.step(); sae.after_step()

Parameters, losses and first weights are those of SAELens' training classes, for every
architecture. How the losses are computed is ours where that is faster: `topk` for the family of
top-k, `jumprelu` for JumpReLU; the others are SAELens' own code (`dense`).

Shapes:  B rows of this worker   D width   S sites   F latents
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from actlake.jobs.sae.architectures import (
    JumpReLUOptions,
    Options,
    check_across_sites,
    check_architecture,
    read_options,
)
from actlake.jobs.sae.communicator import ALONE, Communicator
from actlake.jobs.sae.errors import InvalidSAE

if TYPE_CHECKING:
    from actlake.jobs.sae.trained import Scaling, TrainedSAE

__all__ = [
    "ALONE",
    "Communicator",
    "Form",
    "StepOutput",
    "TrainableSAE",
    "build_sae",
    "check_architecture",
]


@dataclass(frozen=True, eq=False)
class StepOutput:
    """What one step on this worker's rows gave."""

    loss: Tensor
    """Scalar with a gradient: the mean over this worker's rows. The mean of all workers'
    gradients is the gradient of the global batch, where all have equally many rows."""

    parts: Mapping[str, Tensor]
    """Detached scalars that `loss` is the sum of, with SAELens' names: ``mse_loss``, ``l0_loss``,
    ``l1_loss``, ``auxiliary_reconstruction_loss``, …"""

    fired: Tensor
    """(F,) int64, in how many of this worker's rows each latent was active."""

    squared_error: Tensor
    """(S,) float64: squared error of each site's reconstruction, summed over rows and widths."""

    num_rows: int
    """B."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """What an SAE is, besides its weights."""

    architecture: str
    options: Options
    d_in: int
    """Width of one row of one site it reads."""
    d_out: int
    """Width of one row of one site it reconstructs."""
    d_sae: int
    num_sites: int = 1
    is_transcoder: bool = False
    """It predicts another site than it reads."""


class TrainableSAE(nn.Module, ABC):
    """An SAE, transcoder or crosscoder in training.

    ``state_dict`` holds all that going on needs. Rows are float32, already scaled.
    """

    def __init__(self, form: Form, weights: nn.Module) -> None:
        super().__init__()
        self.form = form
        self.weights = weights
        """Parameters ``W_enc``, ``b_enc``, ``W_dec``, ``b_dec``, …, as SAELens names them. For a
        crosscoder the sites lie side by side in each row."""

    @property
    def architecture(self) -> str:
        """SAELens' name of it."""
        return self.form.architecture

    @property
    def d_in(self) -> int:
        """Width of one row of one site it reads."""
        return self.form.d_in

    @property
    def d_out(self) -> int:
        """Width of one row of one site it reconstructs."""
        return self.form.d_out

    @property
    def d_sae(self) -> int:
        """F."""
        return self.form.d_sae

    @property
    def num_sites(self) -> int:
        """S; 1 but for crosscoders."""
        return self.form.num_sites

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.weights.parameters()).device

    @property
    def coefficients(self) -> Mapping[str, tuple[float, int]]:
        """Of the penalties, by name: the value, and the steps in which it rises from 0."""
        options = self.form.options
        for name in ("l0", "l1"):
            if hasattr(options, f"{name}_coefficient"):
                value = getattr(options, f"{name}_coefficient")
                return {name: (value, getattr(options, f"{name}_warm_up_steps"))}
        return {}

    @abstractmethod
    def step(
        self,
        x: Tensor,
        y: Tensor | None = None,
        *,
        coefficients: Mapping[str, float],
        dead: Tensor | None,
        comm: Communicator = ALONE,
    ) -> StepOutput:
        """Losses of a batch.

        Parameters
        ----------
        x
            (B, D) rows; of a crosscoder (B, S, D).
        y
            (B, O) what a transcoder shall predict; None for the others.
        coefficients
            The penalties' weights at this step, one for each of `coefficients`.
        dead
            (F,) bool, latents that count as dead, equal on all workers; None: none.
        comm
            The other workers of the global batch.
        """

    def after_step(self) -> None:
        """Put back what an optimiser's step may have moved out of its bounds."""

    def trained(self, scaling: "Scaling | None" = None) -> "TrainedSAE":
        """A copy in the form that is used after training, with the scaling in the weights."""
        from actlake.jobs.sae.inference_form import inference_form

        return inference_form(self, scaling)

    def by_site(self, squared: Tensor) -> Tensor:
        """(B, S·D) squared errors, or (S·D,) sums of them, summed to (S,) in float64."""
        total = squared.sum(0, dtype=torch.float64) if squared.ndim == 2 else squared.double()
        return total.reshape(self.num_sites, -1).sum(1)

    def flat(self, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """Inputs and targets as (B, S·D), or (B, D) and (B, O) of a transcoder."""
        assert (y is not None) == self.form.is_transcoder, "y is the target of a transcoder"
        x = x.flatten(1)
        return x, x if y is None else y


def build_sae(
    architecture: str,
    options: Mapping[str, object],
    *,
    d_in: int,
    d_sae: int,
    d_out: int | None = None,
    num_sites: int = 1,
    seed: int,
    device: torch.device | str = "cpu",
) -> TrainableSAE:
    """Make an SAE, transcoder or crosscoder with its first weights.

    Parameters
    ----------
    architecture, options
        See `actlake.jobs.sae.architectures`.
    d_in
        Width of the rows of one site.
    d_sae
        Number of latents.
    d_out
        Width of the rows to predict, for a transcoder; None: it reconstructs what it reads.
    num_sites
        Sites of a crosscoder; 1 for the others.
    seed
        The same seed gives the same weights on every device, and those that SAELens draws after
        ``torch.manual_seed(seed)``.
    device
        Where it is trained.

    Raises
    ------
    InvalidSAE
        Of an architecture, option or size that cannot be.
    """
    read = read_options(architecture, options, d_sae=d_sae)
    is_transcoder = d_out is not None
    if is_transcoder and num_sites > 1:
        raise InvalidSAE(
            "A crosscoder reconstructs the sites it reads, and has no d_out\n"
            "hint: leave d_out out, or give one site"
        )
    if is_transcoder or num_sites > 1:
        check_across_sites(architecture, "transcoder" if is_transcoder else "crosscoder")
    form = Form(
        architecture=architecture,
        options=read,
        d_in=d_in,
        d_out=d_in if d_out is None else d_out,
        d_sae=d_sae,
        num_sites=num_sites,
        is_transcoder=is_transcoder,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _of_form(form).to(device)


def _of_form(form: Form) -> TrainableSAE:
    from actlake.jobs.sae.crosscoder import crosscoder_weights
    from actlake.jobs.sae.dense import DenseSAE, saelens_weights
    from actlake.jobs.sae.jumprelu import JumpReLUSAE, is_fused
    from actlake.jobs.sae.topk import FAMILY, TopKSAE
    from actlake.jobs.sae.transcoder import transcoder_weights

    weights: nn.Module
    if form.is_transcoder:
        weights = transcoder_weights(form)
    elif form.num_sites > 1:
        weights = crosscoder_weights(form)
    else:
        weights = saelens_weights(form)
    if form.architecture in FAMILY:
        return TopKSAE(form, weights)
    if isinstance(form.options, JumpReLUOptions) and is_fused(form.options):
        return JumpReLUSAE(form, weights)
    return DenseSAE(form, weights)
