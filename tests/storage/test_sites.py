"""Sites are open: any name of a grammar, each with rows of its own; unknown ones are named."""

import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actlake.storage import (
    Lease,
    Site,
    SiteSchema,
    add_sites,
    export_store,
    open_store,
    verify,
    write_unit,
)
from actlake.storage.errors import FormatTooNew, InvalidSchema, InvalidSite, StoreMismatch
from actlake.storage.location import locate
from actlake.storage.sealed import unseal
from actlake.storage.summary import summarize

LATENTS = Site(3, "sae.topk_32")
NORM = Site(None, "final_norm")
points = st.lists(st.from_regex(r"[a-z][a-z0-9_]{0,9}", fullmatch=True), min_size=1, max_size=4)


@given(points, st.none() | st.integers(0, 10**6))
def test_every_site_comes_back_from_its_name(parts, block):
    site = Site(block, ".".join(parts))

    assert Site.parse(str(site)) == site
    assert Site.parse(f" {site} ") == site


@pytest.mark.parametrize(
    "name",
    ["", "Resid_post.6", "resid post.6", "resid_post.06", "resid_post.-1", "6", ".6", "a..b", "a/b",
     "../acts.1", "resid_post.6.", "é.1", "a" * 201],
)  # fmt: skip
def test_what_is_no_name_is_refused_with_the_form_of_names(name):
    with pytest.raises(InvalidSite, match=r"\nhint: a site is written POINT.LAYER"):
        Site.parse(name)


def test_a_site_of_no_block_has_no_layer_and_comes_last():
    assert sorted([NORM, Site(7), Site(2, "mlp_out"), Site(2)]) == [
        Site(2, "mlp_out"), Site(2), Site(7), NORM
    ]  # fmt: skip
    with pytest.raises(InvalidSite, match=r"final_norm is of no block[\s\S]*hint: give a site of"):
        _ = NORM.layer


def test_sites_of_one_store_differ_in_width_type_and_compression(known, folder):
    known.build(folder)
    kinds = {
        Site(0): SiteSchema(dim=6, dtype="float32"),
        LATENTS: SiteSchema(dim=11, dtype="float16", compression="zstd"),
        NORM: SiteSchema(dim=2, dtype="bfloat16"),
    }
    rng = np.random.default_rng(0)
    with Lease.acquire(locate(folder)) as lease:
        store = open_store(folder)
        add_sites(lease, store, kinds, {})
        store.refresh()
        rows = {
            site: rng.normal(size=(len(store), kind.dim)).astype(store[site].dtype)
            for site, kind in kinds.items()
        }
        for unit in range(store.schema.num_units):
            part = store.schema.unit_extent(unit).slice()
            values = {site: every[part] for site, every in rows.items()}
            lease.ledger.commit(write_unit(store, unit, values, token=lease.token))

    store = open_store(folder)
    copy = export_store(store, str(folder.parent / "copy"), splits="test").store
    batch = next(iter(store.batches(list(kinds), 40, exclude=None, shuffle="pool", pool_rows=90)))

    assert store.sites == (Site(0), LATENTS, NORM)
    assert verify(store).is_whole
    assert verify(copy).is_whole
    for site, every in rows.items():
        assert store.schema_of(site) == copy.schema_of(site) == kinds[site]
        np.testing.assert_array_equal(store[site][:], every)
        np.testing.assert_array_equal(copy[site][:], every[known.split == "test"])
        np.testing.assert_array_equal(batch.acts[site], every[batch.rows])
        kept = ~known.excluded
        mean = every[kept].astype(np.float64).mean(axis=0)
        np.testing.assert_allclose(store.moments(site).mean, mean)
    assert "float16 × 11, zstd" in repr(store)


def test_a_site_that_is_stored_otherwise_is_refused_before_anything_is_written(full, known):
    with Lease.acquire(locate(full)) as lease:
        before = lease.ledger.state.last
        asked = {Site(9): known.rows_are, Site(3): SiteSchema(dim=6, dtype="float16")}
        words = (
            r'resid_post.3 is stored in .* already[\s\S]*dtype: stored "float32", asked "float16"'
        )

        with pytest.raises(StoreMismatch, match=words):
            add_sites(lease, open_store(full), asked, {})
        assert lease.ledger.state.last == before
    assert not (full / "rows.zarr/acts/resid_post.9").exists()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"dim": 0, "dtype": "float16"}, "dim must be at least 1, and is 0"),
        ({"dim": 4, "dtype": "float8"}, r"as 'float8'\nhint: did you mean 'float"),
    ],
)
def test_rows_that_cannot_be_say_why(asked, words):
    with pytest.raises(InvalidSchema, match=words):
        SiteSchema(**asked)


@pytest.fixture(
    params=[
        (
            {"dim": 6, "dtype": "float32", "compression": "none", "keep": "x"},
            "unknown field 'keep'",
        ),
        ({"dim": 6, "dtype": "float4", "compression": "none"}, "unknown dtype 'float4'"),
        ({"dim": 6, "dtype": "float32", "compression": "pcodec"}, "unknown compression 'pcodec'"),
        ({"dim": 6}, "no 'dtype' among its fields"),
    ],
    ids=["field", "dtype", "compression", "lacking"],
)
def of_a_newer_version(full, request, add_unknown):
    """A store to which a newer actlake has added a site and a unit; and why it is unknown."""
    schema, why = request.param
    add_unknown(full, "resid_post.8", schema)
    return full, "resid_post.8", why


def test_a_site_of_a_newer_version_is_named_and_the_rest_of_the_store_reads(
    of_a_newer_version, known, caplog
):
    folder, name, why = of_a_newer_version
    with caplog.at_level(logging.WARNING):
        store = open_store(folder)

    assert f"cannot read the site {name} of {folder}: {why}" in caplog.text
    assert store.sites == (Site(0), Site(3))
    assert store.unknown_sites == {name: why}
    np.testing.assert_array_equal(store[Site(3)][:], known.acts[Site(3)])
    assert f"{name} ({why})" in summarize(store).as_text(width=200)
    report = verify(store)
    assert report.is_whole
    assert report.unknown == {name: why}
    assert name not in store
    for ask in (store.__getitem__, store.moments, store.coverage, store.schema_of):
        with pytest.raises(FormatTooNew, match=rf"cannot read the site {name} of .*{why}\nhint:"):
            ask(name)


def test_what_is_known_of_an_unknown_site_outlives_writing_and_merging(of_a_newer_version, known):
    folder, name, why = of_a_newer_version
    with Lease.acquire(locate(folder)) as lease:
        with pytest.raises(FormatTooNew, match=rf"has a site {name} that this actlake cannot"):
            add_sites(lease, open_store(folder), {Site.parse(name): known.rows_are}, {})
        lease.ledger.merge_all()

    assert open_store(folder).unknown_sites == {name: why}
    (entry,) = (folder / "ledger").glob("*.json")
    assert unseal(entry.read_bytes(), name="")["covered"][name] == [[0, 1]]


def test_a_name_of_an_unknown_form_is_named_too(full, add_unknown):
    add_unknown(full, "Stream/6", {"dim": 6, "dtype": "float32", "compression": "none"})
    store = open_store(full)

    assert store.unknown_sites == {"Stream/6": "a name of an unknown form"}
    assert verify(store).is_whole
    with pytest.raises(FormatTooNew, match="cannot read the site Stream/6"):
        store["Stream/6"]
