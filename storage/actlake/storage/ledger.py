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

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from actlake.storage.errors import (
    AlreadyCommitted,
    KeyTaken,
    LeaseLost,
    RowsNotCommitted,
    SiteNotStored,
    StoreDamaged,
    StoreNotFound,
)
from actlake.storage.extents import UnitSet
from actlake.storage.fence import LEDGER, Writer
from actlake.storage.ledger_entries import (
    RETRIES,
    Segment,
    chain_of,
    entry_key,
    entry_numbers,
    first_number,
    number_in,
    read_chain,
    read_entries,
    table_key,
    table_of,
    tables,
    too_fast,
)
from actlake.storage.ledger_records import ShardRecord, joined_tables, table_bytes
from actlake.storage.ledger_state import (
    LedgerState,
    covered_by,
    other_entries,
    released_by,
    runs_as_json,
    united,
    without_old_drivers,
)
from actlake.storage.location import Location
from actlake.storage.sealed import crc32c, seal
from actlake.storage.sites import Site

FAN_OUT = 32
# About 180 bytes a record in memory while they are merged: 700 MB.
_MOST_RECORDS_IN_ONE_TABLE = 4_000_000


def read_state(location: Location) -> LedgerState:
    """Replay the log.

    Raises
    ------
    StoreDamaged
        An entry is missing, changed, or under another's name.
    """
    state = LedgerState()
    for segment, entry in read_chain(location):
        state.apply(entry)
        state.last = segment.last
    return state


def read_shards(location: Location, sites: Collection[Site]) -> Iterator[ShardRecord]:
    """Every committed unit of these sites with its checksums, streamed; a harvest may go on.

    Raises
    ------
    StoreDamaged
        A table or an entry is not what was written.
    """
    names = pa.array(sorted(map(str, sites)), pa.string())
    given: dict[Site, UnitSet] = {}
    for _ in range(RETRIES):
        try:
            for record in _read_shards(location, names):
                units = given.setdefault(record.site, UnitSet())
                if record.unit not in units:
                    units.add(record.unit)
                    yield record
        except StoreNotFound:  # merged away meanwhile: the rest is in another table
            continue
        return
    raise too_fast(location)


def _read_shards(location: Location, names: pa.Array) -> Iterator[ShardRecord]:
    for table in tables(location):
        chosen = table.filter(pc.is_in(table["site"], names))
        for batch in chosen.to_batches(max_chunksize=4096):
            yield from map(ShardRecord.from_json, batch.to_pylist())


class LedgerWriter:
    """Appends to the log, for the driver that holds the lease. Not for two threads at once."""

    def __init__(
        self, location: Location, writer: Writer, state: LedgerState, *, fan_out: int = FAN_OUT
    ) -> None:
        self._location = location
        self._writer = writer
        self._fan_out = fan_out
        self._segments: list[Segment] | None = None  # to replay, as this driver left them
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
            self._segments.append(Segment(self.state.last, self.state.last))

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
                raise self._not_announced(shard.site)
            if shard.unit in covered:
                raise already_committed(shard.site, shard.unit, self._location.url)
        self.append({"kind": "units", "shards": [shard.as_json() for shard in rows]})
        self._merge_where_due()

    def release(self, units: Mapping[Site, UnitSet]) -> None:
        """Say that the rows of these committed units are given up, for good.

        Units that are released already are left out.

        Raises
        ------
        RowsNotCommitted
            One of them is not committed.
        SiteNotStored
            A site was not announced with `add_sites`.
        LeaseLost
            Another driver has taken over.
        """
        new = {}
        for site, asked in units.items():
            if site not in self.state.covered:
                raise self._not_announced(site)
            absent = UnitSet(asked.runs())
            absent.difference_update(self.state.covered[site])
            if absent:
                raise RowsNotCommitted(
                    f"Unit {next(iter(absent))} of {site} is not committed in "
                    f"{self._location.url}, and has no rows to give up\n"
                    "hint: release units that are committed"
                )
            left = UnitSet(asked.runs())
            left.difference_update(self.state.released[site])
            if left:
                new[str(site)] = left
        if new:
            self.append({"kind": "released", "released": runs_as_json(new)})

    def _not_announced(self, site: Site) -> SiteNotStored:
        return SiteNotStored(
            f"{site} was not announced in {self._location.url}\nhint: call add_sites first"
        )

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
        for _ in range(RETRIES):
            listed = list(self._location.list(LEDGER))
            try:
                read = chain_of(self._location, read_entries(self._location, entry_numbers(listed)))
            except (StoreNotFound, StoreDamaged):  # whoever is fenced removes what it has merged
                continue
            kept = {segment.key for segment, _ in read}
            kept |= {table_key(entry) for _, entry in read if entry["kind"] == "merged"}
            last = read[-1][0].last if read else 0
            self._writer.remove(
                key for key in listed if key not in kept and 0 < number_in(key) <= last
            )
            return
        raise too_fast(self._location)

    def refuse_if_overtaken(self) -> None:
        """Look whether a later driver has begun. One that begins from here on is not seen.

        Raises
        ------
        LeaseLost
            Entries have come after the last of this driver.
        """
        if max(entry_numbers(self._location.list(LEDGER)), default=0) > self.state.last:
            raise _overtaken(self._location, self.state)

    def _create(self, entry: Mapping[str, Any]) -> None:
        number = self.state.last + 1
        try:
            self._writer.create(entry_key(number), [seal({"number": number, **entry})])
            self._refuse_if_overtaken(number)
        except KeyTaken as error:
            raise _overtaken(self._location, self.state) from error
        self.state.last = number

    def _refuse_if_overtaken(self, number: int) -> None:
        """Look whether the number was only free because its entry has been merged away."""
        for _ in range(RETRIES):
            later = [n for n in entry_numbers(self._location.list(LEDGER)) if n > number]
            try:
                entries = read_entries(self._location, later)
            except StoreNotFound:  # merged away as well
                continue
            # Only what covers the number: a successor's next entry says that this one was seen.
            if any(first_number(entry) <= number for entry in entries.values()):
                self._writer.remove([entry_key(number)])
                raise KeyTaken(f"{entry_key(number)} has been merged away")
            return
        raise too_fast(self._location)

    def _replayed(self) -> list[Segment]:
        if self._segments is None:
            self._segments = [segment for segment, _ in read_chain(self._location)]
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

    def _merge(self, segments: list[Segment]) -> Segment:
        """Append an entry that says what these, the newest, say; then remove them."""
        try:
            read = read_entries(self._location, [segment.last for segment in segments])
            entries = list(read.values())
            table = joined_tables(table_of(self._location, e) for e in entries)
        except StoreNotFound as error:  # whoever has merged them has taken a number for it
            raise _overtaken(self._location, self.state) from error
        content = table_bytes(table)
        first = segments[0].first
        entry = {
            "kind": "merged",
            "first": first,
            "others": without_old_drivers([o for e in entries for o in other_entries(e)]),
            "covered": runs_as_json(united(map(covered_by, entries))),
            "released": runs_as_json(united(map(released_by, entries))),
            "table": {"bytes": len(content), "crc32c": crc32c(content)},
        }
        # Named for its contents as well: another driver's table of this number is another file.
        self._writer.ensure(table_key({"number": self.state.last + 1, **entry}), [content])
        self._create(entry)
        # Readers that listed them already list again.
        self._writer.remove(
            [
                *(segment.key for segment in segments),
                *(table_key(entry) for entry in entries if entry["kind"] == "merged"),
            ]
        )
        return Segment(first, self.state.last)


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
