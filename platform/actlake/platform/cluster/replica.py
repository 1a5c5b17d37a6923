"""A running replica: its actors, their place, and their end."""

import uuid
from collections.abc import Mapping
from typing import Any, TypeAlias

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actlake.platform.cluster.resources import Resources
from actlake.platform.cluster.stage import ReplicaSpec, StageSpec
from actlake.platform.cluster.stage_actor import StageActor

Ref: TypeAlias = Any
"""A Ray object reference; stays inside this package."""

_STRATEGY = {"pack": "STRICT_PACK", "spread": "PACK"}


class Replica:
    """A chain of stage actors. Making one starts processes and waits for nothing.

    A replica is replaced, never repaired: actors are not restarted (``max_restarts=0``), for a
    chain with a fresh stage in the middle has forgotten half of every unit.
    """

    def __init__(self, number: int, spec: ReplicaSpec, *, in_flight: int) -> None:
        self.number = number
        self._group: Any = None
        self._actors: list[Any] = []
        # One thread for every call that can be under way (see `stage_actor`), one for `start`.
        concurrency = in_flight * (spec.messages_in_flight + 1) + 1
        try:
            if len(spec.stages) > 1:
                bundles = [_amounts(resources) for resources in spec.demand]
                self._group = placement_group(bundles, strategy=_STRATEGY[spec.placement])
            for index, stage in reversed(list(enumerate(spec.stages))):
                options = _options(stage, concurrency)
                if self._group is not None:
                    options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
                        self._group, placement_group_bundle_index=index
                    )
                next_stage = self._actors[0] if self._actors else None
                actor = (
                    ray.remote(StageActor)
                    .options(**options)
                    .remote(next_stage, spec.messages_in_flight)
                )
                self._actors.insert(0, actor)
            size, group = len(spec.stages), f"actlake-{uuid.uuid4().hex}"
            # Only stages that all have a GPU need to be asked; the rest share memory.
            ask = size > 1 and all(stage.resources.gpus for stage in spec.stages)
            offered = [actor.offers.remote() for actor in self._actors] if ask else []
            self.starting: list[Ref] = [
                actor.start.remote(
                    stage.make, dict(stage.kwargs), spec.transport, group, rank, size, *offered
                )
                for rank, (actor, stage) in enumerate(zip(self._actors, spec.stages, strict=True))
            ]
        except BaseException:
            self.fence()
            raise

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
        if self._group is not None:
            remove_placement_group(self._group)


def _amounts(resources: Resources) -> dict[str, float]:
    amounts = {
        "CPU": resources.cpus,
        "GPU": resources.gpus,
        "memory": int(resources.memory_mb * 2**20),
    }
    return {name: amount for name, amount in amounts.items() if amount}


def _options(stage: StageSpec, concurrency: int) -> dict[str, Any]:
    options: dict[str, Any] = {
        "num_cpus": stage.resources.cpus,
        "num_gpus": stage.resources.gpus,
        "max_restarts": 0,
        "max_concurrency": concurrency,
        "runtime_env": {"env_vars": dict(_environment(stage))},
    }
    if stage.resources.memory_mb:
        options["memory"] = int(stage.resources.memory_mb * 2**20)
    return options


def _environment(stage: StageSpec) -> Mapping[str, str]:
    """Threads by every name libraries know, since each reads its own when it is loaded."""
    names = ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "RAYON", "VECLIB_MAXIMUM")
    environment = {f"{name}_NUM_THREADS": str(stage.threads) for name in names[:-1]}
    environment["VECLIB_MAXIMUM_THREADS"] = str(stage.threads)
    if not stage.resources.gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ""  # Ray would leave all GPUs visible
    return environment
