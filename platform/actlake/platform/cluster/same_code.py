"""Whether all nodes of a cluster run the code that this driver runs.

A worker is made from the copy of actlake that its node has. If that copy is another one, a
harvest may be computed by code nobody looked at; so every node is asked once, when the cluster
is joined, before any work is handed out.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actlake.platform.cluster.errors import ClusterMismatch
from actlake.platform.cluster.job_start import code_hash
from actlake.platform.cluster.resources import Resources, of_ray, replicas_that_fit

logger = logging.getLogger(__name__)

ANSWER_WITHIN_S = 60.0
"""How long nodes may take to start a worker and answer."""

SILENT = None
"""In place of the answer of a node that gave none."""


@dataclass(frozen=True, slots=True)
class NodeAnswer:
    """What one node said."""

    node: str
    """Its address."""
    value: Any
    """What the question returned there; `SILENT`; or the exception it raised."""


def ask_nodes(
    question: Callable[..., Any],
    *arguments: Any,
    timeout_s: float = ANSWER_WITHIN_S,
    on: Resources | None = None,
) -> list[NodeAnswer]:
    """Call a function on every living node of the cluster that this process has joined.

    A node that cannot even import the function answers with the exception; one that says nothing
    in time, or dies meanwhile, with `SILENT`.

    Parameters
    ----------
    on
        Only the nodes that have as much; the function sees so many of their GPUs, for which it
        waits where they are in use.
    """
    wanted = on or Resources(cpus=0)
    asked: dict[Any, str] = {}
    task = ray.remote(question)
    for node in ray.nodes():
        if node["Alive"] and replicas_that_fit(
            [of_ray(node["Resources"])], [wanted], placement="pack", wanted=1
        ):
            here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            options = task.options(
                num_cpus=0, num_gpus=wanted.gpus, max_retries=0, scheduling_strategy=here
            )
            asked[options.remote(*arguments)] = node["NodeManagerAddress"]
    _, silent = ray.wait(list(asked), num_returns=len(asked), timeout=timeout_s)
    for ref in silent:
        logger.warning("Node %s did not answer within %g s", asked[ref], timeout_s)
        ray.cancel(ref, force=True)
    return [
        NodeAnswer(address, SILENT if ref in silent else _answer(ref))
        for ref, address in asked.items()
    ]


def check_same_code(timeout_s: float = ANSWER_WITHIN_S) -> None:
    """Refuse a cluster on which a node runs other code than this process; silent ones are logged.

    Raises
    ------
    ClusterMismatch
        Names the nodes, and both hashes.
    """
    here = code_hash()
    answers = ask_nodes(code_hash, timeout_s=timeout_s)
    others = [answer for answer in answers if answer.value not in (here, SILENT)]
    if others:
        named = "\n".join(f"  {other.node}: {_in_words(other.value)}" for other in others[:5])
        raise ClusterMismatch(
            f"{len(others)} node(s) of the cluster run other code of actlake than this driver "
            f"({here}):\n{named}\n"
            "hint: `actlake submit` ships its code to all nodes; or install the same code on each"
        )


def _in_words(code: Any) -> str:
    return code if isinstance(code, str) and code else "no actlake, or one without this check"


def _answer(ref: Any) -> Any:
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        return error
    except ray.exceptions.RayError:
        return SILENT
