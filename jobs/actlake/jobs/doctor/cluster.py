"""A running cluster: whether it answers, to whom, with what, and whether a job fits."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from actlake.jobs.doctor.check import Check, Finding, refused, run_checks
from actlake.jobs.steps import demand
from actlake.platform.cluster import ClusterConfig, Resources, session
from actlake.platform.cluster.errors import NotEnoughResources
from actlake.platform.cluster.job_start import code_hash
from actlake.platform.cluster.resources import total
from actlake.platform.cluster.same_code import SILENT, NodeAnswer, ask_nodes
from actlake.platform.cluster.submission import JobServer

_NODES_WITHIN_S = 180.0  # torch is imported on each, and a hub may not answer
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def check_cluster(
    address: str,
    configs: Sequence[Mapping[str, Any]],
    on_nodes: Sequence[tuple[str, Check]] = (),
) -> Iterator[Finding]:
    """A dashboard (http://…) as `actlake submit` uses it, or a head (host:port) as jobs do.

    `on_nodes` are checks to be made on every node too, which only the second way can.
    """
    if "://" in address:
        yield from _check_dashboard(address, configs)
    else:
        yield from _check_head(address, configs, on_nodes)


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


def _check_head(
    address: str, configs: Sequence[Mapping[str, Any]], on_nodes: Sequence[tuple[str, Check]]
) -> Iterator[Finding]:
    with session(ClusterConfig(address=address)) as cluster:
        yield Finding("cluster", "ok", str(cluster))
        yield from _check_nodes(cluster.nodes(), configs)
        answers = ask_nodes(examine, on_nodes, timeout_s=_NODES_WITHIN_S)
    yield _same_code(answers)
    yield from _of_nodes(answers)


def examine(checks: Sequence[tuple[str, Check]]) -> tuple[str, list[Finding]]:
    """On a node: the hash of its code, and what checks find there."""
    return code_hash(), list(run_checks(checks))


def _same_code(answers: Sequence[NodeAnswer]) -> Finding:
    here = code_hash()
    silent = [answer.node for answer in answers if answer.value is SILENT]
    others = [
        answer.node
        for answer in answers
        if answer.value is not SILENT and not (_answered(answer) and answer.value[0] == here)
    ]
    if others:
        return Finding("code", "fail", f"other code than here on {', '.join(others)}",
                       "`actlake submit` ships its code; or install the same on each")  # fmt: skip
    if silent:
        return Finding("code", "warn", f"these nodes did not answer: {', '.join(silent)}",
                       "is there memory on them for a process? see `ray status`")  # fmt: skip
    return Finding("code", "ok", f"all {len(answers)} node(s) run this code")


def _of_nodes(answers: Sequence[NodeAnswer]) -> Iterator[Finding]:
    """What is wrong on nodes, each with its address; of what is right everywhere, one line."""
    found = [(answer.node, one) for answer in answers if _answered(answer)
             for one in answer.value[1]]  # fmt: skip
    for name in dict.fromkeys(one.name for _, one in found):
        bad = [(node, one) for node, one in found if one.name == name and one.status != "ok"]
        for node, one in bad:
            yield replace(one, says=f"on {node}: {one.says}")
        if not bad:
            yield Finding(
                f"{name} on nodes", "ok", f"well on {sum(map(_answered, answers))} node(s)"
            )


def _answered(answer: NodeAnswer) -> bool:
    return isinstance(answer.value, tuple)


def _check_nodes(
    nodes: Sequence[Resources], configs: Sequence[Mapping[str, Any]]
) -> Iterator[Finding]:
    each = "; ".join(map(str, nodes[:8])) + (" …" if len(nodes) > 8 else "")
    yield Finding("nodes", "ok" if nodes else "fail", f"{len(nodes)}: {total(nodes)} ({each})",
                  "" if nodes else "start nodes with `ray start --address=HEAD:6379`")  # fmt: skip
    for config in configs:
        try:
            if asked := demand(config, nodes):
                asked.check(nodes)
                yield Finding("room", "ok", f"{asked} fits")
        except NotEnoughResources as error:
            yield refused("room", error)
