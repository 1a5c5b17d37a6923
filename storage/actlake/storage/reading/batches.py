"""Shuffled batches of activations, out as NumPy: the same for the same seed, on any machine.

    for batch in store.batches("resid_post.9", 4096, split="train", seed=0):
        batch.rows            # (4096,) int64, row numbers of the store
        batch.acts            # (4096, 576) float16, as stored

The order of an epoch is fixed by the store, the committed units, the filter and the seed. Batch
k is places ``k * rows_per_batch`` and on of that order, so a reader is resumed by two numbers,
and the readers of a data-parallel job take slices of the same batches.
"""

import copy
import logging
import math
import operator
import os
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self, TypedDict, get_args

import numpy as np

from actlake.storage.ahead import check_threads_are_here
from actlake.storage.errors import InvalidBatches, nearest
from actlake.storage.extents import Extent, UnitSet
from actlake.storage.moments import Moments
from actlake.storage.reading.gathering import (
    GatherReader,
    Order,
    StoredOrder,
    UniformOrder,
    reading_ahead_pays,
)
from actlake.storage.reading.many import ManyStores
from actlake.storage.reading.mixing import MixedOrder, PoolReader
from actlake.storage.reading.predicates import Predicate
from actlake.storage.reading.selection import Exclusion, RowFilter, RowSet, select_rows
from actlake.storage.reading.state import (
    BatchOrder,
    as_they_were,
    check_order,
    check_rows,
    check_state,
    what_is_read,
)
from actlake.storage.sites import Site
from actlake.storage.store import ActivationStore

Array = np.ndarray[Any, Any]
Shuffle = Literal["auto", "exact", "pool", "none"]
Last = Literal["drop", "ragged"]
logger = logging.getLogger(__name__)

# Mixes about 500 chunks of 2 MiB; 1.2 GB a site at 576 dimensions of float16.
POOL_ROWS = 1_000_000


class BatchOptions(TypedDict, total=False):
    """The options of `read_batches`, which explains them."""

    split: str | None
    seed: int
    shuffle: Shuffle
    pool_rows: int
    exclude: Exclusion
    where: Any
    epochs: int | None
    last: Last
    rank: int
    world_size: int
    stride: tuple[int, int]
    state: Mapping[str, Any] | None
    threads: int
    dtype: Any


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Rows of a store, and their activations at one or more sites."""

    rows: Array
    """(n,) int64, row numbers; ``store.tokens["id"].take(batch.rows)`` are the tokens."""
    acts: Any
    """(n, dim), or a dict of such arrays by `Site` where several sites were asked for."""
    epoch: int
    step: int
    """Batches before this one, over all epochs."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, site: str | Site) -> Array:
        acts: Array = self.acts[Site.parse(site)]
        return acts


def read_batches(
    stores: ManyStores,
    sites: str | Site | Sequence[str | Site],
    rows_per_batch: int,
    *,
    split: str | None = None,
    seed: int = 0,
    shuffle: Shuffle = "auto",
    pool_rows: int = POOL_ROWS,
    exclude: Exclusion = "default",
    where: Any = None,
    epochs: int | None = None,
    last: Last = "drop",
    rank: int = 0,
    world_size: int = 1,
    stride: tuple[int, int] = (0, 1),
    state: Mapping[str, Any] | None = None,
    threads: int = 0,
    dtype: Any = None,
) -> "Batches":
    """Batches of the committed rows, in an order that the arguments fix.

    Only committed units are read, and which these are is settled here: what a harvest commits
    later is seen by the next call, and not by one that resumes from a `state`.

    Parameters
    ----------
    sites
        One site, or several, whose rows then come aligned.
    rows_per_batch
        Rows of a batch over all ranks together, so that the order of rows, and what a training
        step sees, does not depend on the number of ranks.
    split
        Only rows of this split; by default of all.
    seed
        Another seed, another order. Epochs differ in order, too.
    shuffle
        ``exact``: every order of all rows is as likely as any other; needs a store that is
        memory-mapped (it is slow elsewhere). ``pool``: chunks in seeded order, mixed in a
        bounded pool, so that each chunk is read once; for stores that cannot be mapped, or are
        much larger than the memory. ``none``: in the order of the store. ``auto``: ``exact``
        where all sites are mapped, else ``pool``; decided by the store alone, logged, and kept
        in the state. Where a store that is mapped cannot be on this machine, ``auto`` is refused.
    pool_rows
        Rows of the ``pool`` shuffle; more mix better. They are held in memory where the store
        is not mapped (of a remote one 16 chunks more are on their way), and else in the system's
        own cache of files.
    exclude
        ``default``: without position 0 of each context and special token ids (design §3);
        None: with them.
    where
        A predicate: SQL over the token and document tables (``"position >= 4"``), a pyarrow
        expression, a function of the columns, or row numbers; see `Predicate`. A `Predicate`
        itself remembers its answers, for batches that are opened again.
    epochs
        How often all rows are read; None: endlessly.
    last
        What becomes of the rows at the end of an epoch that do not fill a batch: dropped, or
        a ``ragged`` batch.
    rank, world_size
        Which slice of each batch is read: of n rows, ``n * rank // world_size`` and on. May
        be another on resume. Of a store that is still being harvested each rank might see other
        units, and so another order; there all but one go on from the `state` of that one.
    stride
        ``(i, n)``: only batches i, i + n, i + 2 n, …: for n worker processes side by side, of
        which the same is true.
    state
        What `Batches.state_dict` gave: go on after the batch that came before it, over the rows
        that there were when its reader began; if the store was appended to since, a warning says
        so.
    threads
        Threads that read ahead; 0: read when asked. Stores that are not on this machine are
        always read ahead, by 16 threads at least. Which batch comes does not depend on it.
    dtype
        Turn activations into this type, such as ``"float32"``; by default they are as stored.

    Raises
    ------
    SiteNotStored, UnknownSplit, EmptySelection, InvalidQuery
        As their names say.
    InvalidBatches
        A size or name that cannot be, a batch that is larger than what there is to read,
        ``auto`` where this process may not map the store, or one of several ranks or workers, of
        a store that is not complete, without a `state`.
    StateMismatch
        The state is of another store, seed or config; the differences are named.
    """
    stores.refresh()
    if state is not None:
        check_state(state)
        stores = as_they_were(state, stores)
    written = [sites] if isinstance(sites, str | Site) else list(sites)
    asked = {site: stores.site(site) for site in _sites(written)}
    predicate = where if where is None or isinstance(where, Predicate) else Predicate(where)
    for name, value, known in (("shuffle", shuffle, Shuffle), ("last", last, Last)):
        _check_name(name, value, get_args(known))
    _check_name("exclude", exclude, ("default", None))
    rows_per_batch = _whole("rows_per_batch", rows_per_batch, least=1)
    share = _turn("rank", (rank, world_size))
    stride = _turn("stride", stride)
    _check_share(rows_per_batch, share[1])
    mode, reason = _resolve(shuffle, stores, list(asked.values()), state)
    pool_rows = _whole("pool_rows", pool_rows, least=1)
    order = BatchOrder(
        sites=tuple(map(str, asked)),
        rows_per_batch=rows_per_batch,
        split=split,
        seed=_whole("seed", seed),
        shuffle=mode,
        pool_rows=pool_rows if mode == "pool" else None,
        exclude=exclude,
        where=None if predicate is None else str(predicate),
        last=last,
    )
    committed = stores.readable(asked.values())
    if state is not None:
        committed = check_order(state, stores, order, committed)
    elif max(share[1], stride[1]) > 1:
        _check_complete(stores, committed)
    rows = select_rows(stores, committed, RowFilter(split, exclude, predicate))
    if state is not None:
        check_rows(state, rows)
    if rows_per_batch > len(rows) and last == "drop":
        raise InvalidBatches(
            f"A batch of {rows_per_batch:,} rows cannot be filled: {len(rows):,} rows of "
            f"{stores.url} pass {RowFilter(split, exclude, predicate)}\n"
            'hint: make smaller batches, or take what there is with last="ragged"'
        )
    logger.info("Reading %s rows: %s, %s", f"{len(rows):,}", mode, reason)
    threads = _whole("threads", threads, least=0)
    return Batches(
        stores,
        asked,
        order,
        rows,
        committed=committed,
        reason=reason,
        epochs=None if epochs is None else _whole("epochs", epochs, least=1),
        single=isinstance(sites, str | Site),
        share=share,
        stride=stride,
        start=(0, 0) if state is None else (state["epoch"], state["step"]),
        threads=max(threads, *(_threads_of(store) for store in stores.stores)),
        dtype=None if dtype is None else _dtype(dtype),
    )


def _threads_of(store: ActivationStore) -> int:
    """What a store needs to be read at the speed of its server; 0 where it is here."""
    return store.location.parallel if store.location.parallel > 1 else 0


class Batches(Iterator[Batch]):
    """An iterator over batches that can say where it is. `ActivationStore.batches` makes one.

    Attributes
    ----------
    order
        What decides which rows are in which batch.
    reason
        Why it is shuffled the way it is.
    stores
        What is read.
    selected
        The rows of an epoch, as a set.
    num_rows
        How many these are.
    steps_per_epoch
        Batches of an epoch, over all strides.
    """

    def __init__(
        self,
        stores: ManyStores,
        sites: Mapping[Site, Site],
        order: BatchOrder,
        rows: RowSet,
        *,
        committed: Sequence[UnitSet],
        reason: str,
        epochs: int | None,
        single: bool,
        share: tuple[int, int],
        stride: tuple[int, int],
        start: tuple[int, int],
        threads: int,
        dtype: np.dtype[Any] | None,
    ) -> None:
        self.order = order
        self.reason = reason
        self.stores = stores
        self.selected = rows
        self.num_rows = len(rows)
        fill = math.ceil if order.last == "ragged" else math.floor
        self.steps_per_epoch = fill(self.num_rows / order.rows_per_batch)
        self._committed = committed
        self._epochs = epochs
        self._single = next(iter(sites)) if single else None
        self._share = share
        self._stride = stride
        self._dtype = dtype
        self._done = start[0] * self.steps_per_epoch + start[1]  # steps given out, or passed over
        self._fixed = what_is_read(stores, order, reason, committed, rows)
        self._finish: Callable[[Batch], Any] = _as_it_is
        self._executor = None
        self._made_in = os.getpid()
        if threads:
            self._executor = ThreadPoolExecutor(threads, thread_name_prefix="actlake-batches")
            weakref.finalize(self, self._executor.shutdown, wait=False, cancel_futures=True)
        self._ahead: deque[tuple[int, Future[Batch]]] = deque()
        self._most_ahead = 2 * threads
        self._closed = False
        self._reader: GatherReader | PoolReader
        if order.shuffle == "pool" and not _all_mapped(stores, sites.values()):
            assert order.pool_rows is not None
            self._most_ahead = 0  # the pool itself reads ahead
            self._reader = PoolReader(
                stores,
                sites,
                rows,
                pool_rows=order.pool_rows,
                seed=order.seed,
                batch_rows=order.rows_per_batch,
                executor=self._executor,
                chunks_ahead=max(store.location.parallel for store in stores.stores),
            )
        else:
            self._reader = GatherReader(
                stores,
                sites,
                _order_of(stores, sites.values(), rows, order),
                ahead=order.shuffle != "exact"
                or reading_ahead_pays(stores, sites, num_rows=len(rows), committed=committed),
            )

    def __next__(self) -> Batch:
        if self._closed:
            raise InvalidBatches(
                "These batches were closed\nhint: make others that go on where they were, "
                "store.batches(…, state=batches.state_dict())"
            )
        if self._executor is not None:
            check_threads_are_here(self._made_in)
        step = self._next_step(self._done)
        if step is None:
            raise StopIteration
        batch = self._from_ahead(step) if self.reads_ahead else self._read(step)
        self._done = step + 1
        return batch

    @property
    def reads_ahead(self) -> bool:
        """Whether whole batches are made in threads before they are asked for."""
        return self._executor is not None and self._most_ahead > 0

    def finish_with(self, function: Callable[[Batch], Any]) -> None:
        """Give out ``function(batch)`` from now on, made by the thread that read the batch."""
        self._forget_ahead()
        self._finish = function

    @property
    def steps_done(self) -> int:
        """Batches given out or passed over, over all epochs and strides."""
        return self._done

    def state_dict(self, steps_done: int | None = None) -> dict[str, Any]:
        """Where it is, as plain JSON: after the batch that was given out last.

        The order, the committed units it saw and two numbers; no rows. Of the same step it is
        the same on every rank.

        Parameters
        ----------
        steps_done
            Where it was when `steps_done` said so; by default where it is now.
        """
        done = self._done if steps_done is None else steps_done
        epoch, step = divmod(done, self.steps_per_epoch)
        return {**copy.deepcopy(self._fixed), "epoch": epoch, "step": step}

    def moments(self, site: str | Site) -> Moments:
        """Mean, variance and norms of the rows of an epoch, without reading a row.

        Raises
        ------
        InvalidBatches
            There is a predicate: statistics are kept by split and default exclusion only.
        """
        if self.order.where is not None:
            raise InvalidBatches(
                f"Statistics are kept by split and exclusion, not for {self.order.where}\n"
                "hint: take those of the split, store.moments(site, split=…), or sum them up "
                "over the batches"
            )
        return self.stores.moments(
            site,
            split=self.order.split,
            excluded=False if self.order.exclude == "default" else None,
            units=self._committed,
        )

    def close(self) -> None:
        """Stop all threads; there are no more batches."""
        self._closed = True
        self._ahead.clear()
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        order = self.order
        return (
            f"Batches({self.steps_per_epoch:,} an epoch of {order.rows_per_batch:,} of "
            f"{self.num_rows:,} rows, {', '.join(order.sites)}, {order.shuffle}, "
            f"seed {order.seed}; at step {self._done:,})"
        )

    def _next_step(self, step: int) -> int | None:
        first, every = self._stride
        step += (first - step) % every
        if self._epochs is not None and step >= self._epochs * self.steps_per_epoch:
            return None
        return step

    def _from_ahead(self, step: int) -> Batch:
        """The batch of this step from the threads; after an error it can be asked for again."""
        assert self._executor is not None
        assert isinstance(self._reader, GatherReader)
        upcoming = self._ahead[-1][0] + 1 if self._ahead else step
        while len(self._ahead) < self._most_ahead:
            following = self._next_step(upcoming)
            if following is None:
                break
            self._ahead.append((following, self._executor.submit(self._read, following)))
            later = self._next_step(following + self._most_ahead)
            if later is not None:
                self._executor.submit(self._reader.prepare, *self._place(later))
            upcoming = following + 1
        try:
            batch = self._ahead[0][1].result()
        except BaseException:
            self._forget_ahead()
            raise
        self._ahead.popleft()
        return batch

    def _forget_ahead(self) -> None:
        for _, future in self._ahead:
            future.cancel()
        self._ahead.clear()

    def _place(self, step: int) -> tuple[int, Extent]:
        """The epoch of a step, and which places of it are this rank's."""
        epoch, within = divmod(step, self.steps_per_epoch)
        start = within * self.order.rows_per_batch
        length = min(self.order.rows_per_batch, self.num_rows - start)
        rank, world_size = self._share
        return epoch, Extent(
            start + length * rank // world_size, start + length * (rank + 1) // world_size
        )

    def _read(self, step: int) -> Batch:
        epoch, places = self._place(step)
        rows, acts = self._reader.read(epoch, places)
        if self._dtype is not None:
            acts = {site: values.astype(self._dtype, copy=False) for site, values in acts.items()}
        given = acts if self._single is None else acts[self._single]
        finished: Batch = self._finish(Batch(rows, given, epoch, step))
        return finished


def _as_it_is(batch: Batch) -> Batch:
    return batch


# Which way to shuffle.


def _resolve(
    shuffle: Shuffle, stores: ManyStores, sites: Sequence[Site], state: Mapping[str, Any] | None
) -> tuple[str, str]:
    """The way to shuffle, and why; by the store and the config only.

    Raises
    ------
    InvalidBatches
        The store is one that is mapped, and this machine refuses it.
    """
    if shuffle != "auto":
        return shuffle, "asked for"
    arrays = [array for site in sites for array in stores.arrays(site)]
    if state is not None:
        mode, reason = state["order"]["shuffle"], state["reason"]
    elif others := [array for array in arrays if not array.can_be_mapped]:
        mode = "pool"
        reason = f"{others[0].name} is read {_HOW[others[0].path]}, chunk by chunk"
    else:
        mode, reason = "exact", "the store is memory-mapped"
    if mode == "exact" and any(a.can_be_mapped and a.path != "mapped" for a in arrays):
        raise InvalidBatches(
            f"{stores.url} is read in exact order where it is mapped into memory, and this process "
            "may not map as much (the log says why)\n"
            'hint: allow it (`ulimit -v unlimited`), or ask for shuffle="pool", another order, or '
            'for "exact", which is very slow without'
        )
    return mode, reason


_HOW = {"zarr": "through Zarr", "ranges": "by ranges of bytes"}


def _all_mapped(stores: ManyStores, sites: Iterable[Site]) -> bool:
    return all(array.path == "mapped" for site in sites for array in stores.arrays(site))


def _order_of(stores: ManyStores, sites: Iterable[Site], rows: RowSet, order: BatchOrder) -> Order:
    """The order of the rows of stores that can be read anywhere."""
    if order.shuffle == "pool":
        assert order.pool_rows is not None
        return MixedOrder(stores, sites, rows, pool_rows=order.pool_rows, seed=order.seed)
    return UniformOrder(rows, seed=order.seed) if order.shuffle == "exact" else StoredOrder(rows)


# Arguments that cannot be.


def _sites(written: Sequence[Any]) -> list[Site]:
    if not written:
        raise InvalidBatches("No site was asked for\nhint: such as resid_post.6")
    for site in written:
        if not isinstance(site, str | Site):
            raise InvalidBatches(f"{site!r} is not a site\nhint: such as resid_post.6")
    return [Site.parse(site) for site in written]


def _check_name(name: str, value: Any, known: Sequence[str | None]) -> None:
    if value not in known:
        hint = nearest(str(value), map(str, known))
        raise InvalidBatches(f"There is no {name}={value!r}\n{hint}")


def _whole(name: str, value: Any, *, least: int | None = None) -> int:
    """A whole number, as Python's own, which JSON can hold."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or (least is not None and number < least):
        kind = "a whole number" if least is None else f"a number from {least}"
        raise InvalidBatches(f"{name} must be {kind}, and is {value!r}")
    return number


def _turn(name: str, value: Any) -> tuple[int, int]:
    """Which of how many: counted from 0."""
    try:
        number, of = value
    except (TypeError, ValueError):
        raise InvalidBatches(f"{name} must be two numbers, and is {value!r}") from None
    number, of = _whole(name, number), _whole(f"the number of {name}s", of, least=1)
    if not 0 <= number < of:
        raise InvalidBatches(f"{name} {number} is not one of {of}; they count from 0")
    return number, of


def _check_share(rows_per_batch: int, world_size: int) -> None:
    if rows_per_batch % world_size:
        each = -(-rows_per_batch // world_size)
        raise InvalidBatches(
            f"A batch of {rows_per_batch:,} rows cannot be shared evenly by {world_size} ranks\n"
            f"hint: rows_per_batch is over all ranks; {each} rows each make {each * world_size:,}"
        )


def _check_complete(stores: ManyStores, committed: Sequence[UnitSet]) -> None:
    """Refuse to be one of several readers where the others may see other units."""
    for store, units in zip(stores.stores, committed, strict=True):
        if len(units) < store.schema.num_units:
            raise InvalidBatches(
                f"{len(units):,} of {store.schema.num_units:,} units of {store.url} are committed, "
                "and what another rank or worker sees may be others\n"
                "hint: wait for the harvest; or open batches of one rank, and give the state of "
                "these to every rank, state=batches.state_dict()"
            )


def _dtype(asked: Any) -> np.dtype[Any]:
    try:
        dtype: np.dtype[Any] = np.dtype(asked)
    except TypeError as error:
        raise InvalidBatches(f"{asked!r} is no element type\nhint: such as float32") from error
    return dtype
