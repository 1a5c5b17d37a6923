"""The failure matrix: break a real cluster in every way, run the same command, compare bytes.

docs/failures.md has the table of what was tried and what happened.
"""

import re
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
POISONED = Path(__file__).with_name("poisoned.py")
UNITS = 24


def kill(*pids):
    """SIGKILL, as a machine that dies would."""
    processes = [psutil.Process(pid) for pid in pids]
    for process in processes:
        process.kill()
    psutil.wait_procs(processes, timeout=10)


def ended(driver, status=0):
    out = driver.wait(400)
    assert driver.process.returncode == status, out
    return out


def requeued(out):
    return len(re.findall("Unit requeued", out))


def test_a_killed_stage_takes_its_replica_along_and_no_unit(
    tmp_path, two_nodes, launch, command, some_units, whole
):
    store = tmp_path / "store"
    arguments = command(store, two_nodes, "--stages", "2")
    driver = launch(*arguments, env=two_nodes.env)
    some_units(store)
    stages = two_nodes.stages()
    assert len(stages) == 2

    kill(stages[1].pid)

    out = ended(driver)
    assert requeued(out) >= 1, out
    assert "ActorDiedError" in out
    whole(store, out, two_nodes)


def test_a_hung_stage_is_ended_after_its_time_and_replaced(
    tmp_path, two_nodes, launch, command, some_units, whole
):
    store = tmp_path / "store"
    arguments = command(store, two_nodes, "--unit_timeout_s", "8")
    driver = launch(*arguments, env=two_nodes.env)
    some_units(store)
    (hung,) = two_nodes.stages()

    hung.suspend()

    out = ended(driver)
    assert "no unit finished within 8 s" in out
    whole(store, out, two_nodes)
    assert not hung.is_running()


def test_a_killed_node_leaves_its_units_to_the_others(
    tmp_path, cluster, launch, command, some_units, whole
):
    store = tmp_path / "store"
    with cluster(1, 1) as nodes:
        arguments = command(store, nodes, "--replicas", "2", "--min_replicas", "1")
        driver = launch(*arguments, env=nodes.env)
        some_units(store)
        first, second = nodes.raylets
        lost, other = (first, second) if nodes.stages(first) else (second, first)

        with standing_still(nodes.stages(other)):
            kill(lost)
            time.sleep(8)  # a dead node is noticed after three

        out = ended(driver)
        assert "Nodes too few" in out
        assert "room for 1 of 2 replicas" in out
        whole(store, out, nodes)


@pytest.mark.slow
def test_a_whole_replica_of_two_stages_is_killed(
    tmp_path, two_nodes, launch, command, some_units, whole
):
    store = tmp_path / "store"
    driver = launch(
        *command(store, two_nodes, "--stages", "2", "--replicas", "2"), env=two_nodes.env
    )
    some_units(store)
    first, second = two_nodes.raylets
    replica = two_nodes.stages(first) or two_nodes.stages(second)

    kill(*(stage.pid for stage in replica))

    out = ended(driver)
    assert requeued(out) >= 1, out
    whole(store, out, two_nodes)


@pytest.mark.slow
def test_a_killed_driver_takes_its_stages_along_and_the_same_command_goes_on(
    tmp_path, two_nodes, launch, command, some_units, whole, wait_for
):
    store = tmp_path / "store"
    arguments = command(store, two_nodes, "--stages", "2")
    driver = launch(*arguments, env=two_nodes.env)
    before = some_units(store)

    kill(driver.process.pid)

    driver.process.communicate()
    wait_for(lambda: not two_nodes.stages(), "stages outlive their driver", timeout_s=60)
    again = launch(*arguments, env=two_nodes.env)
    out = ended(again)
    whole(store, out, two_nodes, before=before)


@pytest.mark.slow
def test_a_killed_head_ends_the_command_and_the_same_command_goes_on_elsewhere(
    tmp_path, cluster, launch, command, some_units, whole
):
    store = tmp_path / "store"
    with cluster(1) as nodes:
        driver = launch(*command(store, nodes), env=nodes.env)
        before = some_units(store)
        nodes.stages()[0].suspend()  # or it would do the few units that are left without a head

        kill(*nodes.head)

        began = time.monotonic()
        driver.wait(200)
        assert driver.process.returncode != 0
        assert time.monotonic() - began < 180
    with cluster(1) as nodes:
        again = launch(*command(store, nodes), env=nodes.env)
        out = ended(again)
        whole(store, out, nodes, before=before)


@pytest.mark.slow
def test_a_unit_that_kills_every_process_is_given_up_and_the_rest_is_whole(
    tmp_path, two_nodes, launch, command, whole
):
    store = tmp_path / "store"
    arguments = command(store, two_nodes, "--max_attempts", "2")

    ended_poisoned = subprocess.run(
        [sys.executable, str(POISONED), "5", *arguments],
        env=two_nodes.environment | {"WANDB_MODE": "offline"},
        capture_output=True,
        text=True,
        check=False,
    )

    out = ended_poisoned.stdout + ended_poisoned.stderr
    assert ended_poisoned.returncode == 1, out
    assert "1 units were given up (5)" in out
    again = launch(*arguments, env=two_nodes.env)
    whole(store, ended(again), two_nodes)


@pytest.mark.slow
def test_a_node_that_joins_late_gets_a_replica(
    tmp_path, cluster, launch, command, some_units, whole, wait_for
):
    store = tmp_path / "store"
    with cluster(1) as nodes:
        driver = launch(
            *command(store, nodes, "--replicas", "2", "--min_replicas", "1"), env=nodes.env
        )
        some_units(store, 1)

        with standing_still(nodes.stages()):
            late = nodes.add(1)
            wait_for(lambda: works_on_a_unit(late), "the late node got no replica", timeout_s=300)

        out = ended(driver)
        assert "Replica up, replica 1" in out, out
        whole(store, out, nodes)


@contextmanager
def standing_still(stages):
    """These stages do nothing meanwhile, so that the harvest is not over too soon."""
    for stage in stages:
        stage.suspend()
    try:
        yield
    finally:
        for stage in stages:
            stage.resume()


def works_on_a_unit(pid):
    """Whether a process below this one has been handed a unit."""
    for child in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.Error):
            if child.cmdline()[:1] == ["ray::StageActor.run"]:
                return True
    return False


@contextmanager
def node_with_a_full_disk(nodes, store):
    """A node for which the store's staging folder is a disk that takes no file.

    For nobody else. Its only inode is the folder's own: the first file is refused as it would be
    on a full disk; a small one that fitted could not be renamed to the store's disk.
    """
    staging = store / "partial"
    script = (
        f"mount -t tmpfs -o size=64k,nr_inodes=1 tmpfs {staging} && exec {sys.executable} -m "
        f"ray.scripts.scripts start --address={nodes.address} --num-cpus=1 --block "
        f"--object-store-memory=100000000 --node-manager-port=0 --min-worker-port=0 "
        "--max-worker-port=0 --dashboard-agent-listen-port=0"
    )
    node = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
        env=nodes.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield node.pid
    finally:
        family = psutil.Process(node.pid).children(recursive=True)
        for process in [*family, psutil.Process(node.pid)]:
            process.kill()
        psutil.wait_procs(family, timeout=10)
        node.wait()


@pytest.mark.slow
def test_a_node_whose_disk_is_full_is_left_out_and_the_others_do_its_units(
    tmp_path, cluster, launch, command, some_units, whole, wait_for
):
    store = tmp_path / "store"
    with cluster(1) as nodes:
        driver = launch(
            *command(store, nodes, "--replicas", "2", "--min_replicas", "1"), env=nodes.env
        )
        some_units(store, 1)

        with node_with_a_full_disk(nodes, store) as node:
            with standing_still(nodes.stages()):
                wait_for(lambda: works_on_a_unit(node), "the node got no replica", timeout_s=300)
                time.sleep(3)  # it tries to write
            out = ended(driver)

        assert "given up, and its node avoided" in out, out
        assert "No space left on device" in out
        assert "Given up: replica 1" in out
        assert "Replica starting, replica 2" not in out, "the node was tried again"
        whole(store, out, nodes)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 6 MiB; the store needs about 21."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.slow
def test_a_store_whose_disk_is_full_is_valid_and_goes_on_when_there_is_room(
    small_disk, two_nodes, launch, command, whole
):
    store = small_disk / "store"
    arguments = command(store, two_nodes, "--replicas", "2")
    driver = launch(*arguments, env=two_nodes.env)

    out = ended(driver, status=1)

    assert "No space left on device" in out
    assert "hint: make space" in out
    subprocess.run(["mount", "-o", "remount,size=200m", small_disk], check=True)
    again = launch(*arguments, env=two_nodes.env)
    whole(store, ended(again), two_nodes)


@pytest.mark.slow
def test_too_few_cpus_are_refused_at_once_with_what_is_there(tmp_path, two_nodes, launch, command):
    began = time.monotonic()
    driver = launch(
        *command(tmp_path / "store", two_nodes, "--stages", "2", "--replicas", "3"),
        env=two_nodes.env,
    )

    out = ended(driver, status=1)

    assert "3 replica(s) of 2 stage(s) do not fit this cluster: it has room for 2" in out
    assert "hint: run 2 replicas" in out
    assert time.monotonic() - began < 120


@pytest.mark.slow
@pytest.mark.parametrize(("placement", "on_each"), [("spread", [1, 1]), ("span", [0, 2])])
def test_stages_are_on_nodes_of_their_own_when_asked_and_together_otherwise(
    tmp_path, two_nodes, launch, command, some_units, whole, placement, on_each
):
    store = tmp_path / "store"
    driver = launch(
        *command(store, two_nodes, "--stages", "2", "--pipeline.placement", placement),
        env=two_nodes.env,
    )

    some_units(store)

    where = sorted(len(two_nodes.stages(raylet)) for raylet in two_nodes.raylets)
    assert where == on_each
    whole(store, ended(driver), two_nodes)


@pytest.mark.slow
def test_a_driver_without_a_gpu_plans_for_those_of_the_cluster(tmp_path, cluster, launch, command):
    with cluster("4:2", "4:2") as nodes:
        asked = ("--replicas", "2", "--stages", "2", "--plan", "--model.device")
        arguments = command(tmp_path / "store", nodes)
        threads = arguments.index("--threads")
        del arguments[threads : threads + 2]
        auto, cpu = (
            ended(launch(*arguments, *asked, device, env=nodes.env)) for device in ("auto", "cpu")
        )

    assert "2 replica(s) x 2 stage(s) on cuda, 2 thread(s) and 2 CPU + 1 GPU reserved" in auto
    assert "2 replica(s) x 2 stage(s) on cpu, 2 thread(s) and 2 CPU reserved each" in cpu
