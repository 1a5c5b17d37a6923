"""Quantised checkpoints are what their weights stand for, or are refused by name: never garbage."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from actlake.platform.models import ModelConfig, load_head, load_stage, resolve_model
from actlake.platform.models.errors import ModelNotSupported, WeightsMismatch
from actlake.platform.models.quantization import stored_types
from actlake.storage.sites import Site

FP8 = torch.float8_e4m3fn
BLOCK = 16


def quantised(weight_ND: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix in FP8 with a scale for each square of 16, as DeepSeek-V3 has them."""
    rows, columns = (size // BLOCK for size in weight_ND.shape)
    squares = weight_ND.reshape(rows, BLOCK, columns, BLOCK)
    scale = squares.abs().amax((1, 3)).float() / 448
    packed = (squares / scale[:, None, :, None]).to(FP8)
    return packed.reshape(weight_ND.shape), scale


def meant(packed_ND: Tensor, scale: Tensor) -> Tensor:
    return packed_ND.float() * scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)


def is_quantised(name: str) -> bool:
    return ".layers." in f".{name}" and name.endswith("proj.weight") and "vision" not in name


def settings_of(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def in_fp8(
    folder: Path, *, left_out: tuple[str, ...] = (), scales: str = "weight_scale_inv"
) -> None:
    """Quantise a saved model's matrices in place."""
    weights = load_file(folder / "model.safetensors")
    for name, weight in list(weights.items()):
        if is_quantised(name) and not any(part in name for part in left_out):
            weights[name], scale = quantised(weight)
            weights[name.replace("weight", scales)] = scale
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def dequantised(folder: Path, to: Path) -> Path:
    """The same model with the numbers that its FP8 weights and scales mean."""
    shutil.copytree(folder, to)
    weights = load_file(folder / "model.safetensors")
    plain = {name: weight for name, weight in weights.items() if "scale" not in name}
    for name, weight in plain.items():
        if weight.dtype == FP8:
            plain[name] = meant(weight, weights[name.replace("weight", "weight_scale_inv")])
    save_file(plain, to / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((to / "config.json").read_text())
    config.pop("quantization_config")
    (to / "config.json").write_text(json.dumps(config))
    return to


def residual(folder: Path, layer: int = 1) -> Tensor:
    model = resolve_model(ModelConfig(name=str(folder), device="cpu", dtype="float32"))
    kept: list[Tensor] = []
    site = Site(layer)
    stage = load_stage(model, range(layer + 1), [site])
    stage.run(torch.arange(3, 15)[None], lambda _, acts: kept.append(acts.clone()))
    return kept[0]


@pytest.fixture
def mistral3(tmp_path: Path) -> Path:
    """A tiny Mistral 3: a decoder inside a model that also sees."""
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    torch.manual_seed(0)
    text = {
        "model_type": "mistral", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
    }  # fmt: skip
    vision = {
        "model_type": "pixtral", "hidden_size": 32, "intermediate_size": 32, "image_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 16, "patch_size": 16,
    }  # fmt: skip
    model = Mistral3ForConditionalGeneration(Mistral3Config(text_config=text, vision_config=vision))
    folder = tmp_path / "mistral3"
    model.float().save_pretrained(folder)
    return folder


FP8_SETTINGS = {
    "quant_method": "fp8",
    "activation_scheme": "dynamic",
    "weight_block_size": [BLOCK, BLOCK],
}


def test_the_decoder_of_a_larger_model_in_fp8_is_what_its_weights_mean(
    mistral3: Path, tmp_path: Path
) -> None:
    in_fp8(mistral3)
    settings_of(mistral3, quantization_config=FP8_SETTINGS)
    plain = dequantised(mistral3, tmp_path / "plain")

    expected, found = residual(plain), residual(mistral3)

    assert expected.abs().max() < 100
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model."])
def test_modules_that_were_left_as_they_were_are_found_under_the_decoders_names(
    mistral3: Path, tmp_path: Path, prefix: str
) -> None:
    in_fp8(mistral3, left_out=("layers.0.mlp",))
    left = [f"{prefix}layers.0.mlp", "model.vision_tower", "lm_head"]
    settings_of(mistral3, quantization_config=FP8_SETTINGS | {"modules_to_not_convert": left})
    plain = dequantised(mistral3, tmp_path / "plain")

    torch.testing.assert_close(residual(mistral3), residual(plain), rtol=1e-5, atol=1e-6)


def test_a_plain_decoder_in_fp8_has_its_layers_and_its_head(
    tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    shape = {"head_dim": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    folder = shutil.copytree(tiny_folder("llama", **shape), tmp_path / "fp8")
    in_fp8(folder, left_out=("layers.0.mlp",))
    left = ["model.layers.0.mlp", "lm_head"]
    settings_of(folder, quantization_config=FP8_SETTINGS | {"modules_to_not_convert": left})
    plain = dequantised(folder, tmp_path / "plain")
    heads = [
        load_head(resolve_model(ModelConfig(name=str(path), device="cpu")))
        for path in (folder, plain)
    ]
    hidden_BLD = residual(plain, 3)

    torch.testing.assert_close(residual(folder, 3), hidden_BLD, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(heads[0].logits(hidden_BLD), heads[1].logits(hidden_BLD))


def test_fp8_weights_without_a_word_about_scales_are_refused_before_the_text(
    mistral3: Path,
) -> None:
    in_fp8(mistral3, scales="weight_scale")  # as NVIDIA's ModelOpt writes, apart from config.json

    with pytest.raises(
        ModelNotSupported, match=r"proj\.weight of .* is stored as F8_E4M3"
    ) as caught:
        resolve_model(ModelConfig(name=str(mistral3), device="cpu"))

    assert "hint: use the unquantised weights" in str(caught.value)


def test_fp8_weights_whose_scale_is_gone_are_refused_before_the_text(mistral3: Path) -> None:
    in_fp8(mistral3)
    settings_of(mistral3, quantization_config=FP8_SETTINGS)
    weights = load_file(mistral3 / "model.safetensors")
    gone = next(name for name in weights if name.endswith("1.mlp.up_proj.weight_scale_inv"))
    del weights[gone]
    save_file(weights, mistral3 / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ModelNotSupported, match=r"1\.mlp\.up_proj\.weight of .* its scale is not"):
        resolve_model(ModelConfig(name=str(mistral3), device="cpu"))


def test_scales_of_what_goes_into_a_matrix_are_no_reason_to_refuse(mistral3: Path) -> None:
    in_fp8(mistral3)
    settings_of(mistral3, quantization_config=FP8_SETTINGS | {"activation_scheme": "static"})
    expected = residual(mistral3)
    weights = load_file(mistral3 / "model.safetensors")
    for name in [name for name in weights if name.endswith("weight_scale_inv")]:
        weights[name.replace("weight_scale_inv", "activation_scale")] = torch.ones(())
    save_file(weights, mistral3 / "model.safetensors", metadata={"format": "pt"})

    torch.testing.assert_close(residual(mistral3), expected)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e5m2])
def test_any_type_of_eight_bits_needs_a_scale(
    tiny_folder: Callable[..., Path], tmp_path: Path, dtype: torch.dtype
) -> None:
    folder = shutil.copytree(tiny_folder("llama"), tmp_path / "bytes")
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.2.mlp.up_proj.weight"
    weights[name] = weights[name].to(dtype)
    weights["model.layers.2.self_attn.masked_bias"] = torch.ones(1, dtype=torch.uint8)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ModelNotSupported, match=r"layers\.2\.mlp\.up_proj\.weight of"):
        resolve_model(ModelConfig(name=str(folder), device="cpu"))


@pytest.mark.parametrize("method", ["modelopt", "awesome"])
def test_a_method_that_nothing_loads_is_refused_by_name(
    tiny_folder: Callable[..., Path], tmp_path: Path, method: str
) -> None:
    folder = shutil.copytree(tiny_folder("llama"), tmp_path / "model")
    settings_of(folder, quantization_config={"quant_method": method})

    with pytest.raises(ModelNotSupported, match=f"quantised with '{method}', which transformers"):
        resolve_model(ModelConfig(name=str(folder), device="cpu"))


@pytest.mark.parametrize(
    ("settings", "package"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"load_in_8bit": True}, "bitsandbytes"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "optimum"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "gptqmodel"),
        ({"quant_method": "compressed-tensors", "config_groups": {}}, "compressed-tensors"),
        ({"quant_method": "quanto", "weights": "int8"}, "optimum-quanto"),
    ],
)
def test_a_package_that_is_missing_is_named_before_the_text_is_read(
    tiny_folder: Callable[..., Path],
    tmp_path: Path,
    settings: dict[str, Any],
    package: str,
) -> None:
    folder = shutil.copytree(tiny_folder("llama"), tmp_path / "model")
    settings_of(folder, quantization_config=settings)

    with pytest.raises(ModelNotSupported, match=f"which is quantised.*pip install.*{package}"):
        resolve_model(ModelConfig(name=str(folder), device="cpu"))

    elsewhere = resolve_model(ModelConfig(name=str(folder), device="cpu"), here=False)
    assert elsewhere.quantization == settings.get("quant_method", "bitsandbytes")


def test_a_method_that_needs_a_gpu_is_refused_where_there_is_none(
    tiny_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    folder = shutil.copytree(tiny_folder("llama"), tmp_path / "model")
    settings_of(folder, quantization_config={"quant_method": "higgs"})

    with pytest.raises(ModelNotSupported, match=r"'higgs': NotImplementedError: .*GPU.*\nhint: "):
        resolve_model(ModelConfig(name=str(folder), device="cpu"))


def test_what_is_no_safetensors_file_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"<html>not found</html>")

    with pytest.raises(WeightsMismatch, match=r"model\.safetensors is no safetensors file"):
        stored_types(tmp_path / "model.safetensors")
