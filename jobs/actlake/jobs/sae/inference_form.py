"""From an SAE in training to the form that is used afterwards.

Nothing that it computes changes, only where factors stand:

* *scaling*: training saw rows times a factor, and what is used reads rows as they are. The factor
  goes into the encoder, its inverse into decoder and biases. (Matching pursuit has tied weights:
  there it goes into the bias and the residual threshold alone, and latents become smaller by it.)
* *norms*: decoder rows get norm 1 and latents the decoder's norms, wherever that leaves the choice
  of active latents as it is. A top-k SAE that compares latents times those norms then compares
  latents as they are (``rescale_acts_by_decoder_norm: false``).
* *top-k of a batch* becomes JumpReLU with one threshold, in the units that were compared; so does
  the top-k of a transcoder, which SAELens has no class for. This is another function than the one
  trained: it agrees in the number of active latents on average, see `publish.recalibrate`.

Shapes:  D width in   O width out   S sites   F latents
"""

from typing import Any

import torch
from torch import Tensor

from actlake.jobs.sae.architectures import MatchingPursuitOptions, TopKOptions, as_saelens
from actlake.jobs.sae.scaling import Scaling
from actlake.jobs.sae.topk import TopKSAE
from actlake.jobs.sae.trainable import TrainableSAE
from actlake.jobs.sae.trained import TrainedSAE

_LEAST_NORM = 1e-8
_ON_ENCODER = ("b_enc", "b_gate", "b_mag", "threshold")


@torch.no_grad()
def inference_form(sae: TrainableSAE, scaling: Scaling | None = None) -> TrainedSAE:
    """A copy of the weights in the form that is used, on the same device."""
    scaling = scaling or Scaling()
    tensors = {
        name: part.detach().double()
        for name, part in sae.weights.state_dict().items()
        if name != "topk_threshold"
    }
    if sae.architecture == "matching_pursuit":
        tensors["b_dec"] = tensors["b_dec"] / float(scaling.of_inputs(1, 1))
    else:
        thresholds = _thresholds(sae)
        if thresholds is not None:
            tensors["threshold"] = thresholds
        _fold(tensors, sae, scaling)
    whole = {name: part.float().contiguous() for name, part in tensors.items()}
    return TrainedSAE(_config(sae, scaling), whole)


def _fold(tensors: dict[str, Tensor], sae: TrainableSAE, scaling: Scaling) -> None:
    device = sae.device
    of_inputs = scaling.of_inputs(sae.num_sites, sae.d_in).to(device)
    of_outputs = scaling.of_outputs(sae.num_sites, sae.d_out).to(device)
    tensors["W_enc"] = tensors["W_enc"] * of_inputs[:, None]
    tensors["W_dec"] = tensors["W_dec"] / of_outputs
    tensors["b_dec"] = tensors["b_dec"] / of_outputs
    factors = _factors(sae, tensors["W_dec"], of_outputs)
    tensors["W_dec"] = tensors["W_dec"] / factors[:, None]
    tensors["W_enc"] = tensors["W_enc"] * factors
    for name in _ON_ENCODER:
        if name in tensors:
            tensors[name] = tensors[name] * factors


def _factors(sae: TrainableSAE, decoder: Tensor, of_outputs: Tensor) -> Tensor:
    """(F,) by what each latent is multiplied, and its decoder row divided."""
    if not isinstance(sae, TopKSAE) or sae.has_threshold:
        norms: Tensor = decoder.norm(dim=1).clamp(min=_LEAST_NORM)
        return norms
    compared = sae.scales()
    if compared is None:
        return decoder.new_ones(len(decoder))
    # The k largest are compared with each other, so all latents share what is not their norm.
    return compared.double().clamp(min=_LEAST_NORM) / of_outputs.mean()


def _thresholds(sae: TrainableSAE) -> Tensor | None:
    """(F,) the one threshold of top-k, in the units of each latent's pre-activation."""
    if not isinstance(sae, TopKSAE) or not sae.has_threshold:
        return None
    compared = sae.scales()
    if compared is None:
        return sae.threshold.expand(sae.d_sae).clone()
    thresholds: Tensor = sae.threshold / compared.double().clamp(min=_LEAST_NORM)
    return thresholds


def _config(sae: TrainableSAE, scaling: Scaling) -> dict[str, Any]:
    options, kind = sae.form.options, _architecture(sae)
    config: dict[str, Any] = {
        "architecture": kind,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": options.apply_b_dec_to_input and not sae.form.is_transcoder,
        "normalize_activations": "none",
        "reshape_activations": "none",
    }
    if sae.form.is_transcoder:
        config["d_out"] = sae.d_out
    if sae.num_sites > 1:
        config["num_sites"] = sae.num_sites
    if isinstance(options, TopKOptions) and "topk" in kind:
        config |= {"k": options.k, "rescale_acts_by_decoder_norm": False}
    if isinstance(options, MatchingPursuitOptions):
        config |= {
            "residual_threshold": options.residual_threshold / float(scaling.of_inputs(1, 1)),
            "max_iterations": options.max_iterations,
            "stop_on_duplicate_support": options.stop_on_duplicate_support,
        }
    config["metadata"] = {
        "training_architecture": sae.architecture,
        "training_architecture_details": as_saelens(options, sae.d_sae),
    }
    return config


def _architecture(sae: TrainableSAE) -> str:
    name = sae.architecture
    if isinstance(sae, TopKSAE) and sae.has_threshold:
        name = "jumprelu"
    if sae.form.is_transcoder:
        return f"{name}_transcoder"
    return f"{name}_crosscoder" if sae.num_sites > 1 else name
