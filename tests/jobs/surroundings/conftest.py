"""A small store that every job can work on, and commands as a user calls them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from actlake.storage import (
    Context,
    Document,
    Geometry,
    Provenance,
    Site,
    write_store,
)

DIM = 8
SITES = (Site(0), Site(1), Site(2))


def save_store(folder: Path) -> Path:
    """Forty documents of two topics, whose second coordinate says which."""
    rng = np.random.default_rng(0)
    lengths = [int(rng.integers(20, 33)) for _ in range(40)]
    topics = np.repeat(np.arange(40) % 2, lengths)
    splits = [("train", "train", "train", "test")[number // 2 % 4] for number in range(40)]
    documents = [
        Document(f"d{number}", "made", splits[number], "", {"topic": ("sea", "law")[number % 2]})
        for number in range(40)
    ]
    contexts = [
        Context(
            rng.integers(1, 60, length).astype(np.int32),
            np.full(length, number),
            np.arange(length, dtype=np.int32),
            splits[number],
        )
        for number, length in enumerate(lengths)
    ]
    stream = rng.normal(size=(len(topics), DIM)).astype(np.float32)
    stream[:, 1] += 4 * topics
    write_store(
        folder,
        [*documents, *contexts],
        {site: stream * (1 + site.layer) for site in SITES},
        provenance=Provenance(model={"name": "none", "revision": "0"}),
        splits=("test", "train"),
        context_length=32,
        special_ids=(0,),
        geometry=Geometry(unit_rows=256, chunk_bytes=64 * 4 * DIM),
    )
    return folder


@pytest.fixture(scope="session")
def small_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_store(tmp_path_factory.mktemp("small") / "store")


JOBS = {
    "transport": ("--pairs.layers", "0", "--pairs.k", "1", "--rows.groups", "4"),
    "probe": (
        "--tasks", "[{column: topic}]", "--probes", "mean_difference", "--controls", "[]",
        "--learning_curve", "[]", "--pooling", "mean", "--rows.groups", "4",
        "--rows.least_per_class", "2", "--device", "cpu",
        "--splits", "{by: document, stratify: true}",
    ),
    "sae": (
        "--sae", "{site: resid_post.1, d_sae: 16, options: {k: 4}}", "--batch_rows", "64",
        "--epochs", "1", "--evaluation.rows", "64", "--report.latents", "0",
        "--report.rows", "64", "--device", "cpu",
    ),
}  # fmt: skip
"""Small jobs of each kind on the small store, a few seconds each."""


@pytest.fixture(params=JOBS)
def job(request: pytest.FixtureRequest, small_store: Path) -> list[str]:
    """The beginning of a command line that wants an ``--out``."""
    return job_arguments(request.param, small_store)


def job_arguments(name: str, store: Path) -> list[str]:
    return [name, "--store", str(store), *JOBS[name]]


@pytest.fixture
def transport(small_store: Path) -> list[str]:
    """The quickest of the jobs, for what is alike in all."""
    return job_arguments("transport", small_store)


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def plain_environment(tmp_path: Path) -> dict[str, str]:
    """This one without what the person who runs the tests has set for Ray, W&B and terminals."""
    ours = ("RAY_", "WANDB_", "LC_", "PYTHONIO", "PYTHONUTF8", "HF_HUB")
    other = ("LANG", "COLUMNS", "DO_NOT_TRACK", "TERM")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(ours) and k not in other}
    home = tmp_path / "home"
    home.mkdir()
    return {**kept, "HOME": str(home), "NETRC": str(home / "netrc")}


@pytest.fixture
def command(tmp_path: Path, plain_environment: dict[str, str]) -> Run:
    """``command("info", store, COLUMNS="40")``: run it in an environment of its own."""

    def run(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "actlake.jobs", *map(str, arguments)],
            env=plain_environment | variables,
            capture_output=True, encoding="utf-8", errors="replace", timeout=200, check=False,
            cwd=tmp_path,
        )  # fmt: skip

    return run
