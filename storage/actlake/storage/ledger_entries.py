"""The ledger's files: their names, which of them are replayed, and what they hold.

The chain of entries is replayed from its last one: an entry that merges others takes their
place, and whatever is left of those is passed over.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from actlake.storage.errors import StoreDamaged, StoreNotFound
from actlake.storage.fence import LEDGER
from actlake.storage.ledger_records import table_from_bytes, table_of_records
from actlake.storage.location import Location
from actlake.storage.sealed import crc32c, unseal

RETRIES = 20
"""How often a ledger is listed again that changes while it is read."""
_ENTRY = re.compile(rf"{LEDGER}/(\d{{8,}})\.json")
_TABLE_FILE = re.compile(rf"{LEDGER}/(\d{{8,}})-[0-9a-f]{{8}}\.parquet")

Entry = dict[str, Any]


@dataclass(frozen=True, slots=True, order=True)
class Segment:
    """What one entry says: itself, or, merged, what entries `first` to `last` say."""

    first: int
    last: int
    """The entry's own number."""

    @property
    def key(self) -> str:
        """The entry's file."""
        return entry_key(self.last)

    def __len__(self) -> int:
        return self.last - self.first + 1


def entry_key(number: int) -> str:
    """The file of an entry."""
    return f"{LEDGER}/{number:08d}.json"


def table_key(merged: Mapping[str, Any]) -> str:
    """The table of a merged entry."""
    return f"{LEDGER}/{merged['number']:08d}-{merged['table']['crc32c']:08x}.parquet"


def entry_numbers(keys: Iterable[str]) -> list[int]:
    """Of the entries among these keys, in order."""
    return sorted(int(name[1]) for name in map(_ENTRY.fullmatch, keys) if name)


def number_in(key: str) -> int:
    """The number of an entry, or of the entry that a table is of; 0 of any other key."""
    name = _ENTRY.fullmatch(key) or _TABLE_FILE.fullmatch(key)
    return int(name[1]) if name else 0


def first_number(entry: Mapping[str, Any]) -> int:
    """The first entry of those whose place this one takes; its own number if it merges none."""
    return int(entry["first"] if entry["kind"] == "merged" else entry["number"])


def read_entries(location: Location, numbers: Sequence[int]) -> dict[int, Entry]:
    """Entries by their numbers; `StoreNotFound` where one is not there (any more)."""
    files = location.read_all(map(entry_key, numbers))
    return {n: _unsealed(location, n, data) for n, data in zip(numbers, files, strict=True)}


def read_chain(location: Location) -> list[tuple[Segment, Entry]]:
    """The entries to replay. Merging may go on meanwhile: then once more.

    Raises
    ------
    StoreDamaged
        An entry is missing, changed, or under another's name.
    """
    damage: StoreDamaged | None = None
    for _ in range(RETRIES):
        try:
            numbers = entry_numbers(location.list(LEDGER))
            return chain_of(location, read_entries(location, numbers))
        except StoreNotFound:
            damage = None
        except StoreDamaged as error:  # a gap may be a listing of before and after a merge
            if damage is not None and str(damage) == str(error):
                raise
            damage = error
    raise too_fast(location)


def chain_of(location: Location, entries: Mapping[int, Entry]) -> list[tuple[Segment, Entry]]:
    """Of all entries that are there, those to replay: none that a later one has merged.

    Raises
    ------
    StoreDamaged
        One is missing.
    """
    chain: list[tuple[Segment, Entry]] = []
    number = max(entries, default=0)
    while number:
        if number not in entries:
            later = chain[-1][0].last
            raise StoreDamaged(
                f"The ledger of {location.url} has no entry {number:08d}, but has {later:08d}\n"
                "hint: restore the file; without it nobody knows which units are whole"
            )
        segment = Segment(first_number(entries[number]), number)
        chain.append((segment, entries[number]))
        number = segment.first - 1
    return chain[::-1]


def tables(location: Location) -> Iterator[pa.Table]:
    """The records of every entry, as `actlake.storage.ledger_records.TABLE`."""
    for _, entry in read_chain(location):
        yield table_of(location, entry)


def table_of(location: Location, entry: Mapping[str, Any]) -> pa.Table:
    """The records of one entry.

    Raises
    ------
    StoreNotFound
        The entry has been merged away meanwhile, its table with it.
    StoreDamaged
        The table is gone alone, or is not what was written.
    """
    if entry["kind"] != "merged":
        return table_of_records(entry["shards"] if entry["kind"] == "units" else [])
    key = table_key(entry)
    try:
        content = location.read(key)
    except StoreNotFound as error:
        if location.size(entry_key(entry["number"])) is None:
            raise
        raise StoreDamaged(
            f"{location.url}/{key} is missing\nhint: restore the file from a copy"
        ) from error
    if crc32c(content) != entry["table"]["crc32c"]:
        raise StoreDamaged(
            f"{location.url}/{key} has changed since it was written: it fails its CRC32C"
        )
    return table_from_bytes(content)


def too_fast(location: Location) -> StoreDamaged:
    """The error of a ledger that was listed again and again in vain."""
    return StoreDamaged(
        f"The ledger of {location.url} changes faster than it can be read\n"
        "hint: try again; if it happens again, look at the network file system's caching"
    )


def _unsealed(location: Location, number: int, data: bytes) -> Entry:
    name = f"{location.url}/{entry_key(number)}"
    entry: Entry = unseal(data, name=name)
    if entry["number"] != number:
        raise StoreDamaged(
            f"{name} is another entry under this name: the ledger has been reordered"
        )
    return entry
