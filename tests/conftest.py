"""What tests of several packages share: one real model, fetched once; real harvests of it."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

# What lies in a store and is no part of its identity.
BESIDE = ("ledger", "log", "index", "labels", "partial")

# Two cores are enough for one embedded Ray; its agents outlive a killed driver by a minute.
ENVIRONMENT = {
    "WANDB_MODE": "offline",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
}


class Driver:
    """One `actlake` command in a process group of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._psutil = psutil.Process(process.pid)

    def actors(self) -> list[psutil.Process]:
        """The worker processes that hold a stage of the model."""
        found = []
        for child in self._psutil.children(recursive=True):
            try:
                title = " ".join(child.cmdline()[:1])
            except psutil.Error:
                continue
            if title.startswith("ray::") and "IDLE" not in title and "agent" not in title.lower():
                found.append(child)
        return found

    def kill(self) -> None:
        """SIGKILL the driver and, as a machine that dies would, all that it started."""
        family = [self._psutil, *self._psutil.children(recursive=True)]
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, timeout=10)

    def wait(self, timeout_s: float = 240) -> str:
        """Wait for the end; all output."""
        out, _ = self.process.communicate(timeout=timeout_s)
        return out


def environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "WANDB_"))}
    return kept | ENVIRONMENT


@pytest.fixture(scope="session")
def start() -> Callable[..., Driver]:
    """``start("harvest", "--store", …)``: start a command and return at once."""

    def run(*arguments: str) -> Driver:
        return Driver(
            subprocess.Popen(
                [sys.executable, "-m", "actlake.jobs", *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=environment(),
            )
        )

    return run


@pytest.fixture(scope="session")
def actlake(start: Callable[..., Driver]) -> Callable[..., tuple[int, str]]:
    """``actlake("info", path)``: run a command to its end; (status, output)."""

    def run(*arguments: str) -> tuple[int, str]:
        driver = start(*arguments)
        out = driver.wait()
        return driver.process.returncode, out

    return run


@contextmanager
def _deadline(seconds: float, what: str) -> Iterator[Callable[[], None]]:
    end = time.monotonic() + seconds

    def tick() -> None:
        assert time.monotonic() < end, what
        time.sleep(0.02)

    yield tick


@pytest.fixture(scope="session")
def wait_for() -> Callable[..., None]:
    """Wait until something is true, and fail with `what` when it does not become so."""

    def wait(condition: Callable[[], bool], what: str, *, timeout_s: float = 120) -> None:
        with _deadline(timeout_s, what) as tick:
            while not condition():
                tick()

    return wait


@pytest.fixture(scope="session")
def harvest_arguments(smollm2_folder: Path) -> Callable[[Path], list[str]]:
    """The command line of a small real harvest: 24 units of SmolLM2's lower layers."""

    def arguments(store: Path) -> list[str]:
        return [
            "harvest",
            *("--store", str(store)),
            *("--model.name", str(smollm2_folder)),
            *("--sites", "resid_pre.0,resid_post.3,resid_post.9"),
            *("--corpus.max_tokens", "6000"),
            *("--corpus.context_length", "128"),
            *("--storage.unit_rows", "512"),
            *("--batch_tokens", "256"),
            *("--threads", "1"),
        ]

    return arguments


@pytest.fixture(scope="session")
def smollm2_store(
    tmp_path_factory: pytest.TempPathFactory,
    actlake: Callable[..., tuple[int, str]],
    harvest_arguments: Callable[[Path], list[str]],
) -> Path:
    """A finished store of an undisturbed harvest; tests copy it before they change it."""
    store = tmp_path_factory.mktemp("undisturbed") / "store"

    status, out = actlake(*harvest_arguments(store))

    assert status == 0, out
    return store


@pytest.fixture(scope="session")
def tree() -> Callable[[Path], dict[str, bytes]]:
    """Everything of a store that must be equal byte for byte: arrays, Parquet, schema."""

    def contents(folder: Path) -> dict[str, bytes]:
        return {
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.relative_to(folder).parts[0] not in BESIDE
        }

    return contents


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """The folder of SmolLM2-135M-Instruct; a test that needs it fails where it cannot be had."""
    from actlake.platform.models.smollm2 import smollm2_folder

    return smollm2_folder()
