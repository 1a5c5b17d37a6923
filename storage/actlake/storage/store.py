"""Open an activation store and read from it, lazily and in NumPy.

A store is one plain Zarr v3 group of rows, with the documents, the tokenizer and the ledger
beside it. Row ``i`` of every array is about the same token. Nothing here needs torch or ray.
"""

import logging
import os
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Self, Unpack

import numpy as np
import pyarrow as pa

from actlake.storage.arrays import Path, RowArray
from actlake.storage.corpus_record import TOKENIZER, check_format
from actlake.storage.errors import (
    FormatTooNew,
    InvalidSite,
    RowsNotCommitted,
    RowsOutOfRange,
    StoreDamaged,
    StoreNotFound,
    site_not_stored,
    unknown_split,
)
from actlake.storage.extents import Extent, UnitSet
from actlake.storage.layout import MANIFEST, ArraySpec
from actlake.storage.lease import ledger_is_gone
from actlake.storage.ledger import read_state
from actlake.storage.ledger_state import LedgerState
from actlake.storage.location import Location, locate
from actlake.storage.moments import Moments, is_excluded, row_groups
from actlake.storage.scaled_rows import ScaledRows, SiteRows
from actlake.storage.sealed import unseal
from actlake.storage.site_schema import SiteSchema
from actlake.storage.sites import Site
from actlake.storage.stored_moments import StoredMoments

if TYPE_CHECKING:  # these read stores
    import re

    from actlake.storage.querying.labels import Key, Labels, Misaligned
    from actlake.storage.querying.lookup import Lookup
    from actlake.storage.querying.paired import Paired, Pairing
    from actlake.storage.querying.query import DocumentId, DocumentNumber, TokenName
    from actlake.storage.querying.rows import Rows
    from actlake.storage.querying.sql import SqlResult
    from actlake.storage.querying.text_search import At
    from actlake.storage.reading.batches import Batches, BatchOptions

Array = np.ndarray[Any, Any]
logger = logging.getLogger(__name__)


def open_store(
    url: "str | os.PathLike[str] | Location", *, path: Path = "auto"
) -> "ActivationStore":
    """Open a store for reading; a harvest may still be writing to it.

    Only the store's metadata and ledger are read here; rows when an array is indexed.

    Parameters
    ----------
    url
        A local path, or a URL: ``s3://bucket/prefix``, with credentials, region and endpoint
        from the environment as other AWS tools take them (docs/object-storage.md).
    path
        ``mapped`` or ``zarr`` forces one way of reading; ``auto`` maps what can be mapped, and
        fetches ranges of bytes from a bucket.

    Returns
    -------
    ActivationStore
        ``store[site]`` is a lazy array of shape (rows, dim), of the site's element type; of
        int8 the values as float32.

    Raises
    ------
    StoreNotFound
        Nothing is stored there, or something that is not a store.
    FormatTooNew
        A newer actlake wrote it.
    StoreDamaged
        ``store.json`` or the ledger is not what was written, or they differ.
    StoreNotReadable, StoreUnreachable
        No permission, no such bucket; its server does not answer.
    """
    location = locate(url)
    manifest = _read_manifest(location)
    ledger = read_state(location)
    if ledger.corpus is None:
        if manifest is not None:  # which is made after the ledger's entry, and from it
            raise ledger_is_gone(location)
        raise StoreNotFound(
            f"There is no activation store at {location.url} (no {MANIFEST})\n"
            "hint: `actlake harvest` makes one; a harvest that was killed before its corpus was "
            "laid out leaves none"
        )
    if manifest is None:
        # It is made right after the ledger's entry; `verify` names one that is lost.
        logger.info("%s of %s is not there; the ledger says what it says", MANIFEST, location.url)
    elif all(manifest != corpus.manifest() for corpus in ledger.corpora):
        raise StoreDamaged(
            f"{MANIFEST} of {location.url} is not what the ledger says of the corpus\n"
            f"hint: remove {MANIFEST}: it is made again from the ledger by the next harvest"
        )
    for name, why in ledger.unknown.items():
        logger.warning("This actlake cannot read the site %s of %s: %s", name, location.url, why)
    return ActivationStore(location, ledger, path=path)


def _read_manifest(location: Location) -> Any:
    try:
        manifest = unseal(location.read(MANIFEST), name=f"{location.url}/{MANIFEST}")
    except StoreNotFound:
        return None
    check_format(manifest["format"], location.url)
    return manifest


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of a site is committed."""

    units: int
    total_units: int
    rows: int
    """That are there to be read: of committed units, but for the released ones."""
    total_rows: int
    released: int = 0
    """Committed units whose rows were given up on purpose."""

    @property
    def is_complete(self) -> bool:
        """Whether every unit is committed."""
        return self.units == self.total_units

    @property
    def is_readable(self) -> bool:
        """Whether every row is there."""
        return self.rows == self.total_rows

    def __str__(self) -> str:
        released = f", {self.released:,} of them released" if self.released else ""
        return f"{self.units:,} of {self.total_units:,} units committed{released}"


class ActivationStore:
    """An opened store. `open_store` makes one.

    It stays as it was opened: what is appended to it afterwards (`actlake.storage.append`) is seen
    by those who open it then. Sites and units that a harvest adds are seen by `refresh`.

    Attributes
    ----------
    schema
        What rows hold: width, type, splits, sizes.
    provenance
        Model, tokenizer, corpus.
    fingerprint
        Names the rows: the same tokens seen by the same model have the same one.
    tokens
        ``tokens["id"]``, ``["document"]``, ``["position"]``, ``["char"]``: a number a row.
    contexts
        ``contexts["start"]`` (contexts + 1,) first rows; ``contexts["split"]`` (contexts,) codes
        into ``schema.splits``.
    """

    def __init__(
        self,
        location: Location,
        ledger: LedgerState,
        *,
        path: Path = "auto",
    ) -> None:
        corpus = ledger.corpus
        assert corpus is not None, location.url
        self.location = location
        self.ledger = ledger
        schema = self.schema = corpus.schema
        self.provenance = corpus.provenance
        self.fingerprint = corpus.fingerprint
        self._path: Path = path
        self.tokens = {n: RowArray(location, s, path=path) for n, s in schema.tokens().items()}
        self.contexts = {
            n: RowArray(location, s, path=path) for n, s in schema.context_arrays().items()
        }
        self._arrays: dict[Site, SiteRows] = {}

    @property
    def url(self) -> str:
        """Where it lies."""
        return self.location.url

    def __repr__(self) -> str:
        from actlake.storage.summary import summarize

        return summarize(self).as_text()

    def _repr_html_(self) -> str:
        from actlake.storage.summary import summarize

        return summarize(self).as_html()

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process: the ledger goes along as it was read, files are mapped anew."""
        made = partial(type(self), path=self._path)
        return made, (self.location, self.ledger)

    def refresh(self) -> Self:
        """Read the ledger again, to see what a running harvest has committed since."""
        self.ledger = read_state(self.location).as_of(len(self.ledger.corpora))
        return self

    def as_of(self, fingerprint: str) -> "ActivationStore | None":
        """The store as it was when it had this fingerprint, with what it has of those rows now.

        A store has another fingerprint after each time that it is appended to. None if it never
        had this one.
        """
        if fingerprint == self.fingerprint:
            return self
        place = self.ledger.place_of(fingerprint)
        if place is None:
            return None
        return type(self)(self.location, self.ledger.as_of(place), path=self._path)

    def grown_since(self, before: "ActivationStore", when: str) -> str:
        """In words, how much more there is than in the store as it was at some time."""
        more = self.schema.num_rows - before.schema.num_rows
        return (
            f"{self.url} has {more:,} rows more than when {when}: it was appended to; what goes on "
            f"now goes on over the {before.schema.num_rows:,} rows that there were then"
        )

    # Sites.

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites that were asked for, sorted; `coverage` says how much of each is there.

        Those that this version cannot read are not among them: see `unknown_sites`.
        """
        return self.ledger.sites

    @property
    def unknown_sites(self) -> Mapping[str, str]:
        """Sites that a newer actlake has added and this one cannot read: why not."""
        return self.ledger.unknown

    def schema_of(self, site: str | Site) -> SiteSchema:
        """What the rows of a site are: width, element type, compression.

        Raises
        ------
        SiteNotStored
            As `site`.
        """
        return self.ledger.schemas[self.site(site)]

    def spec(self, site: str | Site) -> ArraySpec:
        """How the rows of a site are cut into files; raises as `site`."""
        return self.row_specs(site)[0]

    def row_specs(self, site: str | Site) -> tuple[ArraySpec, ...]:
        """The arrays that a site's rows are read from; raises as `site`."""
        stored = self.site(site)
        return self.schema.row_arrays(stored, self.ledger.schemas[stored])

    def chunk_rows(self, sites: Iterable[str | Site]) -> int:
        """Rows of the smallest chunk that one of these sites has; raises as `site`."""
        return min(self.spec(site).chunk_length for site in sites)

    def norms_spec(self, site: str | Site) -> ArraySpec:
        """How the norms of a site's rows are cut into files; raises as `site`."""
        return self.schema.norms(self.site(site))

    def stored_moments(self, site: str | Site) -> StoredMoments:
        """The files of a site's moments; raises as `site`."""
        stored = self.site(site)
        schema = self.ledger.schemas[stored]
        return StoredMoments(self.location, stored, schema, self.schema.splits)

    def norms(self, site: str | Site) -> RowArray:
        """The Euclidean norm of each row of a site, (rows,) float32, without reading rows.

        They are there of every committed unit, also of released ones.

        Raises
        ------
        SiteNotStored
            As `site`.
        """
        stored = self.site(site)
        return RowArray(
            self.location,
            self.norms_spec(stored),
            committed=partial(self._covered, stored),
            path=self._path,
        )

    def site(self, written: str | Site) -> Site:
        """The stored name of a site.

        Raises
        ------
        SiteNotStored
            It was never harvested; the nearest stored one is named.
        FormatTooNew
            This version cannot read it.
        """
        if (why := self.ledger.unknown.get(str(written))) is not None:
            raise FormatTooNew(
                f"This actlake cannot read the site {written} of {self.url}: {why}\n"
                "hint: pip install --upgrade actlake"
            )
        site = Site.parse(written).stored
        if site not in self.ledger.schemas:
            raise site_not_stored(written, site, self.sites, url=self.url)
        return site

    def __getitem__(self, site: str | Site) -> SiteRows:
        stored = self.site(site)
        if stored not in self._arrays:
            arrays = [
                RowArray(
                    self.location,
                    spec,
                    committed=partial(self._covered, stored),
                    released=partial(self._released, stored),
                    path=self._path,
                )
                for spec in self.row_specs(stored)
            ]
            self._arrays[stored] = arrays[0] if len(arrays) == 1 else ScaledRows(*arrays)
        return self._arrays[stored]

    def __contains__(self, site: object) -> bool:
        try:
            return isinstance(site, str | Site) and Site.parse(site).stored in self.ledger.schemas
        except InvalidSite:
            return False

    def __len__(self) -> int:
        """One more than the last row's number, as of every array of rows.

        So many rows there are but in a store that was appended to, in which numbers are left out
        (`StoreSchema.gaps`); ``schema.num_rows`` counts them.
        """
        return self.schema.rows

    def take(self, rows: Any, sites: str | Site | Sequence[str | Site]) -> Any:
        """The given rows of a site, (n, dim); of several sites, a dict of such arrays.

        Raises
        ------
        SiteNotStored, RowsOutOfRange, RowsNotCommitted
            As their names say; see `RowArray.take`.
        """
        if isinstance(sites, str | Site):
            return self[sites].take(rows)
        return {Site.parse(site): self[site].take(rows) for site in sites}

    def coverage(self, site: str | Site) -> Coverage:
        """How much of a site is committed."""
        stored, schema = self.site(site), self.schema
        units, readable = self.ledger.covered[stored], self.ledger.readable(stored)
        rows = sum(map(len, schema.rows_of(readable)))
        released = len(units) - len(readable)
        return Coverage(len(units), schema.num_units, rows, schema.num_rows, released)

    def committed(self, sites: Iterable[str | Site] | None = None) -> UnitSet:
        """The units that are committed for all of the sites (by default, all stored ones)."""
        units = self.schema.units
        for site in self.sites if sites is None else map(self.site, sites):
            units = units.intersection(self.ledger.covered[site])
        return units

    def readable(self, sites: Iterable[str | Site] | None = None) -> UnitSet:
        """The `committed` units whose rows are there: released at none of the sites."""
        units = self.schema.units
        for site in self.sites if sites is None else map(self.site, sites):
            units = units.intersection(self.ledger.readable(site))
        return units

    def _covered(self, site: Site) -> UnitSet:
        return self.ledger.covered[site]

    def _released(self, site: Site, *, anew: bool = False) -> UnitSet:
        ledger = read_state(self.location) if anew else self.ledger
        return ledger.released[site]

    # Rows, contexts, documents.

    def split_code(self, split: str) -> int:
        """The code of a split: its place in ``schema.splits``.

        Raises
        ------
        UnknownSplit
            There is none of that name; the nearest is named.
        """
        if split not in self.schema.splits:
            raise unknown_split(split, self.schema.splits, url=self.url)
        return self.schema.splits.index(split)

    def contexts_of(self, rows: Extent) -> Extent:
        """The contexts that overlap `rows`; a few reads, whatever the size of the store.

        Raises
        ------
        RowsOutOfRange
            They reach into a gap between two stretches, or are not of the store.
        """
        if len(rows) == 0:
            return Extent(0, 0)
        start = self.contexts["start"]
        self._refuse_gaps(rows)
        own = next(s.contexts for s in self.schema.stretches if rows.start in s.rows)
        end = own.stop + 1
        first = bisect_right(start, rows.start, own.start, end) - 1
        last = bisect_right(start, rows.stop - 1, own.start, end)
        return Extent(first, last)

    def _refuse_gaps(self, rows: Extent) -> None:
        if self.schema.held(rows) != [rows]:
            raise RowsOutOfRange(
                f"Rows {rows.start:,} to {rows.stop:,} are not all of one stretch of {self.url}, "
                "which was appended to\nhint: store.schema.stretches says which rows there are"
                if self.schema.gaps
                else f"Rows {rows.start:,} to {rows.stop:,} were asked for; {self.url} has "
                f"{len(self):,} rows"
            )

    def splits_of(self, rows: Extent) -> Array:
        """(n,) int8, the split code of each row."""
        contexts = self.contexts_of(rows)
        starts = self.contexts["start"].read(contexts.start, contexts.stop + 1)
        lengths = np.diff(np.clip(starts, rows.start, rows.stop))
        return np.repeat(self.contexts["split"].read(contexts.start, contexts.stop), lengths)

    def groups_of(self, rows: Extent) -> Array:
        """(n,) int, the group of each row in `moments`: ``2 * split + excluded``."""
        return row_groups(
            self.splits_of(rows),
            self.tokens["position"][rows.slice()],
            self.tokens["id"][rows.slice()],
            special_ids=self.schema.special_ids,
        )

    def excluded(self, rows: Extent) -> Array:
        """(n,) bool, the default exclusion: position 0 of each context, and special ids."""
        return is_excluded(
            self.tokens["position"][rows.slice()],
            self.tokens["id"][rows.slice()],
            special_ids=self.schema.special_ids,
        )

    def documents(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The documents, a row each in order of their number: id, source, split, text, ….

        Raises
        ------
        StoreDamaged
            A file of documents is missing or unreadable.
        """
        from actlake.storage.querying.document_table import documents_table

        return documents_table(self, columns)

    # Batches.

    def batches(
        self,
        sites: str | Site | Sequence[str | Site],
        rows_per_batch: int,
        **how: "Unpack[BatchOptions]",
    ) -> "Batches":
        """Shuffled batches of committed rows, resumable; see `read_batches` for the options.

        for batch in store.batches("resid_post.9", 4096, split="train", seed=0): ...
        """
        from actlake.storage.reading.batches import read_batches
        from actlake.storage.reading.many import ManyStores

        return read_batches(ManyStores([self]), sites, rows_per_batch, **how)

    # Questions.

    @cached_property
    def lookup(self) -> "Lookup":
        """The store's indexes, vocabulary and names, each made at first use."""
        from actlake.storage.querying.lookup import Lookup

        return Lookup(self)

    def find(
        self,
        *,
        token: "TokenName | None" = None,
        text: str | None = None,
        regex: "str | re.Pattern[str] | None" = None,
        document: "DocumentId | None" = None,
        document_number: "DocumentNumber | None" = None,
        split: str | None = None,
        where: str | None = None,
        at: "At" = "last",
    ) -> "Rows":
        """The rows that meet all the criteria given; at least one.

        The first lookup of a token makes an index, kept in the store or the user's cache.

        Parameters
        ----------
        token
            A token's text as it stands in running text (``" Paris"``), its name in the
            tokenizer's file (``ĠParis``), or its id; or a list, for any of them.
        text
            Text that may be several tokens, however it is tokenised. It is searched in the
            documents, character by character, and mapped to tokens; occurrences may overlap.
        regex
            A regular expression (Python's), searched in each document.
        at
            Which tokens of an occurrence of `text` or `regex`: its ``last``, which has seen all
            of it, its ``first``, or ``all``. Where a context begins within an occurrence, its
            last token has not; these are left out, counted in the log and in what the rows
            are `found_by`.
        document
            Id of a document, or a list. Ids are text; a whole number is the id that is written
            with its digits.
        document_number
            A document's place in the store, from 0, or a list.
        where
            An SQL predicate on the columns of tokens, documents and attached labels.

        Raises
        ------
        InvalidQuery
            No criterion, a `regex` or `where` that cannot be read.
        NotInStore, UnknownSplit
            There is no such token, document or split; the nearest is named.
        MissingExtra
            `where` needs the extra ``query``.
        """
        from actlake.storage.querying.query import find

        return find(
            self,
            token=token,
            text=text,
            regex=regex,
            document=document,
            document_number=document_number,
            split=split,
            where=where,
            at=at,
        )

    def paired(self, **how: "Unpack[Pairing]") -> "Paired":
        """The rows that belong together, of documents that differ in a condition.

        ``store.paired(on="pair", column="condition", of=("clean", "noisy"))``

        Parameters
        ----------
        on
            Column of the documents whose value the members of a pair share.
        column
            Column that says which condition a document is of.
        of
            The conditions, two or more; each pair has one document of each. Others are passed over.
        at
            Which rows of each document: its ``"last"`` token; each ``"token"``, of which all
            members have as many; or the last one with a label of the table of that name. Special
            tokens, beginnings and separators among them, are never meant.
        where
            Of rows of which this is true only, as in `find`.
        incomplete
            What becomes of a pair that lacks a member, or a member that has no such row: it is
            ``"refuse"``d, or ``"drop"``ped and counted in `Paired.left_out`.

        Raises
        ------
        InvalidQuery
            No such column or condition, a pair with two documents of one condition, one that lacks
            a member, or members of different length at ``"token"``.
        EmptySelection
            No row is left.
        LabelsNotAttached, MissingExtra
            As their names say.
        """
        from actlake.storage.querying.paired import paired

        return paired(self, **how)

    def sql(self, query: str) -> "SqlResult":
        """Ask in SQL; tables are streamed, files and the network are out of reach.

        Tables: ``tokens`` (row, id, document_number, position, char, context, split), ``documents``
        (document_number, id, source, split, text, …), ``vocabulary`` (id, piece, text), and each
        attached label table by its name.

        Raises
        ------
        InvalidQuery
            It is not one SELECT, or names what there is not.
        MissingExtra
            The extra ``query`` is not installed.
        """
        from actlake.storage.querying.sql import SqlResult

        return SqlResult(self, query)

    def to_xarray(self, sites: Iterable[str | Site] | None = None) -> Any:
        """A lazy ``xarray.Dataset``: sites by (row, dim), coordinates token, position, ….

        Rows that are not committed are NaN. Nothing is read before its values are asked for.

        Raises
        ------
        SiteNotStored
            One of `sites` is not stored.
        MissingExtra
            The extra ``query`` is not installed.
        """
        from actlake.storage.querying.named_dataset import to_xarray

        return to_xarray(self, sites)

    # Labels.

    def attach_labels(
        self,
        name: str,
        table: Any,
        *,
        key: "Key",
        misaligned: "Misaligned" = "refuse",
        replace: bool = False,
    ) -> "Labels":
        """Attach a label table under a name, beside the rows, which stay as they are.

        Parameters
        ----------
        name
            Lower-case letters, digits and _; the table's name in SQL.
        table
            A path (.parquet, .csv, .arrow, .feather), an Arrow table, a pandas or polars data
            frame, a dict of columns.
        key
            What a label is of: ``"document"`` (its id), ``("document", "start", "stop")``
            (characters ``start <= c < stop`` of the document's text) or ``"row"``. In the place
            of ``"document"`` may stand ``"document_number"``, its place in the store.
        misaligned
            Keys that are not of the store: refuse the table, or drop and count them
            (``Labels.alignment``).
        replace
            Take the place of labels of the same name.

        Raises
        ------
        LabelsMisaligned
            Keys are not of the store; counts and examples are in the message.
        InvalidQuery
            The table, its columns or the name cannot be.
        StoreNotWritable
            The store's folder cannot be written.
        """
        from actlake.storage.querying.labels import attach_labels

        return attach_labels(self, name, table, key=key, misaligned=misaligned, replace=replace)

    def labels(self, name: str) -> "Labels":
        """An attached label table.

        Raises
        ------
        LabelsNotAttached
            There is none of that name; the nearest is named.
        """
        from actlake.storage.querying.labels import Labels

        return Labels(self, name)

    # Statistics.

    def moments(
        self,
        site: str | Site,
        *,
        split: str | None = None,
        excluded: bool | None = False,
        units: Iterable[int] | None = None,
    ) -> Moments:
        """Mean, variance and norms of rows, without reading a row.

        Parameters
        ----------
        split
            Of this split's rows only; by default of all.
        excluded
            False: without position 0 and special ids, as training sees them. True: only
            those. None: all rows.
        units
            Of these units' rows only; by default of all that are committed.

        Raises
        ------
        SiteNotStored, UnknownSplit
            There is no such site or split; the nearest is named.
        RowsNotCommitted
            One of `units` is not committed for the site.
        """
        stored = self.site(site)
        committed = self.ledger.covered[stored]
        asked = committed if units is None else _unit_set(units)
        absent = UnitSet(asked.runs())
        absent.difference_update(committed)
        if absent:
            raise RowsNotCommitted(
                f"Unit {next(iter(absent))} of {stored} is not committed in {self.url}, and has no "
                f"moments; {self.coverage(stored)}\n"
                f"hint: go on with the harvest, or leave `units` out for all that are there"
            )
        splits = range(len(self.schema.splits)) if split is None else [self.split_code(split)]
        kinds = [False, True] if excluded is None else [excluded]
        groups = self.stored_moments(stored).of(asked)
        total = Moments.empty(self.schema_of(stored).dim)
        for code in splits:
            for kind in kinds:
                total = total.merge(groups[2 * code + kind])
        return total

    # Text.

    @property
    def tokenizer_files(self) -> tuple[str, ...]:
        """Keys of the tokenizer's files, as the ledger has them; of a store without one, none."""
        return tuple(k for k in self.ledger.corpora[0].files if k.startswith(f"{TOKENIZER}/"))

    @cached_property
    def tokenizer(self) -> Any:
        """The store's own tokenizer (a ``tokenizers.Tokenizer``); transformers is not needed.

        Raises
        ------
        StoreDamaged
            The store holds no ``tokenizer.json``.
        """
        from tokenizers import Tokenizer

        try:
            return Tokenizer.from_str(self.location.read(f"{TOKENIZER}/tokenizer.json").decode())
        except StoreNotFound as error:
            raise StoreDamaged(f"{self.url} holds no {TOKENIZER}/tokenizer.json") from error

    def text(self, start: int, stop: int) -> str:
        """The text of rows ``start <= i < stop``, decoded; raises as `contexts_of`."""
        if start < stop:
            self._refuse_gaps(Extent(start, stop))
        ids = self.tokens["id"].read(start, stop).tolist()
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))


def _unit_set(units: Iterable[int]) -> UnitSet:
    return units if isinstance(units, UnitSet) else UnitSet((unit, unit + 1) for unit in units)
