"""A whole pipeline that takes a minute: harvest, maps, an autoencoder and probes."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml

LINES = (
    "The river ran past the mill and the miller counted sacks.",
    "Rain fell on the harbour all night, and the boats filled.",
    "A class may inherit from several bases, in order.",
    "To bake bread, mix flour and water, then wait.",
)


def save_tiny_model(
    folder: Path, *, seed: int = 0, added: Sequence[str] = (), vocab_size: int | None = None
) -> Path:
    """A llama of three layers with random weights and a byte-level tokenizer of 320 tokens.

    `added` are further tokens of the tokenizer; `vocab_size` are the rows of the embedding, as
    many as the tokenizer has tokens if it is left out.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(LINES * 20, trainer)
    end = "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=end, bos_token=end)
    tokenizer.add_tokens(list(added))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size or len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
    )
    AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_model(tmp_path: Path) -> Callable[..., Path]:
    """``tiny_model("m1", seed=1)``: the folder of a tiny model with its tokenizer."""
    return lambda name="model", **how: save_tiny_model(tmp_path / name, **how)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A folder of thirty short texts."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number:02d}.txt").write_text(f"{LINES[number % 4]} Item {number}.")
    return folder


TEXTS = {
    "sea": "the grey water broke on the rocks while a small boat with torn sails came home",
    "law": "a judge heard that the contract had been signed before any witness was called",
}


def write_corpus(path: Path) -> None:
    """Eighty short documents of two topics, a quarter of them for tests."""
    lines = []
    for number in range(80):
        topic = ("sea", "law")[number % 2]
        words = TEXTS[topic].split()
        text = " ".join(words[(number * 7 + place * 3) % len(words)] for place in range(60))
        split = "test" if number // 2 % 4 == 3 else "train"
        lines.append(json.dumps({"id": f"{number}", "text": text, "topic": topic, "split": split}))
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def whole_pipeline(tmp_path: Path, smollm2_folder: Path) -> Callable[..., Path]:
    """``whole_pipeline(workers=2)``: the file of a pipeline with one step of each command."""

    def write(workers: int = 1) -> Path:
        folder = tmp_path / "pipeline"
        folder.mkdir()
        write_corpus(folder / "corpus.jsonl")
        store, tracking = str(folder / "store"), {"wandb": "disabled"}
        sites = ["resid_post.1", "resid_post.3"]
        steps = {
            "text": (
                "harvest",
                {
                    "store": store,
                    "model": {"name": str(smollm2_folder), "device": "cpu"},
                    "sites": sites,
                    "corpus": {
                        "source": {"path": str(folder / "corpus.jsonl"), "id_column": "id"},
                        "splits": {"column": "split", "names": ["train", "test"]},
                        "context_length": 64,
                    },
                    "threads": 1,
                },
            ),
            "maps": (
                "transport",
                {
                    "store": store,
                    "out": str(folder / "maps"),
                    "rows": {"groups": 4},
                    "moments": {"workers": workers, "threads": 1},
                },
            ),
            "autoencoder": (
                "sae",
                {
                    "store": store,
                    "out": str(folder / "sae"),
                    "sae": {"site": sites[1], "d_sae": 128, "options": {"k": 8}},
                    "batch_rows": 256,
                    "epochs": 2,
                    "evaluation": {"rows": 512},
                    "report": {"latents": 2, "rows": 512},
                    "workers": workers,
                    "threads": 1,
                    "device": "cpu",
                },
            ),
            "probes": (
                "probe",
                {
                    "store": store,
                    "out": str(folder / "probes"),
                    "tasks": [{"column": "topic"}],
                    "probes": ["mean_difference"],
                    "controls": [],
                    "learning_curve": [],
                    "pooling": ["mean"],
                    "splits": {"by": "document", "stratify": True},
                    "rows": {"groups": 4},
                    "threads": 1,
                    "device": "cpu",
                },
            ),
        }
        pipeline = {
            "logs": str(folder / "logs"),
            "steps": {
                name: {"command": command, "config": {**config, "tracking": tracking}}
                for name, (command, config) in steps.items()
            },
        }
        path = folder / "pipeline.yaml"
        path.write_text(yaml.safe_dump(pipeline, sort_keys=False))
        return path

    return write
