"""Small stores with known contents, made in the test."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actlake.storage import (
    Context,
    Document,
    Geometry,
    Lease,
    Provenance,
    Site,
    SiteSchema,
    StoreBuilder,
    StoreRequest,
    add_sites,
    open_store,
    write_store,
    write_unit,
)
from actlake.storage.ledger_records import TABLE
from actlake.storage.location import locate
from actlake.storage.release import release_units

SITES = (Site(0), Site(3))


class Known:
    """What a store should hold, in plain arrays: the model that the store is tested against."""

    def __init__(
        self,
        *,
        dtype: str = "float32",
        rows: int = 250,
        dim: int = 6,
        seed: int = 0,
        called: str = "doc",
    ) -> None:
        rng = np.random.default_rng(seed)
        self.dtype = dtype
        self.dim = dim
        self.compression = "none"
        self.contexts: list[Context] = []
        self.documents = [
            Document(
                f"{called}-{d}", "made", ("train", "test")[d % 3 == 2], f"text of {d}", {"n": d}
            )
            for d in range(9)
        ]
        left = rows
        while left:
            n = min(left, int(rng.integers(1, 17)))  # contexts that straddle units
            document = int(rng.integers(0, len(self.documents)))
            self.contexts.append(
                Context(
                    rng.integers(0, 50, n).astype(np.int32),
                    np.full(n, document),
                    np.arange(n, dtype=np.int32),
                    self.documents[document].split,
                )
            )
            left -= n
        self.rows = rows
        self.ids = np.concatenate([c.ids for c in self.contexts])
        self.positions = np.concatenate([np.arange(len(c)) for c in self.contexts])
        self.split = np.repeat([c.split for c in self.contexts], [len(c) for c in self.contexts])
        self.document = np.concatenate([c.documents for c in self.contexts])
        self.excluded = (self.positions == 0) | np.isin(self.ids, [7, 8])
        values = {site: rng.normal(size=(rows, dim)) for site in SITES}
        self.acts = {
            site: self.rows_are.decode(self.rows_are.encode(rows)) for site, rows in values.items()
        }

    @property
    def rows_are(self) -> SiteSchema:
        """Of every site."""
        return SiteSchema(dim=self.dim, dtype=self.dtype, compression=self.compression)  # type: ignore[arg-type]

    def build(
        self, folder: Path, *, layout: str = "documents", compression: str = "none", **request: Any
    ) -> None:
        """Lay the corpus down; no activations yet."""
        self.compression = compression
        wanted = StoreRequest(
            layout=layout,  # type: ignore[arg-type]
            context_length=16,
            splits=("train", "test"),
            special_ids=(7, 8),
            **request,
        )
        with (
            Lease.acquire(locate(folder)) as lease,
            StoreBuilder(
                lease,
                wanted,
                Provenance(model={"name": "none", "revision": "0"}),
                token_chunk_rows=32,
                token_shard_rows=64,
            ) as builder,
        ):
            for document in self.documents:
                builder.add_document(document)
            for context in self.contexts:
                builder.add_context(context)
            builder.finish(
                lambda rows: Geometry(unit_rows=24, chunk_bytes=8 * self.rows_are.row_bytes)
            )

    def fill(
        self, folder: Path, sites: tuple[Site, ...] = SITES, *, skip: tuple[int, ...] = ()
    ) -> None:
        """Write and commit the units of `sites`, but for those to skip."""
        with Lease.acquire(locate(folder)) as lease:
            store = open_store(folder)
            add_sites(lease, store, dict.fromkeys(sites, self.rows_are), {})
            store.refresh()
            for unit in range(store.schema.num_units):
                if unit not in skip:
                    self.write(lease, store, unit, sites)

    def write(self, lease: Lease, store: Any, unit: int, sites: tuple[Site, ...] = SITES) -> None:
        """Write and commit one unit."""
        extent = store.schema.unit_extent(unit)
        rows = {site: self.acts[site][extent.slice()] for site in sites}
        lease.ledger.commit(write_unit(store, unit, rows, token=lease.token))


@pytest.fixture
def known() -> Known:
    return Known()


@pytest.fixture
def make_known() -> type[Known]:
    return Known


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store that `full` is a copy of."""
    folder = tmp_path_factory.mktemp("finished") / "store"
    Known().build(folder)
    Known().fill(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def full(finished: Path, folder: Path) -> Path:
    """A finished store of `known`."""
    shutil.copytree(finished, folder)
    return folder


# What changes a store and is no subject of the test.


@pytest.fixture
def release() -> Any:
    """Give the rows of units of a site up."""

    def released(folder: Path, site: str, units: list[int]) -> None:
        with Lease.acquire(locate(folder)) as lease:
            release_units(lease, open_store(folder), {Site.parse(site): units})

    return released


@pytest.fixture
def merge() -> Any:
    """Leave one entry of the ledger."""

    def merged(folder: Path) -> None:
        with Lease.acquire(locate(folder)) as lease:
            lease.ledger.merge_all()

    return merged


@pytest.fixture
def add_unknown() -> Any:
    """Announce a site as a newer actlake would, and commit a unit of it."""

    def added(folder: Path, name: str, schema: dict[str, Any]) -> None:
        with Lease.acquire(locate(folder)) as lease:
            site = {"name": name, "schema": schema, "note": "may be passed over"}
            lease.ledger.append({"kind": "sites", "sites": [site], "request": {}, "since": "2031"})
            record = dict.fromkeys(TABLE.names, 1) | {"site": name, "unit": 0, "new": [1, 2]}
            lease.ledger.append({"kind": "units", "shards": [record]})

    return added


@pytest.fixture(scope="session")
def many_units(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 70 units of 4 rows, of `Site(3)`: two blocks of 32 units, and six more."""
    folder = tmp_path_factory.mktemp("many_units") / "store"
    rows = np.random.default_rng(0).normal(size=(280, 5)) * 1e3
    contexts = [[7, 8, 9, 10 + n % 5] for n in range(70)]
    cut = Geometry(unit_rows=4)
    write_store(
        folder, contexts, {Site(3): rows.astype(np.float32)}, geometry=cut, provenance="made"
    )
    return folder
