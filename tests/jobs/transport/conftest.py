"""A small store whose rows are known, with sites that depend on each other as layers do."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

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

SITES = tuple(Site(layer) for layer in range(4))
SPECIAL = (0, 1)


class Layers:
    """Rows of four layers: means a thousand deviations away, scales over four decades."""

    def __init__(
        self, *, dim: int = 12, documents: int = 40, seed: int = 0, scales: float = 4.0
    ) -> None:
        rng = np.random.default_rng(seed)
        self.dim = dim
        self.documents = [
            Document(f"doc-{d:02d}", "made", ("train", "test")[d % 4 == 3], f"text {d}", {})
            for d in range(documents)
        ]
        self.contexts: list[Context] = []
        for number, document in enumerate(self.documents):
            length = int(rng.integers(20, 140))
            for start in range(0, length, 32):
                n = min(32, length - start)
                ids = rng.integers(0, 60, n).astype(np.int32)
                whole = np.full(n, number)
                self.contexts.append(
                    Context(ids, whole, np.arange(n, dtype=np.int32), document.split)
                )
        self.ids = np.concatenate([c.ids for c in self.contexts])
        self.position = np.concatenate([np.arange(len(c)) for c in self.contexts])
        self.document = np.concatenate([c.documents for c in self.contexts])
        self.split = np.repeat([c.split for c in self.contexts], [len(c) for c in self.contexts])
        self.context = np.repeat(np.arange(len(self.contexts)), [len(c) for c in self.contexts])
        self.kept = (self.position > 0) & ~np.isin(self.ids, SPECIAL)
        scale = np.logspace(-scales / 2, scales / 2, dim)
        stream = rng.normal(size=(len(self.ids), dim)) @ rng.normal(size=(dim, dim))
        self.acts: dict[Site, np.ndarray] = {}
        for site in SITES:
            step = np.tanh(stream) @ rng.normal(size=(dim, dim)) / np.sqrt(dim)
            stream = 0.9 * stream + step + 0.3 * rng.normal(size=stream.shape)
            centre = 1000 * scale * rng.normal(size=dim) if scales else 0.0
            self.acts[site] = (stream * scale + centre).astype(np.float32)

    def rows(self, split: str, *, kept: bool = True) -> np.ndarray:
        """The rows of a split that count."""
        return np.flatnonzero((self.split == split) & (self.kept if kept else True))

    def build(
        self,
        folder: Path,
        *,
        sites: tuple[Site, ...] = SITES,
        name: str = "none",
        nonfinite: str = "refuse",
        dtype: str = "float32",
    ) -> Path:
        write_store(
            folder,
            [*self.documents, *self.contexts],
            {site: self.acts[site] for site in sites},
            provenance=Provenance(model={"name": name, "revision": "0"}),
            splits=("test", "train"),
            context_length=32,
            special_ids=SPECIAL,
            nonfinite=nonfinite,
            dtype=dtype,
            geometry=Geometry(unit_rows=256, chunk_bytes=64 * 4 * self.dim),
        )
        return folder


@pytest.fixture(scope="session")
def layers() -> Layers:
    return Layers()


@pytest.fixture(scope="session")
def make_layers() -> type[Layers]:
    return Layers


@pytest.fixture(scope="session")
def layers_folder(layers: Layers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return layers.build(tmp_path_factory.mktemp("layers") / "store")


@pytest.fixture
def store(layers_folder: Path) -> ActivationStore:
    return open_store(layers_folder)


@pytest.fixture(scope="session")
def centred() -> Callable[..., object]:
    """Moments of materialised rows, in float64: what ours are held against."""
    from actlake.jobs.transport.moments import PairMoments

    def moments(x: np.ndarray, y: np.ndarray, noise: float = 1e-12) -> PairMoments:
        x, y = x.astype(np.float64), y.astype(np.float64)
        mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
        dx, dy, n = x - mean_x, y - mean_y, len(x)
        return PairMoments(n, mean_x, mean_y, dx.T @ dx / n, dy.T @ dx / n, dy.T @ dy / n, noise)

    return moments
