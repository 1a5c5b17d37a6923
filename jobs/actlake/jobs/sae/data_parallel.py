"""Sums over the workers of a data-parallel training, by torch.distributed.

The process group is there already: `actlake.platform.cluster.run_group` made it. All sums are
such that every worker gets the same bits, so that decisions taken from them are the same.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, distributed

from actlake.jobs.sae.communicator import ALONE, Communicator


class ProcessGroup:
    """A `Communicator` of the processes that torch.distributed has joined."""

    def __init__(self) -> None:
        self.rank = distributed.get_rank()
        self.size = distributed.get_world_size()

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all workers."""
        total = values.detach().clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    def all_gather(self, values: Tensor) -> Tensor:
        """(size, …) the values of all workers, by rank."""
        mine = values.detach().contiguous()
        gathered = mine.new_empty((self.size, *mine.shape))
        distributed.all_gather(list(gathered.unbind()), mine)
        return gathered


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
    under_way = [distributed.all_reduce(gradient, async_op=True) for gradient in gradients]
    for gradient, handle in zip(gradients, under_way, strict=True):
        handle.wait()
        gradient /= comm.size
