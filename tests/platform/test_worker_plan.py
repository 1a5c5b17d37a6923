"""What each worker gets: rules about device, threads and reservations, on made-up clusters."""

import os
from dataclasses import dataclass

import pytest

from actlake.platform.cluster import (
    ClusterConfig,
    InvalidClusterConfig,
    Resources,
    ResourcesConfig,
    WorkerPlan,
    joins_cluster,
    plan_workers,
    threads_here,
)

CPU_HEAD = Resources(cpus=4)
GPU_NODE = Resources(cpus=96, gpus=8)
ANYTHING = ResourcesConfig()


@dataclass
class Cluster:
    """What `plan_workers` asks of a session."""

    there: tuple[Resources, ...]
    embedded: bool = False

    def nodes(self) -> list[Resources]:
        return list(self.there)


def plan(there: tuple[Resources, ...], asked: ResourcesConfig = ANYTHING, **options) -> WorkerPlan:
    embedded = options.pop("embedded", False)
    given = {"workers": 1, "threads": None, "device": "auto"} | options
    return plan_workers(Cluster(there, embedded), asked, **given)


def test_auto_takes_a_gpu_where_the_cluster_has_some_though_its_head_has_none() -> None:
    assert plan((CPU_HEAD, GPU_NODE)).device == "cuda"
    assert plan((CPU_HEAD, GPU_NODE)).resources.gpus == 1
    assert plan((CPU_HEAD,)).device == "cpu"
    assert plan((CPU_HEAD,)).resources.gpus == 0


def test_cuda_is_not_looked_for_by_the_driver() -> None:
    assert plan((CPU_HEAD,), device="cuda").resources.gpus == 1  # and refused as not to be placed


def test_workers_on_gpus_leave_the_other_gpus_of_a_node_their_cpus() -> None:
    assert plan((CPU_HEAD, GPU_NODE)).threads == 12
    assert plan((GPU_NODE,), ResourcesConfig(gpus=0.5)).threads == 6


def test_workers_without_gpus_share_the_cpus_of_the_cluster_not_of_the_driver() -> None:
    nodes = (CPU_HEAD, Resources(cpus=16), Resources(cpus=16))

    assert plan(nodes, device="cpu").threads == 16
    assert plan(nodes, device="cpu", workers=4).threads == 8
    assert plan(nodes, device="cpu", workers=9).threads == 4
    assert plan(nodes, device="cpu", workers=99).threads == 1


def test_reserved_cpus_are_the_threads_and_the_other_way_round() -> None:
    assert plan((CPU_HEAD,), ResourcesConfig(cpus=3)).threads == 3
    assert plan((CPU_HEAD,), ResourcesConfig(cpus=0.5)).threads == 1
    assert plan((CPU_HEAD,), threads=2).resources == Resources(cpus=2)
    asked = plan((CPU_HEAD,), ResourcesConfig(cpus=1, memory_mb=512), threads=2)
    assert asked == WorkerPlan("cpu", 2, Resources(cpus=1, memory_mb=512))


def test_an_embedded_cluster_has_the_cores_of_this_machine() -> None:
    cores = len(os.sched_getaffinity(0))

    assert plan((Resources(cpus=64),), embedded=True, workers=2).threads == max(1, cores // 2)
    assert threads_here(None, 10 * cores) == 1
    assert threads_here(7, 2) == 7


def test_no_gpus_is_a_way_to_say_cpu() -> None:
    assert plan((GPU_NODE,), ResourcesConfig(gpus=0)).device == "cpu"


@pytest.mark.parametrize(
    ("device", "asked", "words"),
    [
        ("cuda:1", ANYTHING, "given their GPUs by Ray"),
        ("cuda", ResourcesConfig(gpus=0), r"resources\.gpus is 0"),
    ],
)
def test_devices_that_no_worker_can_have_are_refused(device, asked, words) -> None:
    with pytest.raises(InvalidClusterConfig, match=words + r"(.|\n)*hint: "):
        plan((GPU_NODE,), asked, device=device, workers=2)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"cpus": 0}, r"resources\.cpus must be above 0, and is 0"),
        ({"cpus": float("inf")}, r"resources\.cpus"),
        ({"gpus": -1}, r"resources\.gpus is -1"),
        ({"gpus": 1.5}, r"resources\.gpus is 1\.5; there can be 0, a fraction of one GPU"),
        ({"memory_mb": 0}, r"resources\.memory_mb must be at least 1"),
    ],
)
def test_resources_that_cannot_be_are_refused(wrong, words) -> None:
    with pytest.raises(InvalidClusterConfig, match=words + r"(.|\n)*hint: "):
        ResourcesConfig(**wrong)


def test_fractions_and_whole_gpus_can_be_asked_for() -> None:
    for gpus in (0, 0.25, 1, 2, 8.0):
        assert ResourcesConfig(gpus=gpus).gpus == gpus


def test_a_cluster_is_joined_where_an_address_names_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    assert not joins_cluster(ClusterConfig())
    assert not joins_cluster(ClusterConfig(address="local"))
    assert joins_cluster(ClusterConfig(address="10.0.0.1:6379"))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # as in a submitted job
    assert joins_cluster(ClusterConfig())
    assert not joins_cluster(ClusterConfig(address="local"))
