"""An order that reads each chunk once: whole chunks, mixed in a bounded pool.

Chunks are taken in seeded order and cut into *blocks* of about R rows. A block's rows are put
in seeded order and cut into D equal parts; part d leaves the pool d *rounds* after the block
has come. A round is thus a D-th of each of the last D blocks, put in seeded order again, and
goes out as batches:

    block     0    1    2    3    4   …      round 2 = a part of 0, of 1 and of 2
    round 0   ▪                              round 3 = a part of 1, of 2 and of 3   (D = 3)
    round 1   ▪    ▪
    round 2   ▪    ▪    ▪                    The first rounds, which have few blocks to draw
    round 3        ▪    ▪    ▪               from, are joined into one, and so are the last.

D blocks, one more that is being read and one more for a batch that ends in the next round are
in use, so R = pool_rows / (D + 2). What a shuffle buffer does by history is done here by
arithmetic: which rows are in which batch follows from the seed, whatever the number of threads
or the size of a batch, and a reader that goes on in the middle reads D blocks and is there.

Of a store that is memory-mapped, the pool is the page cache: `MixedOrder` says which rows come,
they are gathered where they lie, and the system is told which chunks are next. Of others,
`PoolReader` holds the blocks in memory of its own.
"""

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future, wait
from functools import cached_property
from typing import Any

import numpy as np

from actlake.storage.extents import Extent
from actlake.storage.reading.kept import Kept
from actlake.storage.reading.many import ManyStores
from actlake.storage.reading.order import Permutation
from actlake.storage.reading.selection import RowSet
from actlake.storage.recycled_memory import RecycledMemory
from actlake.storage.scaled_rows import SiteRows
from actlake.storage.sites import Site

Array = np.ndarray[Any, Any]
logger = logging.getLogger(__name__)

# D of D + 2 blocks are drawn from: at 16, 89 % of the pool. More parts gain little and make the
# blocks, which are read at once, small against a chunk.
MOST_PARTS = 16
_CHUNKS_AT_ONCE = 2**15
# Of a million rows in the pool a round is 55,556 rows, 0.4 MB.
_ROUNDS_KEPT = 8


class MixingPlan:
    """Which rows are in which round; pure arithmetic on the rows of each chunk.

    Parameters
    ----------
    counts
        (chunks,) rows of each chunk that take part.
    pool_rows
        Rows that may be in memory.
    seed, epoch
        What the order is drawn from.
    """

    def __init__(self, counts: Array, *, pool_rows: int, seed: int, epoch: int) -> None:
        self._seed = seed
        self._epoch = epoch
        chunks = np.flatnonzero(counts)
        self.chunks = chunks[self._permutation(len(chunks), "chunks")(np.arange(len(chunks)))]
        """Chunk numbers in the order in which they are read."""
        largest = int(counts.max())
        self.num_parts = max(1, min(MOST_PARTS, pool_rows // largest - 2))
        block_rows = max(largest, pool_rows // (self.num_parts + 2))
        before = np.cumsum([0, *counts[self.chunks]])
        self._first_chunks = np.searchsorted(
            before[:-1] // block_rows, np.arange(int(before[-2]) // block_rows + 2)
        )
        self.block_sizes = np.diff(before[self._first_chunks])
        """(blocks,) rows of each block."""
        self.lead = min(self.num_parts // 2, self.num_blocks - 1)
        """Round e draws from blocks up to e + lead."""
        parts = np.arange(self.num_parts + 1)
        self._part_edges = self.block_sizes[:, None] * parts // self.num_parts
        last = self.num_blocks - 1
        due = np.arange(self.num_blocks)[:, None] + parts[:-1]
        self._rounds = np.clip(due, self.lead, last) - self.lead
        sizes = np.zeros(last - self.lead + 1, np.int64)
        np.add.at(sizes, self._rounds, np.diff(self._part_edges))
        self.round_edges = np.cumsum([0, *sizes])
        """(rounds + 1,) places of the epoch at which rounds begin."""
        self._orders: dict[int, Permutation] = {}

    @property
    def num_blocks(self) -> int:
        """How many blocks."""
        return len(self.block_sizes)

    @property
    def num_rounds(self) -> int:
        """How many rounds."""
        return len(self.round_edges) - 1

    def rounds(self, places: Extent) -> Extent:
        """The rounds in which these places of the epoch are."""
        first, last = np.searchsorted(
            self.round_edges, [places.start, places.stop - 1], side="right"
        )
        return Extent(int(first) - 1, int(last))

    def blocks(self, rounds: Extent) -> Extent:
        """The blocks that these rounds draw from."""
        first = max(0, rounds.start + self.lead - self.num_parts + 1) if rounds.start else 0
        return Extent(first, min(rounds.stop + self.lead, self.num_blocks))

    def block_chunks(self, block: int) -> Array:
        """The chunks of a block, in the order in which their rows are counted."""
        return self.chunks[self._first_chunks[block] : self._first_chunks[block + 1]]

    def members(self, number: int) -> list[tuple[int, Array]]:
        """Of each block that a round draws from: the block, and which of its rows."""
        chosen = []
        for block in range(*_bounds(self.blocks(Extent(number, number + 1)))):
            parts = np.flatnonzero(self._rounds[block] == number)
            if parts.size:
                edges = self._part_edges[block, [parts[0], parts[-1] + 1]]
                chosen.append((block, self._block_order(block)(np.arange(*edges))))
        return chosen

    def round_order(self, number: int) -> Array:
        """(n,) int64: which of the round's members stands at each of its places."""
        size = int(self.round_edges[number + 1] - self.round_edges[number])
        return self._permutation(size, f"round {number}")(np.arange(size))

    def blocks_at_once(self, batch_rows: int) -> int:
        """How many blocks are in memory: for the rounds of one batch, and one ahead."""
        last_places = self.round_edges[1:] - 1
        reach = np.searchsorted(self.round_edges, last_places + batch_rows - 1, side="right") - 1
        spanned = np.minimum(reach, self.num_rounds - 1) - np.arange(self.num_rounds)
        return min(self.num_parts + int(spanned.max()) + 1, self.num_blocks)

    def _block_order(self, block: int) -> Permutation:
        """Kept while rounds draw from the block: a short order is a table, made by sorting."""
        if block not in self._orders:
            self._orders[block] = self._permutation(int(self.block_sizes[block]), f"block {block}")
            while len(self._orders) > self.num_parts + self.lead + 1:
                del self._orders[next(iter(self._orders))]
        return self._orders[block]

    def _permutation(self, length: int, purpose: str) -> Permutation:
        return Permutation(length, seed=self._seed, purpose=f"epoch {self._epoch} {purpose}")


class ChunkMap:
    """The chunks of several stores as one list, and the rows of each that take part.

    Of sites whose chunks differ, those of the widest rows: a piece of any of them is then no
    larger than a chunk.
    """

    def __init__(self, stores: ManyStores, rows: RowSet, sites: Iterable[str | Site]) -> None:
        sites = list(sites)
        edges = [np.zeros(1, np.int64)]
        first = [0]
        for store, offset in zip(stores.stores, stores.offsets, strict=False):
            length, total = store.chunk_rows(sites), len(store)
            stops = np.minimum(np.arange(length, total + length, length), total)
            edges.append(offset + stops)
            first.append(first[-1] + len(stops))
        self._edges = np.concatenate(edges)
        self._first = np.array(first)
        self._offsets = stores.offsets
        self._schemas = [store.schema for store in stores.stores]
        self._rows = rows

    @cached_property
    def counts(self) -> Array:
        """(chunks,) how many rows of each chunk take part."""
        ranks = [
            self._rows.rank(self._edges[start : start + _CHUNKS_AT_ONCE])
            for start in range(0, len(self._edges), _CHUNKS_AT_ONCE)
        ]
        return np.diff(np.concatenate(ranks))

    def rows(self, chunk: int) -> Array:
        """The rows of a chunk that take part, sorted."""
        return self._rows.between(int(self._edges[chunk]), int(self._edges[chunk + 1]))

    def start(self, chunk: int) -> int:
        """The first row of a chunk."""
        return int(self._edges[chunk])

    def read(self, arrays: Sequence[SiteRows], chunk: int) -> Array:
        """(n,) items, the chunk's rows of one site as stored; `arrays` are those of the stores."""
        array, rows = self._locate(arrays, chunk)
        return array.packed(rows.start, rows.stop)

    def expect(self, arrays: Sequence[SiteRows], chunk: int) -> None:
        """Say that the chunk will be read soon; see `RowArray.expect`."""
        array, rows = self._locate(arrays, chunk)
        array.expect(rows.start, rows.stop)

    def _locate(self, arrays: Sequence[SiteRows], chunk: int) -> tuple[SiteRows, Extent]:
        """The array of the store that a chunk is of, and its rows there, less a gap at its end."""
        store = int(np.searchsorted(self._first, chunk, side="right")) - 1
        offset = int(self._offsets[store])
        start, stop = (int(edge) - offset for edge in self._edges[chunk : chunk + 2])
        (rows,) = self._schemas[store].held(Extent(start, stop))
        return arrays[store], rows


class MixedEpoch:
    """Which rows are at the places of one epoch; any number of threads may ask.

    Parameters
    ----------
    coming
        Told of every chunk before its first row is asked for, a block ahead.
    """

    def __init__(
        self,
        plan: MixingPlan,
        chunks: ChunkMap,
        *,
        coming: Callable[[int], None] | None = None,
    ) -> None:
        self.plan = plan
        self._chunks = chunks
        self._coming = coming
        self._told = 0  # of the blocks below, the chunks were said to come
        self.round_rows = Kept(self._rows_of_round, _ROUNDS_KEPT)
        """Of a round, by its number, (n,) int64: its rows in the order in which they go out."""
        # Kept while rounds draw from them, and a few more for threads that lag behind.
        self.block_rows = Kept(self._rows_of_block, 2 * plan.num_parts + 2)
        """Of a block, by its number, (n,) int64: its rows, chunk by chunk."""

    def rows(self, places: Extent) -> Array:
        """(n,) int64: the rows at these places."""
        rounds = self.plan.rounds(places)
        parts = []
        for number in range(*_bounds(rounds)):
            start = int(self.plan.round_edges[number])
            here = slice(max(0, places.start - start), places.stop - start)
            parts.append(self.round_rows(number)[here])
        return np.concatenate(parts)

    def _rows_of_round(self, number: int) -> Array:
        members = self.plan.members(number)
        rows = np.concatenate([self.block_rows(block)[which] for block, which in members])
        return rows[self.plan.round_order(number)]

    def _rows_of_block(self, block: int) -> Array:
        if self._coming is not None:
            self._tell(block, self._coming)
        return np.concatenate([self._chunks.rows(c) for c in self.plan.block_chunks(block)])

    def _tell(self, block: int, coming: Callable[[int], None]) -> None:
        """Say that the chunks of this block and of the next one are coming, each once."""
        until = min(block + 2, self.plan.num_blocks)
        for number in range(max(block, self._told), until):
            for chunk in self.plan.block_chunks(number).tolist():
                coming(chunk)
        self._told = max(self._told, until)


class MixedOrder:
    """The pool's order of stores that are memory-mapped; the pool is the page cache.

    Parameters
    ----------
    sites
        Whose chunks the system is told to have ready.
    """

    def __init__(
        self,
        stores: ManyStores,
        sites: Iterable[Site],
        rows: RowSet,
        *,
        pool_rows: int,
        seed: int,
    ) -> None:
        sites = list(sites)
        self._arrays = [stores.arrays(site) for site in sites]
        self._chunks = ChunkMap(stores, rows, sites)
        self._epoch = Kept(self._begin, 2)  # threads may be in two
        self._how = {"pool_rows": pool_rows, "seed": seed}

    def rows(self, epoch: int, places: Extent) -> Array:
        """(n,) int64: the rows at these places of an epoch."""
        return self._epoch(epoch).rows(places)

    def _begin(self, epoch: int) -> MixedEpoch:
        plan = MixingPlan(self._chunks.counts, epoch=epoch, **self._how)
        return MixedEpoch(plan, self._chunks, coming=self._expect)

    def _expect(self, chunk: int) -> None:
        for arrays in self._arrays:
            self._chunks.expect(arrays, chunk)


class PoolReader:
    """Reads the places of an epoch in rising order through the pool.

    Parameters
    ----------
    executor
        Reads the next block meanwhile; None: it is read when it is needed.
    chunks_ahead
        Chunks to have under way, at least: as many blocks are read ahead, and are in memory
        beside the pool.
    """

    def __init__(
        self,
        stores: ManyStores,
        sites: Mapping[Site, Site],
        rows: RowSet,
        *,
        pool_rows: int,
        seed: int,
        batch_rows: int,
        executor: Executor | None,
        chunks_ahead: int = 1,
    ) -> None:
        self._arrays = {site: stores.arrays(stored) for site, stored in sites.items()}
        self._schemas = {site: stores.schema_of(stored) for site, stored in sites.items()}
        self._map = ChunkMap(stores, rows, sites.values())
        self._how = {"pool_rows": pool_rows, "seed": seed}
        self._batch_rows = batch_rows
        self._executor = executor
        self._chunks_ahead = chunks_ahead
        self._epoch = -1
        self._mixed: MixedEpoch
        self._pool: dict[Site, Array] = {}
        self._memory = RecycledMemory()
        self._loads: dict[int, list[Future[None]]] = {}
        self._slots: dict[int, Array] = {}

    def read(self, epoch: int, places: Extent) -> tuple[Array, dict[Site, Array]]:
        """The rows at these places, and their activations, (n, dim) as stored."""
        if epoch != self._epoch:
            self._begin(epoch)
        if len(places) == 0:
            return np.empty(0, np.int64), {
                s: self._as_rows(s, p[:0]) for s, p in self._pool.items()
            }
        rounds = self._plan.rounds(places)
        self._bring(rounds)
        slots = []
        for number in range(*_bounds(rounds)):
            start = int(self._plan.round_edges[number])
            here = slice(max(0, places.start - start), places.stop - start)
            slots.append(self._round_slots(number)[here])
        picked = np.concatenate(slots)
        acts = {s: self._as_rows(s, self._taken(p, picked)) for s, p in self._pool.items()}
        return self._mixed.rows(places), acts

    @property
    def _plan(self) -> MixingPlan:
        return self._mixed.plan

    def _begin(self, epoch: int) -> None:
        self._abandon()
        self._epoch = epoch
        plan = MixingPlan(self._map.counts, epoch=epoch, **self._how)
        self._mixed = MixedEpoch(plan, self._map)
        chunks_a_block = len(self._plan.chunks) / self._plan.num_blocks
        self._ahead = max(1, math.ceil(self._chunks_ahead / chunks_a_block))
        slots = self._plan.blocks_at_once(self._batch_rows) + self._ahead - 1
        self._num_slots = min(slots, self._plan.num_blocks)
        self._slot_rows = int(self._plan.block_sizes.max())
        self._slots = {}
        length = self._num_slots * self._slot_rows
        if any(len(pool) < length for pool in self._pool.values()) or not self._pool:
            self._pool = {}  # let go of the old one first
            self._pool = {
                site: np.empty(length, np.dtype((np.void, schema.row_bytes)))
                for site, schema in self._schemas.items()
            }
            logger.info(
                "The pool holds up to %d rows, %.0f MB",
                length,
                length * sum(schema.row_bytes for schema in self._schemas.values()) / 1e6,
            )

    def _bring(self, rounds: Extent) -> None:
        """Have the blocks of these rounds in memory, and the next ones on their way."""
        needed = self._plan.blocks(rounds)
        for block in [block for block in self._loads if block < needed.start]:
            self._wait(self._loads.pop(block))
        for number in [number for number in self._slots if number < rounds.start]:
            del self._slots[number]
        ahead = self._ahead if self._executor is not None else 0
        for block in range(needed.start, min(needed.stop + ahead, self._plan.num_blocks)):
            if block not in self._loads and block < needed.start + self._num_slots:
                self._load(block)
        for block in range(*_bounds(needed)):
            try:
                self._wait(self._loads[block])
            except BaseException:
                self._abandon()  # whoever asks again reads again
                raise

    def _load(self, block: int) -> None:
        at = self._slot(block)
        rows = self._mixed.block_rows(block)
        chunks = self._plan.block_chunks(block)
        loads: list[Future[None]] = []
        for chunk, taken in zip(
            chunks.tolist(),
            np.split(rows, np.cumsum(self._map.counts[chunks])[:-1]),
            strict=True,
        ):
            if self._executor is None:
                self._copy(chunk, taken, at)
            else:
                loads.append(self._executor.submit(self._copy, chunk, taken, at))
            at += len(taken)
        self._loads[block] = loads

    def _copy(self, chunk: int, taken: Array, at: int) -> None:
        """Copy the rows of a chunk that take part into the pool; in one of many threads."""
        local = taken - self._map.start(chunk)
        for site, pool in self._pool.items():
            raw = self._map.read(self._arrays[site], chunk)
            into = pool[at : at + len(taken)]
            if len(taken) == len(raw):
                into[:] = raw
            else:
                raw.take(local, out=into, mode="clip")  # "raise" would copy `into` first

    def _round_slots(self, number: int) -> Array:
        """Where in the pool a round's rows are, in the order in which they go out."""
        if number not in self._slots:
            members = self._plan.members(number)
            slots = np.concatenate([self._slot(block) + which for block, which in members])
            self._slots[number] = slots[self._plan.round_order(number)]
        return self._slots[number]

    def _slot(self, block: int) -> int:
        return block % self._num_slots * self._slot_rows

    def _taken(self, pool: Array, slots: Array) -> Array:
        taken = self._memory.empty(len(slots) * pool.itemsize).view(pool.dtype)
        pool.take(slots, out=taken, mode="clip")  # "raise" would copy `taken` first
        return taken

    def _as_rows(self, site: Site, raw: Array) -> Array:
        return self._arrays[site][0].unpacked(raw)

    @staticmethod
    def _wait(loads: Sequence[Future[None]]) -> None:
        for load in loads:
            load.result()

    def _abandon(self) -> None:
        """Forget what is in the pool, once nobody writes into it any more."""
        wait(load for loads in self._loads.values() for load in loads)
        self._loads = {}


def _bounds(extent: Extent) -> tuple[int, int]:
    return extent.start, extent.stop
