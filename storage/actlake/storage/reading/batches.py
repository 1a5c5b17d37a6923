"""Shuffled batches of activations, out as NumPy: the same for the same seed, on any machine.

    for batch in store.batches("resid_post.9", 4096, split="train", seed=0):
        batch.rows            # (4096,) int64, row numbers of the store
        batch.acts            # (4096, 576) float16, as stored

The order of an epoch is fixed by the store, the committed units, the filter and the seed. Batch
k is places ``k * rows_per_batch`` and on of that order, so a reader is resumed by two numbers,
and the readers of a data-parallel job take slices of the same batches.
"""

import logging
import math
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TypedDict, get_args

import numpy as np

from actlake.storage.errors import FormatTooNew, InvalidBatches, StateMismatch, nearest
from actlake.storage.extents import Extent, UnitSet
from actlake.storage.moments import Moments
from actlake.storage.provenance import differences
from actlake.storage.reading.many import ManyStores
from actlake.storage.reading.mixing import PoolReader
from actlake.storage.reading.order import Permutation
from actlake.storage.reading.predicates import Predicate
from actlake.storage.reading.selection import Exclusion, RowFilter, RowSet, select_rows
from actlake.storage.sites import Site
from actlake.storage.store import ActivationStore

Array = np.ndarray[Any, Any]
Shuffle = Literal["auto", "exact", "pool", "none"]
Last = Literal["drop", "ragged"]
logger = logging.getLogger(__name__)

STATE_FORMAT = 1
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


@dataclass(frozen=True, kw_only=True)
class BatchOrder:
    """All that decides which rows are in which batch, but for the store."""

    sites: tuple[str, ...]
    rows_per_batch: int
    """Over all ranks together."""
    split: str | None
    seed: int
    shuffle: str
    """``exact``, ``pool`` or ``none``: resolved."""
    pool_rows: int | None
    """None where there is no pool."""
    exclude: str | None
    where: str | None
    last: str

    def as_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self) | {"sites": list(self.sites)}


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
        bounded pool. ``none``: in the order of the store. ``auto``: ``exact`` where all sites
        are mapped, else ``pool``; decided by the store alone, logged, and kept in the state.
    pool_rows
        Rows in memory of the ``pool`` shuffle; more mix better. Of a remote store 16 chunks
        more are on their way.
    exclude
        ``default``: without position 0 of each context and special token ids (design §3);
        None: with them.
    where
        A predicate: SQL over the token and document tables (``"position >= 4"``), a pyarrow
        expression, a function of the columns, or row numbers; see `Predicate`.
    epochs
        How often all rows are read; None: endlessly.
    last
        What becomes of the rows at the end of an epoch that do not fill a batch: dropped, or
        a ``ragged`` batch.
    rank, world_size
        Which slice of each batch is read: of n rows, ``n * rank // world_size`` and on. May
        be another on resume.
    stride
        ``(i, n)``: only batches i, i + n, i + 2 n, …: for n worker processes side by side.
    state
        What `Batches.state_dict` gave: go on after the batch that came before it.
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
        A size or name that cannot be, or a batch that is larger than what there is to read.
    StateMismatch
        The state is of another store, seed or config; the differences are named.
    """
    written = [sites] if isinstance(sites, str | Site) else list(sites)
    asked = {Site.parse(site): stores.site(site) for site in written}
    predicate = None if where is None else Predicate(where)
    _check(
        shuffle=shuffle,
        last=last,
        exclude=exclude,
        sites=len(asked),
        rows_per_batch=rows_per_batch,
        pool_rows=pool_rows,
        epochs=epochs,
        rank=rank,
        world_size=world_size,
        stride=stride,
        threads=threads,
    )
    if state is not None:
        _check_state_is_ours(state)
    mode, reason = _resolve(shuffle, stores, list(asked.values()), state)
    order = BatchOrder(
        sites=tuple(map(str, asked)),
        rows_per_batch=rows_per_batch,
        split=split,
        seed=seed,
        shuffle=mode,
        pool_rows=pool_rows if mode == "pool" else None,
        exclude=exclude,
        where=None if predicate is None else str(predicate),
        last=last,
    )
    committed = stores.committed(asked.values())
    if state is not None:
        committed = _check_state(state, stores, order, committed)
    rows = select_rows(stores, committed, RowFilter(split, exclude, predicate))
    checksum = rows.checksum()
    if state is not None:
        _check_rows(state, rows, checksum)
    if rows_per_batch > len(rows) and last == "drop":
        raise InvalidBatches(
            f"A batch of {rows_per_batch:,} rows cannot be filled: {len(rows):,} rows of "
            f"{stores.url} pass {RowFilter(split, exclude, predicate)}\n"
            'hint: make smaller batches, or take what there is with last="ragged"'
        )
    logger.info("Reading %s rows: %s, %s", f"{len(rows):,}", mode, reason)
    return Batches(
        stores,
        asked,
        order,
        rows,
        committed=committed,
        checksum=checksum,
        reason=reason,
        epochs=epochs,
        single=isinstance(sites, str | Site),
        share=(rank, world_size),
        stride=stride,
        start=(0, 0) if state is None else (state["epoch"], state["step"]),
        threads=max(threads, *(_threads_of(store) for store in stores.stores)),
        dtype=None if dtype is None else np.dtype(dtype),
    )


def _threads_of(store: ActivationStore) -> int:
    """What a store needs to be read at the speed of its server; 0 where it is here."""
    return store.location.parallel if store.location.parallel > 1 else 0


class _Reader(Protocol):
    def read(self, epoch: int, places: Extent) -> tuple[Array, dict[Site, Array]]: ...


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
        checksum: int,
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
        self._fixed = {
            "format": STATE_FORMAT,
            "stores": _identities(stores),
            "order": order.as_json(),
            "reason": reason,
            "committed": [[list(run) for run in units.runs()] for units in committed],
            "selected": {"rows": self.num_rows, "crc32c": f"{checksum:08x}"},
        }
        self._executor = None
        if threads:
            self._executor = ThreadPoolExecutor(threads, thread_name_prefix="actlake-batches")
            weakref.finalize(self, self._executor.shutdown, wait=False, cancel_futures=True)
        self._ahead: deque[tuple[int, Future[Batch]]] = deque()
        self._most_ahead = 2 * threads
        self._reader: _Reader
        if order.shuffle == "pool":
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
            self._reader = RandomReader(
                stores, sites, rows, seed=order.seed if order.shuffle == "exact" else None
            )

    def __next__(self) -> Batch:
        step = self._next_step(self._done)
        if step is None:
            raise StopIteration
        if self._executor is None or not self._most_ahead:
            batch = self._read(step)
        else:
            self._read_ahead(step)
            _, future = self._ahead.popleft()
            batch = future.result()
        self._done = step + 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Where it is, as plain JSON: after the batch that was given out last.

        The order, the committed units it saw and two numbers; no rows. Of the same step it is
        the same on every rank.
        """
        epoch, step = divmod(self._done, self.steps_per_epoch)
        return {**self._fixed, "epoch": epoch, "step": step}

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
        """Stop reading ahead."""
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

    def _read_ahead(self, step: int) -> None:
        assert self._executor is not None
        upcoming = self._ahead[-1][0] + 1 if self._ahead else step
        while len(self._ahead) < self._most_ahead:
            following = self._next_step(upcoming)
            if following is None:
                break
            self._ahead.append((following, self._executor.submit(self._read, following)))
            upcoming = following + 1

    def _read(self, step: int) -> Batch:
        epoch, within = divmod(step, self.steps_per_epoch)
        start = within * self.order.rows_per_batch
        length = min(self.order.rows_per_batch, self.num_rows - start)
        rank, world_size = self._share
        share = Extent(
            start + length * rank // world_size, start + length * (rank + 1) // world_size
        )
        rows, acts = self._reader.read(epoch, share)
        if self._dtype is not None:
            acts = {site: values.astype(self._dtype, copy=False) for site, values in acts.items()}
        return Batch(rows, acts if self._single is None else acts[self._single], epoch, step)


class RandomReader:
    """Reads any places of any epoch: the rows are gathered where they are.

    Parameters
    ----------
    seed
        Of the order; None: the rows' own.
    """

    def __init__(
        self, stores: ManyStores, sites: Mapping[Site, Site], rows: RowSet, *, seed: int | None
    ) -> None:
        self._stores = stores
        self._sites = sites
        self._rows = rows
        self._seed = seed
        self._permutation: tuple[int, Permutation] | None = None

    def read(self, epoch: int, places: Extent) -> tuple[Array, dict[Site, Array]]:
        """The rows at these places, and their activations, (n, dim) as stored."""
        among = np.arange(places.start, places.stop)
        if self._seed is not None:
            among = self._order(epoch, self._seed)(among)
        rows = self._rows.select(among)
        return rows, {site: self._stores.take(rows, stored) for site, stored in self._sites.items()}

    def _order(self, epoch: int, seed: int) -> Permutation:
        kept = self._permutation  # one look: other threads may replace it
        if kept is None or kept[0] != epoch:
            kept = epoch, Permutation(len(self._rows), seed=seed, purpose=f"epoch {epoch}")
            self._permutation = kept
        return kept[1]


# Which way to shuffle, and the state.


def _resolve(
    shuffle: Shuffle, stores: ManyStores, sites: Sequence[Site], state: Mapping[str, Any] | None
) -> tuple[str, str]:
    """The way to shuffle, and why; by the store and the config only."""
    if state is not None and shuffle == "auto":
        return str(state["order"]["shuffle"]), "as the state says"
    if shuffle != "auto":
        return shuffle, "asked for"
    for array in (array for site in sites for array in stores.arrays(site)):
        if array.path != "mapped":
            return "pool", f"{array.spec.name} is read {_HOW[array.path]}, chunk by chunk"
    return "exact", "the store is memory-mapped"


_HOW = {"zarr": "through Zarr", "ranges": "by ranges of bytes"}


def _identities(stores: ManyStores) -> list[dict[str, Any]]:
    return [
        {
            "fingerprint": store.fingerprint,
            "rows": store.schema.rows,
            "dtype": store.schema.dtype,
            "chunk_rows": store.schema.geometry.chunk_rows,
            "unit_rows": store.schema.geometry.unit_rows,
        }
        for store in stores.stores
    ]


def _check_state_is_ours(state: Mapping[str, Any]) -> None:
    needed = {"format", "stores", "order", "reason", "committed", "selected", "epoch", "step"}
    if not isinstance(state, Mapping) or needed - set(state):
        raise StateMismatch(
            "That is not the state of a batch reader: it lacks "
            f"{', '.join(sorted(needed - set(state)))}\nhint: give what state_dict() returned"
        )
    if state["format"] > STATE_FORMAT:
        raise FormatTooNew(
            f"The state is of format {state['format']}; this actlake reads up to format "
            f"{STATE_FORMAT}\nhint: pip install --upgrade actlake"
        )


def _check_state(
    state: Mapping[str, Any], stores: ManyStores, order: BatchOrder, committed: Sequence[UnitSet]
) -> list[UnitSet]:
    """The committed units that the state saw."""
    asked = {"stores": dict(enumerate(_identities(stores))), "order": order.as_json()}
    saved = {"stores": dict(enumerate(state["stores"])), "order": state["order"]}
    lines = differences(_with_text_keys(saved), _with_text_keys(asked))
    if lines:
        raise StateMismatch(
            "The state is of other batches (stored is the state, asked is now):\n"
            + "\n".join(lines)
            + "\nhint: resume with the same store and settings, or begin anew without a state"
        )
    seen = [UnitSet(tuple(run) for run in runs) for runs in state["committed"]]
    for store, before, now in zip(stores.stores, seen, committed, strict=True):
        if gone := len(before) - len(before.intersection(now)):
            raise StateMismatch(
                f"{gone} units of {store.url} that the state has seen are not committed any "
                "more\nhint: go on with the harvest, which writes them again"
            )
    return seen


def _check_rows(state: Mapping[str, Any], rows: RowSet, checksum: int) -> None:
    now = {"rows": len(rows), "crc32c": f"{checksum:08x}"}
    if lines := differences(state["selected"], now, path="selected"):
        raise StateMismatch(
            "Other rows are selected now than when the state was made:\n"
            + "\n".join(lines)
            + "\nhint: the predicate must give the same answers as then"
        )


def _with_text_keys(value: Any) -> Any:
    return {k: {str(i): x for i, x in v.items()} for k, v in value.items()}


def _check(
    *,
    shuffle: str,
    last: str,
    exclude: str | None,
    sites: int,
    rows_per_batch: int,
    pool_rows: int,
    epochs: int | None,
    rank: int,
    world_size: int,
    stride: tuple[int, int],
    threads: int,
) -> None:
    """Refuse sizes and names that cannot be."""
    for name, value, known in (
        ("shuffle", shuffle, get_args(Shuffle)),
        ("last", last, get_args(Last)),
        ("exclude", exclude or "None", ("default", "None")),
    ):
        if value not in known:
            raise InvalidBatches(f"There is no {name}={value!r}\n{nearest(value, known)}")
    if not sites:
        raise InvalidBatches("No site was asked for\nhint: such as resid_post.6")
    sizes = {"rows_per_batch": rows_per_batch, "pool_rows": pool_rows, "world_size": world_size}
    sizes |= {} if epochs is None else {"epochs": epochs}
    for name, size in sizes.items():
        if not isinstance(size, int | np.integer) or size < 1:
            raise InvalidBatches(f"{name} must be a number from 1, and is {size!r}")
    if threads < 0:
        raise InvalidBatches(f"threads must be 0 or more, and is {threads}")
    for name, (number, of) in {"rank": (rank, world_size), "stride": stride}.items():
        if not 0 <= number < of:
            raise InvalidBatches(f"{name} {number} is not one of {of}; they count from 0")
    if rows_per_batch % world_size:
        raise InvalidBatches(
            f"A batch of {rows_per_batch:,} rows cannot be shared evenly by {world_size} ranks\n"
            f"hint: rows_per_batch is over all ranks; {-(-rows_per_batch // world_size)} rows "
            f"each make {-(-rows_per_batch // world_size) * world_size:,}"
        )
