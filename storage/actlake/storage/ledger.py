"""Which (unit, site) are committed, with checksums: the one truth for reading and resuming.

An append-only log of numbered entries in ``ledger/``, after the model of Delta Lake's
transaction log (Armbrust et al. 2020, VLDB 13(12)). An entry is created under the next number
by an operation that only one writer can win, so the log is also the fence between drivers: the
``open`` entry of a new driver takes the number that a stale one would need.

    00000001.json              one entry, sealed (`actlake.storage.sealed`)
    00000001-00000032.json     the same as entries 1 to 32, merged; what they say of units is
    00000001-00000032.parquet  a table, a row per (site, unit), for `verify` and `resume`

Thirty-two segments of one size are merged into one, so a store of 10⁷ units has some hundred
files to read when it is opened, and opening reads no table: a merged segment states the units
it covers as runs. A merge says nothing new, so whatever it leaves behind when it is
interrupted is passed over.
"""

import io
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actlake.storage.errors import (
    AlreadyCommitted,
    FormatTooNew,
    LeaseLost,
    SiteNotStored,
    StoreDamaged,
    StoreNotFound,
)
from actlake.storage.extents import UnitSet
from actlake.storage.location import KeyTaken, Location
from actlake.storage.sealed import crc32c, seal, unseal
from actlake.storage.sites import Site

FOLDER = "ledger"
FAN_OUT = 32
_NAME = re.compile(rf"{FOLDER}/(?P<first>\d{{8,}})(-(?P<last>\d{{8,}}))?\.json")
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
        elif kind == "numerics":
            self.numerics.append(entry["numerics"])
        elif kind in ("units", "revoke", "merged"):
            for other in _others(entry):
                self.apply(other)
            for site, units in _revoked(entry).items():
                self.covered[site].difference_update(units)
            for site, units in _covered(entry).items():
                self.covered[site].update(units)
        else:
            raise FormatTooNew(
                f"The ledger has an entry of an unknown kind, {kind!r}\n"
                "hint: open the store with a newer actlake"
            )

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every site that was ever asked for, sorted."""
        return tuple(sorted(self.covered))


@dataclass(frozen=True, slots=True, order=True)
class _Segment:
    """A file of the log: entries `first` to `last`."""

    first: int
    last: int

    @property
    def key(self) -> str:
        return f"{FOLDER}/{self.stem}.json"

    @property
    def table_key(self) -> str:
        return f"{FOLDER}/{self.stem}.parquet"

    @property
    def stem(self) -> str:
        if self.first == self.last:
            return f"{self.first:08d}"
        return f"{self.first:08d}-{self.last:08d}"

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
    """Every committed (unit, site) with its checksums, streamed.

    Of a unit that was revoked and committed again only the later record is given. A harvest
    may go on meanwhile.

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
    revoked_later: list[dict[Site, UnitSet]] = []
    revoked: dict[Site, UnitSet] = {}
    read = _read_all(location)
    for _, entry in reversed(read):
        revoked_later.append({site: UnitSet(units.runs()) for site, units in revoked.items()})
        for site, units in _revoked(entry).items():
            revoked.setdefault(site, UnitSet()).update(units)
    for (segment, entry), gone in zip(read, reversed(revoked_later), strict=True):
        table = _without(_table_of(location, segment, entry), gone)
        for batch in table.to_batches(max_chunksize=4096):
            yield from map(ShardRecord.from_json, batch.to_pylist())


class LedgerWriter:
    """Appends to the log, for the driver that holds the lease. Not for two threads at once."""

    def __init__(self, location: Location, state: LedgerState, *, fan_out: int = FAN_OUT) -> None:
        self._location = location
        self._fan_out = fan_out
        self._listed: set[str] = set()  # names in the folder at the last commit
        self._segments: list[_Segment] | None = None  # to replay, as this driver left them
        self.state = state

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add one entry, durably.

        Raises
        ------
        LeaseLost
            Another driver has written the entry of this number.
        """
        number = self.state.last + 1
        segment = _Segment(number, number)
        try:
            self._location.create(segment.key, seal({"number": number, **entry}))
            self._refuse_if_overtaken(segment)
        except KeyTaken as error:
            raise LeaseLost(
                f"Another driver has taken over {self._location.url}; this one "
                f"(epoch {self.state.epoch}) can commit nothing more\n"
                "hint: one harvest runs on a store at a time; this one may stop"
            ) from error
        self.state.apply(entry)
        self.state.last = number
        if self._segments is not None:
            self._segments.append(segment)

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
        try:
            self._merge_where_due()
        except StoreNotFound:  # a driver that is being fenced merges at the same time
            self._segments = None

    def revoke(self, shards: Iterable[tuple[Site, int]]) -> None:
        """Take (site, unit) out of the ledger; they are then missing, to be written again."""
        rows = [{"site": str(site), "unit": unit} for site, unit in shards]
        if rows:
            self.append({"kind": "revoke", "shards": rows})

    def merge_all(self) -> None:
        """Leave one segment, unless the store is so large that its table would be too."""
        segments = _cover(self._location)
        records = sum(map(len, self.state.covered.values()))
        if len(segments) > 1 and records <= _MOST_RECORDS_IN_ONE_TABLE:
            self._merge(segments)
            self._segments = None

    def clean(self) -> None:
        """Remove entries that an interrupted merge has left beside the merged segment."""
        kept = _cover(self._location)
        leftovers = set(_segments(self._location)) - set(kept)
        self._location.delete_files(segment.key for segment in leftovers)

    def _refuse_if_overtaken(self, own: _Segment) -> None:
        """Look whether the number was only free because its entry has been merged away.

        Whatever was there at the commit before is older; only new names are looked into, since
        at 10⁸ units there are hundreds.
        """
        listed = set(self._location.list(FOLDER))
        new = _named(listed - self._listed)
        # Only what covers the number: a successor's next entry says that this one was seen.
        if any(s.first <= own.first and own.last <= s.last and s != own for s in new):
            self._location.delete_files([own.key])
            raise KeyTaken(f"{own.key} has been merged away")
        self._listed = listed

    def _merge_where_due(self) -> None:
        """Merge the newest segments, wherever there are `fan_out` of about one size."""
        if self._segments is None:
            self._segments = _cover(self._location)
        segments = self._segments
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
        merged = _Segment(segments[0].first, segments[-1].last)
        entries = _read(self._location, segments)
        covered, revoked = _net_effect(entries)
        content = _table_bytes(_merged_table(self._location, segments, entries))
        entry = {
            "kind": "merged",
            "number": [merged.first, merged.last],
            "others": _without_old_drivers([o for entry in entries for o in _others(entry)]),
            "covered": _as_runs(covered),
            "revoked": _as_runs(revoked) if merged.first > 1 else {},
            "table": {"bytes": len(content), "crc32c": crc32c(content)},
        }
        self._location.write(merged.table_key, [content])
        self._location.write(merged.key, [seal(entry)])
        # Readers that listed them already list again.
        self._location.delete_files(key for s in segments for key in (s.key, s.table_key))
        return merged


def already_committed(site: Site, unit: int, url: str) -> AlreadyCommitted:
    """The error of writing or committing a unit twice."""
    return AlreadyCommitted(
        f"Unit {unit} of {site} is committed in {url}; committed files are never written again\n"
        "hint: `actlake verify --repair` takes damaged units out of the ledger first"
    )


def _segments(location: Location) -> list[_Segment]:
    """Every segment that has a file, sorted; also leftovers of an interrupted merge."""
    return sorted(_named(location.list(FOLDER)))


def _named(keys: Iterable[str]) -> Iterator[_Segment]:
    for name in map(_NAME.fullmatch, keys):
        if name:
            yield _Segment(int(name["first"]), int(name["last"] or name["first"]))


def _cover(location: Location) -> list[_Segment]:
    """The segments to replay: the fewest that lie end to end from entry 1 to the last.

    Leftovers of an interrupted merge are passed over.
    """
    segments = _segments(location)
    # Per number that comes next: in how few segments it is reached, and by which last one.
    reached: dict[int, tuple[int, _Segment | None]] = {1: (0, None)}
    for segment in segments:
        if segment.first in reached:
            steps = reached[segment.first][0] + 1
            if steps < reached.get(segment.last + 1, (steps + 1, None))[0]:
                reached[segment.last + 1] = steps, segment
    number = max(reached)
    beyond = [segment.stem for segment in segments if segment.last >= number]
    if beyond:
        raise StoreDamaged(
            f"The ledger of {location.url} has no entry {number:08d}, but has {beyond[0]}\n"
            "hint: restore the file; without it nobody knows which units are whole"
        )
    cover: list[_Segment] = []
    while (last := reached[number][1]) is not None:
        cover.append(last)
        number = last.first
    return cover[::-1]


def _read_all(location: Location) -> list[tuple[_Segment, dict[str, Any]]]:
    """The log's segments with their entries. Merging may go on meanwhile: then once more."""
    damage: StoreDamaged | None = None
    for _ in range(_RETRIES):
        try:
            segments = _cover(location)
            return list(zip(segments, _read(location, segments), strict=True))
        except StoreNotFound:
            damage = None
        except StoreDamaged as error:  # a gap may be a listing of before and after a merge
            if damage is not None and str(damage) == str(error):
                raise
            damage = error
    raise _too_fast(location)


def _too_fast(location: Location) -> StoreDamaged:
    return StoreDamaged(
        f"The ledger of {location.url} changes faster than it can be read\n"
        "hint: try again; if it happens again, look at the network file system's caching"
    )


def _read(location: Location, segments: list[_Segment]) -> list[dict[str, Any]]:
    files = location.read_all([segment.key for segment in segments])
    return [_unsealed(location, s, data) for s, data in zip(segments, files, strict=True)]


def _unsealed(location: Location, segment: _Segment, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = unseal(data, name=f"{location.url}/{segment.key}")
    expected = segment.first if segment.first == segment.last else [segment.first, segment.last]
    if entry.pop("number") != expected:
        raise StoreDamaged(
            f"{location.url}/{segment.key} is another entry under this name: "
            "the ledger has been reordered"
        )
    return entry


def _others(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The entries that are not about units, which a merged segment keeps as they are."""
    if entry["kind"] == "merged":
        return list(entry["others"])
    return [] if entry["kind"] in ("units", "revoke") else [entry]


def _without_old_drivers(others: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of the drivers, only the last says anything about the state."""
    last = max((i for i, other in enumerate(others) if other["kind"] == "open"), default=-1)
    return [o for i, o in enumerate(others) if o["kind"] != "open" or i == last]


def _revoked(entry: Mapping[str, Any]) -> dict[Site, UnitSet]:
    if entry["kind"] == "merged":
        return _from_runs(entry["revoked"])
    return _units_of(entry["shards"]) if entry["kind"] == "revoke" else {}


def _covered(entry: Mapping[str, Any]) -> dict[Site, UnitSet]:
    if entry["kind"] == "merged":
        return _from_runs(entry["covered"])
    return _units_of(entry["shards"]) if entry["kind"] == "units" else {}


def _net_effect(
    entries: Iterable[Mapping[str, Any]],
) -> tuple[dict[Site, UnitSet], dict[Site, UnitSet]]:
    """What the entries together add, and what they take away from earlier ones."""
    covered: dict[Site, UnitSet] = {}
    revoked: dict[Site, UnitSet] = {}
    for entry in entries:
        for site, units in _revoked(entry).items():
            revoked.setdefault(site, UnitSet()).update(units)
            covered.setdefault(site, UnitSet()).difference_update(units)
        for site, units in _covered(entry).items():
            covered.setdefault(site, UnitSet()).update(units)
    return covered, revoked


def _units_of(shards: Iterable[Mapping[str, Any]]) -> dict[Site, UnitSet]:
    units: dict[str, UnitSet] = {}
    for row in shards:
        units.setdefault(row["site"], UnitSet()).add(row["unit"])
    return {Site.parse(site): found for site, found in units.items()}


def _as_runs(units: Mapping[Site, UnitSet]) -> dict[str, list[tuple[int, int]]]:
    return {str(site): units[site].runs() for site in sorted(units)}


def _from_runs(runs: Mapping[str, Any]) -> dict[Site, UnitSet]:
    return {Site.parse(site): UnitSet(map(tuple, pairs)) for site, pairs in runs.items()}


def _table_of(location: Location, segment: _Segment, entry: Mapping[str, Any]) -> pa.Table:
    """The records of one segment, whose entry has been read."""
    if entry["kind"] != "merged":
        rows = entry["shards"] if entry["kind"] == "units" else []
        return pa.Table.from_pylist(rows, schema=_TABLE)
    name = f"{location.url}/{segment.table_key}"
    try:
        content = location.read(segment.table_key)
    except StoreNotFound as error:
        if location.size(segment.key) is None:  # merged away with its entry
            raise
        raise StoreDamaged(f"{name} is missing\nhint: restore the file from a copy") from error
    if crc32c(content) != entry["table"]["crc32c"]:
        raise StoreDamaged(f"{name} has changed since it was written: it fails its CRC32C")
    return pq.read_table(io.BytesIO(content), schema=_TABLE)


def _merged_table(
    location: Location, segments: Iterable[_Segment], entries: Iterable[Mapping[str, Any]]
) -> pa.Table:
    """The records of several segments, one of each (site, unit), sorted."""
    table = _TABLE.empty_table()
    for segment, entry in zip(segments, entries, strict=True):
        table = _without(table, _revoked(entry))
        table = pa.concat_tables([table, _table_of(location, segment, entry)])
    return table.sort_by([("site", "ascending"), ("unit", "ascending")])


def _without(table: pa.Table, revoked: Mapping[Site, UnitSet]) -> pa.Table:
    """The records that no later entry has revoked."""
    if not any(revoked.values()) or not len(table):
        return table
    rows = zip(table["site"].to_pylist(), table["unit"].to_pylist(), strict=True)
    return table.filter(
        pa.array([unit not in revoked.get(Site.parse(site), ()) for site, unit in rows])
    )


def _table_bytes(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
