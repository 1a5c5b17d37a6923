"""What ``cfg.json`` and the tensors of an SAE's files mean, whoever wrote them.

Files come from SAELens 1 to 6, from libraries like it, and from us. A field changes what is
computed and is understood here, or tells about the training and changes nothing, or is refused by
name: one that is passed over would be another function, without an error. The same holds for
tensors.

Shapes:  D width in   O width out   S sites   F latents
"""

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from actlake.jobs.sae.errors import DictionaryMismatch
from actlake.storage.errors import nearest

_PAIR = ("W_enc", "b_enc", "W_dec", "b_dec")
ARCHITECTURES: Mapping[str, tuple[str, ...]] = {
    "standard": _PAIR,
    "topk": _PAIR,
    "abstopk": _PAIR,
    "jumprelu": (*_PAIR, "threshold"),
    "gated": ("W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag"),
    "matching_pursuit": ("W_dec", "b_dec"),
    "transcoder": _PAIR,
    "skip_transcoder": (*_PAIR, "W_skip"),
    "jumprelu_transcoder": (*_PAIR, "threshold"),
    "jumprelu_skip_transcoder": (*_PAIR, "threshold", "W_skip"),
    "topk_crosscoder": _PAIR,
    "jumprelu_crosscoder": (*_PAIR, "threshold"),
}
"""The tensors of each architecture."""

_RENAMED = {
    "hook_point": "hook_name",
    "hook_point_layer": "hook_layer",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
"""Older names of SAELens' fields, and the later ones."""

_OF_ALL = (
    "architecture", "d_in", "d_sae", "dtype", "device", "apply_b_dec_to_input",
    "normalize_activations", "reshape_activations",
)  # fmt: skip
_OF_TOPK = ("k", "rescale_acts_by_decoder_norm")
_OF_PURSUIT = ("residual_threshold", "max_iterations", "stop_on_duplicate_support")

_FLAGS = ("apply_b_dec_to_input", "rescale_acts_by_decoder_norm", "stop_on_duplicate_support")
_COUNTS = ("d_in", "d_sae", "d_out", "num_sites", "k", "max_iterations")

_WITHOUT_EFFECT = {
    "finetuning_scaling_factor": "its latents are multiplied by factors that were tuned afterwards",
    "hook_head_index": "it reads one head of attention",
    "hook_head_index_out": "it writes to one head of attention",
    "rescale_acts_by_decoder_norm": "only top-k SAEs are computed so",
}
"""Fields that are nothing when false or null, and else what cannot be computed here."""

_FINETUNED = ("scaling_factor", "finetuning_scaling_factor")
"""Tensors (F,) that SAELens 1 to 5 left in files; 1 for every latent but after finetuning."""

_OF_MODEL = """
model_name model_class_name model_kwargs model_from_pretrained_kwargs hook_name hook_layer
hook_name_out hook_layer_out hf_hook_name hf_hook_name_out hook_eval hook_point_eval
dataset_path dataset_trust_remote_code streaming is_dataset_tokenized use_chat_formatting
context_size prepend_bos seqpos_slice disable_concat_sequences sequence_separator_token
exclude_special_tokens use_cached_activations cached_activations_path sae_lens_version
sae_lens_training_version neuronpedia_id name run_name wandb_id wandb_project wandb_entity
wandb_log_frequency log_to_wandb log_activations_store_to_wandb log_optimizer_state_to_wandb
eval_every_n_wandb_logs logger verbose resume resume_from_checkpoint output_path checkpoint_path
n_checkpoints save_final_checkpoint from_pretrained_path
"""
_OF_STEPS = """
expansion_factor n_batches_in_buffer training_tokens total_training_tokens finetuning_tokens
tokens_per_buffer total_training_steps store_batch_size store_batch_size_prompts
train_batch_size train_batch_size_tokens act_store_device llm_device prefetch_llm_batches seed
autocast autocast_lm compile_llm llm_compilation_mode compile_sae sae_compilation_mode
adam_beta1 adam_beta2 lr lr_scheduler_name lr_warm_up_steps lr_end lr_decay_steps
n_restart_cycles n_eval_batches eval_batch_size_prompts n_batches_for_norm_estimate
activations_mixing_fraction
"""
_OF_LOSSES = """
b_dec_init_method decoder_init_norm decoder_orthogonal_init decoder_heuristic_init
decoder_heuristic_init_norm init_encoder_as_decoder_transpose normalize_sae_decoder noise_scale
mse_loss_normalization l1_coefficient lp_norm l1_warm_up_steps l0_coefficient l0_warm_up_steps
target_l0 scale_sparsity_penalty_by_decoder_norm finetuning_method use_ghost_grads
resample_batches feature_sampling_method feature_sampling_window feature_reinit_scale
dead_feature_window dead_feature_threshold dead_feature_estimation_method aux_loss_coefficient
use_sparse_activations jumprelu_init_threshold jumprelu_bandwidth jumprelu_sparsity_loss_mode
jumprelu_tanh_scale jumprelu_ste_to_input pre_act_loss_coefficient
"""
_ABOUT = frozenset(f"{_OF_MODEL} {_OF_STEPS} {_OF_LOSSES}".split())
"""Fields that tell about the model, its text and the training: its steps and devices, its losses
and dead latents. They change nothing in what is computed from a row."""


def understood_fields(path: str, written: Any) -> dict[str, Any]:
    """The fields of ``cfg.json`` as SAELens 6 writes them, in ``metadata`` what only tells.

    Parameters
    ----------
    path
        Of the SAE, for messages.
    written
        What the file holds.

    Raises
    ------
    DictionaryMismatch
        A field has a value that cannot be computed here, contradicts another, or is unknown.
    """
    if not isinstance(written, dict):
        raise DictionaryMismatch(f"The SAE in {path} has no fields in its cfg.json, but {written}")
    fields = {_RENAMED.get(str(name), str(name)): value for name, value in written.items()}
    metadata: dict[str, Any] = dict(fields.pop("metadata", None) or {})
    for said in (fields, metadata):
        _check_rows(path, said)
    fields = _with_activation(path, fields, metadata)
    architecture = fields["architecture"]
    _check_values(path, fields)
    computed = _computed(architecture)
    known = {*computed, *_ABOUT, *_WITHOUT_EFFECT}
    for name in sorted(fields.keys() - known):
        raise _refused(
            path, name, fields[name], f"which no SAE of architecture {architecture!r} has",
            f"{nearest(name, computed)}; move what only tells about the training into metadata",
        )  # fmt: skip
    told = {name: value for name, value in fields.items() if name in _ABOUT}
    kept = {name: fields[name] for name in computed if name in fields}
    as_computed = {"dtype": "float32", "normalize_activations": "none"}
    return {**kept, **as_computed, "metadata": {**told, **metadata}}


def understood_tensors(
    path: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors that an SAE of these fields is computed from.

    Raises
    ------
    DictionaryMismatch
        One lacks, has another shape than the fields say, or is one that the architecture does not
        have.
    """
    needed = ARCHITECTURES[config["architecture"]]
    found = dict(tensors)
    for name in _FINETUNED:
        if name in found and bool((found.pop(name) == 1).all()):
            continue
        if name in tensors:
            raise DictionaryMismatch(
                f"The SAE in {path} has a tensor {name} that is not 1: "
                f"{_WITHOUT_EFFECT['finetuning_scaling_factor']}\n"
                "hint: multiply the rows of W_dec by it, and save without it"
            )
    missing = [name for name in needed if name not in found]
    if missing:
        raise DictionaryMismatch(
            f"The SAE in {path} lacks {', '.join(missing)}; it has {', '.join(sorted(tensors))}\n"
            "hint: save it again with SAELens' save_inference_model"
        )
    if others := sorted(found.keys() - set(needed)):
        raise DictionaryMismatch(
            f"The SAE in {path} has tensors that no SAE of architecture "
            f"{config['architecture']!r} has: {', '.join(others)}\n"
            f"hint: is architecture in its cfg.json right? It needs {', '.join(needed)}"
        )
    for name, shape in _shapes(config, found).items():
        if name in found and tuple(found[name].shape) != shape:
            raise DictionaryMismatch(
                f"The SAE in {path} has {name} of shape {tuple(found[name].shape)}; by d_in, "
                f"d_sae, d_out and num_sites in its cfg.json it is {shape}\n"
                "hint: the two files are not of one SAE, or a tensor is transposed"
            )
    return found


def _computed(architecture: str) -> tuple[str, ...]:
    """The fields that decide how latents and reconstructions of an architecture are computed."""
    of_kind: tuple[str, ...] = ()
    if "topk" in architecture:
        of_kind = _OF_TOPK
    elif architecture == "matching_pursuit":
        of_kind = _OF_PURSUIT
    sizes = ("d_out",) if architecture.endswith("transcoder") else ()
    sites = ("num_sites",) if architecture.endswith("crosscoder") else ()
    return (*_OF_ALL, *of_kind, *sizes, *sites)


def _with_activation(
    path: str, fields: Mapping[str, Any], metadata: Mapping[str, Any]
) -> dict[str, Any]:
    """The fields with the activation function that SAELens 1 to 5 named beside the architecture.

    There a top-k SAE is one of architecture "standard" whose ``activation_fn_str`` is "topk".
    """
    rest = dict(fields)
    architecture = rest["architecture"] = rest.get("architecture") or "standard"
    if architecture not in ARCHITECTURES:
        raise DictionaryMismatch(
            f"The SAE in {path} is of architecture {architecture!r}\n"
            f"{nearest(str(architecture), ARCHITECTURES)}; a training checkpoint becomes one of "
            "these with SAELens' save_inference_model"
        )
    name = rest.pop("activation_fn", None) or "relu"
    options = dict(rest.pop("activation_fn_kwargs", None) or {})
    is_topk = "k" in _computed(architecture)
    version = str(rest.get("sae_lens_version") or metadata.get("sae_lens_version") or "")
    if name == "topk" and architecture == "standard" and _major(version) < 6:
        rest["architecture"], is_topk = "topk", True
    elif name not in (("relu", "topk") if is_topk else ("relu",)):
        raise _refused(
            path, "activation_fn", name, f"and is of architecture {architecture!r}",
            "relu, and of top-k SAEs topk, can be computed",
        )  # fmt: skip
    if is_topk and "k" in options:
        if rest.setdefault("k", options["k"]) != options["k"]:
            raise _refused(
                path, "k", rest["k"], f"and activation_fn_kwargs says {options['k']!r}",
                "leave the one that is right",
            )  # fmt: skip
        del options["k"]
    if options:
        raise _refused(
            path, "activation_fn_kwargs", options, f"which {name} does not have", "leave them out"
        )
    return rest


def _check_rows(path: str, about: Mapping[str, Any]) -> None:
    """Refuse SAEs that read other rows than the stream as the model computes it."""
    normalised = about.get("normalize_activations", "none")
    if normalised not in ("none", None, False):
        raise DictionaryMismatch(
            f"The SAE in {path} expects inputs normalised by {normalised!r} "
            "(normalize_activations)\n"
            "hint: fold the normalisation into the weights before saving "
            "(fold_activation_norm_scaling_factor)"
        )
    reshaped = about.get("reshape_activations")
    if reshaped not in ("none", None):
        raise _refused(
            path, "reshape_activations", reshaped, "and reads the heads of attention side by side",
            "no site holds such rows; give an SAE of the residual stream or a sublayer",
        )  # fmt: skip
    for name, why in _WITHOUT_EFFECT.items():
        # By identity: 0, which Python takes for False, is a head.
        is_nothing = about.get(name) is None or about[name] is False
        if name != "rescale_acts_by_decoder_norm" and not is_nothing:
            raise _refused(path, name, about[name], why, "give an SAE without it")
    loaded = about.get("model_from_pretrained_kwargs") or {}
    if loaded.get("center_writing_weights"):
        raise _refused(
            path, "model_from_pretrained_kwargs", loaded,
            "and was trained on a residual stream without its mean",
            "rows of a store have their mean; give an SAE that was trained on the model as it is",
        )  # fmt: skip


def _check_values(path: str, fields: Mapping[str, Any]) -> None:
    architecture = fields["architecture"]
    is_topk = "k" in _computed(architecture)
    for name, is_right, what in (
        *((flag, _is_flag, "neither true nor false") for flag in _FLAGS),
        *((count, _is_count, "not a number from 1 on") for count in _COUNTS),
    ):
        if fields.get(name) is not None and not is_right(fields[name]):
            raise _refused(path, name, fields[name], f"which is {what}", "correct its cfg.json")
    if fields.get("rescale_acts_by_decoder_norm") and not is_topk:
        name = "rescale_acts_by_decoder_norm"
        raise _refused(path, name, True, _WITHOUT_EFFECT[name], "leave it out")
    if architecture.endswith("transcoder") and fields.get("apply_b_dec_to_input", True):
        raise _refused(
            path, "apply_b_dec_to_input", fields.get("apply_b_dec_to_input"),
            "which is true where it is absent, and a transcoder's bias belongs to what it writes",
            "set it to false",
        )  # fmt: skip
    if is_topk and fields.get("k") is None:
        raise DictionaryMismatch(
            f"The SAE in {path} is of architecture {architecture!r} and does not say k\n"
            "hint: write how many latents of a row are active as k into its cfg.json"
        )


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _shapes(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor, by the sizes that the fields name, or else by the decoder."""
    decoder = tensors["W_dec"].shape
    latents = config.get("d_sae") or decoder[0]
    width = config.get("d_in") or (
        tensors["W_enc"].shape[-2] if "W_enc" in tensors else decoder[-1]
    )
    is_transcoder = config["architecture"].endswith("transcoder")
    out = (config.get("d_out") or decoder[-1]) if is_transcoder else width
    sites = (int(config["num_sites"]),) if "num_sites" in config else ()
    return {
        "W_enc": (*sites, width, latents),
        "W_dec": (latents, *sites, out),
        "b_dec": (*sites, out),
        "W_skip": (out, width),
        **dict.fromkeys(("b_enc", "threshold", "b_gate", "b_mag", "r_mag"), (latents,)),
    }


def _major(version: str) -> int:
    """Of a version such as 6.54.12; 0 of what names none."""
    first = version.split(".")[0]
    return int(first) if first.isdecimal() else 0


def _refused(path: str, name: str, value: object, why: str, hint: str) -> DictionaryMismatch:
    hint = hint if hint.startswith("hint:") else f"hint: {hint}"
    return DictionaryMismatch(
        f"The SAE in {path} has {name}: {json.dumps(value, default=str)}, {why}\n{hint}"
    )
