"""Sums of products of columns over rows: the one pass over the activations.

Rows are read a few thousand at a time, their origin is taken out, and every block of a column
comes from as few matrix products as its neighbours allow. Products are float32 (or float64,
when asked for) over `CHUNK_ROWS` rows; what is summed over chunks is float64.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from actlake.jobs.transport.blocks import Alignment, Column, Design
from actlake.jobs.transport.errors import TransportError
from actlake.jobs.transport.massive_table import massive_at
from actlake.jobs.transport.parts import Part, rows_of_part
from actlake.storage import ActivationStore
from actlake.storage.reading.selection import RowSet

Array = np.ndarray[Any, Any]
Precision = Literal["float32", "float64"]

# A float32 sum of 2,048 products of one size is off by some 1e-7 of their root mean square; the
# conversion and addition to float64 that follows costs 2 % of the product itself.
CHUNK_ROWS = 2048

ORIGIN_UNITS = 64
"""Units whose stored means make the origin; it need only be near the mean."""


class NonFiniteRows(TransportError, ArithmeticError):
    """Rows hold infinities or NaNs, so their moments mean nothing."""


@dataclass
class AlignmentSums:
    """Count, sums and products of the columns of one alignment."""

    count: int
    sums: Array
    """(C, D) float64, each column's sum."""
    products: list[Array]
    """Of each column, (D, D · needed) float64: its products with those it needs, side by side."""

    @classmethod
    def zeros(cls, alignment: Alignment, width: int) -> "AlignmentSums":
        """Of no rows."""
        return cls(
            0,
            np.zeros((len(alignment.columns), width)),
            [np.zeros((width, width * len(others))) for others in alignment.needed],
        )


@dataclass
class BlockSums:
    """Of each alignment of a design, its sums."""

    alignments: list[AlignmentSums]

    @classmethod
    def zeros(cls, design: Design, width: int) -> "BlockSums":
        """Of no rows."""
        return cls([AlignmentSums.zeros(alignment, width) for alignment in design.alignments])

    @property
    def num_bytes(self) -> int:
        """Memory of the sums."""
        return sum(
            part.sums.nbytes + sum(product.nbytes for product in part.products)
            for part in self.alignments
        )


def add_sums(one: BlockSums, other: BlockSums) -> BlockSums:
    """Of the rows of both; written into `one` where its memory may be written to."""
    if not one.alignments[0].sums.flags.writeable:
        one = BlockSums(
            [
                AlignmentSums(part.count, part.sums.copy(), [p.copy() for p in part.products])
                for part in one.alignments
            ]
        )
    for mine, theirs in zip(one.alignments, other.alignments, strict=True):
        mine.count += theirs.count
        mine.sums += theirs.sums
        for product, added in zip(mine.products, theirs.products, strict=True):
            product += added
    return one


def origins(store: ActivationStore, design: Design, number: int, split: str) -> dict[str, Array]:
    """Of each column of a store, (D,) float32 near the mean of its rows; reads no rows."""
    found: dict[str, Array] = {}
    there = np.array(list(store.schema.units))
    units = there[np.unique(np.linspace(0, len(there) - 1, ORIGIN_UNITS).astype(int))].tolist()
    for alignment in design.alignments:
        for column in alignment.columns:
            if column.store == number:
                with np.errstate(invalid="ignore", over="ignore"):
                    mean = store.moments(column.site, split=split, units=units).mean
                # Rows that are not finite are found, and named, when they are summed.
                found[str(column)] = np.nan_to_num(mean, posinf=0, neginf=0).astype(np.float32)
    return found


def sum_part(
    stores: Sequence[ActivationStore],
    design: Design,
    origin: Mapping[str, Array],
    of_document: Array,
    part: Part,
    *,
    excluded: bool,
    chosen: RowSet | None = None,
    limits: Mapping[str, float] | None = None,
    precision: Precision = "float32",
) -> BlockSums:
    """Sum one part's rows, without those above the limit of a column (see `massive_table`).

    Raises
    ------
    NonFiniteRows
        A row of a site holds an infinity or a NaN.
    """
    total = BlockSums([])
    with np.errstate(invalid="ignore", over="ignore"):
        for alignment in design.alignments:
            rows = rows_of_part(
                stores[0], of_document, part, alignment.offset, excluded=excluded, chosen=chosen
            )
            massive = massive_at(stores, alignment.columns, limits or {}, rows).any(axis=1)
            rows = rows[~massive]
            total.alignments.append(_sum_alignment(stores, alignment, origin, rows, precision))
    return total


def _sum_alignment(
    stores: Sequence[ActivationStore],
    alignment: Alignment,
    origin: Mapping[str, Array],
    rows: Array,
    precision: Precision,
) -> AlignmentSums:
    width = max(stores[c.store].schema_of(c.site).dim for c in alignment.columns)
    sums = AlignmentSums.zeros(alignment, width)
    sums.count = len(rows)
    dtype = np.dtype(precision)
    num_columns = len(alignment.columns)
    # One buffer for all columns side by side, so that neighbours are one factor of a product.
    side_by_side = np.zeros((min(CHUNK_ROWS, len(rows)), num_columns * width), dtype)
    product = np.empty((width, num_columns * width), dtype)
    for chunk in _chunks(rows):
        buffer = side_by_side[: len(chunk)]
        for place, column in enumerate(alignment.columns):
            _read(stores, column, chunk, origin[str(column)], buffer[:, place * width :])
        sums.sums += buffer.sum(axis=0, dtype=np.float64).reshape(num_columns, width)
        for place in range(num_columns):
            left = buffer[:, place * width : (place + 1) * width]
            written = 0
            for first, last in alignment.runs(place):
                size = (last - first) * width
                out = product[:, :size]
                np.matmul(left.T, buffer[:, first * width : last * width], out=out)
                sums.products[place][:, written : written + size] += out
                written += size
    if not np.isfinite(sums.sums).all():
        _refuse_nonfinite(alignment, sums)
    return sums


def _chunks(rows: Array) -> Iterator[Array]:
    for start in range(0, len(rows), CHUNK_ROWS):
        yield rows[start : start + CHUNK_ROWS]


def _read(
    stores: Sequence[ActivationStore], column: Column, rows: Array, origin: Array, out: Array
) -> None:
    """Rows of a column less its origin, into the first columns of `out`."""
    store = stores[column.store]
    dim = store.schema_of(column.site).dim
    place = out[:, :dim]
    place[:] = store[column.site].take(rows + column.ahead)
    place -= origin


def _refuse_nonfinite(alignment: Alignment, sums: AlignmentSums) -> None:
    bad = [
        str(column.site)
        for column, total in zip(alignment.columns, sums.sums, strict=True)
        if not np.isfinite(total).all()
    ]
    raise NonFiniteRows(
        f"Rows of {', '.join(bad)} hold infinities or NaNs, so their moments mean nothing\n"
        "hint: harvest those sites in bfloat16 or float32; float16 ends at 65,504"
    )
