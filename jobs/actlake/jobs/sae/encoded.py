"""Latents of a store on disk: a table of what is active, in Parquet files of whole units.

    out/
        encoding.json         what is encoded with what; written first
        latents/part-000000.parquet, part-000012.parquet, …   (row, latent, value)
        run.json              lineage and counts; written last: the table is complete

A part holds the units from the number in its name up to the next part, or none of them: it
appears under its name when it is whole. Rows are those of the store, so the table joins with
everything else that is known of them. Its columns:

    row      int64    row of the store
    latent   int32
    value    float32  never 0

sorted by row, then latent. Rows without an active latent have no line. DuckDB, pandas and
polars read the folder as one table: ``read_parquet('out/latents/*.parquet')``.
"""

import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from actlake.jobs.sae.errors import ConfigChanged, InvalidSAE

Array = np.ndarray[Any, Any]
FORMAT = 1
ENCODING, LATENTS = "encoding.json", "latents"
SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("latent", pa.int32(), nullable=False),
        pa.field("value", pa.float32(), nullable=False),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """What a table of latents is of; two that are equal hold the same lines."""

    sae: str
    """Hash of the SAE's files."""
    store: str
    """Fingerprint of the store."""
    dtypes: str
    """Element type of each site: what a fingerprint does not say."""
    sites: tuple[str, ...]
    split: str | None
    excluded: bool
    """Whether position 0 and special ids are encoded too."""
    d_sae: int
    units: tuple[tuple[int, int], ...]
    """Units of the store, as runs ``first <= unit < stop``."""
    units_per_part: int

    def as_json(self) -> dict[str, Any]:
        """Plain JSON."""
        units = [list(run) for run in self.units]
        return {"format": FORMAT, **asdict(self), "sites": list(self.sites), "units": units}

    def parts(self) -> list["Part"]:
        """Of which units each part is."""
        return [
            Part(first, min(first + self.units_per_part, stop))
            for start, stop in self.units
            for first in range(start, stop, self.units_per_part)
        ]


@dataclass(frozen=True, slots=True)
class Part:
    """The units ``first <= unit < stop``."""

    first: int
    stop: int

    @property
    def name(self) -> str:
        """Of its file."""
        return f"part-{self.first:06d}.parquet"


@dataclass(frozen=True, slots=True)
class PartCounts:
    """What a part holds."""

    rows: int
    """Rows that were encoded, with and without active latents."""
    values: int
    """Lines of the table."""

    def __add__(self, other: "PartCounts") -> "PartCounts":
        return PartCounts(self.rows + other.rows, self.values + other.values)


def begin(folder: Path, encoding: Encoding) -> Encoding:
    """Begin a table, or find that the one in `folder` is the same; how it is cut into parts.

    Raises
    ------
    ConfigChanged
        Another encoding was begun there; the differences are named.
    InvalidSAE
        The folder holds something else.
    """
    path = folder / ENCODING
    if not path.is_file():
        if folder.exists() and any(folder.iterdir()):
            raise InvalidSAE(
                f"There is already something at {folder}, and no {ENCODING} in it\n"
                "hint: name another folder, or remove that one yourself"
            )
        (folder / LATENTS).mkdir(parents=True, exist_ok=True)
        _write_whole(path, f"{json.dumps(encoding.as_json(), indent=2)}\n".encode())
        return encoding
    had: dict[str, Any] = json.loads(path.read_bytes())
    wanted = encoding.as_json()
    different = [
        name for name in wanted if name != "units_per_part" and had.get(name) != wanted[name]
    ]
    if different:
        raise ConfigChanged(
            f"{folder} holds latents that were encoded differently: "
            + ", ".join(f"{name} {had.get(name)!r}, not {wanted[name]!r}" for name in different)
            + "\nhint: name another folder, or remove that one yourself"
        )
    del had["format"]
    units = tuple((first, stop) for first, stop in had["units"])
    return Encoding(**(had | {"sites": tuple(had["sites"]), "units": units}))


def counts_of(folder: Path, part: Part) -> PartCounts | None:
    """What a part holds that is there already; None where it is not."""
    path = folder / LATENTS / part.name
    if not path.is_file():
        return None
    metadata = pq.read_metadata(path)
    return PartCounts(int((metadata.metadata or {})[b"rows"]), metadata.num_rows)


def write_part(
    folder: Path, part: Part, blocks: Iterator[tuple[int, Array, Array, Array]]
) -> PartCounts:
    """Write a part, whole or not at all.

    Parameters
    ----------
    blocks
        ``(rows encoded, row, latent, value)`` in ascending order of rows; one at a time is in
        memory.
    """
    target = folder / LATENTS / part.name
    partial = target.with_name(f".{part.name}.{uuid.uuid4().hex[:12]}.partial")
    counts = PartCounts(0, 0)
    try:
        with pq.ParquetWriter(
            partial,
            SCHEMA,
            compression="zstd",
            use_dictionary=False,
            column_encoding={"row": "DELTA_BINARY_PACKED"},
        ) as writer:
            for num_rows, row, latent, value in blocks:
                columns = [
                    row.astype(np.int64, copy=False),
                    latent.astype(np.int32, copy=False),
                    value.astype(np.float32, copy=False),
                ]
                writer.write_table(pa.table(columns, schema=SCHEMA))
                counts += PartCounts(num_rows, len(row))
            writer.add_key_value_metadata({"rows": str(counts.rows)})
        _sync(partial)
        partial.rename(target)
    finally:
        partial.unlink(missing_ok=True)
    _sync(target.parent)
    return counts


def sweep(folder: Path) -> None:
    """Remove what killed writers left; only before writers begin."""
    for left in (folder / LATENTS).glob(".part-*.partial"):
        left.unlink(missing_ok=True)


def _write_whole(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.partial")
    partial.write_bytes(content)
    _sync(partial)
    partial.rename(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
