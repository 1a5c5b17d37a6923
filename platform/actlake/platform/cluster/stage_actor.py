"""The process around a worker: takes messages in, sends them on, keeps their order.

Every call on an actor runs in a thread of its own, and Ray starts threaded calls in any
order. The order that workers are promised is made here, without ever waiting in a circle:

* Each message carries its number within its unit; a `_Turnstile` lets them in one by one.
  The actor has a thread for every call that can be under way, so a message that waits for
  its turn never keeps out the one it waits for.
* A sender waits for its receiver, never the other way: `_Outbox.send` blocks while too many
  messages are under way, and its own call returns only after the next stage's `receive` has
  returned for every message. Then the driver calls the next stage's `finish`, while this one
  is already at the next unit.

Messages travel as call arguments, through Ray's object store and never through the driver; the
tensors in them possibly straight from device to device (see `wire`).
"""

import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import ray
from ray import cloudpickle

from actlake.platform.cluster.device_faults import device_fault
from actlake.platform.cluster.errors import ClusterMismatch, WorkerFailed
from actlake.platform.cluster.job_start import code_hash
from actlake.platform.cluster.losses import LOST, cause_of
from actlake.platform.cluster.stage import Receipt, StageWorker, Transport
from actlake.platform.cluster.wire import Wire, offers, open_wire
from actlake.platform.compute_threads import set_compute_threads


class StageActor:
    """One stage of a replica, in a process of its own. Made by `Replica`, used by nobody else."""

    def __init__(self, next_stage: Any, messages_in_flight: int) -> None:
        self._next = next_stage
        self._messages_in_flight = messages_in_flight
        self._worker: StageWorker
        self._wire: Wire
        self._lock = threading.Lock()
        self._turnstiles: dict[int, _Turnstile] = {}
        self._outboxes: dict[int, _Outbox] = {}

    def node(self) -> str:
        """Id of the node this process is on."""
        return str(ray.get_runtime_context().get_node_id())

    def offers(self) -> list[Transport]:
        """Ways to send that this process has; see `wire.choose`."""
        return offers()

    def start(
        self,
        make: Callable[..., StageWorker],
        kwargs: Mapping[str, Any],
        threads: int,
        code: str,
        transport: Transport,
        group: str,
        rank: int,
        size: int,
        *offered: list[Transport],
    ) -> None:
        """Make the worker. Not in ``__init__``, where an exception would lose its type."""
        try:
            _check_code(code)
            set_compute_threads(threads)
            self._worker = make(**kwargs)
            self._wire = open_wire(transport, offered, group, rank=rank, size=size)
        except Exception as error:
            raise portable(error) from None

    def run(self, unit: int) -> tuple[Receipt, int]:
        """First stage: the unit's receipt, and how many messages the next stage has received."""
        outbox = self._outbox(unit)
        try:
            receipt = self._worker.run(unit, outbox.send if outbox else None)
            return receipt, self._close_outbox(unit)
        except Exception as error:
            raise (outbox and outbox.failure) or portable(error) from None

    def receive(self, unit: int, number: int, payload: Any) -> None:
        """Later stages: message `number` of the unit, in its turn."""
        outbox = self._outbox(unit)
        try:
            message = self._wire.receive(payload)
            with self._turnstile(unit).turn(number):
                self._worker.receive(unit, message, outbox.send if outbox else None)
        except Exception as error:
            raise (outbox and outbox.failure) or portable(error) from None

    def finish(self, unit: int, messages: int) -> tuple[Receipt, int]:
        """Later stages: like `run`, once all `messages` messages were received."""
        turnstile = self._turnstile(unit)
        assert turnstile.passed == messages, (unit, turnstile.passed, messages)
        outbox = self._outbox(unit)
        try:
            receipt = self._worker.finish(unit)
            with self._lock:
                del self._turnstiles[unit]
            return receipt, self._close_outbox(unit)
        except Exception as error:
            raise (outbox and outbox.failure) or portable(error) from None

    def _turnstile(self, unit: int) -> "_Turnstile":
        with self._lock:
            return self._turnstiles.setdefault(unit, _Turnstile())

    def _outbox(self, unit: int) -> "_Outbox | None":
        if self._next is None:
            return None
        with self._lock:
            if unit not in self._outboxes:
                self._outboxes[unit] = _Outbox(
                    self._next, self._wire, unit, self._messages_in_flight
                )
            return self._outboxes[unit]

    def _close_outbox(self, unit: int) -> int:
        """Wait until the next stage has received all of the unit; how many messages that is."""
        with self._lock:
            outbox = self._outboxes.pop(unit, None)
        return outbox.close() if outbox else 0


class _Outbox:
    """What a stage sends on of one unit."""

    def __init__(self, next_stage: Any, wire: Wire, unit: int, limit: int) -> None:
        self.failure: BaseException | None = None
        self._next = next_stage
        self._wire = wire
        self._unit = unit
        self._limit = limit
        self._sent = 0
        self._under_way: list[Any] = []

    def send(self, message: object) -> None:
        if len(self._under_way) >= self._limit:
            self._wait_for(1)
        number = self._sent
        self._sent += 1

        def call(payload: Any) -> Any:
            return self._next.receive.remote(self._unit, number, payload)

        try:
            self._under_way.append(self._wire.send(message, call))
        except (*LOST, ray.exceptions.RayTaskError) as error:
            self.failure = cause_of(error)
            raise self.failure from None

    def close(self) -> int:
        self._wait_for(len(self._under_way))
        return self._sent

    def _wait_for(self, count: int) -> None:
        """Wait until `count` messages are received; raise what the receiver raised.

        The failure is kept as well: a worker may answer it with an exception of its own, and
        the driver must learn the first reason, above all whether a process was lost.
        """
        received, self._under_way = self._under_way[:count], self._under_way[count:]
        try:
            ray.get(received)
        except (*LOST, ray.exceptions.RayTaskError) as error:
            self.failure = cause_of(error)
            raise self.failure from None


class _Turnstile:
    """Lets the messages of a unit through one at a time, by number."""

    def __init__(self) -> None:
        self.passed = 0
        self._failed: BaseException | None = None
        self._moved = threading.Condition()

    def turn(self, number: int) -> "_Turn":
        return _Turn(self, number)

    def enter(self, number: int) -> None:
        with self._moved:
            self._moved.wait_for(lambda: self.passed == number or self._failed)
            if self._failed:
                raise self._failed

    def leave(self, error: BaseException | None) -> None:
        with self._moved:
            self._failed = error
            self.passed += error is None
            self._moved.notify_all()


class _Turn:
    def __init__(self, turnstile: _Turnstile, number: int) -> None:
        self._turnstile = turnstile
        self._number = number

    def __enter__(self) -> None:
        self._turnstile.enter(self._number)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._turnstile.leave(error)


def _check_code(code: str) -> None:
    """Refuse to work with other code than the driver's, on a node that came after it had asked."""
    if code and (here := code_hash()) != code:
        raise ClusterMismatch(
            f"A node runs other code of actlake ({here or 'none'}) than the driver ({code}): "
            f"{ray.util.get_node_ip_address()}\n"
            "hint: install the same code there, or end the harvest and start it again with the new"
        )


def portable(error: Exception) -> Exception:
    """The error as it can be sent to another process, with its traceback as a note.

    An exception whose class cannot be rebuilt from its `args` would arrive as something else
    altogether; then its words are sent in a `WorkerFailed`. A fault of the device, which torch
    raises as a dozen different things, is sent as ours, with the node it happened on.
    """
    if isinstance(error, ray.exceptions.RayError):
        return error  # type: ignore[no-any-return]
    if (fault := device_fault(error)) is not None:
        fault.node = fault.node or ray.get_runtime_context().get_node_id()
        fault.add_note("Raised by a worker:\n" + "".join(traceback.format_exception(error)))
        return fault
    sent: Exception | None = None
    with suppress(Exception):  # whatever a foreign class does when it is taken apart and rebuilt
        sent = cloudpickle.loads(cloudpickle.dumps(error))  # as Ray will do
    if type(sent) is not type(error) or str(sent) != str(error):
        sent = WorkerFailed(f"{type(error).__qualname__}: {error}")
    sent.add_note("Raised by a worker:\n" + "".join(traceback.format_exception(error)))
    return sent
