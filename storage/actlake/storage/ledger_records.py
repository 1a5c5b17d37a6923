"""What the ledger keeps of each committed (site, unit), and the tables of many of them."""

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actlake.storage.sites import Site

TABLE = pa.schema(
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
    """Size of the activation shard's file, and of the scales', where there are scales."""
    rows_crc32c: int
    """Of that file, as `actlake.storage.shards.shard_crc32c` defines it; where there are scales
    CRC32C of both files' numbers, as of the moments."""
    moments_bytes: int
    """Sizes of the unit's files of moments and of norms, added up."""
    moments_crc32c: int
    """`combined_crc32c` of the former's CRC32C and the latter's `shard_crc32c`."""
    infinite: int = 0
    """How many values are infinite when they are read: overflow, or the model's own."""
    nan: int = 0
    numerics: int = 0
    """Which of the ledger's `numerics` the unit was computed with."""

    def as_json(self) -> dict[str, Any]:
        """One row of the table."""
        return {"site": str(self.site)} | {name: getattr(self, name) for name in TABLE.names[1:]}

    def computed_with(self, numerics: int) -> "ShardRecord":
        """The same, computed with the ledger's numerics of that number."""
        return replace(self, numerics=numerics)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "ShardRecord":
        """Read what `as_json` wrote; fields that are not known are passed over."""
        numbers = {name: row[name] for name in TABLE.names[1:]}
        return cls(site=Site.parse(row["site"]), **numbers)


def table_of_records(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """The records of one ``units`` entry as a table."""
    return pa.Table.from_pylist(list(rows), schema=TABLE)


def joined_tables(tables: Iterable[pa.Table]) -> pa.Table:
    """The records of several tables, sorted by site and unit."""
    return pa.concat_tables(tables).sort_by([("site", "ascending"), ("unit", "ascending")])


def table_bytes(table: pa.Table) -> bytes:
    """A table's Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def table_from_bytes(content: bytes) -> pa.Table:
    """Read what `table_bytes` wrote; columns that are not known are left out."""
    return pq.read_table(io.BytesIO(content), columns=TABLE.names).cast(TABLE)
