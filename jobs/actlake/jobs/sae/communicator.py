"""What a training step asks of the other workers: sums, and everybody's values.

`ALONE` is one worker that asks nobody. The data-parallel one stands in `data_parallel.py`.
"""

from typing import Protocol

from torch import Tensor


class Communicator(Protocol):
    """Workers that hold equal weights and different rows of one global batch."""

    @property
    def rank(self) -> int:
        """Place of this worker, from 0."""
        ...

    @property
    def size(self) -> int:
        """How many workers there are."""
        ...

    waited_s: float
    """Seconds in which this worker has exchanged something with the others. On CPUs that is its
    wait for slower ones; on GPUs exchanges go on beside the program, and most are not seen."""

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all workers, the same on each; `values` is left as it is."""
        ...

    def all_gather(self, values: Tensor) -> Tensor:
        """(size, …) the values of all workers, by rank; shapes must be equal."""
        ...


class Alone:
    """One worker."""

    rank = 0
    size = 1
    waited_s = 0.0

    def sum(self, values: Tensor) -> Tensor:
        """Its own values."""
        return values

    def all_gather(self, values: Tensor) -> Tensor:
        """(1, …) its own values."""
        return values[None]


ALONE = Alone()
