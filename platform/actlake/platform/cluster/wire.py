"""How a message gets from one stage to the next: the object store, or straight to the device.

A message is a tuple (or one thing) in which tensors may lie; workers send and receive torch
tensors and do not know which way they took.

* `ObjectStoreWire`: tensors become NumPy arrays on the host and travel as call arguments through
  Ray's shared memory. The way on CPUs, and wherever the other is not to be had.
* `DirectWire`: the call carries shapes only; each tensor goes from device to device through
  `ray.util.collective`, on which Ray's own NCCL tensor transport is built as well. (That one is
  driven by whoever made the group; here each stage drives its own hop, so the driver is never on
  the way.) With ``gloo`` in the place of ``nccl`` the same code runs on CPUs.

NCCL needs CUDA and CuPy in every stage's process; see docs/never-run.md. The stages of each hop
meet at a detached actor, which `end_meetings` kills.
"""

import importlib.util
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from actlake.platform.cluster.errors import InvalidClusterConfig
from actlake.platform.cluster.stage import Transport

Call = Callable[[Any], Any]
"""Hands a payload to the next stage's process and returns a reference to its answer."""


class Wire(Protocol):
    """One replica's way of sending; one object a stage."""

    def send(self, message: object, call: Call) -> Any:
        """Send a message; what `call` returned."""
        ...

    def receive(self, payload: Any) -> Any:
        """The message of a payload. In any thread; payloads may come out of order."""
        ...


@dataclass(frozen=True, slots=True)
class _OnHost:
    """A tensor as a NumPy array; bfloat16, which NumPy lacks, as its bits."""

    values: Any
    bfloat16: bool


class ObjectStoreWire:
    """Tensors through Ray's shared memory."""

    def send(self, message: object, call: Call) -> Any:
        """See `Wire`."""
        return call(_replaced(message, _is_tensor, _to_host))

    def receive(self, payload: Any) -> Any:
        """See `Wire`. Tensors are copies; NumPy arrays stay read-only views."""
        return _replaced(payload, lambda part: isinstance(part, _OnHost), _from_host)


@dataclass(frozen=True, slots=True)
class _Shape:
    """What is known of a tensor before it arrives."""

    shape: tuple[int, ...]
    dtype: str
    device: str


@dataclass(frozen=True, slots=True)
class _Envelope:
    """A message whose tensors follow on the hop, as number `number` of its messages."""

    number: int
    message: Any


class DirectWire:
    """Tensors from device to device; see the module.

    Parameters
    ----------
    transport
        ``nccl`` or ``gloo``.
    group
        A name that no other replica has.
    rank, size
        This stage's place in its chain. Returns when all stages are there.
    """

    def __init__(self, transport: str, group: str, *, rank: int, size: int) -> None:
        import ray.util.collective as collective

        self._collective = collective
        self._group = group
        self._rank = rank
        self._sending = threading.Lock()
        self._sent = 0
        self._received = 0
        self._arrived = threading.Condition()
        collective.init_collective_group(size, rank, transport, group)

    def send(self, message: object, call: Call) -> Any:
        """See `Wire`. Returns when the tensors were taken by the other side (gloo) or queued."""
        tensors: list[Any] = []

        def keep(tensor: Any) -> _Shape:
            tensors.append(tensor)
            return _Shape(tuple(tensor.shape), str(tensor.dtype), tensor.device.type)

        message = _replaced(message, _is_tensor, keep)
        with self._sending:  # the other side takes tensors in the order of these calls
            answer = call(_Envelope(self._sent, message))
            self._sent += 1
            try:
                for tensor in tensors:
                    self._collective.send(_bytes_of(tensor), self._rank + 1, self._group)
            except RuntimeError:
                import ray

                ray.get(answer)  # where the other side died, this says so
                raise
        return answer

    def receive(self, payload: Any) -> Any:
        """See `Wire`."""
        import torch

        def take(place: _Shape) -> Any:
            dtype = getattr(torch, place.dtype.removeprefix("torch."))
            tensor = torch.empty(place.shape, dtype=dtype, device=place.device)
            self._collective.recv(_bytes_of(tensor), self._rank - 1, self._group)
            return tensor

        with self._arrived:
            self._arrived.wait_for(lambda: self._received == payload.number)
        message = _replaced(payload.message, lambda part: isinstance(part, _Shape), take)
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # NCCL received on a stream of its own
        with self._arrived:
            self._received += 1
            self._arrived.notify_all()
        return message


def offers() -> list[Transport]:
    """Ways to send that this process could take part in, besides the object store."""
    if importlib.util.find_spec("cupy") is None:
        return []
    import torch

    return ["nccl"] if torch.cuda.is_available() else []


def choose(asked: Transport, offered: Sequence[Sequence[Transport]]) -> Transport:
    """The way for all stages of a replica, from what each of them offers.

    Raises
    ------
    InvalidClusterConfig
        ``nccl`` was asked for by name and a stage does not have it.
    """
    everywhere = all("nccl" in of_stage for of_stage in offered) and bool(offered)
    if asked == "auto":
        return "nccl" if everywhere else "object_store"
    if asked == "nccl" and not everywhere:
        lacking = [str(stage) for stage, has in enumerate(offered) if "nccl" not in has]
        raise InvalidClusterConfig(
            f"The transport nccl was asked for, and stages {', '.join(lacking) or '(all)'} cannot "
            "use it: it needs a GPU for each stage and CuPy\n"
            "hint: transport: auto takes it where it is there, and the object store elsewhere"
        )
    return asked


def open_wire(asked: Transport, offered: Any, group: str, *, rank: int, size: int) -> Wire:
    """Open a stage's end of the wire; waits for the other stages where they must meet."""
    transport = choose(asked, offered) if size > 1 else "object_store"
    if transport == "object_store":
        return ObjectStoreWire()
    return DirectWire(transport, group, rank=rank, size=size)


def end_meetings(group: str, size: int) -> None:
    """Kill what `ray.util.collective` has left of a group of stages; called by the driver.

    The two stages of a hop meet at a named actor that outlives them (``lifetime="detached"``) and
    is killed by ``destroy_collective_group`` in a stage, which a stage that was killed never calls.
    Its name follows from the ranks and from the number of the device, which is 0 in every stage:
    each sees the one GPU that it has reserved.
    """
    import ray
    from ray.util.collective.const import get_store_name

    for rank in range(size - 1):
        key = f"{rank}_0:{rank + 1}_0@{group}"
        with suppress(ValueError):  # the hop was never used
            ray.kill(ray.get_actor(get_store_name(key)))


def _replaced(message: Any, wanted: Callable[[Any], bool], change: Callable[[Any], Any]) -> Any:
    """The message with some of its parts changed; only a tuple is looked into."""
    if isinstance(message, tuple):
        return tuple(change(part) if wanted(part) else part for part in message)
    return change(message) if wanted(message) else message


def _is_tensor(part: Any) -> bool:
    torch = sys.modules.get("torch")  # where it was never imported there is no tensor
    return torch is not None and isinstance(part, torch.Tensor)


def _to_host(tensor: Any) -> _OnHost:
    import torch

    bfloat16 = tensor.dtype == torch.bfloat16
    host = tensor.detach().to("cpu").contiguous()
    return _OnHost((host.view(torch.int16) if bfloat16 else host).numpy(), bfloat16)


def _from_host(part: _OnHost) -> Any:
    import torch

    host = torch.from_numpy(np.array(part.values))  # what arrives is read-only shared memory
    return host.view(torch.bfloat16) if part.bfloat16 else host


def _bytes_of(tensor: Any) -> Any:
    """The same memory as uint8, the one type that every backend sends."""
    import torch

    return tensor.contiguous().view(-1).view(torch.uint8)
