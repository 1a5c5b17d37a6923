"""A whole pipeline that takes a minute: harvest, maps, an autoencoder and probes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

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
