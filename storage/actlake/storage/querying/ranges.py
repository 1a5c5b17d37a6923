"""Many ranges as one array of numbers: the rows of runs, the tokens of spans. Pure."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def expanded(starts: Array, lengths: Array) -> tuple[Array, Array]:
    """Each ``range(starts[i], starts[i] + lengths[i])`` in turn.

    Parameters
    ----------
    starts, lengths
        (ranges,) integers; a range may be empty.

    Returns
    -------
    which, numbers
        Both (n,) int64: the range's i, and a number of it.
    """
    which = np.repeat(np.arange(len(starts)), lengths)
    begins = np.cumsum(lengths) - lengths
    return which, np.arange(len(which)) + np.repeat(starts - begins, lengths)
