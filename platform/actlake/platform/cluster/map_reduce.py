"""Sum something over a fixed partition of the work, in a fixed order, on any number of workers.

    total = map_reduce(parts, compute, add, session=cluster, workers=8)

Parts are added in nodes of `ARITY`, and the nodes one after the other to what is there, so that
the result is the same to the last bit on one worker or fifty, undisturbed or after crashes:
lost tasks are computed again. Without a session, or with one worker, everything happens in
this process and thread, with three sums in memory: all before, the node, and the part.

A long sum can be taken in pieces of a multiple of `ARITY` parts, each beginning with the
result of the piece before (`initial`); the bits are those of one sum.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray

from actlake.platform.cluster.errors import InvalidClusterConfig, WorkStopped
from actlake.platform.cluster.losses import cause_of
from actlake.platform.cluster.resources import Resources, check_demand
from actlake.platform.cluster.session import Session

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
) -> Sum:
    """The sum of ``compute(part)`` over all parts, added in a fixed order.

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
        Compute threads of each worker's process.
    resources
        What each worker reserves; as many CPUs as threads if left out.
    on_done
        Told about each part, in this thread, in the order in which they are finished.

    Raises
    ------
    NotEnoughResources
        The cluster can never run that many at once.
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
    if session is None or workers == 1:
        return _sum_here(parts, compute, _Nodes(add, initial), session, on_done)
    resources = resources or Resources(cpus=threads)
    check_demand(session.nodes(), [resources], placement="pack", replicas=workers)
    run = _Distributed(session, workers, threads, resources)
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
    session: Session | None,
    on_done: Callable[[Part], None],
) -> Sum:
    for part in parts:
        if session is not None and session.stop.is_set():
            raise _stopped()
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

    def run(
        self,
        parts: Sequence[Part],
        compute: Callable[[Part], Sum],
        add: Callable[[Sum, Sum], Sum],
        initial: Sum | None,
        on_done: Callable[[Part], None],
    ) -> Sum:
        options: dict[str, Any] = {
            "num_cpus": self.resources.cpus,
            "num_gpus": self.resources.gpus,
            "num_returns": 2,
            "max_retries": _RETRIES,
            "runtime_env": {"env_vars": _threads(self.threads)},
        }
        if self.resources.memory_mb:
            options["memory"] = int(self.resources.memory_mb * 2**20)
        leaf = ray.remote(compute_part).options(**options)
        node = ray.remote(add_parts).options(num_cpus=0, max_retries=_RETRIES)
        # An addition waits for its arguments on the cluster, so all can be submitted at once.
        begin = None if initial is None else ray.put(initial)
        nodes: _Nodes[Any] = _Nodes(lambda a, b: node.remote(add, a, b), begin)
        running: dict[Any, Part] = {}
        try:
            for part in parts:
                result, receipt = leaf.remote(compute, part)
                running[receipt] = part
                nodes.push(result)
                while len(running) >= 2 * self.workers:
                    self._await_one(running, on_done)
            while running:
                self._await_one(running, on_done)
            total = nodes.total()
            while not ray.wait([total], timeout=_POLL_S)[0]:
                self._check_stop()
            summed: Sum = _get(total)
        except BaseException:
            for receipt in running:
                ray.cancel(receipt, force=True)
            raise
        return summed

    def _await_one(self, running: dict[Any, Part], on_done: Callable[[Part], None]) -> None:
        answered: list[Any] = []
        while not answered:
            self._check_stop()
            answered, _ = ray.wait(list(running), num_returns=1, timeout=_POLL_S)
        for receipt in answered:
            part = running.pop(receipt)
            _get(receipt)
            on_done(part)

    def _check_stop(self) -> None:
        if self.session.stop.is_set():
            raise _stopped()


def compute_part(compute: Callable[[Any], Any], part: Any) -> tuple[Any, bool]:
    """One leaf, in a task: the result, and a small receipt that the driver can look at."""
    return compute(part), True


def add_parts(add: Callable[[Any, Any], Any], one: Any, other: Any) -> Any:
    """One addition, in a task."""
    return add(one, other)


def _get(ref: Any) -> Any:
    try:
        return ray.get(ref)
    except ray.exceptions.RayError as error:
        cause = cause_of(error)
        if cause is error:
            raise
        raise cause from None


def _threads(threads: int) -> dict[str, str]:
    names = ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "RAYON")
    return {f"{name}_NUM_THREADS": str(threads) for name in names}


def _stopped() -> WorkStopped:
    return WorkStopped(
        "The sum was stopped before it was complete\nhint: the same command goes on from the last "
        "checkpoint"
    )
