"""Write one unit, whole or not at all.

The order is: check the values, write the moments, write the rows, all on the disk, and only
then does the driver commit the records in the ledger. A writer that dies anywhere in between
leaves files that nobody reads. Files are only ever created: a worker that comes late finds its
own bytes, and writes none over those of another. What dead workers have left is taken away by the
driver, before it hands the units out (`free_missing`), except in a bucket.

Committed files are written once more only where they are damaged, and only with the bytes that
were committed (`restore_unit`).
"""

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actlake.storage.dtypes import LARGEST_FINITE
from actlake.storage.errors import InvalidSchema, NonFiniteActivations
from actlake.storage.fence import Token
from actlake.storage.lease import Lease
from actlake.storage.ledger import already_committed
from actlake.storage.ledger_records import ShardRecord
from actlake.storage.metadata import holds
from actlake.storage.moments import Moments, moments_by_group
from actlake.storage.moments_file import Block, encode_moments, moments_folders
from actlake.storage.sealed import crc32c
from actlake.storage.shards import combined_crc32c, encode_shard, rows_crc32c
from actlake.storage.sites import Site
from actlake.storage.store import ActivationStore

Array = np.ndarray[Any, Any]
logger = logging.getLogger(__name__)
_Files = list[tuple[str, Sequence[Any]]]
_UNIT_FILE = re.compile(r"c\.(\d+)(?:\.0)*|(\d+)\.safetensors")


def write_unit(
    store: ActivationStore,
    unit: int,
    rows: Mapping[Site, Array],
    *,
    token: Token,
    numerics: int = 0,
    on_moments: Callable[[Site, list[Moments]], None] | None = None,
) -> list[ShardRecord]:
    """Write all rows of a unit, for one or more sites; what to commit is returned.

    Nothing is visible until the records are committed (`Lease.ledger.commit`).

    Parameters
    ----------
    rows
        Of each site (n, dim), n the rows of the unit, in any float type; they are rounded to the
        site's.
    token
        The driver's, for which it is written.
    on_moments
        Told the moments of each site's groups of rows, so that nobody has to read them back.

    Raises
    ------
    InvalidSchema
        There is no such unit, or `rows` have another shape.
    AlreadyCommitted
        The unit is in the ledger.
    SiteNotStored
        A site was not announced with `add_sites`.
    KeyTaken
        A file of it is there and holds other bytes: another worker has written it meanwhile, with
        other numerics.
    NonFiniteActivations
        Values are infinite or NaN, and the schema refuses them. Nothing was written.
    LeaseLost
        Another driver has taken over.
    StoreNotWritable
        No space, or no permission.
    """
    if unit not in store.schema.units:
        raise InvalidSchema(
            f"There is no unit {unit} in {store.url}; it has units "
            + ", ".join(f"{first} to {stop - 1}" for first, stop in store.schema.units.runs())
        )
    by_site = {site.stored: values for site, values in rows.items()}
    if any(site not in store for site in by_site):  # announced since the store was opened?
        store.refresh()
    _refuse_committed(store, unit, by_site)
    prepared = [_prepare(store, unit, site, values) for site, values in by_site.items()]
    for site_rows in prepared:
        if any(site_rows.nonfinite) and store.schema.nonfinite == "refuse":
            raise _nonfinite(store, unit, site_rows)
        if on_moments is not None:
            on_moments(site_rows.site, site_rows.moments)
    token.check(store.location)
    records: list[ShardRecord] = []

    def encoded() -> Iterator[tuple[str, Iterable[Any]]]:
        for site_rows in prepared:  # a site at a time, as they are written
            record, files = _encode(store, unit, site_rows, numerics)
            records.append(record)
            yield from files

    store.location.writer(token).ensure_all(encoded())
    return records


def restore_unit(
    store: ActivationStore,
    unit: int,
    rows: Mapping[Site, Array],
    records: Iterable[ShardRecord],
    *,
    token: Token,
) -> list[ShardRecord]:
    """Write damaged files of a committed unit again, where `rows` give what was committed.

    Files that are whole are left as they are, and so is everything of a site whose rows come
    out otherwise: to the bit, or not at all.

    Parameters
    ----------
    rows
        As for `write_unit`.
    records
        What the ledger says of the unit, of each site in `rows`.

    Returns
    -------
    list of ShardRecord
        Of the sites whose files are now what was committed; of the others nothing was written.

    Raises
    ------
    LeaseLost
        Another driver has taken over.
    StoreNotWritable
        No space, or no permission.
    """
    committed = {record.site: record for record in records}
    writer = store.location.writer(token)
    restored = []
    for site, values in rows.items():
        expected = committed[site.stored]
        site_rows = _prepare(store, unit, site.stored, values)
        record, files = _encode(store, unit, site_rows, expected.numerics)
        if record == expected:
            token.check(store.location)
            rows_keys = [spec.shard_key(unit) for spec in store.row_specs(site)]
            is_released = unit in store.ledger.released[site.stored]
            for key, parts in files:
                if is_released and key in rows_keys:
                    continue
                if not holds(store.location, key, b"".join(parts)):
                    writer.replace(key, parts)
            restored.append(record)
    return restored


def free_missing(lease: Lease, store: ActivationStore, sites: Iterable[Site]) -> int:
    """Take away files of units that are not committed, so that workers may create them.

    Killed workers leave them; where the numerics are others now, they hold other bytes. For the
    driver, before it hands units out. Returns how many files there were. In a bucket they stay.
    """
    doomed: list[str] = []
    if not lease.writer.takes_away:
        return 0
    for site in sorted({site.stored for site in sites}):
        committed = lease.ledger.state.covered[site]
        released = lease.ledger.state.released[site]
        of_rows = [spec.folder for spec in store.row_specs(site)]
        folders = [*of_rows, store.norms_spec(site).folder]
        folders += moments_folders(site, 1, total_units=store.schema.unit_numbers)
        for folder in folders:
            for key in store.location.list(folder):
                unit = _UNIT_FILE.fullmatch(key.removeprefix(f"{folder}/"))
                if unit is None:
                    continue
                number = int(unit[unit.lastindex or 0])
                if number not in committed or (folder in of_rows and number in released):
                    doomed.append(key)
    _free(lease, doomed)
    return len(doomed)


def free_unit(lease: Lease, store: ActivationStore, unit: int, sites: Iterable[Site]) -> None:
    """As `free_missing`, of one unit, which is handed out again."""
    doomed = []
    for site in sorted({site.stored for site in sites}):
        if unit not in lease.ledger.state.covered[site]:
            specs = (*store.row_specs(site), store.norms_spec(site))
            doomed += [Block(1, unit).key(site), *(spec.shard_key(unit) for spec in specs)]
    _free(lease, doomed)


def _free(lease: Lease, keys: list[str]) -> None:
    if keys and lease.writer.takes_away:
        lease.writer.free(keys)
        logger.info("%s: files of units that are not committed are taken away: up to %d",
                    lease.location.url, len(keys))  # fmt: skip


def _refuse_committed(store: ActivationStore, unit: int, sites: Iterable[Site]) -> None:
    """Committed files are never written again; see `restore_unit` for damaged ones."""
    for site in sites:
        committed = store.ledger.covered.get(site, ())
        if unit in committed and unit in store.refresh().ledger.covered.get(site, ()):
            raise already_committed(site, unit, store.url)


@dataclass(frozen=True, slots=True, eq=False)
class _SiteRows:
    """A unit's rows of one site as they are stored, with what is told of them."""

    site: Site
    arrays: tuple[Array, ...]
    """Of each of the site's `row_specs`."""
    moments: list[Moments]
    norms: Array
    """(n,) float32, of each row."""
    nonfinite: tuple[int, int]
    """How many values are infinite, and how many NaN, when they are read again."""


def _prepare(store: ActivationStore, unit: int, site: Site, values: Array) -> _SiteRows:
    extent = store.schema.unit_extent(unit)
    shape = (len(extent), store.schema_of(site).dim)
    if values.shape != shape:
        raise InvalidSchema(
            f"Unit {unit} of {site} has shape {shape}, and {values.shape} was given"
        )
    groups = store.groups_of(extent)
    schema = store.schema_of(site)
    arrays = schema.encode(values)
    rows = schema.decode(arrays)
    with np.errstate(invalid="ignore"):
        moments, norms = moments_by_group(rows, groups, num_groups=store.schema.num_groups)
    return _SiteRows(site, arrays, moments, norms, _count_nonfinite(rows, moments))


def _encode(
    store: ActivationStore, unit: int, site_rows: _SiteRows, numerics: int
) -> tuple[ShardRecord, _Files]:
    """The files of one unit of one site, moments first, and what the ledger will say of them."""
    site = site_rows.site
    block = Block(1, unit)
    moments = encode_moments(site, block, store.schema.splits, site_rows.moments)
    norms = encode_shard(store.norms_spec(site), unit, site_rows.norms)
    specs = store.row_specs(site)
    shards = [
        encode_shard(spec, unit, stored)
        for spec, stored in zip(specs, site_rows.arrays, strict=True)
    ]
    files: _Files = [
        (block.key(site), [moments]),
        (store.norms_spec(site).shard_key(unit), norms.parts),
        *((spec.shard_key(unit), shard.parts) for spec, shard in zip(specs, shards, strict=True)),
    ]
    infinite, nan = site_rows.nonfinite
    record = ShardRecord(
        site=site,
        unit=unit,
        rows_bytes=sum(shard.num_bytes for shard in shards),
        rows_crc32c=rows_crc32c([shard.crc32c for shard in shards]),
        moments_bytes=len(moments) + norms.num_bytes,
        moments_crc32c=combined_crc32c([crc32c(moments), norms.crc32c]),
        infinite=infinite,
        nan=nan,
        numerics=numerics,
    )
    return record, files


def _count_nonfinite(rows: Array, moments: list[Moments]) -> tuple[int, int]:
    """How many values are infinite, and how many NaN; the moments tell cheaply when none is."""
    if np.isfinite([group.norm_sum for group in moments]).all():
        return 0, 0
    return int(np.isinf(rows).sum()), int(np.isnan(rows).sum())


def _nonfinite(store: ActivationStore, unit: int, site_rows: _SiteRows) -> NonFiniteActivations:
    infinite, nan = site_rows.nonfinite
    dtype = store.schema_of(site_rows.site).dtype
    if dtype == "int8" and infinite:  # which takes the others of its block along as NaN
        hint = "store bfloat16 or float32, which hold numbers up to 3e38"
    elif nan:
        hint = "NaN comes from the model: look at its weights, or compute in float32"
    elif dtype == "float16":
        hint = "store bfloat16 or float32, which hold numbers up to 3e38"
    else:
        hint = "infinities come from the model: compute in float32 or bfloat16"
    return NonFiniteActivations(
        f"Unit {unit} of {site_rows.site} holds {infinite:,} infinite values and {nan:,} NaNs; "
        f"{dtype} holds numbers up to {LARGEST_FINITE[dtype]:.6g}\nhint: {hint}; or set "
        "nonfinite to 'count' to store them and have them counted"
    )
