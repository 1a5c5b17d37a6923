"""Which contexts go through the model together, and where their rows lie in the unit. Pure.

A unit's batches depend on its contexts and the batch budget alone, never on the replica, the
number of stages or the run: equal batches give equal bits.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from actlake.storage import Extent

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Some contexts of a unit, padded on the right to the longest.

    Of ``ids.reshape(-1)``, the places `taken` are rows of the unit; the others are padding, or
    tokens of a context that began in the unit before and whose rows lie there.
    """

    ids: Array
    """(B, L) int64 token ids."""
    taken: Array
    """(n,) int64 places in the flattened batch."""
    rows: Array
    """(n,) int64 rows of the unit, counted from its start, in which they go."""
    num_tokens: int
    """Tokens of the batch that are not padding."""


def plan_batches(lengths: Array, *, batch_tokens: int) -> list[Array]:
    """Group contexts of similar length, longest first, within a budget of padded tokens.

    Parameters
    ----------
    lengths
        (contexts,) tokens of each.
    batch_tokens
        Most tokens of a batch, padding included; a longer context goes alone.

    Returns
    -------
    list of (B,) int64 arrays
        Each context once. Contexts of one length keep their order.
    """
    order = np.argsort(-lengths, kind="stable")
    batches: list[Array] = []
    start = 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        stop = start + max(1, batch_tokens // longest)
        batches.append(order[start:stop])
        start = stop
    return batches


def unit_batches(starts: Array, ids: Array, unit: Extent, *, batch_tokens: int) -> Iterator[Batch]:
    """The batches of a unit.

    Parameters
    ----------
    starts
        (contexts + 1,) int64: first rows of the contexts that overlap the unit, and the end of
        the last.
    ids
        Token ids of rows ``starts[0]`` to ``unit.stop``, int32.
    unit
        Its rows. Of a context that goes on beyond, only the part up to the unit's end is run.
    """
    stops = np.minimum(starts[1:], unit.stop)
    begins = starts[:-1]
    for group in plan_batches(stops - begins, batch_tokens=batch_tokens):
        yield _batch(begins[group], stops[group], ids, unit, offset=int(starts[0]))


def _batch(begins: Array, stops: Array, ids: Array, unit: Extent, *, offset: int) -> Batch:
    lengths = stops - begins
    longest = int(lengths.max())
    steps = np.arange(longest)
    rows = begins[:, None] + steps  # (B, L), meaningless where padded
    real = steps < lengths[:, None]
    padded = np.where(real, ids[np.where(real, rows - offset, 0)], 0).astype(np.int64)
    wanted = (real & (rows >= unit.start)).reshape(-1)
    taken = np.flatnonzero(wanted)
    return Batch(padded, taken, rows.reshape(-1)[taken] - unit.start, int(lengths.sum()))
