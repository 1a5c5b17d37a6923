"""Architectures that SAELens' own training code computes, and the weights it draws.

SAELens is imported here only, and only when an SAE is built: that takes seconds.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from actlake.jobs.sae.architectures import as_saelens
from actlake.jobs.sae.communicator import ALONE, Communicator
from actlake.jobs.sae.trainable import Form, StepOutput, TrainableSAE
from actlake.storage.errors import missing_extra


def saelens_weights(form: Form) -> nn.Module:
    """SAELens' training class of this form, with its first weights, on the CPU.

    Raises
    ------
    MissingExtra
        The package is not installed.
    """
    training_class, config_class = _registered(form.architecture)
    fields = as_saelens(form.options, form.d_sae)
    weights: nn.Module = training_class(config_class(d_in=form.d_in, d_sae=form.d_sae, **fields))
    return weights


def _registered(architecture: str) -> tuple[Any, Any]:
    with warnings.catch_warnings():  # it imports what TransformerLens deprecates
        warnings.simplefilter("ignore")
        try:
            from sae_lens.registry import get_sae_training_class
        except ModuleNotFoundError as error:
            raise missing_extra("Training an SAE", package="sae_lens", extra="sae") from error

    classes: tuple[Any, Any] = get_sae_training_class(architecture)
    return classes


class DenseSAE(TrainableSAE):
    """A step by SAELens' ``training_forward_pass``."""

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
        from sae_lens.saes.sae import TrainStepInput

        rows, targets = self.flat(x, y)
        weights: Any = self.weights
        output = weights.training_forward_pass(
            step_input=TrainStepInput(
                sae_in=rows,
                coefficients=dict(coefficients),
                dead_neuron_mask=dead,
                n_training_steps=0,  # read by no architecture
                is_logging_step=False,
            )
        )
        with torch.no_grad():
            error = self.by_site((output.sae_out - targets).square())
            fired = torch.count_nonzero(output.feature_acts, dim=0)
        parts = {name: torch.as_tensor(part).detach() for name, part in output.losses.items()}
        return StepOutput(output.loss, parts, fired, error, len(rows))

    def after_step(self) -> None:
        """Keep thresholds from falling below 0."""
        if self.architecture == "jumprelu":
            clamp_thresholds(self.weights)


@torch.no_grad()
def clamp_thresholds(weights: nn.Module) -> None:
    """Below 0, a threshold would let negative pre-activations through."""
    threshold = weights.get_parameter("threshold")
    threshold.clamp_(min=0.0)
