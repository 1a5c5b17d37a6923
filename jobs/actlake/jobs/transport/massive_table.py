"""Rows that are massive at a site, kept as they are beside the sums of all others.

Which rows a map leaves out depends on its pair: those that are massive at its source or target. One
pass sums the rows that are massive at no site of the design; the few others are kept, and added to
the sums of each pair for which they are ordinary. So all pairs share one pass, and each has exactly
the moments of its own rows.

Shapes:  R massive rows   C columns of an alignment   D width
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actlake.jobs.massive_rows import is_massive
from actlake.jobs.transport.blocks import Alignment, Column, Design
from actlake.jobs.transport.errors import InvalidTransport
from actlake.jobs.transport.parts import Shares, rows_of_part
from actlake.storage import ActivationStore
from actlake.storage.summary import human_bytes

Array = np.ndarray[Any, Any]
_MOST_BYTES = 2**31


@dataclass(frozen=True, eq=False)
class MassiveTable:
    """The rows of one alignment that are massive at one of its columns or more."""

    rows: Array
    """(R,) int64, ascending within a share."""
    share: Array
    """(R,) int16, number of the share in `Shares.names`."""
    massive: Array
    """(R, C) bool: at which columns."""
    acts: Array
    """(R, C, D) float32, as they are stored."""

    def as_tensors(self) -> dict[str, Array]:
        """Its parts, by name."""
        return {
            "rows": self.rows, "share": self.share, "massive": self.massive, "acts": self.acts,
        }  # fmt: skip

    def ordinary_at(self, x: int, y: int, shares: Sequence[int]) -> tuple[Array, Array]:
        """(n, D) each: rows of some shares that are massive at neither of two columns."""
        kept = np.isin(self.share, shares) & ~self.massive[:, x] & ~self.massive[:, y]
        return self.acts[kept, x], self.acts[kept, y]

    def left_out(self, x: int, y: int) -> Array:
        """(R,) bool: massive at one of two columns or both."""
        out: Array = self.massive[:, x] | self.massive[:, y]
        return out


def massive_at(
    stores: Sequence[ActivationStore],
    columns: Sequence[Column],
    limits: Mapping[str, float],
    rows: Array,
) -> Array:
    """(n, C) bool: which rows are massive at which columns; without limits none is."""
    found = np.zeros((len(rows), len(columns)), bool)
    for place, column in enumerate(columns):
        if str(column) in limits and len(rows):
            norms = stores[column.store].norms(column.site).take(rows + column.ahead)
            found[:, place] = is_massive(norms, limits[str(column)])
    return found


def massive_tables(
    stores: Sequence[ActivationStore],
    design: Design,
    shares: Shares,
    limits: Mapping[str, float],
    *,
    excluded: bool,
    width: int,
) -> list[MassiveTable]:
    """The massive rows of every alignment.

    Raises
    ------
    InvalidTransport
        They are so many that they would not fit in memory.
    """
    return [
        _table(stores, alignment, shares, limits, excluded=excluded, width=width)
        for alignment in design.alignments
    ]


def _table(
    stores: Sequence[ActivationStore],
    alignment: Alignment,
    shares: Shares,
    limits: Mapping[str, float],
    *,
    excluded: bool,
    width: int,
) -> MassiveTable:
    columns = alignment.columns
    parts = list(_found(stores, alignment, shares, limits, excluded=excluded))
    rows = np.concatenate([np.zeros(0, np.int64), *(rows for rows, _, _ in parts)])
    share = np.concatenate([np.zeros(0, np.int16), *(share for _, share, _ in parts)])
    massive = np.concatenate([np.zeros((0, len(columns)), bool), *(one for _, _, one in parts)])
    needed = len(rows) * len(columns) * width * 4
    if needed > _MOST_BYTES:
        raise InvalidTransport(
            f"{len(rows):,} rows are massive at one of {len(columns)} sites or more, and would "
            f"take {human_bytes(needed)}\nhint: a larger rows.max_norm, or null, leaves fewer out"
        )
    acts = np.zeros((len(rows), len(columns), width), np.float32)
    for place, column in enumerate(columns):
        if len(rows):
            found = stores[column.store][column.site].take(rows + column.ahead)
            acts[:, place, : found.shape[1]] = found
    return MassiveTable(rows, share, massive, acts)


def _found(
    stores: Sequence[ActivationStore],
    alignment: Alignment,
    shares: Shares,
    limits: Mapping[str, float],
    *,
    excluded: bool,
) -> Iterator[tuple[Array, Array, Array]]:
    """Massive rows of each part, their share, and at which columns they are massive."""
    for part in shares.parts:
        rows = rows_of_part(
            stores[0], shares.of_document, part, alignment.offset,
            excluded=excluded, chosen=shares.chosen,
        )  # fmt: skip
        massive = massive_at(stores, alignment.columns, limits, rows)
        which = np.flatnonzero(massive.any(axis=1))
        yield rows[which], np.full(len(which), part.share, np.int16), massive[which]
