"""From a token id to its rows, and from a document to its rows: two indexes of a store.

The rows of a token lie one after the other in one array, token by token, and ``offsets`` says
where each token's begin (compressed sparse rows). Looking up a token reads its own rows and
nothing else, from a file that is memory-mapped.

A document's rows are few runs of consecutive rows (one, or a few where packed contexts of other
splits lie between), kept in the same way.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from actlake.storage.querying.index_file import IndexPlan, open_index
from actlake.storage.querying.ranges import expanded

if TYPE_CHECKING:  # store.py looks tokens up
    from actlake.storage.store import ActivationStore

Array = np.ndarray[Any, Any]
Block = tuple[int, Array]
"""The number of a first row, and what is said of it and the rows after it."""
Scan = Callable[[], Iterator[Block]]

# Rows sorted at once: 32 Mi of them are 128 MB. A store of more rows is read several times over,
# each time for the tokens whose rows fit.
ROWS_AT_ONCE = 2**25
_BLOCK_ROWS = 2**20


@dataclass(frozen=True, slots=True, eq=False)
class TokenIndex:
    """Where each token stands.

    Attributes
    ----------
    offsets
        (ids + 1,) int64; the rows of token ``t`` are ``sorted_rows[offsets[t]:offsets[t + 1]]``.
    sorted_rows
        (rows,) uint32, or int64 in a store of 2³² rows and more.
    """

    offsets: Array
    sorted_rows: Array

    @classmethod
    def of(cls, store: "ActivationStore") -> "TokenIndex":
        """Of a store; read from its file, which is made when it is first asked for.

        Raises
        ------
        StoreNotWritable
            There is no place to keep it.
        """
        scan = partial(_scan, store, "id")
        arrays = open_index(store, "tokens", lambda: plan_tokens(scan))
        return cls(arrays["offsets"], arrays["rows"])

    def count(self, token: int) -> int:
        """How many rows hold the token; ids that occur nowhere have none."""
        if not 0 <= token < len(self.offsets) - 1:
            return 0
        return int(self.offsets[token + 1] - self.offsets[token])

    def rows(self, token: int) -> Array:
        """(n,) int64, the rows of a token, ascending."""
        if self.count(token) == 0:
            return np.empty(0, np.int64)
        found = self.sorted_rows[self.offsets[token] : self.offsets[token + 1]]
        return np.asarray(found).astype(np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class DocumentRuns:
    """Where the rows of each document lie.

    Attributes
    ----------
    offsets
        (documents + 1,) int64; the runs of document ``d`` are ``offsets[d] <= i < offsets[d+1]``.
    starts, stops
        (runs,) int64; a run is the rows ``starts[i] <= row < stops[i]``.
    """

    offsets: Array
    starts: Array
    stops: Array

    @classmethod
    def of(cls, store: "ActivationStore") -> "DocumentRuns":
        """Of a store; read from its file, which is made when it is first asked for.

        Making it takes 24 bytes of memory a run.

        Raises
        ------
        StoreNotWritable
            There is no place to keep it.
        """
        arrays = open_index(
            store,
            "documents",
            lambda: plan_runs(_scan(store, "document"), documents=store.schema.documents),
        )
        return cls(arrays["offsets"], arrays["starts"], arrays["stops"])

    def runs(self, document: int) -> list[tuple[int, int]]:
        """The ``(start, stop)`` runs of a document, ascending; none if it was not laid out."""
        own = slice(int(self.offsets[document]), int(self.offsets[document + 1]))
        return list(zip(self.starts[own].tolist(), self.stops[own].tolist(), strict=True))

    def rows(self, document: int) -> Array:
        """(n,) int64, the rows of a document, ascending, in the order of its text."""
        runs = [np.arange(start, stop, dtype=np.int64) for start, stop in self.runs(document)]
        return np.concatenate(runs) if runs else np.empty(0, np.int64)

    def rows_of_each(self, documents: Array) -> tuple[Array, Array]:
        """The rows of several documents, one after the other.

        Returns
        -------
        which, rows
            Both (n,) int64: the place in `documents`, and a row of that document.
        """
        first = np.asarray(self.offsets)[documents]
        num_runs = np.asarray(self.offsets)[np.asarray(documents) + 1] - first
        which_of_run, run = expanded(first, num_runs)
        starts = np.asarray(self.starts)[run]
        which_of_row, rows = expanded(starts, np.asarray(self.stops)[run] - starts)
        return which_of_run[which_of_row], rows


def _scan(store: "ActivationStore", name: str) -> Iterator[Block]:
    """A token array of the store, front to back, in pieces of a bounded size."""
    for rows in store.schema.blocks(_BLOCK_ROWS):
        yield rows.start, store.tokens[name].read(rows.start, rows.stop)


def plan_tokens(scan: Scan, *, rows_at_once: int = ROWS_AT_ONCE) -> IndexPlan:
    """Count the tokens, and plan to sort their rows with a bounded memory.

    Parameters
    ----------
    scan
        Gives the token ids of all rows in order, in blocks, which numbers may lie between;
        called several times.
    rows_at_once
        How many rows are sorted in memory; a single token with more of them is not sorted but
        found one block at a time.
    """
    counts, end = np.zeros(0, np.int64), 0
    for start, ids in scan():
        end = start + len(ids)
        seen = np.bincount(ids)
        if len(seen) > len(counts):
            counts = np.pad(counts, (0, len(seen) - len(counts)))
        counts[: len(seen)] += seen
    offsets = np.concatenate([[0], np.cumsum(counts)])
    row_type = "<u4" if end < 2**32 else "<i8"

    def pieces() -> Iterator[Array]:
        yield offsets
        for first, last in _token_ranges(offsets, rows_at_once):
            yield from _rows_of_tokens(scan, offsets, first, last, row_type, rows_at_once)

    lengths = {"offsets": ("<i8", len(offsets)), "rows": (row_type, int(offsets[-1]))}
    return IndexPlan(lengths, pieces())


def plan_runs(column: Iterator[Block], *, documents: int) -> IndexPlan:
    """Find the runs of rows of one document, and sort them by document.

    Parameters
    ----------
    column
        The document of each row, all rows in order, in blocks, which numbers may lie between.
    """
    begins, ends, of = [], [], []
    previous, end = -1, 0
    for start, block in column:
        changes = np.flatnonzero(np.diff(block, prepend=previous if start == end else -1))
        begins.append(changes + start)
        # The run before the first change, if any, ends where the block before it does.
        ends.append(np.where(changes == 0, end, changes + start))
        of.append(block[changes])
        previous, end = int(block[-1]), start + len(block)
    starts = np.concatenate(begins)
    stops = np.append(np.concatenate(ends)[1:], end)
    document = np.concatenate(of)
    order = np.argsort(document, kind="stable")
    counts = np.bincount(document, minlength=documents)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return IndexPlan(
        {
            "offsets": ("<i8", len(offsets)),
            "starts": ("<i8", len(starts)),
            "stops": ("<i8", len(stops)),
        },
        [offsets, starts[order], stops[order]],
    )


def _token_ranges(offsets: Array, rows_at_once: int) -> Iterator[tuple[int, int]]:
    """Ranges of token ids whose rows fit, as ``first <= id < last``; never an empty range."""
    first, end = 0, len(offsets) - 1
    while first < end:
        last = int(np.searchsorted(offsets, offsets[first] + rows_at_once, side="right")) - 1
        last = min(max(last, first + 1), end)
        yield first, last
        first = last


def _rows_of_tokens(
    scan: Scan, offsets: Array, first: int, last: int, row_type: str, rows_at_once: int
) -> Iterator[Array]:
    """The rows of the tokens ``first <= id < last``, token by token."""
    if offsets[last] - offsets[first] > rows_at_once:
        assert last == first + 1, (first, last)
        for start, ids in scan():
            yield (np.flatnonzero(ids == first) + start).astype(row_type)
        return
    out = np.empty(offsets[last] - offsets[first], row_type)
    cursor = offsets[first:last] - offsets[first]  # where the next row of each token goes
    for start, ids in scan():
        wanted = np.flatnonzero((ids >= first) & (ids < last))
        if len(wanted):
            tokens = ids[wanted] - first
            order = np.argsort(tokens, kind="stable")
            tokens = tokens[order]
            begins = np.flatnonzero(np.diff(tokens, prepend=-1))
            lengths = np.diff(np.append(begins, len(tokens)))
            _, places = expanded(cursor[tokens[begins]], lengths)
            out[places] = wanted[order] + start
            cursor[tokens[begins]] += lengths
    yield out
