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
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

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


@pytest.fixture
def stranger() -> Iterator[tuple[str, dict[str, Any]]]:
    """A web server that answers every request with what the test says."""
    answer: dict[str, Any] = {"status": 200, "body": {}}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(answer["body"]).encode()
            self.send_response(answer["status"])
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        thread = threading.Thread(target=web.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{web.server_address[1]}", answer
        web.shutdown()
        thread.join()


def test_a_cluster_with_another_ray_is_refused_with_both_versions(
    stranger: tuple[str, dict[str, Any]],
) -> None:
    address, answer = stranger
    answer["body"] = {"ray_version": "2.41.3", "version": "4"}

    with pytest.raises(ClusterMismatch, match=r"runs Ray 2\.41\.3, and this is Ray 2\.60") as told:
        JobServer(address)

    assert "ray[default]==2.41.3" in str(told.value)


@pytest.mark.parametrize(("status", "body"), [(404, {}), (500, {}), (200, {"hello": 1})])
def test_something_that_is_no_dashboard_is_told_apart(
    stranger: tuple[str, dict[str, Any]], status: int, body: dict[str, Any]
) -> None:
    address, answer = stranger
    answer.update(status=status, body=body)

    with pytest.raises(ClusterUnreachable, match="does not answer as Ray's dashboard does"):
        JobServer(address)


def test_an_address_where_nobody_is_says_so_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        began = time.monotonic()

        with pytest.raises(ClusterUnreachable, match=r"Nobody answers at.*\n.*ssh -L"):
            JobServer(f"http://127.0.0.1:{taken.getsockname()[1]}")

    assert time.monotonic() - began < 5


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
