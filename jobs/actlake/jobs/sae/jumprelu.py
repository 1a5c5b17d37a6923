"""JumpReLU SAEs: loss and gradients in one pass over the rows, some at a time.

The loss of a row depends on nothing but this row, so its gradient is known as soon as the row has
been reconstructed. Forward and backward are computed together for as many rows as fit in the
cache, gradients are added up, and no (B, F) matrix is ever written to memory. The gradient of the
input bias, which SAELens gets from a product of the size of the encoder's, follows from that of
the encoder's bias. Values and gradients are those of SAELens' training class.

Rajamanoharan et al. 2024, "Jumping Ahead: Improving Reconstruction Fidelity with JumpReLU Sparse
Autoencoders" (arXiv:2407.14435): the threshold learns through a window of width `bandwidth`
around it (the straight-through estimates of step function and JumpReLU). SAELens trains the
threshold itself, not its logarithm, and so do we.

Shapes:  B rows   R rows at once   D width in   O width out   F latents
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from actlake.jobs.sae.architectures import JumpReLUOptions
from actlake.jobs.sae.communicator import ALONE, Communicator
from actlake.jobs.sae.dense import clamp_thresholds
from actlake.jobs.sae.trainable import Form, StepOutput, TrainableSAE

_CACHE_BYTES = 4 << 20
"""Of one (R, F) matrix on a CPU; a few of them are in use at once."""
_DEVICE_BYTES = 1 << 29
_LEAST_ROWS = 128


def is_fused(options: JumpReLUOptions) -> bool:
    """Whether the loss is one that is computed here; the others are left to SAELens."""
    return (
        options.jumprelu_sparsity_loss_mode in ("step", "quadratic")
        and options.pre_act_loss_coefficient is None
    )


class JumpReLUSAE(TrainableSAE):
    """An SAE with learned thresholds and an L0 penalty."""

    def __init__(self, form: Form, weights: nn.Module) -> None:
        super().__init__(form, weights)
        assert isinstance(form.options, JumpReLUOptions)
        self.options = form.options

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
        get = self.weights.get_parameter
        subtract = self.options.apply_b_dec_to_input and not self.form.is_transcoder
        weights = (get("W_enc"), get("b_enc"), get("threshold"), get("W_dec"), get("b_dec"))
        kind = rows.device.type
        mixed = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        with torch.autocast(kind, enabled=False):  # what is added up stays float32
            loss, sums = _Step.apply(  # type: ignore[no-untyped-call]
                rows, targets, coefficients["l0"], self.options, subtract, mixed, *weights
            )
        parts = {
            "mse_loss": sums.squared_error.sum() / len(rows),
            "l0_loss": sums.penalty / len(rows),
        }
        return StepOutput(loss, parts, sums.fired, self.by_site(sums.squared_error), len(rows))

    def after_step(self) -> None:
        """Keep thresholds from falling below 0."""
        clamp_thresholds(self.weights)


@dataclass(eq=False)
class _Sums:
    """What is added up over parts of the rows: values, and gradients of the loss."""

    squared_error: Tensor
    """(O,) of each dimension."""
    penalty: Tensor
    fired: Tensor
    encoder: Tensor
    bias: Tensor
    threshold: Tensor
    decoder: Tensor
    output_bias: Tensor

    @classmethod
    def zeros(cls, encoder: Tensor, decoder: Tensor) -> "_Sums":
        num_latents, width = decoder.shape
        zeros = encoder.new_zeros
        return cls(
            squared_error=torch.zeros(width, dtype=torch.float64, device=encoder.device),
            penalty=torch.zeros((), dtype=torch.float64, device=encoder.device),
            fired=torch.zeros(num_latents, dtype=torch.int64, device=encoder.device),
            encoder=torch.zeros_like(encoder),
            bias=zeros(num_latents),
            threshold=zeros(num_latents),
            decoder=torch.zeros_like(decoder),
            output_bias=zeros(width),
        )


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        targets: Tensor,
        coefficient: float,
        options: JumpReLUOptions,
        subtract: bool,
        mixed: torch.dtype | None,
        *weights: Tensor,
    ) -> tuple[Tensor, _Sums]:
        encoder, _, _, decoder, output_bias = weights
        sums = _Sums.zeros(encoder, decoder)
        bytes_of_row = decoder.shape[0] * rows.element_size()
        memory = _CACHE_BYTES if rows.device.type == "cpu" else _DEVICE_BYTES
        at_once = max(1, min(len(rows), max(memory // bytes_of_row, _LEAST_ROWS)))
        work = tuple(rows.new_empty(at_once, decoder.shape[0]) for _ in range(3))
        for start in range(0, len(rows), at_once):
            part = rows[start : start + at_once]
            _add_part(
                sums,
                part - output_bias if subtract else part,
                targets[start : start + at_once],
                coefficient,
                options,
                weights,
                tuple(space[: len(part)] for space in work),
                len(rows),
                mixed,
            )
        if subtract:
            sums.output_bias -= encoder @ sums.bias
        ctx.save_for_backward(
            sums.encoder, sums.bias, sums.threshold, sums.decoder, sums.output_bias
        )
        loss = ((sums.squared_error.sum() + sums.penalty) / len(rows)).to(rows.dtype)
        return loss, sums

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        # By far the most usual gradient of a loss is 1, and then nothing is multiplied.
        by_loss = gradients[0]
        saved = ctx.saved_tensors
        if by_loss.is_cuda or float(by_loss) != 1.0:  # looking at it would wait for the device
            saved = tuple(gradient * by_loss for gradient in saved)
        return (None,) * 6 + tuple(saved)


def _add_part(
    sums: _Sums,
    centred: Tensor,
    targets: Tensor,
    coefficient: float,
    options: JumpReLUOptions,
    weights: tuple[Tensor, ...],
    work: tuple[Tensor, ...],
    num_rows: int,
    mixed: torch.dtype | None,
) -> None:
    """Add the values and gradients of some rows."""
    encoder, bias, threshold, decoder, output_bias = weights
    before, active, gradient = work
    _product(centred, encoder, out=before.copy_(bias.expand_as(before)), mixed=mixed)
    torch.gt(before, threshold, out=active)  # 1 where active, 0 elsewhere
    num_active = active.sum(1)
    sums.fired += active.sum(0).long()
    values = torch.mul(before, active, out=gradient)
    error = _product(values, decoder, out=output_bias - targets, mixed=mixed)
    sums.squared_error += error.square().sum(0, dtype=torch.float64)
    by_output = error.mul_(2 / num_rows)
    sums.output_bias += by_output.sum(0)
    _product(values.t(), by_output, out=sums.decoder, mixed=mixed)
    by_active = _add_penalty(sums, num_active, coefficient, options, num_rows)

    # By values, which are no longer needed.
    _product(by_output, decoder.t(), out=gradient.zero_(), mixed=mixed)
    window = before.sub_(threshold).abs_().lt_(options.jumprelu_bandwidth / 2)
    through = torch.addcmul(by_active[:, None], gradient, threshold).mul_(window)
    through.div_(options.jumprelu_bandwidth)
    sums.threshold -= through.sum(0)
    gradient.mul_(active)
    if options.jumprelu_ste_to_input:
        gradient.add_(through)
    sums.bias += gradient.sum(0)
    _product(centred.t(), gradient, out=sums.encoder, mixed=mixed)


def _product(left: Tensor, right: Tensor, *, out: Tensor, mixed: torch.dtype | None) -> Tensor:
    """Add ``left @ right`` to `out`; multiplied in `mixed` precision where one is given."""
    if mixed is None:
        return out.addmm_(left, right)
    return out.add_(left.to(mixed) @ right.to(mixed))


def _add_penalty(
    sums: _Sums, num_active: Tensor, coefficient: float, options: JumpReLUOptions, num_rows: int
) -> Tensor:
    """Add the L0 penalty of some rows; (R,) its gradient by the number of active latents."""
    target = options.target_l0
    if options.jumprelu_sparsity_loss_mode == "quadratic":
        assert target is not None
        distance = num_active - target
        sums.penalty += coefficient * (2 / target) * distance.square().sum(dtype=torch.float64)
        return distance * (coefficient * 4 / target / num_rows)
    sums.penalty += coefficient * num_active.sum(dtype=torch.float64)
    return torch.full_like(num_active, coefficient / num_rows)
