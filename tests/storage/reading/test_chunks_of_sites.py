"""Sites of one store have chunks of their own; batches of several sites are right all the same."""

import numpy as np
import pytest

from actlake.storage import Geometry, Lease, Site, SiteSchema, add_sites, open_store, write_unit
from actlake.storage.corpus import Context, Document
from actlake.storage.create import StoreBuilder, StoreRequest
from actlake.storage.location import locate
from actlake.storage.provenance import Provenance

WIDE, NARROW = Site(1), Site(1, "router_logits")
ROWS = 600


def acts(site):
    dim = {WIDE: 32, NARROW: 3}[site]
    return (np.arange(ROWS)[:, None] + np.arange(dim) / 64).astype(np.float32)


@pytest.fixture(params=["none", "zstd"])
def store(request, tmp_path):
    """Units of 240 rows; a chunk holds 8 rows of the one site and 80 of the other."""
    folder = tmp_path / "store"
    wanted = StoreRequest(layout="documents", context_length=10, splits=("all",))
    cut = Geometry(unit_rows=240, chunk_bytes=8 * 32 * 4)
    with Lease.acquire(locate(folder)) as lease:
        with StoreBuilder(lease, wanted, Provenance(model={"name": "m"})) as builder:
            document = builder.add_document(Document("d", "made", "all"))
            for first in range(0, ROWS, 10):
                ids = np.arange(first, first + 10, dtype=np.int32)
                whole, chars = np.full(10, document), np.full(10, -1, np.int32)
                builder.add_context(Context(ids, whole, chars, "all"))
            builder.finish(lambda rows: cut)
        opened = open_store(folder)
        kinds = {
            site: SiteSchema(dim=acts(site).shape[1], dtype="float32", compression=request.param)
            for site in (WIDE, NARROW)
        }
        add_sites(lease, opened, kinds, {})
        for unit in range(opened.schema.num_units):
            extent = opened.schema.unit_extent(unit).slice()
            rows = {site: acts(site)[extent] for site in kinds}
            lease.ledger.commit(write_unit(opened, unit, rows, token=lease.token))
    return open_store(folder)


def test_a_chunk_holds_more_of_narrower_rows(store):
    lengths = [store.spec(site).chunk_length for site in (WIDE, NARROW)]

    assert lengths == [8, 80]
    assert store.chunk_rows([WIDE, NARROW]) == 8
    assert store.chunk_rows([NARROW]) == 80


@pytest.mark.parametrize("shuffle", ["exact", "pool"])
@pytest.mark.parametrize("sites", [[WIDE, NARROW], [NARROW]])
def test_an_epoch_gives_each_row_once_with_its_values_at_all_sites(store, shuffle, sites):
    batches = store.batches(
        sites, 32, shuffle=shuffle, pool_rows=100, exclude=None, epochs=1, last="ragged"
    )
    given = list(batches)

    rows = np.concatenate([batch.rows for batch in given])
    assert sorted(rows.tolist()) == list(range(ROWS))
    for site in sites:
        values = np.concatenate([batch.acts[site] for batch in given])
        np.testing.assert_array_equal(values, acts(site)[rows])


def test_rows_and_norms_are_the_same_whatever_their_chunks(store):
    for site in (WIDE, NARROW):
        np.testing.assert_array_equal(store[site][:], acts(site))
        np.testing.assert_array_equal(store[site].take([599, 0, 239, 240]),
                                      acts(site)[[599, 0, 239, 240]])  # fmt: skip
        expected = np.linalg.norm(acts(site).astype(np.float64), axis=1)
        np.testing.assert_allclose(store.norms(site)[:], expected, rtol=1e-6)
