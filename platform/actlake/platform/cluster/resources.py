"""What an actor asks for, what nodes have, and whether the one fits the other (pure).

Ray leaves an actor that fits nowhere waiting for ever and says nothing; so demand is compared
with the whole cluster before anything is started.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from actlake.platform.cluster.errors import InvalidClusterConfig, NotEnoughResources

Placement = Literal["pack", "span", "spread"]
"""Where the stages of a replica are: see `ReplicaSpec.placement`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """What one actor asks for, or one node has.

    These are reservations, for placing actors; Ray does not hold a process to them.
    """

    cpus: float = 1
    """Logical CPUs; they need not be as many as there are cores."""

    gpus: float = 0
    """GPUs; fractions share one GPU."""

    memory_mb: float = 0
    """Main memory in MiB; 0 asks for none in particular."""

    def __post_init__(self) -> None:
        if min(self.cpus, self.gpus, self.memory_mb) < 0:
            raise InvalidClusterConfig(f"Resources cannot be negative: {self}")

    def __str__(self) -> str:
        words = [f"{self.cpus:g} CPU"]
        if self.gpus:
            words.append(f"{self.gpus:g} GPU")
        if self.memory_mb:
            words.append(f"{self.memory_mb:,.0f} MiB")
        return " + ".join(words)

    def __add__(self, other: "Resources") -> "Resources":
        return Resources(
            cpus=self.cpus + other.cpus,
            gpus=self.gpus + other.gpus,
            memory_mb=self.memory_mb + other.memory_mb,
        )


def of_ray(amounts: Mapping[str, float]) -> Resources:
    """Ray's amounts by name, of a node or of all of them."""
    return Resources(
        cpus=amounts.get("CPU", 0),
        gpus=amounts.get("GPU", 0),
        memory_mb=amounts.get("memory", 0) / 2**20,
    )


def total(parts: Sequence[Resources]) -> Resources:
    """Everything in `parts` together; nothing at all for no parts."""
    return sum(parts, Resources(cpus=0))


def replicas_that_fit(
    nodes: Sequence[Resources], stages: Sequence[Resources], *, placement: Placement, wanted: int
) -> int:
    """How many replicas of these stages the empty nodes hold, at most `wanted`.

    Stages are placed one after another on the first node with room, so on crowded clusters of
    unequal nodes the answer may be lower than what a cleverer packing would reach.
    """
    free = [_Room.of(node) for node in nodes]
    for placed in range(wanted):
        groups = [total(stages)] if placement == "pack" else list(stages)
        for group in groups:
            need = _Room.of(group)
            home = next((i for i, room in enumerate(free) if room.holds(need)), None)
            if home is None:
                return placed
            free[home] = free[home].without(need)
    return wanted


def check_demand(
    nodes: Sequence[Resources],
    stages: Sequence[Resources],
    *,
    placement: Placement,
    replicas: int,
) -> None:
    """Refuse work that can never be placed.

    Raises
    ------
    NotEnoughResources
        The nodes, even if nothing else ran on them, do not hold that many replicas. The
        message says what is asked and what is there.
    """
    fitting = replicas_that_fit(nodes, stages, placement=placement, wanted=replicas)
    if fitting == replicas:
        return
    each = " then ".join(map(str, stages))
    together = ", all on one node" if placement == "pack" and len(stages) > 1 else ""
    there = "; ".join(map(str, nodes)) or "no nodes"
    if fitting:
        hint = f"run {fitting} replica{'s' if fitting > 1 else ''}, or add nodes"
    elif replicas_that_fit(nodes, stages, placement="span", wanted=1):
        hint = "placement: span lets the stages of a replica lie on several nodes"
    else:
        hint = "ask for less per stage, use more and smaller stages, or add larger nodes"
    raise NotEnoughResources(
        f"{replicas} replica(s) of {len(stages)} stage(s) do not fit this cluster: "
        f"it has room for {fitting}\n"
        f"asked: {replicas} x ({each}){together}, {total(list(stages) * replicas)} in all\n"
        f"there: {there}\n"
        f"hint: {hint}"
    )


@dataclass(frozen=True, slots=True)
class _Room:
    """Resources in Ray's own grain of 1/10,000, so that sums of fractions are exact."""

    cpus: int
    gpus: int
    memory: int

    @classmethod
    def of(cls, resources: Resources) -> "_Room":
        grains = (resources.cpus, resources.gpus, resources.memory_mb)
        return cls(*(round(amount * 10_000) for amount in grains))

    def holds(self, need: "_Room") -> bool:
        return self.cpus >= need.cpus and self.gpus >= need.gpus and self.memory >= need.memory

    def without(self, need: "_Room") -> "_Room":
        return _Room(self.cpus - need.cpus, self.gpus - need.gpus, self.memory - need.memory)
