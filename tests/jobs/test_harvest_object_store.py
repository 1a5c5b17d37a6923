"""Real harvests into a bucket: killed and resumed, they leave the bytes of a local store."""

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from actlake.storage import open_store, verify
from actlake.storage.errors import StoreNotFound
from actlake.storage.location import locate

pytestmark = pytest.mark.ray
UNITS = 40


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    """A folder with a random model of two layers and a tokenizer of the demo's text."""
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    words = Tokenizer(BPE())
    words.pre_tokenizer = ByteLevel(add_prefix_space=False)
    words.train_from_iterator(
        ["the ledger names what is whole, and the rest is written again"],
        BpeTrainer(
            vocab_size=320,
            special_tokens=["<end>"],
            initial_alphabet=ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<end>", eos_token="<end>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(words.get_vocab()),
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).float().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def arguments(tiny_model):
    def of(store):
        return [
            "harvest",
            *("--store", str(store)),
            *("--model.name", str(tiny_model)),
            *("--sites", "resid_pre.0,resid_post.1"),
            *("--corpus.max_tokens", str(UNITS * 128)),
            *("--corpus.context_length", "64"),
            *("--corpus.splits.allow_empty", "test"),
            *("--storage.unit_rows", "128"),
            *("--batch_tokens", "128"),
            *("--threads", "1"),
        ]

    return of


def committed(url):
    try:
        store = open_store(url)
    except StoreNotFound:
        return 0
    return len(store.committed()) if store.sites else 0


def driver_runs(driver):
    return driver.process.poll() is None


def contents(location, tree):
    """Of the files that must be equal byte for byte."""
    return dict(zip(tree, location.read_all(list(tree)), strict=True))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_and_resumed_harvest_into_a_bucket_has_the_bytes_of_a_local_one(
    tmp_path, bucket, arguments, start, actlake, wait_for, tree
):
    url = f"{bucket.url}/harvested"
    environment = {**bucket.environment, "ACTLAKE_CACHE": str(tmp_path / "cache")}
    driver = start(*arguments(url), env=environment)
    wait_for(lambda: committed(url) >= 3 or not driver_runs(driver), "no unit was committed")
    assert driver_runs(driver), driver.wait()
    driver.kill()
    out, _ = driver.process.communicate()
    at_kill = committed(url)

    resumed = start(*arguments(url), env=environment)
    status, local = actlake(*arguments(tmp_path / "local"))
    assert resumed.wait() is not None

    assert 3 <= at_kill < UNITS, out
    assert resumed.process.returncode == 0
    assert status == 0, local
    assert verify(open_store(url)).is_whole
    whole = tree(tmp_path / "local")
    assert contents(locate(url), whole) == whole
    assert list(open_store(url).find(token=1).rows) == list(
        open_store(tmp_path / "local").find(token=1).rows
    )
    assert "secret-of-the-tests" not in out
    assert any((tmp_path / "cache" / "log").rglob("*.jsonl"))
