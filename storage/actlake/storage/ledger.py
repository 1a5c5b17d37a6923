"""Which (unit, site) are committed, with checksums: the one truth for reading and resuming.

An append-only log of numbered entries in ``ledger/``, after the model of Delta Lake's
transaction log (Armbrust et al. 2020, VLDB 13(12)). An entry is created under the next number
by an operation that only one writer can win, so the log is also the fence between drivers: the
``open`` entry of a new driver takes the number that a stale one would need.

    00000001.json           one entry, sealed (`actlake.storage.sealed`)
    00000033.json           merged: says what entries 1 to 32 said; they are then deleted
    00000033-1a2b3c4d.parquet   its table, a row per (site, unit), for `verify` and `resume`

Thirty-two entries of one size are merged into one, so a store of 10⁷ units has some hundred
files to read when it is opened, and opening reads no table: a merged entry states the units
it covers as runs. A merge says nothing new, but it takes a number as all entries do, so a
driver that was taken over cannot merge either; what an interrupted merge leaves is passed over.
"""

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actlake.storage.corpus_record import CorpusRecord
from actlake.storage.errors import (
    AlreadyCommitted,
    FormatTooNew,
    KeyTaken,
    LeaseLost,
    SiteNotStored,
    StoreDamaged,
    StoreNotFound,
)
from actlake.storage.extents import UnitSet
from actlake.storage.fence import LEDGER, Writer
from actlake.storage.location import Location
from actlake.storage.sealed import crc32c, seal, unseal
from actlake.storage.sites import Site

FAN_OUT = 32
_ENTRY = re.compile(rf"{LEDGER}/(\d{{8,}})\.json")
_TABLE_FILE = re.compile(rf"{LEDGER}/(\d{{8,}})-[0-9a-f]{{8}}\.parquet")
_RETRIES = 20
# About 180 bytes a record in memory while they are merged: 700 MB.
_MOST_RECORDS_IN_ONE_TABLE = 4_000_000

_TABLE = pa.schema(
    [
        ("site", pa.string()),
        ("unit", pa.int64()),
        ("rows_bytes", pa.int64()),
        ("rows_crc32c", pa.uint32()),
        ("moments_bytes", pa.int64()),
        ("moments_crc32c", pa.uint32()),
        ("infinite", pa.int64()),
        ("nan", pa.int64()),
        ("numerics", pa.int16()),
    ]
)


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """What was written for one unit of one site, as the ledger keeps it."""

    site: Site
    unit: int
    rows_bytes: int
    """Size of the activation shard's file."""
    rows_crc32c: int
    """Of that file, as `actlake.storage.shards.shard_crc32c` defines it."""
    moments_bytes: int
    """Sizes of the unit's moment files, added up."""
    moments_crc32c: int
    """CRC32C of those files' `shard_crc32c` (uint32, little-endian), in the order of names."""
    infinite: int = 0
    """How many stored values are infinite: overflow, or the model's own."""
    nan: int = 0
    numerics: int = 0
    """Which of the ledger's `numerics` the unit was computed with."""

    def as_json(self) -> dict[str, Any]:
        """One row of the table."""
        return {
            "site": str(self.site),
            "unit": self.unit,
            "rows_bytes": self.rows_bytes,
            "rows_crc32c": self.rows_crc32c,
            "moments_bytes": self.moments_bytes,
            "moments_crc32c": self.moments_crc32c,
            "infinite": self.infinite,
            "nan": self.nan,
            "numerics": self.numerics,
        }

    def computed_with(self, numerics: int) -> "ShardRecord":
        """The same, computed with the ledger's numerics of that number."""
        return replace(self, numerics=numerics)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "ShardRecord":
        """Read what `as_json` wrote."""
        return cls(**{**row, "site": Site.parse(row["site"])})


@dataclass(frozen=True, slots=True)
class SiteGroup:
    """Sites that were asked for together: one harvest, or a later one that added sites."""

    sites: tuple[Site, ...]
    request: Mapping[str, Any]
    """What the harvest was asked to do, in its own words (JSON); `repair` runs it again."""


@dataclass(slots=True)
class LedgerState:
    """All that the log says, replayed; small, however many units there are."""

    last: int = 0
    """Number of the last entry."""
    epoch: int = 0
    """Epoch of the last driver that opened the store."""
    owner: Mapping[str, Any] = field(default_factory=dict)
    corpora: list[CorpusRecord] = field(default_factory=list)
    groups: list[SiteGroup] = field(default_factory=list)
    numerics: list[Mapping[str, Any]] = field(default_factory=list)
    covered: dict[Site, UnitSet] = field(default_factory=dict)

    def apply(self, entry: Mapping[str, Any]) -> None:
        """Replay one entry, in place."""
        kind = entry["kind"]
        if kind == "open":
            self.epoch, self.owner = entry["epoch"], entry["owner"]
        elif kind == "sites":
            group = SiteGroup(tuple(map(Site.parse, entry["sites"])), entry["request"])
            self.groups.append(group)
            for site in group.sites:
                self.covered.setdefault(site, UnitSet())
        elif kind == "corpus":
            self.corpora.append(CorpusRecord.from_json(entry))
        elif kind == "numerics":
            self.numerics.append(entry["numerics"])
        elif kind in ("units", "merged"):
            for other in _others(entry):
                self.apply(other)
            for site, units in _covered(entry).items():
                self.covered[site].update(units)
        else:
            raise FormatTooNew(
                f"The ledger has an entry of an unknown kind, {kind!r}\n"
                "hint: open the store with a newer actlake"
            )

    @property
    def corpus(self) -> CorpusRecord | None:
        """The last of the chain, whose schema is the store's; None before one is laid down."""
        return self.corpora[-1] if self.corpora else None

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every site that was ever asked for, sorted."""
        return tuple(sorted(self.covered))


@dataclass(frozen=True, slots=True, order=True)
class _Segment:
    """What one entry says: itself, or, merged, what entries `first` to `last` say."""

    first: int
    last: int
    """The entry's own number."""

    @property
    def key(self) -> str:
        return _entry_key(self.last)

    def __len__(self) -> int:
        return self.last - self.first + 1


def read_state(location: Location) -> LedgerState:
    """Replay the log.

    Raises
    ------
    StoreDamaged
        An entry is missing, changed, or under another's name.
    """
    state = LedgerState()
    for segment, entry in _read_all(location):
        state.apply(entry)
        state.last = segment.last
    return state


def read_shards(location: Location) -> Iterator[ShardRecord]:
    """Every committed (unit, site) with its checksums, streamed; a harvest may go on meanwhile.

    Raises
    ------
    StoreDamaged
        A table or an entry is not what was written.
    """
    given: dict[Site, UnitSet] = {}
    for _ in range(_RETRIES):
        try:
            for record in _read_shards(location):
                units = given.setdefault(record.site, UnitSet())
                if record.unit not in units:
                    units.add(record.unit)
                    yield record
        except StoreNotFound:  # merged away meanwhile: the rest is in another table
            continue
        return
    raise _too_fast(location)


def _read_shards(location: Location) -> Iterator[ShardRecord]:
    for _, entry in _read_all(location):
        for batch in _table_of(location, entry).to_batches(max_chunksize=4096):
            yield from map(ShardRecord.from_json, batch.to_pylist())


class LedgerWriter:
    """Appends to the log, for the driver that holds the lease. Not for two threads at once."""

    def __init__(
        self, location: Location, writer: Writer, state: LedgerState, *, fan_out: int = FAN_OUT
    ) -> None:
        self._location = location
        self._writer = writer
        self._fan_out = fan_out
        self._segments: list[_Segment] | None = None  # to replay, as this driver left them
        self.state = state

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add one entry, durably.

        Raises
        ------
        LeaseLost
            Another driver has written the entry of this number.
        """
        self._create(entry)
        self.state.apply(entry)
        if self._segments is not None:
            self._segments.append(_Segment(self.state.last, self.state.last))

    def commit(self, shards: Iterable[ShardRecord]) -> None:
        """Make written units visible; now and then, merge segments of the log.

        Raises
        ------
        LeaseLost
            Another driver has taken over.
        AlreadyCommitted
            One of them is committed: its file must not have been written again.
        SiteNotStored
            A site was not announced with `add_sites`.
        """
        rows = list(shards)
        for shard in rows:
            covered = self.state.covered.get(shard.site)
            if covered is None:
                raise SiteNotStored(
                    f"{shard.site} was not announced in {self._location.url}\n"
                    "hint: call add_sites first"
                )
            if shard.unit in covered:
                raise already_committed(shard.site, shard.unit, self._location.url)
        self.append({"kind": "units", "shards": [shard.as_json() for shard in rows]})
        self._merge_where_due()

    def merge_all(self) -> None:
        """Leave one entry, unless the store is so large that its table would be too."""
        segments = self._replayed()
        records = sum(map(len, self.state.covered.values()))
        if len(segments) > 1 and records <= _MOST_RECORDS_IN_ONE_TABLE:
            self._segments = [self._merge(segments)]

    def clean(self) -> None:
        """Remove what interrupted merges have left: entries that are merged, tables of none.

        Decided on one listing: of a listing and a later one it would not be known what had
        become of the ledger in between. Whatever is not replayed from that listing is covered by
        what is, for good. A table of a later number than ours is of a merge that is under way.
        """
        for _ in range(_RETRIES):
            listed = list(self._location.list(LEDGER))
            try:
                read = _replayed(self._location, _read(self._location, _numbers(listed)))
            except (StoreNotFound, StoreDamaged):  # whoever is fenced removes what it has merged
                continue
            kept = {segment.key for segment, _ in read}
            kept |= {_table_key(entry) for _, entry in read if entry["kind"] == "merged"}
            last = read[-1][0].last if read else 0
            self._writer.remove(
                key for key in listed if key not in kept and 0 < _number_in(key) <= last
            )
            return
        raise _too_fast(self._location)

    def _create(self, entry: Mapping[str, Any]) -> None:
        number = self.state.last + 1
        try:
            self._writer.create(_entry_key(number), [seal({"number": number, **entry})])
            self._refuse_if_overtaken(number)
        except KeyTaken as error:
            raise _overtaken(self._location, self.state) from error
        self.state.last = number

    def _refuse_if_overtaken(self, number: int) -> None:
        """Look whether the number was only free because its entry has been merged away."""
        for _ in range(_RETRIES):
            later = [n for n in _numbers(self._location.list(LEDGER)) if n > number]
            try:
                entries = _read(self._location, later)
            except StoreNotFound:  # merged away as well
                continue
            # Only what covers the number: a successor's next entry says that this one was seen.
            if any(_first(entry) <= number for entry in entries.values()):
                self._writer.remove([_entry_key(number)])
                raise KeyTaken(f"{_entry_key(number)} has been merged away")
            return
        raise _too_fast(self._location)

    def _replayed(self) -> list[_Segment]:
        if self._segments is None:
            self._segments = [segment for segment, _ in _read_all(self._location)]
        return self._segments

    def _merge_where_due(self) -> None:
        """Merge the newest segments, wherever there are `fan_out` of about one size."""
        segments = self._replayed()
        most = 1
        while most < self.state.last:
            start = len(segments)
            while start and len(segments[start - 1]) <= most:
                start -= 1
            of_this_size = [s for s in segments[start:] if len(s) > most // self._fan_out]
            records = sum(map(len, segments[start:])) * len(self.state.covered)
            if records > _MOST_RECORDS_IN_ONE_TABLE:
                return
            if len(of_this_size) >= self._fan_out:
                segments[start:] = [self._merge(segments[start:])]
            most *= self._fan_out

    def _merge(self, segments: list[_Segment]) -> _Segment:
        """Append an entry that says what these, the newest, say; then remove them."""
        try:
            read = _read(self._location, [segment.last for segment in segments])
            entries = list(read.values())
            table = _merged_table(self._location, entries)
        except StoreNotFound as error:  # whoever has merged them has taken a number for it
            raise _overtaken(self._location, self.state) from error
        content = _table_bytes(table)
        first = segments[0].first
        entry = {
            "kind": "merged",
            "first": first,
            "others": _without_old_drivers([o for entry in entries for o in _others(entry)]),
            "covered": _as_runs(_all_covered(entries)),
            "table": {"bytes": len(content), "crc32c": crc32c(content)},
        }
        # Named for its contents as well: another driver's table of this number is another file.
        self._writer.ensure(_table_key({"number": self.state.last + 1, **entry}), [content])
        self._create(entry)
        # Readers that listed them already list again.
        self._writer.remove(
            [
                *(segment.key for segment in segments),
                *(_table_key(entry) for entry in entries if entry["kind"] == "merged"),
            ]
        )
        return _Segment(first, self.state.last)


def _overtaken(location: Location, state: LedgerState) -> LeaseLost:
    return LeaseLost(
        f"Another driver has taken over {location.url}; this one (epoch {state.epoch}) can commit "
        "nothing more\nhint: one harvest runs on a store at a time; this one may stop"
    )


def already_committed(site: Site, unit: int, url: str) -> AlreadyCommitted:
    """The error of writing or committing a unit twice."""
    return AlreadyCommitted(
        f"Unit {unit} of {site} is committed in {url}; committed files are never written again\n"
        "hint: `actlake verify --repair` writes damaged files again, as they were committed"
    )


def _entry_key(number: int) -> str:
    return f"{LEDGER}/{number:08d}.json"


def _table_key(merged: Mapping[str, Any]) -> str:
    """Of a merged entry."""
    return f"{LEDGER}/{merged['number']:08d}-{merged['table']['crc32c']:08x}.parquet"


def _numbers(keys: Iterable[str]) -> list[int]:
    """Of the entries among these keys, in order."""
    return sorted(int(name[1]) for name in map(_ENTRY.fullmatch, keys) if name)


def _number_in(key: str) -> int:
    """The number of an entry, or of the entry that a table is of; 0 of any other key."""
    name = _ENTRY.fullmatch(key) or _TABLE_FILE.fullmatch(key)
    return int(name[1]) if name else 0


def _read_all(location: Location) -> list[tuple[_Segment, dict[str, Any]]]:
    """The entries to replay. Merging may go on meanwhile: then once more."""
    damage: StoreDamaged | None = None
    for _ in range(_RETRIES):
        try:
            return _replayed(location, _read(location, _numbers(location.list(LEDGER))))
        except StoreNotFound:
            damage = None
        except StoreDamaged as error:  # a gap may be a listing of before and after a merge
            if damage is not None and str(damage) == str(error):
                raise
            damage = error
    raise _too_fast(location)


def _replayed(
    location: Location, entries: Mapping[int, dict[str, Any]]
) -> list[tuple[_Segment, dict[str, Any]]]:
    """Of all entries that are there, those to replay: none that a later one has merged.

    Raises
    ------
    StoreDamaged
        One is missing.
    """
    chain: list[tuple[_Segment, dict[str, Any]]] = []
    number = max(entries, default=0)
    while number:
        if number not in entries:
            later = chain[-1][0].last
            raise StoreDamaged(
                f"The ledger of {location.url} has no entry {number:08d}, but has {later:08d}\n"
                "hint: restore the file; without it nobody knows which units are whole"
            )
        segment = _Segment(_first(entries[number]), number)
        chain.append((segment, entries[number]))
        number = segment.first - 1
    return chain[::-1]


def _first(entry: Mapping[str, Any]) -> int:
    """The first entry of those whose place this one takes; its own number if it merges none."""
    return int(entry["first"] if entry["kind"] == "merged" else entry["number"])


def _too_fast(location: Location) -> StoreDamaged:
    return StoreDamaged(
        f"The ledger of {location.url} changes faster than it can be read\n"
        "hint: try again; if it happens again, look at the network file system's caching"
    )


def _read(location: Location, numbers: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Entries by their numbers; `StoreNotFound` where one is not there (any more)."""
    files = location.read_all(map(_entry_key, numbers))
    return {n: _unsealed(location, n, data) for n, data in zip(numbers, files, strict=True)}


def _unsealed(location: Location, number: int, data: bytes) -> dict[str, Any]:
    name = f"{location.url}/{_entry_key(number)}"
    entry: dict[str, Any] = unseal(data, name=name)
    if entry["number"] != number:
        raise StoreDamaged(
            f"{name} is another entry under this name: the ledger has been reordered"
        )
    return entry


def _others(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The entries that are not about units, which a merged one keeps as they are."""
    if entry["kind"] == "merged":
        return list(entry["others"])
    return [] if entry["kind"] == "units" else [entry]


def _without_old_drivers(others: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of the drivers, only the last says anything about the state."""
    last = max((i for i, other in enumerate(others) if other["kind"] == "open"), default=-1)
    return [o for i, o in enumerate(others) if o["kind"] != "open" or i == last]


def _covered(entry: Mapping[str, Any]) -> dict[Site, UnitSet]:
    if entry["kind"] == "merged":
        return _from_runs(entry["covered"])
    return _units_of(entry["shards"]) if entry["kind"] == "units" else {}


def _all_covered(entries: Iterable[Mapping[str, Any]]) -> dict[Site, UnitSet]:
    covered: dict[Site, UnitSet] = {}
    for entry in entries:
        for site, units in _covered(entry).items():
            covered.setdefault(site, UnitSet()).update(units)
    return covered


def _units_of(shards: Iterable[Mapping[str, Any]]) -> dict[Site, UnitSet]:
    units: dict[str, UnitSet] = {}
    for row in shards:
        units.setdefault(row["site"], UnitSet()).add(row["unit"])
    return {Site.parse(site): found for site, found in units.items()}


def _as_runs(units: Mapping[Site, UnitSet]) -> dict[str, list[tuple[int, int]]]:
    return {str(site): units[site].runs() for site in sorted(units)}


def _from_runs(runs: Mapping[str, Any]) -> dict[Site, UnitSet]:
    return {Site.parse(site): UnitSet(map(tuple, pairs)) for site, pairs in runs.items()}


def _table_of(location: Location, entry: Mapping[str, Any]) -> pa.Table:
    """The records of one entry."""
    if entry["kind"] != "merged":
        rows = entry["shards"] if entry["kind"] == "units" else []
        return pa.Table.from_pylist(rows, schema=_TABLE)
    key = _table_key(entry)
    try:
        content = location.read(key)
    except StoreNotFound as error:
        if location.size(_entry_key(entry["number"])) is None:  # merged away with its entry
            raise
        raise StoreDamaged(
            f"{location.url}/{key} is missing\nhint: restore the file from a copy"
        ) from error
    if crc32c(content) != entry["table"]["crc32c"]:
        raise StoreDamaged(
            f"{location.url}/{key} has changed since it was written: it fails its CRC32C"
        )
    return pq.read_table(io.BytesIO(content), schema=_TABLE)


def _merged_table(location: Location, entries: Iterable[Mapping[str, Any]]) -> pa.Table:
    """The records of several entries, sorted."""
    tables = [_table_of(location, entry) for entry in entries]
    return pa.concat_tables(tables).sort_by([("site", "ascending"), ("unit", "ascending")])


def _table_bytes(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
