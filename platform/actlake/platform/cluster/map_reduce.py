"""Sum something over a fixed partition of the work, in a fixed order, on any number of workers.

    total = map_reduce(parts, compute, add, session=cluster, workers=8)

Parts are added in nodes of `ARITY`, and the nodes one after the other to what is there, so that
the result is the same to the last bit on one worker or fifty, undisturbed or after crashes,
wherever a part is: on processors of one kind, with the same `threads`. Lost tasks are computed
again. Without a session everything happens in this process and thread, with three sums in
memory: all before, the node, and the part.

A long sum can be taken in pieces of a multiple of `ARITY` parts, each beginning with the
result of the piece before (`initial`); the bits are those of one sum.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray

from actlake.platform.cluster.errors import InvalidClusterConfig
from actlake.platform.cluster.losses import in_our_words
from actlake.platform.cluster.patience import WITHOUT_ROOM_S, Patience
from actlake.platform.cluster.process_options import process_options
from actlake.platform.cluster.resources import Resources, check_demand
from actlake.platform.cluster.session import Session
from actlake.platform.compute_threads import compute_threads, set_compute_threads

Part = TypeVar("Part")
Sum = TypeVar("Sum")

ARITY = 4
"""Parts of a node."""

_RETRIES = 3
_POLL_S = 0.25


def map_reduce(
    parts: Sequence[Part],
    compute: Callable[[Part], Sum],
    add: Callable[[Sum, Sum], Sum],
    *,
    initial: Sum | None = None,
    session: Session | None = None,
    workers: int = 1,
    threads: int = 1,
    resources: Resources | None = None,
    on_done: Callable[[Part], None] = lambda part: None,
    without_room_s: float = WITHOUT_ROOM_S,
) -> Sum:
    """The sum of ``compute(part)`` over all parts, added in a fixed order.

    While no part is finished, be it that others use the cluster, this is said every half minute.

    Parameters
    ----------
    parts
        At least one; small and picklable.
    compute
        Importable on the node, or a `functools.partial` of such, with small arguments.
    add
        Returns the sum of two. It may write into its first argument and return that, unless
        its arrays are read-only, as those that come through shared memory are.
    initial
        What the sum begins with.
    session
        The cluster; None computes here.
    workers
        Parts that are computed side by side; twice as many results are in the object store.
    threads
        Compute threads of each worker's process; of this one where there is no session.
    resources
        What each worker reserves; as many CPUs as threads if left out.
    on_done
        Told about each part, in this thread, in the order in which they are finished.
    without_room_s
        How long nodes are waited for when none is left that could hold a worker.

    Raises
    ------
    NotEnoughResources
        The cluster can never run that many at once, or has lost the nodes that could run one.
    ReplicasKeepDying
        A part lost its process at every attempt.
    WorkStopped
        `Session.stop` was set; what was summed so far is lost.
    Exception
        Whatever `compute` raised; an `ActlakeError` as it is.
    """
    if workers < 1 or threads < 1:
        raise InvalidClusterConfig(
            f"workers and threads must be at least 1, not {workers} and {threads}"
        )
    assert parts, "nothing to sum"
    if session is None:
        with compute_threads(threads):
            return _sum_here(parts, compute, _Nodes(add, initial), on_done)
    resources = resources or Resources(cpus=threads)
    check_demand(session.nodes(), [resources], placement="pack", replicas=workers)
    run = _Distributed(session, workers, threads, resources, without_room_s)
    return run.run(parts, compute, add, initial, on_done)


@dataclass
class _Nodes(Generic[Sum]):
    """A sum of things that come one after the other, by nodes of `ARITY`."""

    add: Callable[[Sum, Sum], Sum]
    before: Sum | None
    node: Sum | None = None
    count: int = 0

    def push(self, one: Sum) -> None:
        self.node = one if self.node is None else self.add(self.node, one)
        self.count += 1
        if self.count % ARITY == 0:
            self._close()

    def total(self) -> Sum:
        self._close()
        assert self.before is not None
        return self.before

    def _close(self) -> None:
        if self.node is not None:
            self.before = self.node if self.before is None else self.add(self.before, self.node)
            self.node = None


def _sum_here(
    parts: Sequence[Part],
    compute: Callable[[Part], Sum],
    nodes: _Nodes[Sum],
    on_done: Callable[[Part], None],
) -> Sum:
    for part in parts:
        nodes.push(compute(part))
        on_done(part)
    return nodes.total()


@dataclass
class _Distributed:
    """The same on Ray: a task a part, and a task an addition, chained by references."""

    session: Session
    workers: int
    threads: int
    resources: Resources
    without_room_s: float

    def run(
        self,
        parts: Sequence[Part],
        compute: Callable[[Part], Sum],
        add: Callable[[Sum, Sum], Sum],
        initial: Sum | None,
        on_done: Callable[[Part], None],
    ) -> Sum:
        options = process_options(self.resources, threads=self.threads)
        options |= {"num_returns": 2, "max_retries": _RETRIES}
        leaf = ray.remote(compute_part).options(**options)
        node = ray.remote(add_parts).options(num_cpus=0, max_retries=_RETRIES)
        # An addition waits for its arguments on the cluster, so all can be submitted at once.
        begin = None if initial is None else ray.put(initial)
        nodes: _Nodes[Any] = _Nodes(lambda a, b: node.remote(add, a, b), begin)
        running: dict[Any, Part] = {}
        try:
            for part in parts:
                result, receipt = leaf.remote(compute, part, self.threads)
                running[receipt] = part
                nodes.push(result)
                while len(running) >= 2 * self.workers:
                    self._await_one(running, on_done)
            while running:
                self._await_one(running, on_done)
            total = nodes.total()
            self._await_any([total])
            summed: Sum = _get(total)
        except BaseException:
            for receipt in running:
                ray.cancel(receipt, force=True)
            raise
        return summed

    def _await_one(self, running: dict[Any, Part], on_done: Callable[[Part], None]) -> None:
        for receipt in self._await_any(list(running)):
            part = running.pop(receipt)
            _get(receipt)
            on_done(part)

    def _await_any(self, refs: list[Any]) -> list[Any]:
        """Wait until one is there, not in silence and not for what can never come."""
        patience = Patience(
            self.session, self.resources, count=1, what="The sum waits for its next part",
            without_room_s=self.without_room_s,
        )  # fmt: skip
        while True:
            self.session.raise_if_stopped()
            answered, _ = ray.wait(refs, num_returns=1, timeout=_POLL_S)
            if answered:
                return list(answered)
            patience.look()


def compute_part(compute: Callable[[Any], Any], part: Any, threads: int) -> tuple[Any, bool]:
    """One leaf, in a task: the result, and a small receipt that the driver can look at."""
    set_compute_threads(threads)
    return compute(part), True


def add_parts(add: Callable[[Any, Any], Any], one: Any, other: Any) -> Any:
    """One addition, in a task."""
    return add(one, other)


def _get(ref: Any) -> Any:
    try:
        return ray.get(ref)
    except ray.exceptions.RayError as error:
        raise in_our_words(error, what="A part of the sum") from None
