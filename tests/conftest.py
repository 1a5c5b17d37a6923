"""What tests of several packages share: one real model, fetched once; real harvests of it."""

import multiprocessing
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.request import Request, urlopen

import psutil
import pytest
from hypothesis import settings

# What lies in a store and is no part of its identity.
BESIDE = ("ledger", "log", "index", "labels", "partial", "leftovers")

# Two cores are enough for one embedded Ray; its agents outlive a killed driver by a minute.
ENVIRONMENT = {
    "WANDB_MODE": "offline",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
}


# No test fails for being slow once: machines are busy.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

# In the background of a shell SIGINT is ignored, and so it is in every command that a test starts
# there to interrupt it. A handler of Python's own is not handed on; commands begin with the usual.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


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

    def run(*arguments: str, env: Mapping[str, str] | None = None) -> Driver:
        return Driver(
            subprocess.Popen(
                [sys.executable, "-m", "actlake.jobs", *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=environment() | dict(env or {}),
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


def pool_threads() -> dict[str, int]:
    """Threads of every pool of this process that a library says the size of."""
    import pyarrow as pa
    import torch
    from threadpoolctl import threadpool_info

    told = re.findall(r"(mkl|omp)_get_max_threads\(\) : (\d+)", torch.__config__.parallel_info())
    blas = {p["filepath"]: p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"}
    return {
        "torch": torch.get_num_threads(),
        "arrow": pa.cpu_count(),
        **{name: int(number) for name, number in told},
        **blas,
    }


@pytest.fixture
def pools() -> Callable[[], dict[str, int]]:
    return pool_threads


@pytest.fixture
def in_a_fork() -> Callable[[Callable[[], object]], object]:
    """``in_a_fork(deed)``: what the deed returns, or raises, in a forked copy of this process."""

    def run(deed: Callable[[], object]) -> object:
        context = multiprocessing.get_context("fork")
        answers = context.Queue()

        def answer() -> None:
            try:
                answers.put(deed())
            except Exception as error:
                answers.put(error)

        child = context.Process(target=answer)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # that of forking with threads
            child.start()
        try:
            found = answers.get(timeout=30)
        except queue.Empty:
            pytest.fail("the forked process hangs")
        finally:
            child.join(5)
            child.kill()
        assert child.exitcode == 0, "the forked process does not end"
        return found

    return run


@pytest.fixture
def kills_one() -> Callable[[str], AbstractContextManager[None]]:
    """``with kills_one("ray::compute_part"):`` SIGKILL the first worker of ours so entitled."""

    @contextmanager
    def killing(title: str) -> Iterator[None]:
        ended, killed = threading.Event(), threading.Event()

        def watch() -> None:
            while not ended.wait(0.02):
                for child in psutil.Process().children(recursive=True):
                    with suppress(psutil.Error):
                        if " ".join(child.cmdline()[:1]).startswith(title):
                            child.kill()
                            killed.set()
                            return

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()
        assert killed.is_set(), f"there was no {title} to kill"

    return killing


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
            "--no-check",  # the loss takes the layers above, twice as long as all the rest
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


@dataclass(frozen=True)
class Bucket:
    """An empty bucket of an S3 server on this machine."""

    server: str
    name: str
    environment: Mapping[str, str]
    """What a process needs to reach it."""

    @property
    def url(self) -> str:
        return f"s3://{self.name}"


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of moto's S3 server, a process of its own."""
    log = tmp_path_factory.mktemp("s3") / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
            stdout=file,
            stderr=file,
        )
    try:
        with _deadline(60, "the S3 server does not start") as tick:
            while not (found := re.search(r"Running on (http://[\d.]+:\d+)", log.read_text())):
                assert process.poll() is None, log.read_text()
                tick()
        yield found[1]
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def bucket(
    s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Bucket:
    """An empty bucket; this process and those it starts can open it."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    environment = {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "key-of-the-tests",
        "AWS_SECRET_ACCESS_KEY": "secret-of-the-tests",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "no-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "no-credentials"),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    name = f"bucket-{zlib.crc32(request.node.nodeid.encode()):08x}-{os.urandom(4).hex()}"
    urlopen(Request(f"{s3_server}/{name}", method="PUT"), timeout=30).close()
    return Bucket(s3_server, name, environment)


@dataclass(frozen=True)
class RayHead:
    """A cluster of one node that `ray start --head` made, with token authentication."""

    dashboard: str
    address: str
    token: str
    metrics_port: int
    environment: dict[str, str]
    """For commands that use it."""


@pytest.fixture(scope="session")
def ray_head() -> Iterator[RayHead]:
    """Started on free ports by `actlake cluster`; only its own processes are ended."""
    gcs, dashboard, agent, client, metrics = _free_ports(5)
    folder = tempfile.mkdtemp(prefix="rh")  # short: the names of Ray's sockets are limited
    token_file = Path(folder) / "token"
    url = f"http://127.0.0.1:{dashboard}"
    try:
        started = subprocess.run(
            [
                *(sys.executable, "-m", "actlake.jobs", "cluster", "head"),
                *("--token-file", str(token_file), "--"),
                *("--num-cpus=4", f"--port={gcs}", f"--dashboard-port={dashboard}"),
                *(f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"),
                *(f"--metrics-export-port={metrics}", f"--object-store-memory={128 * 2**20}"),
                *(f"--temp-dir={folder}", '--system-config={"metrics_report_interval_ms": 1000}'),
            ],
            env=environment(), capture_output=True, text=True, timeout=150, check=False,
        )  # fmt: skip
        assert started.returncode == 0, started.stdout + started.stderr
        token = token_file.read_text()
        ours = environment() | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        address = f"127.0.0.1:{gcs}"
        yield RayHead(url, address, token, metrics, ours | {"RAY_API_SERVER_ADDRESS": url})
    finally:
        _end_family(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    """Ports nobody listens on; the system gives them from above those Ray gives its workers."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def _end_family(folder: str) -> None:
    """End the processes that name a folder in their command line, and their children."""
    family: set[psutil.Process] = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if folder in " ".join(process.cmdline()):
                family |= {process, *process.children(recursive=True)}
    for process in family:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(family, timeout=10)
