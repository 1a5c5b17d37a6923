"""Arrays of a store, read by row: mapped, by ranges of bytes, or else through Zarr."""

import logging
import mmap
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np

from actlake.storage.errors import (
    InvalidQuery,
    RowsNotCommitted,
    RowsOutOfRange,
    RowsReleased,
    StoreDamaged,
    nearest,
    rows_released,
)
from actlake.storage.extents import Extent, UnitSet, num_blocks
from actlake.storage.layout import ROWS, ArraySpec
from actlake.storage.location import Location, open_zarr_array
from actlake.storage.mapped import REPAIR_HINT, CannotMap, MappedShards, missing_shard
from actlake.storage.ranged import RangedShards
from actlake.storage.row_indexing import IndexedByRow, Missing

Array = np.ndarray[Any, Any]
Path = Literal["auto", "mapped", "zarr"]
logger = logging.getLogger(__name__)


class RowArray(IndexedByRow):
    """One array of a store, lazy: indexing reads, and returns NumPy.

    See `IndexedByRow` for what an index gives. Element type as stored (bfloat16 is
    ``ml_dtypes.bfloat16``).

    Attributes
    ----------
    spec
        Shape, type, chunks, as in ``zarr.json``.
    path
        ``mapped``, ``ranges`` or ``zarr``: how it is read.
    """

    def __init__(
        self,
        location: Location,
        spec: ArraySpec,
        *,
        committed: Callable[[], UnitSet] | None = None,
        released: Callable[..., UnitSet] | None = None,
        path: Path = "auto",
    ) -> None:
        self.spec = spec
        self._location = location
        self._committed = committed
        self._released = released  # (anew=True): what the ledger says now
        self._wanted_path = path
        self._found = UnitSet()  # shards whose files were there when they were first read

    # What it is.

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, …)."""
        return self.spec.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""
        return self.spec.numpy_dtype

    @property
    def name(self) -> str:
        """Path in the group, such as ``acts/resid_post.6``."""
        return self.spec.name

    def __repr__(self) -> str:
        return f"RowArray({self.spec.name!r}, {self.shape}, {self.spec.dtype}, {self.path})"

    @property
    def path(self) -> str:
        """How rows are read: ``mapped``; ``ranges`` where remote or compressed; ``zarr``."""
        if self._ranged is not None:
            return "ranges"
        return "zarr" if self._mapped is None else "mapped"

    @property
    def can_be_mapped(self) -> bool:
        """Whether it is mapped wherever the system allows that: it is here, and not compressed.

        Unlike `path`, the same on every machine.
        """
        is_here = self._location.local_path("") is not None
        return is_here and self.spec.is_mappable and self._wanted_path != "zarr"

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which maps and opens the files anew."""
        opened = ("_mapped", "_ranged", "_zarr")
        return {name: value for name, value in vars(self).items() if name not in opened}

    # Reading.

    def read(self, start: int, stop: int, *, missing: Missing = "raise") -> Array:
        """Rows ``start <= i < stop``, (stop - start, …), copied chunk by chunk.

        Raises
        ------
        RowsOutOfRange, RowsNotCommitted, RowsReleased, InvalidQuery
            As `take`.
        """
        _check_missing(missing)
        if not 0 <= start <= stop <= len(self):
            raise RowsOutOfRange(
                f"Rows {start:,} to {stop:,} were asked for; {self.spec.name} has "
                f"{len(self):,} rows"
            )
        runs = self._present_runs(start, stop)
        is_whole = sum(map(len, runs)) == stop - start
        if not is_whole and missing == "raise" and self._committed is not None:
            self._refuse_gap(start, stop)
            raise self._not_there(self._absent_units(start, stop))
        out = np.empty((stop - start, *self.shape[1:]), self.dtype)
        if not is_whole:
            out[:] = self.spec.fill
        for run in runs:
            with self._unless_released(self._shards_of(run.start, run.stop)):
                self._read_into(run, out[run.start - start : run.stop - start])
        return out

    def take(
        self,
        rows: Any,
        *,
        missing: Missing = "raise",
        check: bool = False,
        ahead: bool = False,
        out: Array | None = None,
    ) -> Array:
        """The given rows, in the given order, (n, …); rows may repeat.

        Parameters
        ----------
        rows
            (n,) integers, ``0 <= row < len(self)``.
        missing
            What a row of a unit that is not committed, or is released, gives: an error, or NaN.
            The same of row numbers in a gap between two stretches (`StoreSchema.gaps`).
        check
            Check the CRC32C of every chunk that is touched, each once per opened store. Where
            the array is not mapped, they are always checked.
        ahead
            Whether most rows around these will be asked for soon, as in a shuffled epoch: the
            system then reads them from the disk as well. It does so where the rows lie close
            together, anyway.
        out
            Where to write, (n, …) of the array's dtype.

        Raises
        ------
        RowsOutOfRange
            A row is negative or too large, or in a gap and `missing` is ``raise``.
        RowsNotCommitted, RowsReleased
            A row's unit is not committed, or was released, and `missing` is ``raise``.
        StoreDamaged
            A shard is missing or truncated, or `check` found a wrong checksum.
        InvalidQuery
            There is no such way to treat what is missing.
        """
        _check_missing(missing)
        rows = as_rows(rows, len(self), of=self.spec.name)
        shards = rows // self.spec.shard_length
        absent = self._absent(rows, shards)
        if absent is not None:
            if missing == "raise" and self._committed is not None:
                self._refuse_gap(*rows[absent][:1].tolist())
                raise self._not_there(np.unique(shards[absent]).tolist())
            return self._take_around(rows, absent, check=check, ahead=ahead, out=out)
        ahead = ahead or _lie_close(rows, self.spec.row_bytes)
        with self._unless_released(shards):
            gathered = self._gather(rows, shards, check=check, ahead=ahead)
        if out is None:
            return gathered
        out[:] = gathered
        return out

    def chunk(self, number: int, *, check: bool = False) -> Array:
        """The rows of one chunk, (≤ chunk_length, …): a view where mapped, not a copy.

        `check` as in `take`.

        Chunks are numbered through all shards; those of a unit that is not committed raise
        `RowsNotCommitted`.
        """
        length = self.spec.chunk_length
        start, stop = number * length, min((number + 1) * length, len(self))
        if not 0 <= start < len(self):
            raise RowsOutOfRange(
                f"{self.spec.name} has {self.num_chunks} chunks; there is no chunk {number}"
            )
        shard, inner = divmod(number, self.spec.chunks_per_shard)
        if absent := self._absent_units(start, stop):
            raise self._not_there(absent)
        stop = max((e.stop for e in self.spec.held_in(Extent(start, stop))), default=start)
        with self._unless_released([shard]):
            if self._ranged is not None:
                return self._ranged.chunk(number)[: stop - start]
            mapped = self._mapped
            if mapped is None or not self._touch(mapped, np.array([shard])):
                return self.read(start, stop)
            if check:
                mapped.check(np.array([shard]), np.array([inner]))
            view: Array = mapped.view[shard, inner, : stop - start]
        return view

    def expect(self, start: int, stop: int) -> None:
        """Say that rows ``start <= i < stop`` will be read soon: the system begins to read them.

        Does nothing where the array is not mapped, and changes nothing but time.
        """
        mapped, length = self._mapped, self.spec.chunk_length
        for number in range(start // length, num_blocks(block=length, total=stop)):
            shard, inner = divmod(number, self.spec.chunks_per_shard)
            if mapped is not None and self._touch(mapped, np.array([shard])):
                mapped.expect(shard, inner)

    def packed(self, start: int, stop: int) -> Array:
        """(n,) items of ``spec.row_bytes`` bytes: rows ``start <= i < stop`` as they are stored."""
        rows = np.ascontiguousarray(self.chunk_or_rows(start, stop))
        return rows.view(np.uint8).reshape(-1).view(np.dtype((np.void, self.spec.row_bytes)))

    def chunk_or_rows(self, start: int, stop: int) -> Array:
        """Rows ``start <= i < stop``: where they are a chunk as `chunk`, else as `read`."""
        number, inside = divmod(start, self.spec.chunk_length)
        if inside == 0 and stop == min(start + self.spec.chunk_length, len(self)):
            return self.chunk(number)
        return self.read(start, stop)

    def unpacked(self, items: Array) -> Array:
        """(n, …): the rows that such items are; the same memory."""
        rows: Array = items.view(self.dtype).reshape(len(items), *self.shape[1:])
        return rows

    @property
    def num_chunks(self) -> int:
        """Chunks of the whole array."""
        return num_blocks(block=self.spec.chunk_length, total=len(self))

    # How.

    @cached_property
    def _ranged(self) -> RangedShards | None:
        if self._wanted_path != "auto" or self.can_be_mapped:
            return None
        return RangedShards(self._location, self.spec)

    @cached_property
    def _mapped(self) -> MappedShards | None:
        if self._wanted_path == "zarr":
            return None
        try:
            return MappedShards(self._location, self.spec)
        except CannotMap as reason:
            if self._wanted_path == "mapped":
                raise
            logger.warning(
                "Reading %s through Zarr, which is much slower: %s\nhint: ulimit -v unlimited",
                self.spec.name,
                reason,
            )
            return None

    @cached_property
    def _zarr(self) -> Any:
        return open_zarr_array(self._location, ROWS, self.spec.name)

    def _gather(self, rows: Array, shards: Array, *, check: bool, ahead: bool) -> Array:
        if self._ranged is not None:
            return self._ranged.gather(rows)
        mapped = self._mapped  # another thread may go over to Zarr
        if mapped is None or not self._touch(mapped, shards, ahead=ahead):
            return self._through_zarr(
                lambda zarr: zarr.get_orthogonal_selection((rows,)), np.unique(shards)
            )
        inside = rows - shards * self.spec.shard_length
        chunks = inside // self.spec.chunk_length
        if check:
            mapped.check(shards, chunks)
        return mapped.gather(shards, chunks, inside - chunks * self.spec.chunk_length)

    def _through_zarr(self, select: Callable[[Any], Any], shards: Array) -> Array:
        """What zarr-python reads, with its errors in our words.

        Zarr takes a file that is missing for one that was never written, and gives fill values;
        here those shards are committed, so that is damage.
        """
        for shard in shards.tolist():
            if shard not in self._found:
                if self._location.size(self.spec.shard_key(shard)) is None:
                    raise missing_shard(self._location, self.spec, shard)
                self._found.add(shard)
        try:
            return np.asarray(select(self._zarr))
        except (ValueError, RuntimeError) as error:  # a checksum, or zstd's own complaint
            names = ", ".join(self.spec.shard_key(shard) for shard in shards[:3].tolist())
            raise StoreDamaged(
                f"{names} in {self._location.url}: {error}\n{REPAIR_HINT}"
            ) from error

    def _touch(self, mapped: MappedShards, shards: Array, *, ahead: bool = True) -> bool:
        """Map these shards; where the system allows no more mappings, go over to Zarr."""
        try:
            mapped.touch(shards, ahead=ahead)
        except CannotMap as reason:
            if self._wanted_path == "mapped":
                raise
            logger.warning("Reading %s through Zarr from here on: %s", self.spec.name, reason)
            self._mapped = None
            return False
        return True

    def _read_into(self, rows: Extent, out: Array) -> None:
        """Read rows that are all there; a file that is not committed is never looked at."""
        if self._ranged is not None:
            self._ranged.read_into(rows.start, rows.stop, out)
            return
        shards = np.array(self._shards_of(rows.start, rows.stop), np.int64)
        mapped = self._mapped
        if mapped is None or not self._touch(mapped, shards):
            out[:] = self._through_zarr(lambda zarr: zarr[rows.slice()], shards)
        else:
            self._copy_chunks(mapped, rows.start, rows.stop, out)

    def _copy_chunks(self, mapped: MappedShards, start: int, stop: int, out: Array) -> None:
        spec = self.spec
        row = start
        while row < stop:
            shard, inside = divmod(row, spec.shard_length)
            chunk, first = divmod(inside, spec.chunk_length)
            n = min(spec.chunk_length - first, stop - row)
            out[row - start : row - start + n] = mapped.view[shard, chunk, first : first + n]
            row += n

    def _shards_of(self, start: int, stop: int) -> range:
        length = self.spec.shard_length
        return range(start // length, num_blocks(block=length, total=stop) if start < stop else 0)

    def _present_runs(self, start: int, stop: int) -> list[Extent]:
        """The rows between `start` and `stop` that are there, as runs."""
        held = self.spec.held_in(Extent(start, stop))
        if self._committed is None:
            return held
        length = self.spec.shard_length
        units = [Extent(a * length, b * length) for a, b in self._readable().runs()]
        return [run for part in held for run in map(part.intersect, units) if len(run)]

    def _absent_units(self, start: int, stop: int) -> list[int]:
        if self._committed is None:
            return []
        readable = self._readable()
        return [unit for unit in self._shards_of(start, stop) if unit not in readable]

    def _absent(self, rows: Array, shards: Array) -> Array | None:
        """Which of the rows are in gaps or of units that cannot be read; None when all can."""
        absent: list[Array] = []
        if self.spec.held is not None:
            absent.append(_outside(rows, [(e.start, e.stop) for e in self.spec.held]))
        if self._committed is not None:
            runs = self._readable().runs()
            if runs != [(0, self.spec.num_shards)]:
                absent.append(_outside(shards, runs))
        which = np.logical_or.reduce(absent) if absent else None
        return which if which is not None and which.any() else None

    def _refuse_gap(self, start: int, stop: int | None = None) -> None:
        """Raise `RowsOutOfRange` where a row, or one of a range, is in a gap."""
        asked = Extent(start, start + 1 if stop is None else stop)
        held = self.spec.held_in(asked)
        if sum(map(len, held)) < len(asked):
            first = held[0].stop if held and held[0].start == start else start
            raise RowsOutOfRange(
                f"{self.spec.name} has no row {first:,}: {self._location.url} was appended to, and "
                "rows begin again at a later number\n"
                "hint: store.schema.stretches says which there are"
            )

    def _take_around(
        self, rows: Array, absent: Array, *, check: bool, ahead: bool, out: Array | None
    ) -> Array:
        if out is None:
            out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        out[absent] = self.spec.fill
        out[~absent] = self.take(rows[~absent], check=check, ahead=ahead)
        return out

    def _readable(self) -> UnitSet:
        """The units that are committed and not released."""
        assert self._committed is not None, self.spec.name
        committed = self._committed()
        if self._released is None or not (released := self._released()):
            return committed
        units = UnitSet(committed.runs())
        units.difference_update(released)
        return units

    @contextmanager
    def _unless_released(self, shards: Iterable[int]) -> Iterator[None]:
        """Tell damage from shards that were released since the ledger was read."""
        try:
            yield
        except StoreDamaged as error:
            if self._released is None:
                raise
            released = self._released(anew=True)
            for unit in shards:
                if unit in released:
                    raise self._was_released(int(unit)) from error
            raise

    def _was_released(self, unit: int) -> RowsReleased:
        return rows_released(self.spec.name, unit, url=self._location.url)

    def _not_there(self, units: list[int]) -> RowsNotCommitted | RowsReleased:
        assert self._committed is not None
        released = UnitSet() if self._released is None else self._released()
        for unit in units:
            if unit in released:
                return self._was_released(unit)
        names = ", ".join(map(str, units[:5])) + (", …" if len(units) > 5 else "")
        return RowsNotCommitted(
            f"{self.spec.name}: unit {names} not committed; "
            f"{len(self._committed()):,} of {self.spec.num_shards:,} units are\n"
            'hint: go on with the harvest, or read with missing="nan"'
        )


def _outside(numbers: Array, runs: Iterable[tuple[int, int]]) -> Array:
    """(n,) bool: which numbers are in none of the sorted runs, some of which may touch."""
    edges = np.array(list(runs), np.int64).reshape(-1)
    outside: Array = np.searchsorted(edges, numbers, side="right") % 2 == 0
    return outside


def _lie_close(rows: Array, row_bytes: int) -> bool:
    """Whether rows lie so that reading all between them takes no longer than reading them alone."""
    if not len(rows):
        return False
    span = (int(rows.max()) - int(rows.min())) * row_bytes
    return span < READS_PER_SEEK * len(rows) * max(row_bytes, mmap.PAGESIZE)


# In the time of a row from anywhere a disk gives twelve in order (measured: 600 MB in rows of
# 1,152 bytes take 0.85 s read ahead, and 10.6 s page by page).
READS_PER_SEEK = 12


def _check_missing(missing: str) -> None:
    if missing not in get_args(Missing):
        raise InvalidQuery(
            f"There is no missing={missing!r}\n{nearest(missing, get_args(Missing))}"
        )


def as_rows(given: Any, length: int, *, of: str) -> Array:
    """(n,) int64: what was given as numbers of rows, of `of` in the words of an error.

    Raises
    ------
    RowsOutOfRange
        They are not one-dimensional integers, or not all ``0 <= row < length``.
    """
    rows: Array = np.asarray(given)
    if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
        raise RowsOutOfRange(
            f"Rows must be a one-dimensional array of integers, not {rows.ndim}-dimensional "
            f"{rows.dtype}"
        )
    rows = rows.astype(np.int64, copy=False)
    if rows.size and not (rows.min() >= 0 and rows.max() < length):
        wrong = rows[(rows < 0) | (rows >= length)][0]
        raise RowsOutOfRange(f"There is no row {wrong:,}; there are {length:,} in {of}")
    return rows
