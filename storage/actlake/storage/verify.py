"""Is a store whole: every file, every checksum, every number that can be checked twice.

Reads every byte once. What is found wrong is named by site and unit, with the checksums that
its files must have again: `actlake.storage.repair` says how they get them.
"""

import hashlib
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from actlake.storage.ahead import map_ahead
from actlake.storage.arrays import RowArray
from actlake.storage.errors import StoreDamaged, StoreNotFound
from actlake.storage.extents import Extent, UnitSet
from actlake.storage.ledger import read_shards, read_state
from actlake.storage.ledger_records import ShardRecord
from actlake.storage.metadata import metadata_of
from actlake.storage.moments import moments_by_group
from actlake.storage.moments_file import Block
from actlake.storage.querying.document_table import document_batches
from actlake.storage.sealed import crc32c
from actlake.storage.shards import combined_crc32c, decode_shard, rows_crc32c, shard_crc32c
from actlake.storage.sites import Site
from actlake.storage.store import ActivationStore
from actlake.storage.stored_moments import Groups, blocks_of_size, total_keys

Array = np.ndarray[Any, Any]
_Files = Mapping[str, bytes | None]
_ROWS_AT_ONCE = 2**20
_BYTES_AT_ONCE = 2**24
_MOST_BYTES_AHEAD = 2**30


@dataclass(frozen=True, slots=True)
class Damage:
    """A committed shard of which some file is not what was committed."""

    record: ShardRecord
    """What its files must be again."""
    rows_are_whole: bool
    """Whether only its moments are damaged, which its rows give again."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, and where."""

    kind: Literal["corpus", "metadata", "shard", "contents", "ledger"]
    """``metadata`` (files that follow from others) and ``shard`` (files are not what was committed)
    can be repaired; not ``corpus``, ``ledger`` and ``contents`` (files are what was committed, and
    contradict each other)."""
    message: str
    site: Site | None = None
    unit: int | None = None
    damage: Damage | None = None
    """Of a ``shard``."""

    def __str__(self) -> str:
        if self.site is None:
            return self.message
        place = f"{self.site}" if self.unit is None else f"{self.site}, unit {self.unit}"
        return f"{place}: {self.message}"


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `verify` found."""

    problems: tuple[Problem, ...]
    shards: int
    """Shards of activations that were read."""
    num_bytes: int
    """Bytes that were read and checked."""
    missing: dict[Site, UnitSet] = field(default_factory=dict)
    """Units that are not committed; not a problem, only not done."""
    released: dict[Site, UnitSet] = field(default_factory=dict)
    """Units whose rows were given up on purpose; the rest of them was checked."""
    unknown: Mapping[str, str] = field(default_factory=dict)
    """Sites that this version cannot read, and did not check: why not."""

    @property
    def is_whole(self) -> bool:
        """Whether all that is committed is what was written."""
        return not self.problems

    @property
    def damaged(self) -> tuple[Damage, ...]:
        """The shards that can be repaired, each once."""
        return tuple(problem.damage for problem in self.problems if problem.damage is not None)


def verify(
    store: ActivationStore, *, progress: Callable[[int], None] = lambda num_bytes: None
) -> VerifyReport:
    """Read everything that is committed and check it.

    Parameters
    ----------
    progress
        Called with the number of bytes just read.
    """
    problems: list[Problem] = []
    counted = _Counter(progress)
    problems += _corpus_files(store, counted)
    if not problems:
        problems += _corpus_hashes(store)
        problems += _corpus_contents(store)
    corpus_is_whole = not problems
    problems += metadata_problems(store)
    problems += [problem for problem, *_ in total_problems(store, counted)]
    shards, seen = 0, {site: UnitSet() for site in store.sites}
    try:
        for record, files in _fetched(store):
            seen.setdefault(record.site, UnitSet()).add(record.unit)
            found = list(_shard(store, record, files, counted, with_moments=corpus_is_whole))
            if found and store.location.parallel > 1:  # it may have been spoilt on its way
                files = _files_of(store, record)
                found = list(_shard(store, record, files, counted, with_moments=corpus_is_whole))
            if found and (later := _with_released(store, record)) is not None:
                files = _files_of(later, record)
                found = list(_shard(later, record, files, counted, with_moments=corpus_is_whole))
            problems += found
            shards += 1
    except StoreDamaged as error:
        problems.append(Problem("ledger", str(error)))
    else:
        problems += _records_of_all(store, seen)
    units = store.schema.units
    missing = {site: units.without(store.ledger.covered[site]) for site in store.sites}
    return VerifyReport(
        tuple(problems),
        shards,
        counted.num_bytes,
        {site: units for site, units in missing.items() if len(units)},
        {site: units for site, units in store.ledger.released.items() if len(units)},
        store.unknown_sites,
    )


def stored_bytes(store: ActivationStore) -> int:
    """How many bytes `verify` will read, from the ledger; the corpus's are left out."""
    return sum(r.rows_bytes + r.moments_bytes for r in _records(store, store.sites))


def undersized(store: ActivationStore, sites: Collection[Site]) -> Iterator[ShardRecord]:
    """Committed shards of these sites whose rows are missing or cut short.

    Cheap, for every resume: files of other sites are not looked at.
    """
    sizes: dict[Site, dict[str, int]] = {}
    for record in _records(store, sites):
        specs = store.row_specs(record.site)
        if record.site not in sizes:
            found = (store.location.sizes(spec.folder) for spec in specs)
            sizes[record.site] = dict(itertools.chain.from_iterable(found))
        if record.unit in store.ledger.released[record.site]:
            continue
        keys = (spec.shard_key(record.unit) for spec in specs)
        if sum(sizes[record.site].get(key, 0) for key in keys) != record.rows_bytes:
            yield record


def _with_released(store: ActivationStore, record: ShardRecord) -> ActivationStore | None:
    """The store as it is now, if the rows of this shard were given up since it was opened."""
    now = read_state(store.location).as_of(len(store.ledger.corpora))
    was_released = record.unit in store.ledger.released[record.site]
    if was_released or record.unit not in now.released[record.site]:
        return None
    return ActivationStore(store.location, now)


def _records(store: ActivationStore, sites: Collection[Site]) -> Iterator[ShardRecord]:
    """Of the store's own units: not of what was appended since it was opened."""
    units = store.schema.units
    return (record for record in read_shards(store.location, sites) if record.unit in units)


class _Counter:
    def __init__(self, progress: Callable[[int], None]) -> None:
        self.num_bytes = 0
        self._progress = progress

    def __call__(self, num_bytes: int) -> None:
        self.num_bytes += num_bytes
        self._progress(num_bytes)


def _corpus_files(store: ActivationStore, counted: _Counter) -> Iterator[Problem]:
    hint = "the corpus cannot be repaired; harvest it again to another path"
    for corpus in store.ledger.corpora:
        for key, expected in corpus.files.items():
            size = store.location.size(key)
            if size is None:
                yield Problem("corpus", f"{key} is missing\nhint: {hint}")
            elif size != expected.bytes:
                message = f"{key} has {size:,} bytes, not {expected.bytes:,}"
                yield Problem("corpus", f"{message}\nhint: {hint}")
            elif _crc32c_of_file(store, key, size, counted) != expected.crc32c:
                yield Problem("corpus", f"{key} fails its CRC32C\nhint: {hint}")


def _crc32c_of_file(store: ActivationStore, key: str, size: int, counted: _Counter) -> int:
    """The checksum of a file of any size, read in pieces."""
    checksum = 0
    for start in range(0, size, _BYTES_AT_ONCE):
        data, _ = store.location.read_range(key, start, min(start + _BYTES_AT_ONCE, size))
        checksum = crc32c(data, after=checksum)
        counted(len(data))
    return checksum


def _corpus_hashes(store: ActivationStore) -> Iterator[Problem]:
    """The values of the index arrays against the hashes that the fingerprint was made of.

    The files may hold, with valid checksums, other values than were laid down.
    """
    arrays = {f"tokens/{name}": array for name, array in store.tokens.items()}
    arrays |= {f"contexts/{name}": array for name, array in store.contexts.items()}
    for corpus in store.ledger.corpora:
        spans = {"row": corpus.rows, "context": corpus.contexts}
        spans["context_boundary"] = Extent(corpus.contexts.start, corpus.contexts.stop + 1)
        counted_from = {
            "tokens/document": corpus.documents.start,
            "contexts/start": corpus.rows.start,
        }
        for name, array in arrays.items():
            (dimension,) = array.spec.dimension_names
            found = _sha256(array, spans[dimension], less=counted_from.get(name, 0))
            if found != corpus.sha256[name]:
                yield Problem("corpus", f"{name} does not hold the values that were laid down")


def _sha256(array: RowArray, span: Extent, *, less: int) -> str:
    digest = hashlib.sha256()
    for piece in span.pieces(_ROWS_AT_ONCE):
        values = array.read(piece.start, piece.stop)
        digest.update((values - values.dtype.type(less)).tobytes())
    return digest.hexdigest()


def _corpus_contents(store: ActivationStore) -> Iterator[Problem]:
    """Tokens against contexts, and contexts against documents."""
    schema = store.schema
    code = {name: number for number, name in enumerate(schema.splits)}
    try:
        codes = [
            np.array([code.get(name, -1) for name in batch["split"].to_pylist()], np.int8)
            for _, batch in document_batches(store, ["split"])
        ]
    except (StoreDamaged, pa.ArrowException) as error:
        yield Problem("corpus", str(error))
        return
    document_split = np.concatenate(codes) if codes else np.empty(0, np.int8)
    if len(document_split) != schema.documents:
        yield Problem(
            "corpus",
            f"There are {len(document_split):,} documents, and the schema has {schema.documents:,}",
        )
        return
    for rows in schema.blocks(_ROWS_AT_ONCE):
        documents = store.tokens["document"][rows.slice()]
        if not ((documents >= 0) & (documents < schema.documents)).all():
            yield Problem("corpus", f"Rows {rows.start:,}–{rows.stop:,} name unknown documents")
            return
        if (document_split[documents] != store.splits_of(rows)).any():
            yield Problem(
                "corpus",
                f"Rows {rows.start:,}–{rows.stop:,} are in another split than their documents",
            )
        contexts = store.contexts_of(rows)
        starts = store.contexts["start"].read(contexts.start, contexts.stop + 1)
        lengths = np.diff(starts)
        if (lengths < 1).any() or (lengths > schema.context_length).any():
            yield Problem(
                "corpus",
                f"A context at rows {rows.start:,}–{rows.stop:,} has a length "
                f"outside 1 to {schema.context_length}",
            )
            return
        inside = np.repeat(starts[:-1], np.diff(np.clip(starts, rows.start, rows.stop)))
        expected = np.arange(rows.start, rows.stop) - inside
        if (store.tokens["position"][rows.slice()] != expected).any():
            yield Problem(
                "corpus",
                f"Positions of rows {rows.start:,}–{rows.stop:,} do not fit their contexts",
            )
    for stretch in schema.stretches:
        first, last = stretch.contexts.start, stretch.contexts.stop
        edges = store.contexts["start"][np.array([first, last])].tolist()
        rows = stretch.rows
        if edges != [rows.start, rows.stop]:
            yield Problem("corpus", f"Contexts span rows {edges}, not {[rows.start, rows.stop]}")


def metadata_problems(store: ActivationStore) -> Iterator[Problem]:
    """Every file that only repeats the ledger, and does not; `actlake.storage.metadata`.

    One that says what the ledger said before the store was appended to is none: the driver that
    appended is about to write it, or was killed, and the next one will.
    """
    files = metadata_of(store.ledger.corpora[-1], store.ledger.schemas)
    for key, expected in files.items():
        found = _read(store, key)
        if found == expected or found in _other_bytes(store, key):
            continue
        wrong = "is missing" if found is None else "is not what the ledger says"
        yield Problem("metadata", f"{key} {wrong}", _site_of(store, key))


def _other_bytes(store: ActivationStore, key: str) -> list[bytes]:
    """What a file holds before and after each time that the store is appended to."""
    now = read_state(store.location)
    return [metadata_of(corpus, store.ledger.schemas)[key] for corpus in now.corpora]


def _site_of(store: ActivationStore, key: str) -> Site | None:
    parts = key.split("/")
    return next((site for site in store.sites if str(site) in parts), None)


def total_problems(
    store: ActivationStore, counted: Callable[[int], None] = lambda num_bytes: None
) -> Iterator[tuple[Problem, str, bytes]]:
    """Every total of moments that is not what its units add up to: as `metadata_problems`.

    Totals that are not there are no problem. Those of units that are damaged are not looked at.
    """
    for site in store.sites:
        stored, committed = store.stored_moments(site), store.ledger.covered[site]
        for size, keys in total_keys(store.location, site, committed):
            for block in blocks_of_size(committed, size):
                key = block.key(site)
                if key not in keys:
                    continue
                found = _read(store, key) or b""
                counted(len(found))
                try:
                    expected = stored.encoded_sum(block)
                except StoreDamaged:  # its unit is named
                    continue
                if found != expected:
                    wrong = "is not what its units add up to"
                    yield Problem("metadata", f"{key} {wrong}", site), key, expected


def _fetched(store: ActivationStore) -> Iterator[tuple[ShardRecord, _Files]]:
    """Every committed shard with its files; a few ahead where the store is remote."""

    def fetch(record: ShardRecord) -> tuple[ShardRecord, _Files]:
        return record, _files_of(store, record)

    records = _records(store, store.sites)
    units_bytes = max((store.schema.geometry.unit_rows * store.schema_of(site).row_bytes
                       for site in store.sites), default=1)  # fmt: skip
    most = max(1, _MOST_BYTES_AHEAD // (2 * units_bytes))  # of each thread two are kept
    yield from map_ahead(fetch, records, threads=min(most, store.location.parallel // 4))


def _files_of(store: ActivationStore, record: ShardRecord) -> _Files:
    specs = [store.norms_spec(record.site)]
    if record.unit not in store.ledger.released[record.site]:
        specs += store.row_specs(record.site)
    keys = [spec.shard_key(record.unit) for spec in specs]
    return {key: _read(store, key) for key in (Block(1, record.unit).key(record.site), *keys)}


def _read(store: ActivationStore, key: str) -> bytes | None:
    try:
        return store.location.read(key)
    except StoreNotFound:
        return None


def _shard(
    store: ActivationStore,
    record: ShardRecord,
    files: _Files,
    counted: _Counter,
    *,
    with_moments: bool,
) -> Iterator[Problem]:
    rows_are_whole = False
    try:
        if record.unit in store.ledger.released[record.site]:
            _checked_moments(store, record, files, counted)
            return
        rows = _checked_rows(store, record, files, counted)
        rows_are_whole = True
        stored, norms = _checked_moments(store, record, files, counted)
    except (StoreDamaged, StoreNotFound) as error:
        damage = Damage(record, rows_are_whole)
        yield Problem("shard", str(error), record.site, record.unit, damage)
        return
    bad = (int(np.isinf(rows).sum()), int(np.isnan(rows).sum()))
    if bad != (record.infinite, record.nan):
        yield Problem(
            "contents",
            f"holds {bad[0]} infinities and {bad[1]} NaNs, the ledger says {record.infinite} "
            f"and {record.nan}",
            record.site,
            record.unit,
        )
    if not with_moments:  # which rows are of which group is not known
        return
    groups = store.groups_of(store.schema.unit_extent(record.unit))
    with np.errstate(invalid="ignore"):
        again, norms_again = moments_by_group(rows, groups, num_groups=store.schema.num_groups)
    wrong = [] if np.allclose(norms, norms_again, rtol=1e-6, equal_nan=True) else ["norms"]
    for name in ("count", "m2", "mean", "norm_sum"):
        found, expected = (np.array([getattr(g, name) for g in of]) for of in (stored, again))
        if not np.allclose(found, expected, rtol=1e-9, equal_nan=True):
            wrong.append(name)
    for name in wrong:
        yield Problem(
            "contents",
            f"its moments ({name}) are not those of its rows",
            record.site,
            record.unit,
        )


def _counted(store: ActivationStore, files: _Files, key: str, counted: _Counter) -> bytes:
    data = files[key]
    if data is None:
        raise StoreNotFound(f"There is no {key} in {store.url}")
    counted(len(data))
    return data


def _checked_rows(
    store: ActivationStore, record: ShardRecord, files: _Files, counted: _Counter
) -> Array:
    specs = store.row_specs(record.site)
    keys = [spec.shard_key(record.unit) for spec in specs]
    data = [_counted(store, files, key, counted) for key in keys]
    num_bytes, of = sum(map(len, data)), " and ".join(keys)
    if num_bytes != record.rows_bytes:
        raise StoreDamaged(f"{of}: there are {num_bytes:,} bytes, not {record.rows_bytes:,}")
    stored, checksums = [], []
    for spec, key, file in zip(specs, keys, data, strict=True):
        stored.append(decode_shard(spec, record.unit, file, name=key))
        checksums.append(shard_crc32c(spec, record.unit, file, name=key))
    if rows_crc32c(checksums) != record.rows_crc32c:
        raise StoreDamaged(f"{of}: whole, but not what was committed")
    return store.schema_of(record.site).decode(tuple(stored))


def _checked_moments(
    store: ActivationStore, record: ShardRecord, files: _Files, counted: _Counter
) -> tuple[Groups, Array]:
    """The moments of its groups, and (n,) float32 the norms of its rows."""
    block, spec = Block(1, record.unit), store.norms_spec(record.site)
    keys = block.key(record.site), spec.shard_key(record.unit)
    of_moments, of_norms = (_counted(store, files, key, counted) for key in keys)
    moments = store.stored_moments(record.site).decode(block, of_moments)
    norms = decode_shard(spec, record.unit, of_norms, name=keys[1])
    number = shard_crc32c(spec, record.unit, of_norms, name=keys[1])
    found = (len(of_moments) + len(of_norms), combined_crc32c([crc32c(of_moments), number]))
    if found != (record.moments_bytes, record.moments_crc32c):
        raise StoreDamaged("its moments are not the files that were committed")
    return moments, norms


def _records_of_all(store: ActivationStore, seen: dict[Site, UnitSet]) -> Iterable[Problem]:
    """Tables against runs; what was committed while we read may be in the tables alone."""
    now = read_state(store.location).covered
    for site, tables in seen.items():
        lacking = UnitSet(store.ledger.covered.get(site, UnitSet()).runs())
        lacking.difference_update(tables)
        unknown = UnitSet(tables.runs())
        unknown.difference_update(now.get(site, UnitSet()))
        if lacking or unknown:
            yield Problem("ledger", f"the ledger's tables and its runs disagree about {site}")
