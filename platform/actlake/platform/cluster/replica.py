"""A running replica: its actors, their place, and their end."""

import uuid
from collections.abc import Collection
from contextlib import suppress
from typing import Any, TypeAlias

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actlake.platform.cluster.losses import LOST
from actlake.platform.cluster.process_options import bundle_of, process_options
from actlake.platform.cluster.stage import ReplicaSpec
from actlake.platform.cluster.stage_actor import StageActor
from actlake.platform.cluster.wire import end_meetings

Ref: TypeAlias = Any
"""A Ray object reference; stays inside this package."""

_STRATEGY = {"pack": "STRICT_PACK", "span": "PACK", "spread": "SPREAD"}
_NODE_ID = "ray.io/node-id"  # a label that Ray gives every node


class Replica:
    """A chain of stage actors. Making one starts processes and waits for nothing.

    A replica is replaced, never repaired: actors are not restarted (``max_restarts=0``), for a
    chain with a fresh stage in the middle has forgotten half of every unit.

    Parameters
    ----------
    in_flight
        Units it may be asked for at once.
    avoid
        Ids of nodes on which no stage is to be.
    code
        The driver's `code_hash`, which each node's must equal; empty where there is no question.
    """

    def __init__(
        self,
        number: int,
        spec: ReplicaSpec,
        *,
        in_flight: int,
        avoid: Collection[str] = (),
        code: str = "",
    ) -> None:
        self.number = number
        self._group: Any = None
        self._actors: list[Any] = []
        self._nccl_group: str | None = None
        # One thread for every call that can be under way (see `stage_actor`), one for `start`.
        concurrency = in_flight * (spec.messages_in_flight + 1) + 1
        allowed = {_NODE_ID: f"!in({','.join(sorted(avoid))})"} if avoid else {}
        try:
            if len(spec.stages) > 1:
                bundles = [bundle_of(resources) for resources in spec.demand]
                self._group = placement_group(
                    bundles,
                    strategy=_STRATEGY[spec.placement],
                    bundle_label_selector=[allowed] * len(bundles) if allowed else None,
                )
            for index, stage in reversed(list(enumerate(spec.stages))):
                options = process_options(stage.resources, threads=stage.threads)
                options |= {"max_restarts": 0, "max_concurrency": concurrency}
                if self._group is not None:
                    options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
                        self._group, placement_group_bundle_index=index
                    )
                elif allowed:
                    options["label_selector"] = allowed
                next_stage = self._actors[0] if self._actors else None
                actor = (
                    ray.remote(StageActor)
                    .options(**options)
                    .remote(next_stage, spec.messages_in_flight)
                )
                self._actors.insert(0, actor)
            self._nodes: list[Ref] = [actor.node.remote() for actor in self._actors]
            size, group = len(spec.stages), f"actlake-{uuid.uuid4().hex}"
            # Only stages that all have a GPU need to be asked; the rest share memory.
            ask = size > 1 and all(stage.resources.gpus for stage in spec.stages)
            offered = [actor.offers.remote() for actor in self._actors] if ask else []
            self._nccl_group = group if ask else None
            self.starting: list[Ref] = [
                actor.start.remote(
                    stage.make,
                    dict(stage.kwargs),
                    stage.threads,
                    code,
                    spec.transport,
                    group,
                    rank,
                    size,
                    *offered,
                )
                for rank, (actor, stage) in enumerate(zip(self._actors, spec.stages, strict=True))
            ]
        except BaseException:
            self.fence()
            raise

    def nodes(self) -> set[str]:
        """Ids of the nodes its living stages are on."""
        known, _ = ray.wait(self._nodes, num_returns=len(self._nodes), timeout=0)
        nodes = set()
        for ref in known:
            with suppress(*LOST):
                nodes.add(ray.get(ref))
        return nodes

    def run(self, unit: int) -> Ref:
        """Start a unit; a reference to the first stage's receipt and number of messages."""
        return self._actors[0].run.remote(unit)

    def finish(self, unit: int, *, stage: int, messages: int) -> Ref:
        """Let a later stage finish a unit of which it has received `messages` messages."""
        return self._actors[stage].finish.remote(unit, messages)

    def fence(self) -> None:
        """Kill every process of the replica, dead or alive, and give its place back.

        What it was writing may be half done. Nothing it still sends is listened to.
        """
        for actor in self._actors:
            ray.kill(actor, no_restart=True)
        if self._nccl_group is not None:
            end_meetings(self._nccl_group, len(self._actors))
        if self._group is not None:
            remove_placement_group(self._group)
