"""A cluster of several nodes on loopback, and what must be true after every failure."""

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from actlake.storage import open_store, verify
from actlake.storage.store import StoreNotFound

NODES = Path(__file__).with_name("nodes.py")
UNITS = 24


class Nodes:
    """A running cluster. Its processes are real and may be killed."""

    def __init__(self, cpus: tuple[int | str, ...]) -> None:
        self.env = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_IGNORE_UNHANDLED_ERRORS": "1",
        }
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "WANDB_"))}
        self.environment = kept | self.env
        self.process = subprocess.Popen(
            [sys.executable, str(NODES), *map(str, cpus)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=self.environment,
        )
        said = self._answer()
        self.address: str = said["address"]
        self.folder: str = said["folder"]
        self.head: list[int] = said["head"]
        self.raylets: list[int] = said["raylets"]

    def add(self, cpus: int) -> int:
        """One more node; its raylet."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"add {cpus}\n")
        self.process.stdin.flush()
        self.raylets.append(self._answer()["raylet"])
        return self.raylets[-1]

    def _answer(self):
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        self.process.communicate()
        raise AssertionError("the cluster did not start")

    def stages(self, raylet: int | None = None) -> list[psutil.Process]:
        """Processes that hold a stage of a model, of all nodes or of one."""
        found = []
        for pid in [raylet] if raylet else self.raylets:
            with suppress(psutil.NoSuchProcess):
                for child in psutil.Process(pid).children(recursive=True):
                    with suppress(psutil.Error):
                        if "StageActor" in " ".join(child.cmdline()[:1]):
                            found.append(child)
        return sorted(found, key=lambda process: process.pid)

    def _family(self) -> set[psutil.Process]:
        """Every process below the cluster's own, and below raylets that others started."""
        family: set[psutil.Process] = set()
        for pid in [self.process.pid, *self.head, *self.raylets]:
            with suppress(psutil.NoSuchProcess):
                family |= set(psutil.Process(pid).children(recursive=True))
        return family

    def end(self) -> None:
        """End everything that belongs to the cluster, agents that linger included.

        A worker that was stopped outlives its raylet, and its title names no folder.
        """
        family = self._family()
        try:
            self.process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
        for process in psutil.process_iter(["cmdline"]):
            if any(self.folder in word for word in process.info["cmdline"] or ()):
                family.add(process)
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, timeout=10)
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def _running(*cpus: int | str) -> Iterator[Nodes]:
    nodes = Nodes(cpus)
    try:
        yield nodes
    finally:
        nodes.end()


@pytest.fixture
def cluster():
    """``with cluster(1, "2:1") as nodes``: a head, a node of one CPU, one of two and a GPU."""
    return _running


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Nodes]:
    """Two nodes of two CPUs each, for all tests that leave them alive."""
    with _running(2, 2) as nodes:
        yield nodes


@pytest.fixture
def launch(start) -> Iterator[Callable[..., Any]]:
    """As everywhere; what a failed test leaves running is ended."""
    started = []

    def remembered(*arguments: str, env: Mapping[str, str]):
        started.append(start(*arguments, env=env))
        return started[-1]

    yield remembered
    for driver in started:
        if driver.process.poll() is None:
            driver.kill()
            driver.process.communicate()


@pytest.fixture
def command(harvest_arguments):
    """The command line of a harvest on these nodes."""

    def arguments(store: Path, nodes: Nodes, *more: str) -> list[str]:
        return [*harvest_arguments(store), "--cluster.address", nodes.address, *more]

    return arguments


def committed(store: Path) -> int:
    """Units that are committed for all sites."""
    try:
        opened = open_store(store)
    except StoreNotFound:
        return 0
    return len(opened.committed()) if opened.sites else 0


@pytest.fixture
def some_units(wait_for):
    """Wait until some more units of a store are committed, but not all."""

    def wait(store: Path, more: int = 2) -> int:
        before = committed(store)
        wait_for(lambda: committed(store) >= before + more, "too few units", timeout_s=300)
        done = committed(store)
        assert done < UNITS, "the harvest was done before anything could be killed"
        return done

    return wait


@pytest.fixture
def whole(smollm2_store, tree):
    """What must be true in the end; `out` is shown where it is not."""

    def check(store: Path, out: str, nodes: Nodes | None = None, *, before: int = 0) -> None:
        assert tree(store) == tree(smollm2_store), out
        assert verify(open_store(store)).is_whole
        status = json.loads((store / "log" / "status.json").read_text())
        assert status["harvest/units"] == UNITS, "each unit is counted once"
        assert status["harvest/rows"] == open_store(store).schema.rows
        assert not list((store / "partial").glob("*")), "something half-written was left"
        assert before < UNITS
        if nodes is not None:
            assert_no_stages(nodes)

    return check


def assert_no_stages(nodes: Nodes) -> None:
    deadline = time.monotonic() + 15
    while running := nodes.stages():
        assert time.monotonic() < deadline, f"still running: {running}"
        time.sleep(0.1)
