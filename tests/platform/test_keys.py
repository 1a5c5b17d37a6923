"""Every weight of a checkpoint is used, is known to be unused, or is refused by name."""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from actlake.platform.models import ModelConfig, load_head, load_stage, resolve_model
from actlake.platform.models.errors import WeightsMismatch
from actlake.platform.models.source import ResolvedModel
from actlake.storage.sites import Site


@pytest.fixture
def with_more(tiny_folder: Callable[..., Path], tmp_path: Path) -> Callable[..., ResolvedModel]:
    """``with_more("llama", names, key=value)``: a model with more weights and settings."""

    def resolved(family: str, names: Iterable[str], **settings: object) -> ResolvedModel:
        folder = shutil.copytree(tiny_folder(family), tmp_path / "model")
        weights = load_file(folder / "model.safetensors")
        weights |= {name: torch.ones(4) for name in names}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((folder / "config.json").read_text()) | settings
        (folder / "config.json").write_text(json.dumps(config))
        return resolve_model(ModelConfig(name=str(folder), device="cpu"))

    return resolved


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.mlp.up_proj.weight_scale",  # a scale that nobody reads
        "model.layers.1.self_attn.q_proj.lora_A.weight",  # an adapter that nobody merges
        "model.layers.4.mlp.up_proj.weight",  # of a longer model than config.json says
        "model.pre_norm.weight",  # of a family that is built like this one and is not it
        "backbone.layers.1.mlp.up_proj.weight",
    ],
)
def test_a_weight_that_nothing_uses_is_refused_by_name(
    with_more: Callable[..., ResolvedModel], name: str
) -> None:
    model = with_more("llama", [name])

    with pytest.raises(WeightsMismatch, match=f"unexpected: {name}"):
        load_stage(model, range(2), [Site(1)])


def test_weights_of_other_layers_are_those_of_other_stages(
    with_more: Callable[..., ResolvedModel],
) -> None:
    model = with_more("llama", ["model.layers.1.mlp.up_proj.weight_scale"])

    assert load_stage(model, range(2, 4), [Site(3)]).layers == range(2, 4)
    with pytest.raises(WeightsMismatch, match="unexpected"):
        load_stage(model, range(2), [Site(1)])


def test_a_weight_beside_the_unembedding_that_nothing_uses_is_refused(
    with_more: Callable[..., ResolvedModel],
) -> None:
    model = with_more("llama", ["lm_head.weight_scale"])

    assert load_stage(model, range(4), [Site(3)]).layers == range(4)
    with pytest.raises(WeightsMismatch, match=r"unexpected: lm_head\.weight_scale"):
        load_head(model)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "gpt_neox", "opt", "falcon"])
def test_what_is_known_to_be_unused_is_passed_over(
    with_more: Callable[..., ResolvedModel], family: str
) -> None:
    model = with_more(
        family,
        [
            "model.layers.1.self_attn.rotary_emb.inv_freq",  # of old releases
            "transformer.h.1.attn.masked_bias",
            "mtp.fc.weight",  # further tokens' heads
        ],
    )

    assert load_stage(model, range(2, 4), [Site(3)]).layers == range(2, 4)
    assert load_head(model).param_bytes > 0


def test_layers_that_predict_further_tokens_are_no_layers_of_the_model(
    with_more: Callable[..., ResolvedModel],
) -> None:
    model = with_more("llama", ["model.layers.4.enorm.weight"], num_nextn_predict_layers=1)

    assert model.num_layers == 4
    assert load_stage(model, range(4), [Site(3)]).layers == range(4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "bloom", "mixtral"])
def test_a_checkpoint_that_was_saved_without_its_head_is_the_same_model(
    tiny_folder: Callable[..., Path], tmp_path: Path, family: str
) -> None:
    from transformers import AutoModel

    whole = AutoModel.from_pretrained(tiny_folder(family))
    whole.save_pretrained(tmp_path / "bare")
    sites = [Site(1)]
    streams = []
    for folder in (tiny_folder(family), tmp_path / "bare"):
        model = resolve_model(ModelConfig(name=str(folder), device="cpu", dtype="float32"))
        stage = load_stage(model, range(2), sites)
        stage.run(torch.arange(3, 15)[None], lambda _, acts: streams.append(acts.clone()))

    torch.testing.assert_close(*streams, rtol=0, atol=0)
