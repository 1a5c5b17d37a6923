"""What other libraries raise about a model becomes a refusal with a hint that fits it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from actlake.platform.models import ModelConfig, load_stage, resolve_model
from actlake.platform.models.errors import (
    ModelNotSupported,
    TokenizerNotSupported,
    WeightsMismatch,
)
from actlake.platform.models.gguf import write_model
from actlake.platform.models.tokenizer import load_tokenizer
from actlake.storage.sites import Site


def raising(error: Exception) -> Callable[..., None]:
    def fails(*args: Any, **options: Any) -> None:
        raise error

    return fails


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (ImportError("no kernels"), "install the package that it names"),
        (KeyError("qweight"), "load the model with transformers alone"),
        (RuntimeError("conversion"), "load the model with transformers alone"),
        (OSError("input/output error"), "copy or download the model again"),
    ],
)
def test_whatever_a_loader_raises_is_said_to_be_the_loaders(
    tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, error: Exception, hint: str
) -> None:
    model = resolve_model(ModelConfig(name=str(tiny_folder("llama")), device="cpu"))

    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", raising(error))

    with pytest.raises(
        ModelNotSupported, match=f"cannot load layers .*{type(error).__name__}.*\nhint: {hint}"
    ):
        load_stage(model, range(4), [Site(1)])


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA"), RuntimeError("can't allocate memory")]
)
def test_a_full_memory_is_not_taken_for_weights_that_do_not_fit(
    tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    model = resolve_model(ModelConfig(name=str(tiny_folder("llama")), device="cpu"))

    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", raising(error))

    with pytest.raises(type(error)):
        load_stage(model, range(4), [Site(1)])


@pytest.mark.parametrize("error", [ImportError("no timm"), KeyError("rope"), TypeError("null")])
def test_a_configuration_that_transformers_fails_on_is_refused(
    tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", raising(error))

    with pytest.raises(ModelNotSupported, match=f"read the configuration.*{type(error).__name__}"):
        resolve_model(ModelConfig(name=str(tiny_folder("llama")), device="cpu"))


def test_a_configuration_from_which_no_model_can_be_built_is_refused(
    tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_folder("llama"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["hidden_act"] = "a function that nobody knows"
    (folder / "config.json").write_text(json.dumps(config))

    with pytest.raises(ModelNotSupported, match=r"build a model of the family 'llama': KeyError"):
        resolve_model(ModelConfig(name=str(folder), device="cpu"))


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (ImportError("no sentencepiece"), "install the package that it names"),
        (Exception("data did not match any variant"), "put tokenizer.json"),
        (KeyError("added_tokens"), "put tokenizer.json"),
    ],
)
def test_a_tokenizer_that_cannot_be_loaded_is_refused(
    tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, error: Exception, hint: str
) -> None:
    model = resolve_model(ModelConfig(name=str(tiny_folder("llama")), device="cpu"))
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", raising(error))

    with pytest.raises(TokenizerNotSupported, match=f"{type(error).__name__}.*\nhint: {hint}"):
        load_tokenizer(model)


@pytest.mark.parametrize("error", [ImportError("no gguf"), KeyError("arch"), RuntimeError("shape")])
def test_a_gguf_file_that_transformers_fails_on_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", raising(error))

    with pytest.raises(ModelNotSupported, match=r"hint: use the model's original weights"):
        write_model(tmp_path / "model.gguf", tmp_path)


def test_weights_of_another_shape_are_named_with_both_shapes(
    tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_folder("llama"), tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"] = torch.zeros(7, 32)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model = resolve_model(ModelConfig(name=str(folder), device="cpu"))

    with pytest.raises(
        WeightsMismatch, match=r"1\.mlp\.up_proj\.weight has shape \(7, 32\), not \(48, 32\)"
    ):
        load_stage(model, range(4), [Site(1)])
