"""Jobs on a cluster that `ray start --head` made, with token authentication on."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import ray

from actlake.jobs.cli import run
from actlake.platform.cluster import (
    ClusterMismatch,
    ClusterUnreachable,
    InvalidClusterConfig,
    JobExists,
    JobNotFound,
    JobServer,
    Submission,
    job_start,
)
from actlake.platform.cluster import submission as submission_module
from actlake.platform.cluster.gauges import gauge_name
from actlake.platform.cluster.submission import dashboard_address

DRIVER = """
import os, signal, sys, time
def drain(*_):
    time.sleep(4)
    print("drained", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, drain)
print("ready", os.environ["GREETING"], sys.argv[1], flush=True)
time.sleep(60 if sys.argv[1] == "long" else 0)
"""

GAUGES = """
import sys, time
from actlake.platform.cluster import ClusterConfig, Gauges, session
with session(ClusterConfig(address=sys.argv[1])):
    gauges = Gauges({"store": "f00d"})
    gauges.set({"harvest/tokens_per_s": 812.0, "harvest/replica_0/stage_1/wait_share": 0.25})
    print("set", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _no_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("RAY_A"):
            monkeypatch.delenv(name)


@pytest.fixture
def server(ray_head: Any) -> JobServer:
    return JobServer(ray_head.dashboard, token=ray_head.token)


def submission(folder: Path, job_id: str, words: str) -> Submission:
    (folder / "driver.py").write_text(DRIVER)
    return Submission(
        job_id=job_id,
        folder=folder,
        entrypoint=f"exec python -u driver.py {words}",
        environment={"GREETING": "good day"},
        labels={"actlake": "test"},
        drain_s=30,
    )


@pytest.mark.ray
def test_a_job_is_followed_from_its_first_word_to_its_last(
    server: JobServer, tmp_path: Path
) -> None:
    server.submit(submission(tmp_path, "followed", "short"))

    text = "".join(server.follow("followed"))

    assert "ready good day short" in text
    assert text == server.log("followed")
    job = server.job("followed")
    assert (job.state, job.status, job.labels["actlake"]) == ("SUCCEEDED", 0, "test")
    assert server.jobs()[0].job_id == "followed"


@pytest.mark.ray
def test_a_stopped_job_has_its_drain_time(server: JobServer, tmp_path: Path) -> None:
    server.submit(submission(tmp_path, "drained", "long"))
    for text in server.follow("drained"):
        if "ready" in text:
            break

    assert server.stop("drained")
    job = server.wait("drained", timeout_s=30)

    assert (job.state, job.status) == ("STOPPED", 143)
    assert "drained" in server.log("drained").splitlines()[-1]  # Ray's own time is 3 s
    assert not server.stop("drained")


@pytest.mark.ray
def test_ids_are_of_one_job_and_unknown_ones_are_named(server: JobServer, tmp_path: Path) -> None:
    server.submit(submission(tmp_path, "only-once", "short"))

    with pytest.raises(JobExists, match="hint: give another --id"):
        server.submit(submission(tmp_path, "only-once", "short"))
    with pytest.raises(JobNotFound, match="did you mean 'only-once'"):
        server.job("only-onse")
    with pytest.raises(JobNotFound):
        list(server.follow("only-onse"))


@pytest.mark.ray
def test_a_cluster_with_a_token_refuses_none_and_another(ray_head: Any) -> None:
    with pytest.raises(ClusterUnreachable, match=r"wants a token.*\n.*RAY_AUTH_TOKEN_PATH"):
        JobServer(ray_head.dashboard)
    with pytest.raises(ClusterUnreachable, match="does not accept our token"):
        JobServer(ray_head.dashboard, token="f" * 64)


@pytest.mark.ray
def test_the_token_is_read_from_the_file_that_is_named(
    ray_head: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(ClusterUnreachable, match="token cannot be read"):
        JobServer(ray_head.dashboard)

    (tmp_path / "token").write_text(f"{ray_head.token}\n")

    assert JobServer(ray_head.dashboard).nodes()[0].cpus == 4


@pytest.mark.ray
def test_another_clusters_variables_do_not_win_over_the_address(
    ray_head: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://203.0.113.1:8265")

    server = JobServer(ray_head.dashboard, token=ray_head.token)

    assert server.nodes_without_agent() == []
    assert not server.is_open_to_all()
    assert os.environ["RAY_ADDRESS"] == "http://203.0.113.1:8265"


@pytest.mark.ray
def test_a_driver_that_joins_with_other_code_is_refused(ray_head: Any, tmp_path: Path) -> None:
    for name, path in job_start.code_files(job_start.package_folders()).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, tmp_path / name)
    with (tmp_path / "actlake" / "jobs" / "stores.py").open("a") as file:
        file.write("# another line\n")

    joined = subprocess.run(
        [sys.executable, "-c", GAUGES, ray_head.address],
        env=ray_head.environment | {"PYTHONPATH": str(tmp_path)},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip

    assert joined.returncode == 1
    assert "ClusterMismatch: 1 node(s) of the cluster run other code" in joined.stderr
    assert "hint: `actlake submit` ships its code" in joined.stderr


@pytest.mark.ray
def test_numbers_of_a_run_are_at_the_nodes_metrics_port(ray_head: Any) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", GAUGES, ray_head.address],
        env=ray_head.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as driver:  # fmt: skip
        assert driver.stdout is not None
        assert driver.stdout.readline() == "set\n"
        wanted = "ray_actlake_harvest_wait_share{"
        lines: list[str] = []
        end = time.monotonic() + 60
        while not lines and time.monotonic() < end:
            time.sleep(0.5)
            lines = [line for line in _scrape(ray_head.metrics_port) if line.startswith(wanted)]
        driver.communicate(timeout=60)

    assert lines
    assert lines[0].endswith(" 0.25")
    assert {'replica="0"', 'stage="1"', 'store="f00d"'} <= set(
        lines[0].partition("{")[2].partition("}")[0].split(",")
    )


def _scrape(port: int) -> list[str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        return str(page.read().decode()).splitlines()


class Stranger:
    """A web server that answers requests with what the test says."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.status = 200
        self.body: Any = {}
        self.next: dict[str, list[tuple[int, Any]]] = {}
        """By path, answers to come before `status` and `body`; 0 closes the connection."""

    def answer(self, path: str) -> tuple[int, Any]:
        coming = self.next.get(path)
        return coming.pop(0) if coming else (self.status, self.body)

    def as_ray(self) -> JobServer:
        """Connected to as to a dashboard, which fails from now on."""
        self.body = {"ray_version": ray.__version__, "version": "4"}
        server = JobServer(self.address)
        self.status, self.body = 500, "Internal Server Error"
        return server


@pytest.fixture
def stranger(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stranger]:
    monkeypatch.setattr(submission_module, "_POLL_S", 0.001)
    made: list[Stranger] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = made[0].answer(self.path)
            if not status:
                self.close_connection = True
                return
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_PUT = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        thread = threading.Thread(target=web.serve_forever, args=(0.02,))
        thread.start()
        made.append(Stranger(f"http://127.0.0.1:{web.server_address[1]}"))
        yield made[0]
        web.shutdown()
        thread.join()


def details(state: str) -> dict[str, str]:
    return {"type": "SUBMISSION", "submission_id": "one", "status": state, "entrypoint": "true"}


@pytest.mark.parametrize(
    "ask",
    [
        lambda server: server.jobs(),
        lambda server: server.job("one"),
        lambda server: server.log("one"),
        lambda server: server.stop("one"),
        lambda server: server.nodes(),
        lambda server: server.wait("one", timeout_s=5),
        lambda server: list(server.follow("one")),
    ],
    ids=["jobs", "job", "log", "stop", "nodes", "wait", "follow"],
)
@pytest.mark.parametrize("status", [500, 0], ids=["500", "no answer"])
def test_a_dashboard_that_fails_once_it_was_reached_is_told_in_words(
    stranger: Stranger, ask: Callable[[JobServer], object], status: int
) -> None:
    server = stranger.as_ray()
    stranger.status = status

    with pytest.raises(ClusterUnreachable, match=r"(does not answer|no longer answers).*\nhint: "):
        ask(server)


@pytest.mark.parametrize(
    "words",
    [["list"], ["status", "one"], ["stop", "one"], ["logs", "one"], ["logs", "one", "--follow"]],
    ids=" ".join,
)
def test_the_commands_say_so_too(
    stranger: Stranger, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    stranger.as_ray()
    version = {"ray_version": ray.__version__, "version": "4"}
    stranger.next["/api/version"] = [(200, version)] * 4

    assert run(["jobs", *words, "--address", stranger.address]) == 1

    said = capsys.readouterr().err
    assert f"actlake jobs: {stranger.address} " in said
    assert "longer answers" in said or "does not answer as it should" in said
    assert "hint: " in said


def test_a_job_is_followed_through_failures_of_the_dashboard(stranger: Stranger) -> None:
    server = stranger.as_ray()
    over = (200, details("SUCCEEDED"))
    stranger.next["/api/jobs/one"] = [(500, ""), (0, ""), over, over, over, over]
    stranger.next["/api/jobs/one/logs"] = [(500, ""), (200, {"logs": "all of it"})]

    assert list(server.follow("one")) == ["all of it"]


def test_a_pending_job_is_waited_for_through_failures_of_the_dashboard(stranger: Stranger) -> None:
    server = stranger.as_ray()
    answers = [(200, details("PENDING")), (500, ""), (0, ""), (200, details("RUNNING"))]
    stranger.next["/api/jobs/one"] = answers

    assert server.wait("one", timeout_s=30, begun=True).state == "RUNNING"


def test_a_job_that_a_new_head_has_forgotten_is_told_so(
    stranger: Stranger, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = stranger.as_ray()
    gone = (404, "Job one does not exist")
    stranger.next["/api/jobs/one"] = [(200, details("RUNNING")), gone]
    stranger.next["/api/jobs/"] = [(200, [])]
    monkeypatch.setattr(submission_module, "_tail", lambda *_: iter(["begun"]))

    following = server.follow("one")
    assert next(following) == "begun"
    with pytest.raises(ClusterUnreachable, match="whose head has died forgets its jobs"):
        next(following)


def test_a_submission_without_an_answer_is_not_taken_for_refused(
    stranger: Stranger, tmp_path: Path
) -> None:
    server = stranger.as_ray()
    stranger.status = 0

    with pytest.raises(ClusterUnreachable, match=r"is not known\nhint: `actlake jobs status lost`"):
        server.submit(submission(tmp_path, "lost", "short"))


def test_a_cluster_with_another_ray_is_refused_with_both_versions(
    stranger: Stranger,
) -> None:
    stranger.body = {"ray_version": "2.41.3", "version": "4"}

    with pytest.raises(ClusterMismatch, match=r"runs Ray 2\.41\.3, and this is Ray 2\.60") as told:
        JobServer(stranger.address)

    assert "ray[default]==2.41.3" in str(told.value)


@pytest.mark.parametrize(("status", "body"), [(404, {}), (500, {}), (200, {"hello": 1})])
def test_something_that_is_no_dashboard_is_told_apart(
    stranger: Stranger, status: int, body: dict[str, Any]
) -> None:
    stranger.status, stranger.body = status, body

    with pytest.raises(ClusterUnreachable, match="does not answer as Ray's dashboard does"):
        JobServer(stranger.address)


def test_an_address_where_nobody_is_says_so_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        began = time.monotonic()

        with pytest.raises(ClusterUnreachable, match=r"Nobody answers at.*\n.*ssh -L"):
            JobServer(f"http://127.0.0.1:{taken.getsockname()[1]}")

    assert time.monotonic() - began < 5


def test_a_dashboard_that_the_environment_names_is_said_to_be_its(monkeypatch):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    with pytest.raises(ClusterUnreachable, match=r"\(from \$RAY_API_SERVER_ADDRESS\)"):
        JobServer()

    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "127.0.0.1:1")
    with pytest.raises(InvalidClusterConfig, match=r"\(from \$RAY_API_SERVER_ADDRESS\)"):
        JobServer()


@pytest.mark.parametrize("address", ["head:6379", "ray://head:10001", "auto", "http://"])
def test_addresses_that_are_no_dashboards_are_refused(address: str) -> None:
    with pytest.raises(InvalidClusterConfig, match="hint: the dashboard"):
        dashboard_address(address)


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(InvalidClusterConfig) as told:
        dashboard_address("http://me:hunter2@head:8265")

    assert "hunter2" not in str(told.value)


def test_a_job_from_another_python_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    job = {"python": "3.99", "code": job_start.code_hash()}

    assert "submitted from 3.99" in job_start.mismatch(job)
    assert "--python" in job_start.mismatch(job)


def test_a_cluster_without_actlake_or_with_another_is_refused_in_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    python = "{}.{}".format(*sys.version_info)

    assert "other code of actlake" in job_start.mismatch({"python": python, "code": "f00d"})
    monkeypatch.setattr(job_start, "package_folders", dict)
    assert "has no actlake" in job_start.mismatch({"python": python, "code": "f00d"})


def test_the_hash_of_code_sees_one_byte_and_no_caches(tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in job_start.PACKAGES}
    for folder in folders.values():
        (folder / "__pycache__").mkdir(parents=True)
        (folder / "a.py").write_text("a = 1\n")
    before = job_start.code_hash(folders)

    (folders["jobs"] / "__pycache__" / "a.py").write_text("cached")
    assert job_start.code_hash(folders) == before
    (folders["jobs"] / "a.py").write_text("a = 2\n")
    assert job_start.code_hash(folders) != before


def test_numbered_parts_of_a_metric_become_labels() -> None:
    assert gauge_name("harvest/tokens_per_s") == ("actlake_harvest_tokens_per_s", {})
    assert gauge_name("system/replica_12/stage_3/memory_mb") == (
        "actlake_system_memory_mb",
        {"replica": "12", "stage": "3"},
    )
    assert gauge_name("norm/resid_post.9")[0] == "actlake_norm_resid_post_9"
