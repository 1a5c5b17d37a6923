"""What each worker of a job gets: a device, compute threads, a place. One owner of these rules.

    if config.workers == 1 and not joins_cluster(config.cluster):
        ...                                       # here, in threads_here(config.threads, 1)
    with session(config.cluster) as cluster:
        plan = plan_workers(cluster, config.resources, workers=4, threads=None, device="auto")

A driver may run on a machine that is nothing like the workers': a cluster's head often has no GPU
and few cores. So where a cluster is joined, its nodes are asked, and a device is looked for by
the worker that computes on it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from actlake.platform.cluster.config import ClusterConfig, ResourcesConfig
from actlake.platform.cluster.errors import InvalidClusterConfig
from actlake.platform.cluster.resources import Placement, Resources, replicas_that_fit
from actlake.platform.cluster.session import LOCAL, address_of
from actlake.platform.cores import usable_cores


class Place(Protocol):
    """Where workers are to be: a `Session`, or what is known of a cluster that was not joined."""

    @property
    def embedded(self) -> bool:
        """It is this machine."""
        ...

    def nodes(self) -> list[Resources]:
        """What each living node has, in use or not."""
        ...


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """What each worker gets."""

    device: str
    """``cpu`` or ``cuda``; a worker sees only the GPUs that it reserves."""
    threads: int
    resources: Resources
    device_bytes: int | None = None
    """Memory of a worker's GPU, the smallest of them; None for a CPU, and where nobody tells."""


def joins_cluster(config: ClusterConfig) -> bool:
    """Whether work goes to a cluster that is running already, possibly of other machines.

    Raises
    ------
    InvalidClusterConfig
        The address is not one that can be connected to.
    """
    return address_of(config) != LOCAL


def threads_here(asked: int | None, workers: int) -> int:
    """Compute threads of each of some workers on this machine: its cores, shared among them."""
    if asked is not None:
        return asked
    return max(1, usable_cores() // workers)


def plan_workers(
    session: Place,
    asked: ResourcesConfig,
    *,
    workers: int,
    threads: int | None,
    device: str = "cpu",
    stages: int = 1,
    placement: Placement = "pack",
) -> WorkerPlan:
    """Device, threads and reservation of each of `workers` processes on a cluster.

    Parameters
    ----------
    threads
        Compute threads of each; None: as many as the CPUs it reserves. Where none are asked for
        either: on a running cluster as many as let all workers be placed, beside GPUs a share of
        their node's; on an embedded one, the cores of the machine shared among them.
    device
        ``cpu``, ``cuda``, or ``auto``: a GPU each where the cluster has some.
    stages, placement
        How many of the workers make one chain, and where its stages are to be.

    Raises
    ------
    InvalidClusterConfig
        The device is a certain card, or CUDA without a GPU.
    """
    check_device_of_workers(device)
    nodes = session.nodes()
    gpus = asked.gpus
    if gpus is None:
        gpus = 1.0 if device == "cuda" or (device == "auto" and _have_gpus(nodes)) else 0.0
    if device == "cuda" and not gpus:
        raise InvalidClusterConfig(
            "device is cuda, and resources.gpus is 0\n"
            "hint: leave resources.gpus out for one GPU a worker, or say device: cpu"
        )
    if threads is None and asked.cpus is not None:
        threads = max(1, int(asked.cpus))
    elif threads is None and session.embedded:
        threads = threads_here(None, workers)
    elif threads is None:
        reserved = Resources(gpus=gpus, memory_mb=asked.memory_mb or 0)
        threads = _most_cpus(nodes, [reserved] * stages, placement, workers // stages)
    resources = asked.filled(Resources(cpus=threads, gpus=gpus))
    on_gpu = device != "cpu" and gpus > 0
    return WorkerPlan("cuda" if on_gpu else "cpu", threads, resources)


def check_device_of_workers(device: str) -> None:
    """Refuse a certain card: workers get theirs from Ray, and each calls its first ``cuda:0``.

    Raises
    ------
    InvalidClusterConfig
        The device is written ``cuda:N``.
    """
    if device.startswith("cuda:"):
        raise InvalidClusterConfig(
            f"device is {device}, and workers on a cluster are given their GPUs by Ray; each sees "
            "only its own\nhint: device: cuda, and CUDA_VISIBLE_DEVICES at the start of the "
            "cluster if it shall use certain cards only"
        )


def _have_gpus(nodes: Sequence[Resources]) -> bool:
    return any(node.gpus for node in nodes)


def _most_cpus(
    nodes: Sequence[Resources], chain: Sequence[Resources], placement: Placement, chains: int
) -> int:
    """CPUs of each worker with which all chains can be placed; 1 where they cannot.

    Of nodes with GPUs only a GPU's share: a single worker shall not keep the others from the rest
    of its node.
    """

    def fit(stages: Sequence[Resources], wanted: int) -> int:
        return replicas_that_fit(nodes, stages, placement=placement, wanted=wanted)

    if gpus := chain[0].gpus:
        most = sum(int(node.gpus / gpus) for node in nodes)
        chains = max(chains, fit([Resources(cpus=0, gpus=gpus)] * len(chain), most))
    for cpus in range(int(max((node.cpus for node in nodes), default=1)), 1, -1):
        if fit([replace(stage, cpus=cpus) for stage in chain], chains) == chains:
            return cpus
    return 1
