"""Whether all nodes of a cluster run the code that this driver runs.

A worker is made from the copy of actlake that its node has. If that copy is another one, a
harvest may be computed by code nobody looked at; so every node is asked once, when the cluster
is joined, before any work is handed out.
"""

import logging
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actlake.platform.cluster.errors import ClusterMismatch
from actlake.platform.cluster.job_start import code_hash

logger = logging.getLogger(__name__)

ANSWER_WITHIN_S = 60.0
"""How long nodes may take to start a worker and answer."""

_NONE = "no actlake, or one without this check"


@dataclass(frozen=True, slots=True)
class NodeCode:
    """The code of one node."""

    node: str
    """Its address."""
    code: str
    """`code_hash` there, or words."""


def nodes_code(timeout_s: float = ANSWER_WITHIN_S) -> list[NodeCode]:
    """Ask every living node; those that do not answer in time are left out, and logged."""
    asked: dict[Any, str] = {}
    task = ray.remote(code_hash)
    for node in ray.nodes():
        if node["Alive"]:
            here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ref = task.options(num_cpus=0, max_retries=0, scheduling_strategy=here).remote()
            asked[ref] = node["NodeManagerAddress"]
    answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=timeout_s)
    for ref in silent:
        logger.warning("Node %s did not say which code it runs within %g s", asked[ref], timeout_s)
        ray.cancel(ref, force=True)
    return [NodeCode(asked[ref], code) for ref in answered if (code := _answer(ref)) is not None]


def check_same_code(timeout_s: float = ANSWER_WITHIN_S) -> None:
    """Refuse a cluster on which a node runs other code than this process.

    Raises
    ------
    ClusterMismatch
        Names the nodes, and both hashes.
    """
    here = code_hash()
    others = [node for node in nodes_code(timeout_s) if node.code != here]
    if others:
        named = "\n".join(f"  {node.node}: {node.code}" for node in others[:5])
        raise ClusterMismatch(
            f"{len(others)} node(s) of the cluster run other code of actlake than this driver "
            f"({here}):\n{named}\n"
            "hint: `actlake submit` ships its code to all nodes; or install the same code on each"
        )


def _answer(ref: Any) -> str | None:
    """The hash; words where a node could not import the question; None where it has died."""
    try:
        return str(ray.get(ref)) or _NONE
    except ray.exceptions.RayTaskError:
        return _NONE
    except ray.exceptions.RayError:
        return None
