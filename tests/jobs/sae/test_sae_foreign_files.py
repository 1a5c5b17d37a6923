"""SAEs that others wrote: every field of theirs is understood, or refused by name."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from actlake.jobs.sae.encode import encode_store
from actlake.jobs.sae.errors import DictionaryMismatch
from actlake.jobs.sae.publish import publish
from actlake.jobs.sae.trained import read_sae

DIM, LATENTS = 16, 64

OLD: dict[str, Any] = {
    "architecture": "standard", "d_in": DIM, "d_sae": LATENTS, "dtype": "float32", "device": "cuda",
    "model_name": "gpt2-small", "hook_name": "blocks.1.hook_resid_post", "hook_layer": 1,
    "hook_head_index": None, "activation_fn_str": "relu", "activation_fn_kwargs": {},
    "apply_b_dec_to_input": True, "finetuning_scaling_factor": False,
    "sae_lens_training_version": "3.20.0", "prepend_bos": True, "dataset_path": "text",
    "dataset_trust_remote_code": True, "context_size": 128, "normalize_activations": "none",
    "neuronpedia_id": None,
}  # fmt: skip
"""What SAELens 3 wrote for a ReLU SAE."""

TOPK = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4}}
NEW = {"metadata": {"sae_lens_version": "6.54.12"}}


def weights(architecture: str) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    latents = ("b_gate", "b_mag", "r_mag") if architecture == "gated" else ("b_enc",)
    names = (*latents, "threshold") if architecture == "jumprelu" else latents
    draw = {
        "W_enc": torch.randn(DIM, LATENTS, generator=random),
        "W_dec": torch.randn(LATENTS, DIM, generator=random),
        "b_dec": torch.randn(DIM, generator=random),
    }
    return draw | {name: torch.randn(LATENTS, generator=random) for name in names}


def write(folder: Path, config: dict[str, Any], **tensors: Tensor) -> Path:
    folder.mkdir()
    (folder / "cfg.json").write_text(json.dumps(config))
    stored = weights(config.get("architecture", "standard")) | tensors
    save_file(stored, folder / "sae_weights.safetensors")
    return folder


def rows(number: int = 50) -> Tensor:
    return torch.randn(number, DIM, generator=torch.Generator().manual_seed(7)) * 2


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in OLD.items() if name not in names}


READ = {
    "top-k beside the architecture": OLD | TOPK,
    "top-k without an architecture": without("architecture") | TOPK,
    "top-k under the older name": without("activation_fn_str")
    | {"activation_fn": "topk", "activation_fn_kwargs": {"k": 7}},
    "top-k as SAELens 5 said it": OLD | TOPK | {"architecture": "topk"},
    "gated": OLD | {"architecture": "gated"},
    "jumprelu": OLD | {"architecture": "jumprelu"},
    "relu": OLD,
    "how the model was loaded": OLD
    | {"model_from_pretrained_kwargs": {"center_writing_weights": False}},
    "normalisation as a flag": OLD | {"normalize_activations": False},
    "normalisation not said": without("normalize_activations"),
    "what SAELens 1 said": without("hook_name", "hook_layer", "hook_head_index", "architecture")
    | {
        "hook_point": "blocks.1.hook_resid_post", "hook_point_layer": 1,
        "hook_point_head_index": None, "l1_coefficient": 8e-5, "use_ghost_grads": False,
        "n_batches_in_buffer": 128, "wandb_project": "saes", "lr_scheduler_name": "constant",
    },
    "no factors beyond 1": OLD | {"finetuning_scaling_factor": False},
}  # fmt: skip


@pytest.mark.parametrize("said", READ)
def test_an_older_file_computes_what_saelens_computes(saelens, tmp_path, said) -> None:
    factors = {"scaling_factor": torch.ones(LATENTS)} if "factors" in said else {}
    folder = write(tmp_path / "sae", READ[said], **factors)

    ours = read_sae(str(folder))
    with warnings.catch_warnings():  # it advises how to load the model
        warnings.filterwarnings("ignore", r"\s*This SAE has non-empty", UserWarning)
        theirs = saelens.load(folder)

    with torch.no_grad():
        latents = theirs.encode(rows())
        assert ours.architecture == theirs.cfg.architecture()
        torch.testing.assert_close(ours.encode(rows()), latents, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours(rows()), theirs(rows()), rtol=1e-5, atol=1e-4)
    assert ours.hook == "blocks.1.hook_resid_post"
    if "top-k" in said:
        assert set((latents != 0).sum(1).tolist()) == {7 if "older name" in said else 4}


@pytest.mark.parametrize(
    "said",
    ["top-k beside the architecture", "what SAELens 1 said", "normalisation as a flag"],
)
def test_an_older_sae_is_published_as_what_it_is(saelens, tmp_path, said) -> None:
    ours = read_sae(str(write(tmp_path / "sae", READ[said])))

    publish(ours, tmp_path / "published", metadata={})

    theirs = saelens.load(tmp_path / "published")
    with torch.no_grad():
        torch.testing.assert_close(theirs.encode(rows()), ours.encode(rows()))
    assert theirs.cfg.metadata.hook_name == "blocks.1.hook_resid_post"
    assert theirs.cfg.metadata.dataset_path == "text"


@pytest.mark.parametrize(
    "architecture", ["standard", "gated", "topk", "abstopk", "jumprelu", "matching_pursuit"]
)
def test_what_saelens_saves_in_training_is_read_as_it_loads_it(
    saelens, tmp_path, architecture
) -> None:
    options = {"k": 5} if "topk" in architecture else {}
    saelens.training(architecture, options, DIM, LATENTS, seed=1).save_model(tmp_path)

    ours, theirs = read_sae(str(tmp_path)), saelens.load(tmp_path)

    with torch.no_grad():
        torch.testing.assert_close(ours.encode(rows()), theirs.encode(rows()))
        torch.testing.assert_close(ours(rows()), theirs(rows()))


REFUSED = {
    "finetuning_scaling_factor": (OLD | {"finetuning_scaling_factor": True}, "tuned afterwards"),
    "hook_head_index": (OLD | {"hook_head_index": 3}, "reads one head"),
    "hook_head_index: 0": (OLD | {"hook_head_index": 0}, "reads one head"),
    "hook_point_head_index": (
        without("hook_head_index") | {"hook_point_head_index": 3}, "hook_head_index: 3",
    ),
    "a head in the metadata": (
        OLD | {"metadata": {"hook_head_index": 2, "sae_lens_version": "6.0.0"}},
        "hook_head_index: 2",
    ),
    "tanh": (OLD | {"activation_fn_str": "tanh-relu"}, 'activation_fn: "tanh-relu"'),
    "top-k of a gated SAE": (OLD | TOPK | {"architecture": "gated"}, 'activation_fn: "topk"'),
    "top-k without k": (OLD | {"activation_fn_str": "topk"}, "does not say k"),
    "top-k of SAELens 6 without k": (OLD | NEW | {"architecture": "topk"}, "does not say k"),
    "two values of k": (OLD | TOPK | {"architecture": "topk", "k": 9}, "k: 9, and"),
    "a k that is none": (OLD | {"architecture": "topk", "k": "4"}, 'k: "4", which is not a number'),
    "options of top-k": (
        OLD | TOPK | {"activation_fn_kwargs": {"k": 4, "postact_fn": "identity"}}, "postact_fn",
    ),
    "options of relu": (OLD | {"activation_fn_kwargs": {"k": 4}}, "activation_fn_kwargs"),
    "an old field in a new file": (OLD | NEW | TOPK, 'activation_fn: "topk"'),
    "normalisation as a flag": (OLD | {"normalize_activations": True}, "normalised by True"),
    "unknown normalisation": (OLD | {"normalize_activations": "z"}, "normalised by 'z'"),
    "whitened": (
        OLD | {"normalize_activations": "covariance_whitening"}, "by 'covariance_whitening'",
    ),
    "heads side by side": (OLD | {"reshape_activations": "hook_z"}, "reshape_activations"),
    "rescaled ReLU": (
        OLD | {"rescale_acts_by_decoder_norm": True}, "rescale_acts_by_decoder_norm: true",
    ),
    "a centred stream": (
        OLD | {"model_from_pretrained_kwargs": {"center_writing_weights": True}},
        "center_writing_weights",
    ),
    "a flag that is none": (OLD | {"apply_b_dec_to_input": "false"}, "neither true nor false"),
    "a field nobody knows": (OLD | {"jump_start": 0.3}, "jump_start: 0.3, which no SAE of"),
    "k of a ReLU SAE": (OLD | {"k": 4}, "k: 4, which no SAE of architecture 'standard' has"),
    "another width": (OLD | {"d_in": DIM + 1}, r"W_enc of shape \(16, 64\)"),
    "another number of latents": (OLD | {"d_sae": 65}, r"W_enc of shape \(16, 64\)"),
    "no fields": ([], "no fields"),
}  # fmt: skip


@pytest.mark.parametrize("said", REFUSED)
def test_a_field_that_cannot_be_computed_is_refused_by_name(tmp_path, said) -> None:
    config, named = REFUSED[said]
    folder = write(tmp_path / "sae", OLD)
    (folder / "cfg.json").write_text(json.dumps(config))
    if isinstance(config, dict) and config["architecture"] != "standard":
        save_file(weights(config["architecture"]), folder / "sae_weights.safetensors")

    with pytest.raises(DictionaryMismatch, match=named):
        read_sae(str(folder))


@pytest.mark.parametrize("name", ["scaling_factor", "finetuning_scaling_factor", "threshold"])
def test_a_tensor_that_would_change_the_latents_is_never_passed_over(tmp_path, name) -> None:
    folder = write(tmp_path / "sae", OLD, **{name: torch.linspace(0.5, 2, LATENTS)})

    with pytest.raises(DictionaryMismatch, match=rf"has (a tensor|tensors).*{name}"):
        read_sae(str(folder))


def test_a_transcoder_that_subtracts_the_bias_of_its_output_is_refused(saelens, tmp_path) -> None:
    kind, config = saelens.registry.get_sae_class("transcoder")
    kind(config(d_in=DIM, d_out=DIM, d_sae=LATENTS, apply_b_dec_to_input=False)).save_model(
        tmp_path
    )
    about = json.loads((tmp_path / "cfg.json").read_text())
    assert read_sae(str(tmp_path)).is_transcoder

    (tmp_path / "cfg.json").write_text(json.dumps(about | {"apply_b_dec_to_input": True}))

    with pytest.raises(DictionaryMismatch, match="apply_b_dec_to_input: true"):
        read_sae(str(tmp_path))


def test_encoding_refuses_what_it_cannot_compute_before_it_writes(spoken, tmp_path) -> None:
    folder = write(tmp_path / "sae", OLD | {"finetuning_scaling_factor": True})

    with pytest.raises(DictionaryMismatch, match="finetuning_scaling_factor: true"):
        encode_store(str(folder), str(spoken.folder), tmp_path / "latents")

    assert not (tmp_path / "latents").exists()


def test_an_older_top_k_sae_encodes_a_store_with_its_k(spoken, tmp_path) -> None:
    folder = write(tmp_path / "sae", OLD | TOPK)
    assert load_file(folder / "sae_weights.safetensors")["W_enc"].shape[0] == DIM

    result = encode_store(str(folder), str(spoken.folder), tmp_path / "latents")

    assert result.l0 == 4
