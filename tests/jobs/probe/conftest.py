"""A small store whose rows are known, with labels that deeper layers tell apart better."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actlake.jobs.probe import ProbeConfig, TaskConfig
from actlake.platform.tracking import TrackingConfig
from actlake.storage import (
    ActivationStore,
    Context,
    Document,
    Geometry,
    Provenance,
    Site,
    open_store,
    write_store,
)

SITES = tuple(Site(layer) for layer in range(3))
SPECIAL = (0, 1)
TOPICS = ("art", "law", "war")


class Labelled:
    """Rows of three layers: scales over three decades, means far from zero.

    A token's ``mark`` (3 classes), ``flag`` (2) and ``height`` (a number) lie along directions
    of their own, more clearly the deeper the layer. A document has a topic, a town and a height.
    """

    def __init__(self, *, dim: int = 10, documents: int = 60, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.dim = dim
        self.topic = rng.integers(0, 3, documents)
        self.documents = [
            Document(
                f"doc-{d:02d}",
                "made",
                ("train", "train", "validation", "test", "train")[d % 5],
                f"text {d}",
                {"topic": TOPICS[self.topic[d]], "town": f"town {d // 2}", "height": d / 7},
            )
            for d in range(documents)
        ]
        self.contexts = []
        for number, document in enumerate(self.documents):
            n = int(rng.integers(20, 32))
            ids = rng.integers(0, 60, n).astype(np.int32)
            place = np.arange(n, dtype=np.int32)
            self.contexts.append(Context(ids, np.full(n, number), place, document.split))
        self.ids = np.concatenate([c.ids for c in self.contexts])
        self.position = np.concatenate([np.arange(len(c)) for c in self.contexts])
        self.document = np.concatenate([c.documents for c in self.contexts])
        self.split = np.repeat([c.split for c in self.contexts], [len(c) for c in self.contexts])
        self.kept = (self.position > 0) & ~np.isin(self.ids, SPECIAL)
        rows = len(self.ids)
        self.mark = rng.integers(0, 3, rows)
        self.flag = rng.integers(0, 2, rows)
        self.height = rng.normal(size=rows)
        scale = np.logspace(-1.5, 1.5, dim)
        centre = 5 * rng.normal(size=dim)
        ways = rng.normal(size=(8, dim))
        ways /= np.linalg.norm(ways, axis=1, keepdims=True)
        self.acts = {}
        for site in SITES:
            strength = 0.5 + 0.8 * site.layer
            signal = ways[self.mark] + ways[3] * self.flag[:, None]
            signal = signal + ways[4] * self.height[:, None]
            signal = signal + ways[5 + self.topic[self.document]]
            plain = strength * signal + rng.normal(size=(rows, dim)) / np.sqrt(2)
            self.acts[site] = ((plain + centre) * scale).astype(np.float32)

    def rows(self, *splits: str) -> np.ndarray:
        """The rows of splits that count."""
        return np.flatnonzero(np.isin(self.split, splits) & self.kept)

    def build(self, folder: Path, *, sites: tuple[Site, ...] = SITES) -> Path:
        write_store(
            folder,
            [*self.documents, *self.contexts],
            {site: self.acts[site] for site in sites},
            provenance=Provenance(model={"name": "made", "revision": "0"}),
            splits=("test", "train", "validation"),
            context_length=32,
            special_ids=SPECIAL,
            geometry=Geometry(unit_rows=256, chunk_bytes=64 * 4 * self.dim),
        )
        return folder

    def attach(self, store: ActivationStore) -> None:
        """``words``: mark, flag, height and names of marks by row."""
        every = {
            "row": np.arange(len(self.ids)),
            "mark": self.mark,
            "flag": self.flag.astype(bool),
            "height": self.height,
            "names": [
                [f"m{m}"] + ["flag"] * int(f) for m, f in zip(self.mark, self.flag, strict=True)
            ],
        }
        store.attach_labels("words", every, key="row")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def made() -> Labelled:
    return Labelled()


@pytest.fixture(scope="session")
def made_folder(made: Labelled, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = made.build(tmp_path_factory.mktemp("labelled") / "store")
    made.attach(open_store(folder))
    return folder


@pytest.fixture
def make_config(made_folder: Path, tmp_path: Path) -> Callable[..., ProbeConfig]:
    """A config of one task, ``mark`` unless it is said otherwise."""

    def make(task: TaskConfig | None = None, **options: Any) -> ProbeConfig:
        tasks = (task or TaskConfig(labels="words", column="mark"),)
        given = {
            "store": str(made_folder),
            "out": str(tmp_path / "out"),
            "tasks": tasks,
            "penalties": (1.0, 100.0),
            "alphas": (1.0, 100.0),
            "threads": 1,
            "tracking": TrackingConfig(wandb="disabled"),
        }
        return ProbeConfig(**given | options)

    return make
