"""Sums over the workers of a data-parallel training, by torch.distributed.

The process group is there already: `actlake.platform.cluster.run_group` made it. All sums are
such that every worker gets the same bits, so that decisions taken from them are the same.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed

from actlake.jobs.sae.communicator import ALONE, Communicator


class ProcessGroup:
    """A `Communicator` of the processes that torch.distributed has joined."""

    def __init__(self) -> None:
        self.rank = distributed.get_rank()
        self.size = distributed.get_world_size()
        self.waited_s = 0.0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all workers."""
        total = values.detach().clone(memory_format=torch.contiguous_format)
        with timed(self):
            distributed.all_reduce(total)
        return total

    def all_gather(self, values: Tensor) -> Tensor:
        """(size, …) the values of all workers, by rank."""
        mine = values.detach().contiguous()
        gathered = mine.new_empty((self.size, *mine.shape))
        with timed(self):
            distributed.all_gather(list(gathered.unbind()), mine)
        return gathered


@contextmanager
def timed(comm: Communicator) -> Iterator[None]:
    """Count the body's time as waited."""
    began = time.perf_counter()
    try:
        yield
    finally:
        comm.waited_s += time.perf_counter() - began


def communicator(size: int) -> Communicator:
    """Of this process: `ALONE`, or the group that was joined."""
    return ALONE if size == 1 else ProcessGroup()


def average_gradients(parameters: Iterable[torch.nn.Parameter], comm: Communicator) -> None:
    """Replace each gradient by its mean over the workers.

    All are sent before the first is waited for. A parameter that no row of this worker has
    reached counts as 0, for another worker's may have.
    """
    if comm.size == 1:
        return
    gradients = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    with timed(comm):
        under_way = [distributed.all_reduce(gradient, async_op=True) for gradient in gradients]
        for handle in under_way:
            handle.wait()
    for gradient in gradients:
        gradient /= comm.size
