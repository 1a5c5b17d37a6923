"""Which contexts go through the model together, and where their rows lie in the unit. Pure.

A unit's batches depend on its contexts, the batch budget and the store's batching alone, never on
the replica, the number of stages or the run: equal batches give equal bits.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from actlake.storage import Extent

Array = np.ndarray[Any, Any]

Batching: TypeAlias = Literal["padded", "equal_length", "alone"]
"""Which contexts go through the model together. ``padded``: any, padded on the right to the
longest, and of one that goes on beyond a unit's end only what lies in the unit. ``equal_length``:
those of one length, whole. ``alone``: each by itself, whole."""

BATCHINGS: tuple[Batching, ...] = ("padded", "equal_length", "alone")
"""From the fastest to the one that asks nothing of a model."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Some contexts of a unit, padded on the right to the longest.

    Of ``ids.reshape(-1)``, the places `taken` are rows of the unit; the others are padding, or
    tokens of a context that began in the unit before or ends in the next, whose rows lie there.
    """

    ids: Array
    """(B, L) int64 token ids."""
    taken: Array
    """(n,) int64 places in the flattened batch."""
    rows: Array
    """(n,) int64 rows of the unit, counted from its start, in which they go."""
    num_tokens: int
    """Tokens of the batch that are not padding."""


def plan_batches(lengths: Array, *, batch_tokens: int, batching: Batching) -> list[Array]:
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
        most = 1 if batching == "alone" else max(1, batch_tokens // longest)
        batch = order[start : start + most]
        if batching == "equal_length":
            batch = batch[lengths[batch] == longest]
        batches.append(batch)
        start += len(batch)
    return batches


def run_to(starts: Array, unit: Extent, batching: Batching) -> int:
    """The row up to which tokens are needed: the unit's end, or that of its last context."""
    return unit.stop if batching == "padded" else int(starts[-1])


def unit_batches(
    starts: Array, ids: Array, unit: Extent, *, batch_tokens: int, batching: Batching
) -> Iterator[Batch]:
    """The batches of a unit.

    Parameters
    ----------
    starts
        (contexts + 1,) int64: first rows of the contexts that overlap the unit, and the end of
        the last.
    ids
        Token ids of rows ``starts[0]`` to `run_to`, int32.
    unit
        Its rows.
    """
    stops = np.minimum(starts[1:], run_to(starts, unit, batching))
    begins = starts[:-1]
    groups = plan_batches(stops - begins, batch_tokens=batch_tokens, batching=batching)
    for group in groups:
        yield _batch(begins[group], stops[group], ids, unit, offset=int(starts[0]))


def _batch(begins: Array, stops: Array, ids: Array, unit: Extent, *, offset: int) -> Batch:
    lengths = stops - begins
    longest = int(lengths.max())
    steps = np.arange(longest)
    rows = begins[:, None] + steps  # (B, L), meaningless where padded
    real = steps < lengths[:, None]
    padded = np.where(real, ids[np.where(real, rows - offset, 0)], 0).astype(np.int64)
    wanted = (real & (rows >= unit.start) & (rows < unit.stop)).reshape(-1)
    taken = np.flatnonzero(wanted)
    return Batch(padded, taken, rows.reshape(-1)[taken] - unit.start, int(lengths.sum()))
