"""Sessions: how they begin, what they hear, and that nothing of them is left."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from actlake.platform.cluster import (
    ClusterConfig,
    ClusterError,
    ClusterUnreachable,
    InvalidClusterConfig,
    PoolEvent,
    ReplicaSpec,
    Resources,
    Session,
    StageSpec,
    run_units,
    session,
)
from actlake.platform.cluster.interrupts import (
    current_handlers,
    drain_s,
    no_ctrl_c_is_lost,
    stop_flag,
)
from actlake.platform.cluster.same_code import ask_nodes
from actlake.platform.cluster.session import _joined, _own_folder, address_of
from actlake.storage.processes import is_gone, this_process

SLOW_UNITS = """
import json, os, sys, time
from ray import cloudpickle
from actlake.platform.cluster import *

class Slow:
    def run(self, unit, send):
        print("in a unit", flush=True)
        time.sleep(3.6)  # Ray's own handler would end the driver after 3 s
        return os.environ.get("WANDB_SERVICE"), os.environ["OMP_NUM_THREADS"]

cloudpickle.register_pickle_by_value(sys.modules["__main__"])
receipts = []
with session(ClusterConfig(address="local", num_cpus=1, worker_output=True)) as cluster:
    result = run_units(
        cluster, range(5), ReplicaSpec(stages=(StageSpec(make=Slow, threads=3),)),
        replicas=1, in_flight=1, on_done=lambda unit, receipts_, timing: receipts.extend(receipts_),
    )
print(json.dumps({"stopped": result.stopped, "done": result.done, "receipts": receipts}))
"""

JOIN = """
import sys
from actlake.platform.cluster import ClusterConfig, session
with session(ClusterConfig(address=sys.argv[1])) as cluster:
    print(cluster.embedded, cluster.nodes()[0].cpus)
"""

INTERRUPTED = """
import sys
from actlake.platform.cluster import session
print("begins", flush=True)
try:
    with session() as cluster:
        cluster.stop.wait(60)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Pytest's own folders have names too long for Ray's sockets."""
    folder = Path(tempfile.mkdtemp(prefix="t"))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.ray
def test_signals_let_a_run_finish_its_unit_and_nothing_is_left_behind(
    short_folder: Path, tmp_path: Path
) -> None:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("RAY_")
    } | {
        "HOME": str(tmp_path),
        "TMPDIR": str(short_folder),
        "WANDB_SERVICE": "of the driver",
        "RAY_ADDRESS": "203.0.113.1:6379",
    }
    driver = subprocess.Popen(
        [sys.executable, "-c", SLOW_UNITS],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert driver.stdout is not None
    assert "in a unit" in driver.stdout.readline()
    started = psutil.Process(driver.pid).children(recursive=True)

    os.killpg(driver.pid, signal.SIGINT)  # as a terminal does: the workers get it as well
    driver.send_signal(signal.SIGTERM)
    output = driver.communicate(timeout=60)[0]

    said = json.loads(output.splitlines()[-1])
    assert said == {"stopped": True, "done": 1, "receipts": [[None, "3"]]}
    assert driver.returncode == 0
    _, left = psutil.wait_procs(started, timeout=10)
    assert left == []
    assert list(short_folder.iterdir()) == []
    assert not (tmp_path / ".ray").exists()


@pytest.mark.ray
@pytest.mark.parametrize("processes", [1, 4, 6])
def test_of_a_ray_that_ctrl_c_meets_while_it_starts_nothing_is_left(
    short_folder: Path, processes: int
) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    driver = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED],
        env=environment | {"TMPDIR": str(short_folder)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert driver.stdout is not None
    assert driver.stdout.readline() == "begins\n"
    started: list[psutil.Process] = []
    while len(started) < processes:
        started = psutil.Process(driver.pid).children(recursive=True)

    os.killpg(driver.pid, signal.SIGINT)
    driver.communicate(timeout=60)

    assert driver.returncode in (0, 130)  # 0: it had just started
    _, left = psutil.wait_procs(started, timeout=10)
    assert left == []
    assert list(short_folder.iterdir()) == []


def test_a_ctrl_c_that_was_swallowed_is_heard_after_the_block() -> None:
    """As Python does in a hook of ``os.fork``, of which a Ray that starts has many."""
    before, reached = current_handlers(), []

    with pytest.raises(KeyboardInterrupt), no_ctrl_c_is_lost():  # noqa: PT012
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        reached.append("the end")

    assert reached == ["the end"]
    assert current_handlers() == before


@pytest.mark.ray
def test_another_process_with_the_token_joins_and_leaves(ray_session: Session) -> None:
    joined = subprocess.run(
        [sys.executable, "-c", JOIN, ray_session.address],
        capture_output=True,
        text=True,
        check=False,
    )

    assert joined.stdout == "False 4.0\n", joined.stderr
    assert ray_session.nodes()[0].cpus == 4


@pytest.mark.ray
@pytest.mark.slow
def test_another_process_without_the_token_is_refused(ray_session: Session, tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}

    refused = subprocess.run(
        [sys.executable, "-c", JOIN, ray_session.address],
        env=environment | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert refused.returncode == 1
    assert "ClusterUnreachable" in refused.stderr
    assert "hint: a cluster with authentication needs RAY_AUTH_MODE=token" in refused.stderr


def test_only_nodes_with_room_are_asked(ray_session: Session) -> None:
    def length(text: str) -> int:
        return len(text)

    assert [one.value for one in ask_nodes(length, "abc", on=Resources(cpus=1))] == [3]
    assert ask_nodes(length, "abc", on=Resources(cpus=1, gpus=64)) == []


def test_an_address_where_nobody_is_says_so_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        began = time.monotonic()

        with pytest.raises(ClusterUnreachable, match="There is no cluster at"):
            _joined(address, ClusterConfig()).__enter__()

    assert time.monotonic() - began < 5


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "ray://head:10001"])
def test_an_address_of_another_kind_is_refused_with_where_it_came_from(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)

    with pytest.raises(InvalidClusterConfig, match=r"\$RAY_ADDRESS"):
        address_of(ClusterConfig())


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:99999", "auto", "127.0.0.1"])
def test_an_address_of_the_environment_is_said_to_be_its_and_how_to_do_without(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)

    # What `session` does in a process that is not connected; that of the tests may be.
    def join(config: ClusterConfig) -> None:
        _joined(address_of(config), config).__enter__()

    with pytest.raises(ClusterError) as refused:
        join(ClusterConfig())

    assert f"'{address}' (from $RAY_ADDRESS)" in str(refused.value)
    assert "--cluster.address local" in str(refused.value)

    with pytest.raises(ClusterError) as refused:
        join(ClusterConfig(address=address))

    assert f"'{address}' (from cluster.address)" in str(refused.value)
    assert "$RAY_ADDRESS" not in str(refused.value)


def test_an_address_in_the_config_goes_before_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")

    assert address_of(ClusterConfig(address="local")) == "local"
    assert address_of(ClusterConfig()) == "10.0.0.1:6379"


@pytest.mark.parametrize("field", ["num_cpus", "object_store_mb", "connect_timeout_s"])
def test_zero_of_anything_is_refused_by_name(field: str) -> None:
    with pytest.raises(InvalidClusterConfig, match=field):
        ClusterConfig(**{field: 0})


def test_the_first_interrupt_sets_the_flag_and_the_second_interrupts() -> None:
    stop = threading.Event()
    before = current_handlers()

    with pytest.raises(KeyboardInterrupt), stop_flag(stop, restore=before):  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        assert stop.is_set()
        signal.raise_signal(signal.SIGINT)

    assert current_handlers() == before


def test_a_termination_repeated_only_sets_the_flag() -> None:
    stop = threading.Event()

    with stop_flag(stop, restore=current_handlers()):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)

    assert stop.is_set()


@pytest.mark.ray
def test_a_session_within_a_session_uses_the_same_cluster_and_leaves_it(
    ray_session: Session,
) -> None:
    with session(ClusterConfig()) as inner:
        assert inner.address == ray_session.address
        assert not inner.embedded

    assert ray_session.nodes()[0].cpus == 4


JOIN_WITH_ANOTHER_RAY = (
    """
import ray
ray.__version__ = "2.41.3"
"""
    + JOIN
)


@pytest.mark.ray
def test_a_process_with_another_ray_is_refused_with_both_versions(ray_head: Any) -> None:
    refused = subprocess.run(
        [sys.executable, "-c", JOIN_WITH_ANOTHER_RAY, ray_head.address],
        env=ray_head.environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip

    assert refused.returncode == 1
    assert "ClusterMismatch" in refused.stderr
    assert f"Ray: {ray.__version__}" in refused.stderr
    assert "hint: use the cluster's versions of Ray and Python here (this is Ray 2.41.3)" in (
        refused.stderr
    )


def test_what_a_killed_session_left_behind_goes_with_the_next(tmp_path: Path) -> None:
    owners = {
        "dead": this_process() | {"pid": 2**22 + 1},
        "alive": this_process(),
        "elsewhere": this_process() | {"boot": "another"},
    }
    for name, owner in owners.items():
        (tmp_path / f"rt{name}").mkdir()
        (tmp_path / f"rt{name}" / "owner.json").write_text(json.dumps(owner))
    (tmp_path / "rtother").mkdir()

    ours = _own_folder(tmp_path)

    left = {path.name for path in tmp_path.iterdir()}
    assert left == {ours.name, "rtalive", "rtelsewhere", "rtother"}
    assert not is_gone(json.loads((ours / "owner.json").read_text()))


@pytest.mark.parametrize(
    ("given", "expected"), [(None, 60), ("60", 45), ("300", 285), ("10", 5), ("1", 0.5)]
)
def test_a_drain_ends_before_ray_kills_the_job(
    monkeypatch: pytest.MonkeyPatch, given: str | None, expected: float
) -> None:
    monkeypatch.delenv("RAY_JOB_STOP_WAIT_TIME_S", raising=False)
    if given is not None:
        monkeypatch.setenv("RAY_JOB_STOP_WAIT_TIME_S", given)

    assert drain_s() == expected


@pytest.mark.ray
def test_a_pool_drains_as_long_as_its_job_may(
    ray_session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_JOB_STOP_WAIT_TIME_S", "2")

    class Endless:
        def run(self, unit: int, send: object) -> None:
            time.sleep(60)

    def stop(event: PoolEvent) -> None:
        if event.kind == "replica_up":
            threading.Timer(1.0, ray_session.stop.set).start()

    result = run_units(
        ray_session, range(2), ReplicaSpec(stages=(StageSpec(make=Endless),)),
        replicas=1, on_done=lambda *_: None, on_event=stop,
    )  # fmt: skip

    assert result.stopped
    assert result.seconds < 50  # and not the 60 that a run nobody kills would wait
