"""Finding a model: folder, GGUF file or hub id; what is refused, and in which words."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from actlake.platform.models import ModelConfig, resolve_model
from actlake.platform.models.errors import (
    ContextTooLong,
    HubUnreachable,
    InvalidModelConfig,
    ModelNotFound,
    ModelNotSupported,
    WeightsMismatch,
)
from actlake.platform.models.numerics import resolve_device, resolve_dtype


def copy_of(source: Path, folder: Path) -> Path:
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_a_folder_is_resolved_to_what_it_holds_and_how_it_will_run(
    tiny_folder: Callable[..., Path],
) -> None:
    folder = tiny_folder("llama")

    model = resolve_model(ModelConfig(name=str(folder), device="cpu"))

    assert (model.family, model.num_layers, model.dim, model.vocab_size) == ("llama", 4, 32, 128)
    assert model.max_positions == 64
    assert model.commit is None
    assert model.dtype_name == "float32"
    assert str(model.dtype) == "torch.float32 (CPUs are fastest in it)"
    assert str(model.device) == "cpu (asked for)"
    assert str(model.attention) == "sdpa (the family has it)"


def test_a_family_without_fused_attention_runs_without_it(tiny_folder: Callable[..., Path]) -> None:
    folder = str(tiny_folder("gemma2"))

    chosen = resolve_model(ModelConfig(name=folder, device="cpu")).attention

    assert chosen.value == "eager"
    with pytest.raises(InvalidModelConfig, match="hint: use attention: eager, or auto"):
        resolve_model(ModelConfig(name=folder, device="cpu", attention="sdpa"))


def test_what_was_resolved_is_logged_with_the_reasons(
    tiny_folder: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="actlake"):
        resolve_model(ModelConfig(name=str(tiny_folder("llama")), device="cpu", dtype="bfloat16"))

    assert "dtype torch.bfloat16 (asked for), device cpu (asked for)" in caplog.text


def test_a_resolved_model_travels_to_other_processes(tiny_folder: Callable[..., Path]) -> None:
    model = resolve_model(ModelConfig(name=str(tiny_folder("gemma2")), device="cpu"))

    arrived = pickle.loads(pickle.dumps(model))

    assert arrived == model
    assert arrived.hf_config._attn_implementation == "eager"


def test_the_revision_is_the_content_and_nothing_else(
    tmp_path: Path, tiny_folder: Callable[..., Path]
) -> None:
    original = tiny_folder("llama")
    copied = copy_of(original, tmp_path / "copy")
    saved_later = copy_of(original, tmp_path / "later")
    settings = json.loads((original / "config.json").read_text())
    (saved_later / "config.json").write_text(json.dumps(settings | {"transformers_version": "9"}))
    changed = copy_of(original, tmp_path / "changed")
    (changed / "config.json").write_text(json.dumps(settings | {"rms_norm_eps": 0.1}))
    retrained = copy_of(original, tmp_path / "retrained")
    weights = bytearray((original / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (retrained / "model.safetensors").write_bytes(weights)

    revisions = {
        folder.name: resolve_model(ModelConfig(name=str(folder), device="cpu")).revision
        for folder in (original, copied, saved_later, changed, retrained)
    }

    first = revisions[original.name]
    assert first.startswith("sha256:")
    assert revisions["copy"] == revisions["later"] == first
    assert len({first, revisions["changed"], revisions["retrained"]}) == 3


def test_weights_are_not_read_while_resolving(
    tmp_path: Path, tiny_folder: Callable[..., Path]
) -> None:
    folder = copy_of(tiny_folder("llama"), tmp_path / "copy")
    whole = (folder / "model.safetensors").read_bytes()
    header_bytes = 8 + int.from_bytes(whole[:8], "little")
    (folder / "model.safetensors").write_bytes(whole[:header_bytes])

    assert resolve_model(ModelConfig(name=str(folder), device="cpu")).num_layers == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dtype": "float23"}, "did you mean 'float32'?"),
        ({"dtype": "int8"}, "The dtypes are auto, float32, bfloat16, float16"),
        ({"device": "gpu"}, "write auto, cpu, cuda, or one card as cuda:0"),
        ({"device": "cuda:x"}, "There is no device 'cuda:x'"),
        ({"attention": "flash"}, "The ways of computing it are auto, sdpa, eager"),
        ({"name": " "}, "The model's name is empty"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_at_once(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidModelConfig) as caught:
        ModelConfig(**{"name": "gpt2", **changes})

    assert words in str(caught.value)
    assert "hint:" in str(caught.value)


def test_a_device_that_is_not_here_is_refused_unless_it_is_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(InvalidModelConfig, match="sees no CUDA device\nhint: use device: cpu"):
        resolve_device("cuda")
    elsewhere = resolve_device("cuda:1", here=False)
    dtype = resolve_dtype("auto", elsewhere.value)

    assert elsewhere.value == "cuda:1"
    assert dtype.value == torch.bfloat16
    assert "elsewhere" in dtype.reason


def test_on_a_gpu_the_dtype_is_the_one_it_is_good_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "A100")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)

    assert str(resolve_device("auto")) == "cuda (this machine has A100)"
    assert str(resolve_dtype("auto", "cuda")) == "torch.bfloat16 (A100 has bfloat16)"
    with pytest.raises(InvalidModelConfig, match="this machine has 2, counted from cuda:0"):
        resolve_device("cuda:2")


def test_a_folder_that_is_not_there_is_told_from_a_hub_id() -> None:
    with pytest.raises(ModelNotFound, match=r"There is no folder '\./models/mine'"):
        resolve_model(ModelConfig(name="./models/mine"))
    with pytest.raises(ModelNotFound, match=r"There is no GGUF file 'mine\.gguf'"):
        resolve_model(ModelConfig(name="mine.gguf"))


def test_a_folder_is_a_folder_whatever_its_name_ends_in(
    tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_folder("llama"), tmp_path / "mine.gguf"))

    assert resolve_model(ModelConfig(name=str(folder))).family == "llama"


def test_a_folder_without_a_configuration_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"")

    with pytest.raises(ModelNotFound) as caught:
        resolve_model(ModelConfig(name=str(tmp_path)))

    assert "has no config.json; it holds weights.bin" in str(caught.value)
    assert "hint: give a folder written by save_pretrained" in str(caught.value)


def test_a_configuration_that_is_not_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")

    with pytest.raises(ModelNotFound, match="is not JSON"):
        resolve_model(ModelConfig(name=str(tmp_path)))


def test_missing_weight_files_are_named(tmp_path: Path, tiny_folder: Callable[..., Path]) -> None:
    source = tiny_folder("llama")
    folder = tmp_path / "sharded"
    folder.mkdir()
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())

    with pytest.raises(WeightsMismatch, match=r"missing from .*: model\.safetensors"):
        resolve_model(ModelConfig(name=str(folder)))
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "gone.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"")
    with pytest.raises(WeightsMismatch, match=r"missing from .*: gone\.safetensors"):
        resolve_model(ModelConfig(name=str(folder)))


def test_files_on_this_machine_have_no_revisions(tiny_folder: Callable[..., Path]) -> None:
    with pytest.raises(ModelNotFound, match="have no revisions\nhint: leave `revision` out"):
        resolve_model(ModelConfig(name=str(tiny_folder("llama")), revision="v2"))


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("t5", "is not a decoder-only language model"),
        ("bert", "is not a decoder-only language model"),
        ("vit", "is not a decoder-only language model"),
        ("gemma3n_text", "they need embeddings of the token ids in every layer"),
        ("gemma4_text", "they need embeddings of the token ids in every layer"),
        ("martian", "cannot read the configuration"),
    ],
)
def test_what_is_not_a_decoder_with_one_stream_is_refused(
    family: str, words: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    (tmp_path / "model.safetensors").write_bytes(b"")

    with pytest.raises(ModelNotSupported) as caught:
        resolve_model(ModelConfig(name=str(tmp_path), device="cpu"))

    assert words in str(caught.value)
    assert "hint:" in str(caught.value)


def test_code_that_comes_with_a_model_is_not_run_unless_trusted(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    code = f"from pathlib import Path\nPath({str(ran)!r}).touch()\n"
    (tmp_path / "evil.py").write_text(code)
    settings = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "model.safetensors").write_bytes(b"")

    with pytest.raises(ModelNotSupported, match="trust_remote_code: true"):
        resolve_model(ModelConfig(name=str(tmp_path), device="cpu"))

    assert not ran.exists()


def test_a_context_longer_than_the_positions_is_refused(tiny_folder: Callable[..., Path]) -> None:
    model = resolve_model(ModelConfig(name=str(tiny_folder("gpt2")), device="cpu"))

    model.check_context(64)

    with pytest.raises(ContextTooLong, match="hint: use a context length of at most 64"):
        model.check_context(65)


def test_positions_without_an_end_take_any_context(tiny_folder: Callable[..., Path]) -> None:
    model = resolve_model(ModelConfig(name=str(tiny_folder("bloom")), device="cpu"))

    model.check_context(10**6)

    assert model.max_positions is None


def hub_answers(error: Exception | Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The hub's client: an error, or a repository of one file; the requests it got."""
    asked: list[tuple[Any, ...]] = []

    def download(repository: str, file: str, revision: str | None = None) -> str:
        asked.append((repository, file, revision))
        if isinstance(error, Exception):
            raise error
        if file != error.name:
            raise hub_error("RemoteEntryNotFoundError")
        return str(error)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    return asked


def hub_error(name: str) -> Exception:
    import httpx
    from huggingface_hub import errors

    request = httpx.Request("GET", "https://hub.invalid")
    kind: type[Exception] = getattr(errors, name)
    if issubclass(kind, errors.HfHubHTTPError):
        return kind("no", response=httpx.Response(404, request=request))
    return kind("no")


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        ("RepositoryNotFoundError", ModelNotFound, "There is no model 'some/model'"),
        ("HFValidationError", ModelNotFound, "There is no model 'some/model'"),
        ("RevisionNotFoundError", ModelNotFound, "has no revision 'v9'"),
        ("GatedRepoError", ModelNotFound, "is gated and this account has no access"),
        ("RemoteEntryNotFoundError", ModelNotFound, "on the hub has no config.json"),
        ("LocalEntryNotFoundError", HubUnreachable, "hub cannot be reached"),
        ("OfflineModeIsEnabled", HubUnreachable, "hub cannot be reached"),
    ],
)
def test_what_the_hub_answers_is_put_into_words(
    answer: str, kind: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_answers(hub_error(answer), monkeypatch)

    with pytest.raises(kind) as caught:
        resolve_model(ModelConfig(name="some/model", revision="v9"))

    assert words in str(caught.value)
    assert "hint:" in str(caught.value)


def test_the_exact_commit_of_a_hub_model_is_its_revision(
    tmp_path: Path, tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "5f91d94bd9cd7190a9f3216ff93cd1dd95f2c7be"
    cached = tmp_path / "snapshots" / commit / "config.json"
    asked = hub_answers(cached, monkeypatch)
    loaded: list[tuple[str, str]] = []

    def from_pretrained(location: str, *, revision: str, trust_remote_code: bool) -> Any:
        loaded.append((location, revision))
        return transformers_read(tiny_folder("llama"))

    import transformers

    transformers_read = transformers.AutoConfig.from_pretrained
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", from_pretrained)
    model = resolve_model(ModelConfig(name="some/model", revision="main", device="cpu"))

    assert (model.revision, model.commit, model.location) == (commit, commit, "some/model")
    assert asked == [
        ("some/model", "config.json", "main"),
        ("some/model", "adapter_config.json", commit),
    ]
    assert loaded == [("some/model", commit)]
