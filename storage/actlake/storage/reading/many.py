"""Several stores of one model, opened as one.

More text makes another store, and the two are read together, or is appended to the first one.
Rows are numbered through: those of the second store follow those of the first.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING, Any, Self, Unpack

import numpy as np

from actlake.storage.arrays import Path, as_rows
from actlake.storage.errors import StoreMismatch, site_not_stored, unknown_split
from actlake.storage.extents import UnitSet
from actlake.storage.location import Location
from actlake.storage.moments import Moments
from actlake.storage.provenance import differences, shortened
from actlake.storage.scaled_rows import SiteRows
from actlake.storage.site_schema import SiteSchema
from actlake.storage.sites import Site
from actlake.storage.store import ActivationStore, Coverage, open_store

if TYPE_CHECKING:
    from actlake.storage.querying.paired import Paired, Pairing
    from actlake.storage.querying.query import Criteria
    from actlake.storage.querying.rows import Rows
    from actlake.storage.querying.sql import SqlResult
    from actlake.storage.reading.batches import Batches, BatchOptions

Array = np.ndarray[Any, Any]


def open_stores(
    urls: "str | os.PathLike[str] | Iterable[str | os.PathLike[str] | Location]",
    *,
    path: Path = "auto",
) -> "ManyStores":
    """Open several stores of one model as one.

    Parameters
    ----------
    urls
        Where they lie, in the order of their rows; a path or URL alone is one store.
    path
        As `open_store`.

    Raises
    ------
    StoreMismatch
        They are of different models or tokenizers, a site has another width or element type, or
        one of them is given twice.
    StoreNotFound, FormatTooNew, StoreDamaged
        As `open_store`.
    """
    if isinstance(urls, str | os.PathLike):
        urls = [urls]
    stores = [open_store(url, path=path) for url in urls]
    if not stores:
        raise StoreMismatch("No store was given\nhint: open_stores([first, second])")
    check_one_model(stores)
    return ManyStores(stores)


class ManyStores:
    """Stores as one, rows numbered through. `open_stores` makes one.

    Attributes
    ----------
    stores
        In the order of their rows.
    offsets
        (stores + 1,) int64: rows ``offsets[s] <= i < offsets[s + 1]`` are of store ``s``.
    """

    def __init__(self, stores: Sequence[ActivationStore]) -> None:
        self.stores = tuple(stores)
        self.offsets = np.cumsum([0, *(len(store) for store in stores)], dtype=np.int64)

    @property
    def url(self) -> str:
        """Where they lie."""
        return ", ".join(store.url for store in self.stores)

    @property
    def fingerprint(self) -> str:
        """Names their rows and their order."""
        return "+".join(store.fingerprint for store in self.stores)

    def schema_of(self, site: str | Site) -> SiteSchema:
        """What the rows of a site are, the same in every store; raises as `site`."""
        return self.stores[0].schema_of(self.site(site))

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of all stores' splits, each once."""
        return tuple(dict.fromkeys(name for store in self.stores for name in store.schema.splits))

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites that every store has."""
        common = set(self.stores[0].sites).intersection(*(s.sites for s in self.stores))
        return tuple(sorted(common))

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def __contains__(self, site: object) -> bool:
        return all(site in store for store in self.stores)

    def __repr__(self) -> str:
        from actlake.storage.summary import summarize

        return summarize(self).as_text()

    def _repr_html_(self) -> str:
        from actlake.storage.summary import summarize

        return summarize(self).as_html()

    def refresh(self) -> Self:
        """Read every store's ledger again, to see what running harvests have committed since."""
        for store in self.stores:
            store.refresh()
        return self

    def site(self, written: str | Site) -> Site:
        """The stored name of a site that every store has.

        Raises
        ------
        SiteNotStored
            A store lacks it.
        """
        site = Site.parse(written).stored
        for store in self.stores:
            if site not in store:
                raise site_not_stored(written, site, self.sites, url=store.url)
        return site

    def check_split(self, split: str) -> None:
        """Refuse the name of a split that no store has.

        Raises
        ------
        UnknownSplit
            The nearest one is named.
        """
        if split not in self.splits:
            raise unknown_split(split, self.splits, url=self.url)

    def locate(self, rows: Any) -> tuple[Array, Array]:
        """Of each row, (n,), the store it is in and its row there.

        Raises
        ------
        RowsOutOfRange
            There is no such row.
        """
        rows = as_rows(rows, len(self), of=self.url)
        which = np.searchsorted(self.offsets, rows, side="right") - 1
        return which, rows - self.offsets[which]

    def take(
        self, rows: Any, sites: str | Site | Sequence[str | Site], *, ahead: bool = False
    ) -> Any:
        """The given rows of a site, (n, dim); of several sites, a dict of such arrays.

        `ahead` as in `RowArray.take`.

        Raises
        ------
        SiteNotStored, RowsOutOfRange, RowsNotCommitted
            As `ActivationStore.take`.
        """
        if isinstance(sites, str | Site):
            return self._take(rows, self.site(sites), ahead=ahead)
        return {Site.parse(site): self._take(rows, self.site(site), ahead=ahead) for site in sites}

    def arrays(self, site: str | Site) -> list[SiteRows]:
        """The site's array of each store."""
        stored = self.site(site)
        return [store[stored] for store in self.stores]

    def coverage(self, site: str | Site) -> Coverage:
        """How much of a site is committed, of all stores together."""
        stored = self.site(site)
        counts = [astuple(store.coverage(stored)) for store in self.stores]
        return Coverage(*map(sum, zip(*counts, strict=True)))

    def committed(self, sites: Iterable[str | Site]) -> list[UnitSet]:
        """Of each store, the units that are committed for all of the sites."""
        sites = list(sites)
        return [store.committed(sites) for store in self.stores]

    def readable(self, sites: Iterable[str | Site]) -> list[UnitSet]:
        """Of each store, the units whose rows are there for all of the sites."""
        sites = list(sites)
        return [store.readable(sites) for store in self.stores]

    def moments(
        self,
        site: str | Site,
        *,
        split: str | None = None,
        excluded: bool | None = False,
        units: Sequence[Iterable[int]] | None = None,
    ) -> Moments:
        """Mean, variance and norms of rows, without reading a row.

        As `ActivationStore.moments`; `units` are given for each store. A store that does not
        have the split adds nothing.
        """
        if split is not None:
            self.check_split(split)
        stored = self.site(site)
        total = Moments.empty(self.schema_of(stored).dim)
        for number, store in enumerate(self.stores):
            if split is None or split in store.schema.splits:
                of = None if units is None else units[number]
                part = store.moments(stored, split=split, excluded=excluded, units=of)
                total = total.merge(part)
        return total

    def batches(
        self,
        sites: str | Site | Sequence[str | Site],
        rows_per_batch: int,
        **how: "Unpack[BatchOptions]",
    ) -> "Batches":
        """Shuffled batches over all stores; the options are those of `read_batches`."""
        from actlake.storage.reading.batches import read_batches

        return read_batches(self, sites, rows_per_batch, **how)

    def find(self, **criteria: "Unpack[Criteria]") -> "Rows":
        """The rows that meet all the criteria, numbered through; see `ActivationStore.find`.

        Each store is asked for itself: `where` sees its tables and its labels, in which only
        ``row`` is numbered through. A `document_number` is numbered through.

        Raises
        ------
        InvalidQuery, NotInStore, UnknownSplit, MissingExtra
            As `ActivationStore.find`; a document or split is unknown if no store has it.
        """
        from actlake.storage.querying.query import find

        return find(self, **criteria)

    def paired(self, **how: "Unpack[Pairing]") -> "Paired":
        """The rows that belong together, numbered through; see `ActivationStore.paired`.

        A pair's documents may be in different stores. For stores of different models, or of the
        same documents in each, see `paired_stores`.
        """
        from actlake.storage.querying.paired import paired

        return paired(self, **how)

    def sql(self, query: str) -> "SqlResult":
        """Ask all stores in SQL; see `ActivationStore.sql`.

        Each table is the stores' tables one after the other, with a further column ``store``
        (its place in `stores`); ``row``, ``document_number`` and ``context`` are numbered through.
        ``vocabulary`` is that of all. Labels that one store lacks are there for the others.

        Raises
        ------
        InvalidQuery
            As `ActivationStore.sql`; or tables of one name differ in key or types.
        MissingExtra
            The extra ``query`` is not installed.
        """
        from actlake.storage.querying.sql import SqlResult

        return SqlResult(self, query)

    def to_xarray(self, sites: Iterable[str | Site] | None = None) -> Any:
        """All stores as one lazy ``xarray.Dataset``; see `ActivationStore.to_xarray`.

        ``row``, ``document_number`` and ``context`` are numbered through.

        Raises
        ------
        SiteNotStored, MissingExtra
            As `ActivationStore.to_xarray`.
        """
        from actlake.storage.querying.named_dataset import to_xarray

        return to_xarray(self, sites)

    def _take(self, rows: Any, site: Site, *, ahead: bool) -> Array:
        if len(self.stores) == 1:
            return self.stores[0][site].take(rows, ahead=ahead)
        which, local = self.locate(rows)
        schema = self.schema_of(site)
        out = np.empty((len(local), schema.dim), schema.value_dtype)
        for number, store in enumerate(self.stores):
            here = which == number
            if here.any():
                out[here] = store[site].take(local[here], ahead=ahead)
        return out


def check_one_model(stores: Sequence[ActivationStore]) -> None:
    """Refuse stores that cannot be read as one.

    Raises
    ------
    StoreMismatch
        The message has a line for each difference to the first store.
    """
    first = stores[0]
    seen: dict[str, str] = {}
    for store in stores:
        both = [site for site in first.sites if site in store]
        lines = differences(_what_must_agree(first, both), _what_must_agree(store, both))
        if lines:
            raise StoreMismatch(
                f"{first.url} and {store.url} cannot be read as one; stored is the first, asked "
                "the second:\n" + "\n".join(lines) + "\nhint: harvest both with one model, "
                "tokenizer and storage dtype"
            )
        if store.fingerprint in seen:
            raise StoreMismatch(
                f"{seen[store.fingerprint]} and {store.url} hold the same rows (fingerprint "
                f"{shortened(store.fingerprint)})\nhint: give each store once"
            )
        seen[store.fingerprint] = store.url


def _what_must_agree(store: ActivationStore, sites: Iterable[Site]) -> Mapping[str, Any]:
    return {
        **store.provenance.model_identity(),
        "special_ids": list(store.schema.special_ids),
        "sites": {
            str(site): {"dim": store.schema_of(site).dim, "dtype": store.schema_of(site).dtype}
            for site in sites
        },
    }
