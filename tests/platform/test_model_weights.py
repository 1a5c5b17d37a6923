"""What is hashed is what is loaded: the weights of a model, and what else decides its rows."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from actlake.platform.models import (
    ModelConfig,
    ResolvedModel,
    load_head,
    load_stage,
    resolve_model,
)
from actlake.platform.models.errors import HubUnreachable, ModelNotSupported, WeightsMismatch
from actlake.storage.sites import Site

COMMIT = "5f91d94bd9cd7190a9f3216ff93cd1dd95f2c7be"
OTHER_COMMIT = "0" * 40
UP = "model.layers.3.mlp.up_proj.weight"


def resolved(folder: Path, **how: bool) -> ResolvedModel:
    return resolve_model(ModelConfig(name=str(folder), device="cpu", **how))


def up_projection(model: ResolvedModel) -> torch.Tensor:
    """Of the last layer; a copy, since parameters on a CPU are the file, mapped."""
    stage = load_stage(model, range(2, 4), [Site(3)])
    return dict(stage.module.named_parameters())["layers.3.mlp.up_proj.weight"].clone()


def with_other_weights(source: Path, file: Path) -> None:
    """All weights of a file doubled, in as many bytes."""
    save_file(
        {name: 2 * tensor for name, tensor in load_file(source).items()},
        file,
        metadata={"format": "pt"},
    )


@pytest.fixture
def whole(tmp_path: Path, tiny_folder: Callable[..., Path]) -> Path:
    """A folder with one file of weights."""
    return Path(shutil.copytree(tiny_folder("llama"), tmp_path / "whole"))


@pytest.fixture
def sharded(tmp_path: Path, tiny_folder: Callable[..., Path]) -> Path:
    """The same model in several files with an index."""
    folder = tmp_path / "sharded"
    model = AutoModelForCausalLM.from_pretrained(tiny_folder("llama"), dtype=torch.float32)
    model.save_pretrained(folder, max_shard_size="30KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 3
    return folder


def shard_of(folder: Path, tensor: str) -> Path:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    return folder / str(index["weight_map"][tensor])


def test_a_whole_file_beside_shards_is_what_is_hashed_and_what_is_loaded(
    sharded: Path, whole: Path
) -> None:
    with_other_weights(whole / "model.safetensors", sharded / "model.safetensors")
    model = resolved(sharded)
    loaded = up_projection(model)
    shutil.copy(whole / "model.safetensors", sharded)

    swapped = resolved(sharded)

    assert swapped.revision != model.revision
    assert torch.equal(loaded, 2 * up_projection(swapped))


def test_an_index_of_files_that_are_gone_does_not_matter_beside_a_whole_file(whole: Path) -> None:
    revision = resolved(whole).revision
    stale = {"weight_map": {"model.embed_tokens.weight": "model-00001-of-00002.safetensors"}}
    (whole / "model.safetensors.index.json").write_text(json.dumps(stale))

    model = resolved(whole)

    assert model.revision == revision
    assert torch.equal(up_projection(model), load_file(whole / "model.safetensors")[UP])


def test_the_file_that_the_configuration_names_is_hashed_and_loaded(whole: Path) -> None:
    with_other_weights(whole / "model.safetensors", whole / "doubled.safetensors")
    settings = json.loads((whole / "config.json").read_text())
    named = settings | {"transformers_weights": "doubled.safetensors"}
    (whole / "config.json").write_text(json.dumps(named))
    model = resolved(whole)

    loaded = up_projection(model)
    (whole / "model.safetensors").write_bytes(b"nobody reads this")

    assert torch.equal(loaded, load_file(whole / "doubled.safetensors")[UP])
    assert resolved(whole).revision == model.revision


@pytest.mark.parametrize("name", ["../other.safetensors", "pytorch_model.bin", "/x.safetensors"])
def test_weights_outside_the_folder_or_in_another_format_are_refused(
    name: str, whole: Path, sharded: Path
) -> None:
    settings = json.loads((whole / "config.json").read_text())
    (whole / "config.json").write_text(json.dumps(settings | {"transformers_weights": name}))
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))

    for folder in (whole, sharded):
        with pytest.raises(WeightsMismatch, match=r"which is no \.safetensors file beside its"):
            resolved(folder)


def test_an_index_that_cannot_be_read_is_refused_in_words(sharded: Path) -> None:
    for written, words in {"[": "cannot be read", "{}": "weight_map", "[]": "cannot be"}.items():
        (sharded / "model.safetensors.index.json").write_text(written)

        with pytest.raises(WeightsMismatch, match=words) as caught:
            resolved(sharded)

        assert "hint: copy or download it again" in str(caught.value)


def test_weights_that_change_after_they_were_hashed_are_not_loaded(whole: Path) -> None:
    model = resolved(whole)
    with_other_weights(whole / "model.safetensors", whole / "model.safetensors")

    with pytest.raises(WeightsMismatch, match="another file than when the model was found"):
        load_stage(model, range(4), [Site(3)])
    with pytest.raises(WeightsMismatch, match="give every node the same one"):
        load_head(model)


@pytest.mark.parametrize("setting", ["rope_theta", "rms_norm_eps", "num_attention_heads"])
def test_a_configuration_that_differs_where_the_weights_are_loaded_is_refused(
    whole: Path, setting: str
) -> None:
    model = resolved(whole)
    config = json.loads((whole / "config.json").read_text())
    (whole / "config.json").write_text(json.dumps(config | {setting: 2}))  # as on another node

    for load in (lambda: load_stage(model, range(4), [Site(3)]), lambda: load_head(model)):
        with pytest.raises(WeightsMismatch, match=r"config\.json of .* is another than when"):
            load()


def test_code_that_differs_where_the_weights_are_loaded_is_not_run(whole: Path) -> None:
    bring_code(whole)
    model = resolved(whole, trust_remote_code=True)
    bring_code(whole, "raise SystemExit('other code was run')")

    with pytest.raises(WeightsMismatch, match="or code beside it, is another"):
        load_stage(model, range(4), [Site(3)])


def test_a_configuration_that_was_only_saved_again_is_the_same(whole: Path) -> None:
    model = resolved(whole)
    config = json.loads((whole / "config.json").read_text())
    (whole / "config.json").write_text(json.dumps(config | {"transformers_version": "9.9"}))

    assert load_stage(model, range(4), [Site(3)]).layers == range(4)


def test_weights_swapped_for_others_of_one_size_and_time_have_another_revision(
    whole: Path,
) -> None:
    file = whole / "model.safetensors"
    before, stat = resolved(whole).revision, file.stat()
    with_other_weights(file, file)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)

    assert resolved(whole).revision != before


def test_a_stage_opens_only_the_files_that_hold_its_layers(sharded: Path) -> None:
    model = resolved(sharded)
    shard_of(sharded, UP).write_bytes(b"lost")

    first = load_stage(model, range(1), [Site(3)])

    assert first.param_bytes > 0
    with pytest.raises(WeightsMismatch, match="another file"):
        load_stage(model, range(3, 4), [Site(3)])


def test_shards_load_to_what_the_whole_file_loads_to(whole: Path, sharded: Path) -> None:
    ids_1L = torch.arange(9).unsqueeze(0)
    heads = [load_head(resolved(folder)) for folder in (whole, sharded)]
    hidden_1LD = torch.randn(1, 9, 32)

    assert torch.equal(*(up_projection(resolved(folder)) for folder in (whole, sharded)))
    assert torch.equal(*(head.logits(hidden_1LD) for head in heads))
    streams: list[torch.Tensor] = []
    for folder in (whole, sharded):
        stage = load_stage(resolved(folder), range(4), [Site(3)])
        stage.run(ids_1L, lambda site, tensor: streams.append(tensor.clone()))
    assert torch.equal(*streams)


def test_a_tensor_in_another_file_than_the_index_says_is_refused(sharded: Path) -> None:
    holding, other = shard_of(sharded, UP), shard_of(sharded, "model.embed_tokens.weight")
    tensors = load_file(other) | {UP: torch.zeros_like(load_file(holding)[UP])}
    save_file(tensors, other, metadata={"format": "pt"})

    with pytest.raises(WeightsMismatch) as caught:
        load_stage(resolved(sharded), range(4), [Site(3)])

    assert f"{other.name} holds '{UP}', which the index says is in {holding.name}" in str(
        caught.value
    )


def test_an_adapter_beside_the_weights_is_refused_not_left_out(whole: Path) -> None:
    settings = {"peft_type": "LORA", "base_model_name_or_path": "some/model"}
    (whole / "adapter_config.json").write_text(json.dumps(settings))

    with pytest.raises(ModelNotSupported, match="holds an adapter") as caught:
        resolved(whole)

    assert "hint: merge it: peft's merge_and_unload" in str(caught.value)


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

class Config(LlamaConfig):
    model_type = "own"

class Model(LlamaModel):
    config_class = Config

class Causal(LlamaForCausalLM):
    config_class = Config
"""


def bring_code(folder: Path, code: str = CODE, *, repository: str = "") -> None:
    """Make the model of a folder one that comes with its code."""
    settings = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "Config", "AutoModel": "Model", "AutoModelForCausalLM": "Causal"}
    settings["auto_map"] = {key: f"{repository}own.{name}" for key, name in names.items()}
    settings["model_type"] = "own"
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "own.py").write_text(code)


def test_code_that_is_run_is_part_of_what_the_model_is(whole: Path) -> None:
    bring_code(whole)
    before = resolved(whole, trust_remote_code=True).revision
    again = resolved(whole, trust_remote_code=True).revision
    bring_code(whole, CODE.replace("class Causal", "DOUBLED = True\n\nclass Causal"))

    after = resolved(whole, trust_remote_code=True).revision

    assert again == before
    assert after != before


def test_code_in_another_repository_is_refused(whole: Path) -> None:
    bring_code(whole, repository="someone/code--")

    with pytest.raises(ModelNotSupported, match="in repository 'someone/code', at no fixed"):
        resolved(whole, trust_remote_code=True)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub on a machine that is offline."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub" / "models--some--model"


def cached_at(hub: Path, commit: str, folder: Path, *, branch: str = "") -> Path:
    """A folder as the snapshot of a commit."""
    snapshot = Path(shutil.copytree(folder, hub / "snapshots" / commit))
    (hub / "refs").mkdir(exist_ok=True)
    if branch:
        (hub / "refs" / branch).write_text(commit)
    return snapshot


@pytest.mark.parametrize("form", ["whole", "sharded"])
def test_of_a_hub_model_the_files_of_its_commit_are_loaded(
    form: str, hub: Path, whole: Path, sharded: Path
) -> None:
    folder = {"whole": whole, "sharded": sharded}[form]
    cached_at(hub, COMMIT, folder, branch="main")
    model = resolve_model(ModelConfig(name="some/model", device="cpu"))
    expected = load_file(whole / "model.safetensors")[UP]
    (hub / "refs" / "main").write_text(OTHER_COMMIT)  # the branch moves on

    loaded = up_projection(model)

    assert (model.revision, model.weights) == (COMMIT, ())
    assert torch.equal(loaded, expected)


def test_an_adapter_in_a_hub_repository_is_refused(hub: Path, whole: Path) -> None:
    (whole / "adapter_config.json").write_text("{}")
    cached_at(hub, COMMIT, whole, branch="main")

    with pytest.raises(ModelNotSupported, match="some/model holds an adapter"):
        resolve_model(ModelConfig(name="some/model", device="cpu"))


def test_weights_of_a_hub_model_that_cannot_be_fetched_are_named(hub: Path, whole: Path) -> None:
    (whole / "model.safetensors").unlink()
    cached_at(hub, COMMIT, whole, branch="main")
    model = resolve_model(ModelConfig(name="some/model", device="cpu"))

    with pytest.raises(HubUnreachable, match=r"there is no model\.safetensors\nhint: check the"):
        load_stage(model, range(4), [Site(3)])


def test_the_code_of_a_hub_model_is_that_of_its_commit(hub: Path, whole: Path) -> None:
    bring_code(whole)
    cached_at(hub, COMMIT, whole)
    bring_code(whole, "raise SystemExit('the code of another commit was run')")
    cached_at(hub, OTHER_COMMIT, whole, branch="main")

    model = resolve_model(
        ModelConfig(name="some/model", device="cpu", revision=COMMIT, trust_remote_code=True)
    )

    assert type(model.hf_config).model_type == "own"
    assert load_stage(model, range(4), [Site(3)]).param_bytes > 0
    assert load_head(model).param_bytes > 0
