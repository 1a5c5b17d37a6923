"""A running cluster: whether it answers, to whom, with what, and whether a job fits."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from actlake.jobs.doctor.check import Finding, refused
from actlake.jobs.steps import harvest_demand
from actlake.platform.cluster import ClusterConfig, Resources, check_demand, session
from actlake.platform.cluster.errors import NotEnoughResources
from actlake.platform.cluster.resources import total
from actlake.platform.cluster.submission import JobServer

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def check_cluster(address: str, configs: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """A dashboard (http://…) as `actlake submit` uses it, or a head (host:port) as jobs do."""
    if "://" in address:
        yield from _check_dashboard(address, configs)
    else:
        yield from _check_head(address, configs)


def _check_dashboard(address: str, configs: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    server = JobServer(address)
    yield Finding("cluster", "ok", f"Ray {server.ray_version} at {server.address}")
    yield _guard(server)
    if without := server.nodes_without_agent():
        yield Finding(
            "job agents", "fail", f"no port for the agent that starts jobs on {', '.join(without)}",
            "a second Ray on one machine needs `ray start --dashboard-agent-listen-port=…`",
        )  # fmt: skip
    yield from _check_nodes(server.nodes(), configs)


def _guard(server: JobServer) -> Finding:
    if not server.is_open_to_all():
        return Finding("authentication", "ok", "requests without the token are refused")
    says = "anybody who reaches this address can run programs on the cluster"
    if urlsplit(server.address).hostname in _LOOPBACK:
        says += " (the dashboard may be on loopback; Ray's other ports are on all interfaces)"
    return Finding(
        "authentication", "warn", says,
        "start every node with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH; see docs/cluster.md",
    )  # fmt: skip


def _check_head(address: str, configs: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    with session(ClusterConfig(address=address)) as cluster:
        yield Finding("cluster", "ok", f"{cluster}; every node runs this code")
        yield from _check_nodes(cluster.nodes(), configs)


def _check_nodes(
    nodes: Sequence[Resources], configs: Sequence[Mapping[str, Any]]
) -> Iterator[Finding]:
    each = "; ".join(map(str, nodes[:8])) + (" …" if len(nodes) > 8 else "")
    yield Finding("nodes", "ok" if nodes else "fail", f"{len(nodes)}: {total(nodes)} ({each})",
                  "" if nodes else "start nodes with `ray start --address=HEAD:6379`")  # fmt: skip
    for config in configs:
        try:
            for stages, replicas in harvest_demand(config):
                check_demand(nodes, stages, placement="pack", replicas=replicas)
                yield Finding("room", "ok", f"{replicas} replica(s) of {len(stages)} stage(s) fit")
        except NotEnoughResources as error:
            yield refused("room", error)
