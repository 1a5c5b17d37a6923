"""Which rows take part: committed, of the split, not excluded, and true of a predicate.

The rows are a set that answers two questions fast: which is the k-th, and how many are below
row i. Without a filter it is a few runs of rows. With one it is a bit a row and the counts that
go with them, 1.5 bits a row in all (190 MB for 10⁹ rows, a six-thousandth of one site's
activations), made in one pass over the token tables. Why not less:
docs/design/003-order-of-batches.md.
"""

import bisect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from actlake.storage.errors import EmptySelection
from actlake.storage.extents import Extent, UnitSet
from actlake.storage.reading.many import ManyStores
from actlake.storage.reading.predicates import Predicate
from actlake.storage.sealed import crc32c
from actlake.storage.store import ActivationStore

Array = np.ndarray[Any, Any]
Exclusion = Literal["default"] | None
_WORD = 64
_WORDS_PER_COUNT = 8
_COUNTED = _WORD * _WORDS_PER_COUNT
# Rows whose masks are in memory at once while the set is made; a multiple of _COUNTED.
_ROWS_AT_ONCE = 2**20


class RowSet(Protocol):
    """Sorted row numbers."""

    def __len__(self) -> int: ...

    def select(self, places: Array) -> Array:
        """(n,) int64: the rows at these places of the sorted set, ``0 <= place < len``."""
        ...

    def rank(self, rows: Array) -> Array:
        """(n,) int64: how many rows of the set are below each of these."""
        ...

    def between(self, start: int, stop: int) -> Array:
        """The rows of the set with ``start <= row < stop``, sorted."""
        ...

    def checksum(self) -> int:
        """A CRC32C of the set: equal sets over the same rows have the same."""
        ...


class Runs:
    """Rows as sorted runs that do not touch: all rows of the committed units."""

    def __init__(self, runs: Iterable[tuple[int, int]]) -> None:
        edges = np.array([run for run in runs if run[0] < run[1]], np.int64).reshape(-1, 2)
        self._starts = edges[:, 0]
        self._stops = edges[:, 1]
        self._before = np.cumsum([0, *(edges[:, 1] - edges[:, 0])], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._before[-1])

    def select(self, places: Array) -> Array:
        """See `RowSet.select`."""
        run = np.searchsorted(self._before, places, side="right") - 1
        rows: Array = self._starts[run] + (places - self._before[run])
        return rows

    def rank(self, rows: Array) -> Array:
        """See `RowSet.rank`."""
        run = np.searchsorted(self._stops, rows, side="left")
        start = np.append(self._starts, np.iinfo(np.int64).max)[run]
        ranks: Array = self._before[run] + np.maximum(rows - start, 0)
        return ranks

    def between(self, start: int, stop: int) -> Array:
        """See `RowSet.between`."""
        first, last = self.rank(np.array([start, stop], np.int64))
        return self.select(np.arange(first, last, dtype=np.int64))

    def checksum(self) -> int:
        """See `RowSet.checksum`."""
        return crc32c(self._starts.tobytes(), self._stops.tobytes())


class Bitmap:
    """Rows as bits: bit ``i % 64`` of word ``i // 64`` says whether row i is in the set.

    Parameters
    ----------
    words
        uint64, of a length that is a multiple of 8.
    """

    def __init__(self, words: Array) -> None:
        assert len(words) % _WORDS_PER_COUNT == 0, len(words)
        self._words = words
        blocks = len(words) // _WORDS_PER_COUNT
        counts = np.zeros(blocks + 1, np.int64)
        self._inside = np.empty((blocks, _WORDS_PER_COUNT), np.uint16)
        """(blocks, 8) how many rows of the set its block holds before and with each word."""
        for start in range(0, blocks, _ROWS_AT_ONCE // _COUNTED):
            part = slice(start, start + _ROWS_AT_ONCE // _COUNTED)
            bits = np.bitwise_count(words.reshape(-1, _WORDS_PER_COUNT)[part])
            self._inside[part] = np.cumsum(bits, axis=1, dtype=np.uint16)
            counts[start + 1 : start + 1 + len(bits)] = self._inside[part, -1]
        self._before = np.cumsum(counts)
        # Where to look first: the block of every so many-th row, about one a block.
        self._hint_shift = max(1, len(self) // max(1, blocks)).bit_length() - 1
        hinted = np.arange(0, len(self), 1 << self._hint_shift)
        self._hints = self._blocks_by_search(hinted).astype(np.uint32)

    def __len__(self) -> int:
        return int(self._before[-1])

    @property
    def words(self) -> Array:
        """The bits, uint64: what another `Bitmap` of the same rows is made of."""
        return self._words

    def select(self, places: Array) -> Array:
        """See `RowSet.select`."""
        block = self._blocks(places)
        left = places - self._before[block]
        at = block * _WORDS_PER_COUNT
        begin = at.copy()
        counts = self._inside.reshape(-1)
        for width in (4, 2, 1):  # the word, by halving: its count is the first above `left`
            at += width * (counts[at + (width - 1)] <= left)
        left -= np.where(at > begin, counts[at - 1], 0)
        rows: Array = at * _WORD + _select_in_word(self._words[at], left)
        return rows

    def _blocks(self, places: Array) -> Array:
        """(n,) int64: the block that holds the row at each of these places."""
        block: Array = self._hints[places >> self._hint_shift].astype(np.int64)
        for _ in range(2):
            wrong = np.flatnonzero(self._before[block + 1] <= places)
            block[wrong] += 1
        if wrong.size:  # the rows lie unevenly
            wrong = wrong[self._before[block[wrong] + 1] <= places[wrong]]
            block[wrong] = self._blocks_by_search(places[wrong])
        return block

    def _blocks_by_search(self, places: Array) -> Array:
        blocks: Array = np.searchsorted(self._before, places, side="right") - 1
        return blocks

    def rank(self, rows: Array) -> Array:
        """See `RowSet.rank`."""
        block, inside = np.divmod(rows, _COUNTED)
        words = self._words.reshape(-1, _WORDS_PER_COUNT)
        some = words[np.minimum(block, len(words) - 1)]  # past the end: see below
        whole = np.clip(inside[:, None] - np.arange(0, _COUNTED, _WORD), 0, _WORD)
        kept = np.bitwise_count(some & _lowest_bits(whole)).sum(axis=1, dtype=np.int64)
        ranks: Array = self._before[block] + np.where(block < len(words), kept, 0)
        return ranks

    def between(self, start: int, stop: int) -> Array:
        """See `RowSet.between`."""
        first, last = start // _WORD, -(-stop // _WORD)
        bits = np.unpackbits(self._words[first:last].view(np.uint8), bitorder="little")
        rows: Array = first * _WORD + np.flatnonzero(bits)
        return rows[(rows >= start) & (rows < stop)]

    def checksum(self) -> int:
        """See `RowSet.checksum`."""
        return crc32c(self._words.view(np.uint8))


def _select_in_word(words: Array, left: Array) -> Array:
    """(n,) int64: the place of the set bit that has `left` set bits below it, by halving.

    Of a full word it is `left` itself, and under the default exclusion most words are full.
    """
    places = left.astype(np.int64)
    some = np.flatnonzero(words != ~np.uint64(0))
    if some.size:
        places[some] = _select_by_halving(words[some], left[some])
    return places


def _select_by_halving(words: Array, left: Array) -> Array:
    place = np.zeros(len(words), np.int64)
    for width in (32, 16, 8, 4, 2, 1):
        below = np.bitwise_count(words & np.uint64((1 << width) - 1)).astype(np.int64)
        above = left >= below
        left = left - below * above
        place += width * above
        words >>= (width * above).astype(np.uint64)
    return place


def _lowest_bits(how_many: Array) -> Array:
    """uint64 words with so many of their lowest bits set, 0 to 64."""
    some = np.minimum(how_many, 63).astype(np.uint64)
    full = np.where(how_many == _WORD, ~np.uint64(0), np.uint64(0))
    bits: Array = ((np.uint64(1) << some) - np.uint64(1)) | full
    return bits


@dataclass(frozen=True, slots=True)
class RowFilter:
    """Which of the committed rows take part."""

    split: str | None = None
    exclude: Exclusion = "default"
    where: Predicate | None = None

    @property
    def keeps_all(self) -> bool:
        """Whether every committed row takes part."""
        return self.split is None and self.exclude is None and self.where is None

    def mask(self, store: ActivationStore, rows: Extent, *, offset: int) -> Array:
        """(n,) bool, for rows of one store; `offset` is added to number them through."""
        mask = np.ones(len(rows), bool)
        if self.split is not None:
            if self.split not in store.schema.splits:
                return np.zeros(len(rows), bool)
            mask &= store.splits_of(rows) == store.schema.splits.index(self.split)
        if self.exclude is not None:
            mask &= ~store.excluded(rows)
        if self.where is not None:
            mask &= self.where.mask(store, rows, offset=offset)
        return mask

    def __str__(self) -> str:
        parts = [] if self.split is None else [f"split {self.split!r}"]
        parts += ["the default exclusion"] if self.exclude is not None else []
        parts += [f"where {self.where}"] if self.where is not None else []
        return ", ".join(parts) or "no filter"


def select_rows(stores: ManyStores, committed: Sequence[UnitSet], row_filter: RowFilter) -> RowSet:
    """The rows that take part; one pass over the token tables, unless all do.

    Raises
    ------
    UnknownSplit
        No store has the split.
    InvalidQuery
        The predicate cannot be worked out.
    RowsOutOfRange
        It names rows that there are not.
    EmptySelection
        No row is left.
    """
    if row_filter.split is not None:
        stores.check_split(row_filter.split)
    runs = list(_row_runs(stores, committed))
    if row_filter.where is not None:
        row_filter.where.prepare(stores, committed=runs)
    selected: RowSet = Runs(runs) if row_filter.keeps_all else _bitmap(stores, runs, row_filter)
    if len(selected) == 0:
        rows = sum(stop - start for start, stop in runs)
        raise EmptySelection(
            f"No row of {stores.url} is left to read: {rows:,} rows are committed, and none "
            f"passes {row_filter}\nhint: "
            + ("ask for less" if rows else "wait for the harvest to commit its first unit")
        )
    return selected


def rows_where(stores: ManyStores, predicate: Predicate) -> Bitmap:
    """All rows, committed or not, of which a predicate is true; none is an answer, too.

    Raises
    ------
    InvalidQuery
        The predicate cannot be worked out.
    RowsOutOfRange
        It names rows that there are not.
    """
    predicate.prepare(stores)
    every_unit = [store.schema.units for store in stores.stores]
    return _bitmap(stores, list(_row_runs(stores, every_unit)), RowFilter(None, None, predicate))


def _row_runs(stores: ManyStores, committed: Sequence[UnitSet]) -> Iterator[tuple[int, int]]:
    """The committed rows, numbered through, as sorted runs."""
    for store, offset, units in zip(
        stores.stores, stores.offsets.tolist(), committed, strict=False
    ):
        for rows in store.schema.rows_of(units):
            yield offset + rows.start, offset + rows.stop


def _bitmap(stores: ManyStores, runs: Sequence[tuple[int, int]], row_filter: RowFilter) -> Bitmap:
    total = len(stores)
    words = np.zeros(-(-total // _COUNTED) * _WORDS_PER_COUNT, np.uint64)
    stops = [stop for _, stop in runs]
    for start in range(0, total, _ROWS_AT_ONCE):
        block = Extent(start, min(start + _ROWS_AT_ONCE, total))
        mask = np.zeros(-(-len(block) // _WORD) * _WORD, bool)
        for run in range(bisect.bisect_right(stops, block.start), len(runs)):
            if runs[run][0] >= block.stop:
                break
            rows = block.intersect(Extent(*runs[run]))
            mask[rows.start - start : rows.stop - start] = _mask(stores, rows, row_filter)
        packed = np.packbits(mask, bitorder="little").view(np.uint64)
        words[start // _WORD : start // _WORD + len(packed)] = packed
    return Bitmap(words)


def _mask(stores: ManyStores, rows: Extent, row_filter: RowFilter) -> Array:
    """(n,) bool; rows of one stretch of a store."""
    store = int(np.searchsorted(stores.offsets, rows.start, side="right")) - 1
    offset = int(stores.offsets[store])
    local = Extent(rows.start - offset, rows.stop - offset)
    return row_filter.mask(stores.stores[store], local, offset=offset)
