"""Several stores of one model read as one."""

import json
from itertools import islice
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from actlake.storage import Provenance, Site, open_store
from actlake.storage.errors import (
    RowsOutOfRange,
    SiteNotStored,
    StateMismatch,
    StoreMismatch,
    UnknownSplit,
)
from actlake.storage.export import export_store
from actlake.storage.reading.many import open_stores

SITE = Site(3)


@pytest.fixture
def pair(make_known, tmp_path):
    """Two stores of different text, and what they hold together."""
    made = []
    for number, rows in enumerate((250, 131)):
        known = make_known(seed=number, rows=rows)
        known.build(tmp_path / str(number))
        known.fill(tmp_path / str(number))
        made.append(known)
    return [tmp_path / "0", tmp_path / "1"], np.concatenate([k.acts[SITE] for k in made]), made


def test_rows_are_numbered_through(pair):
    folders, acts, _ = pair
    stores = open_stores(folders)
    rows = np.random.default_rng(0).integers(0, 381, 200)

    assert len(stores) == 381
    np.testing.assert_array_equal(stores.take(rows, SITE), acts[rows])
    with pytest.raises(RowsOutOfRange, match=r"no row 381; there are 381 in .*/0, .*/1"):
        stores.take([381], SITE)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([1.5], "one-dimensional array of integers, not 1-dimensional float64"),
        ([[1]], "one-dimensional array of integers, not 2-dimensional int64"),
        ([True], "not 1-dimensional bool"),
        ([3, -1], "There is no row -1"),
    ],
)
def test_what_are_no_row_numbers_is_refused_as_by_one_store(pair, rows, words):
    folders, _, _ = pair

    for store in (open_stores(folders), open_store(folders[0])):
        with pytest.raises(RowsOutOfRange, match=words):
            store.take(rows, SITE)


@pytest.mark.parametrize("written", [str, Path])
def test_a_path_alone_is_one_store(pair, written):
    folders, _, known = pair

    stores = open_stores(written(folders[0]))

    assert len(stores) == known[0].rows
    assert stores.url == str(folders[0])


def test_stores_show_themselves_together(pair):
    folders, acts, known = pair
    open_store(folders[1]).attach_labels("marks", {"row": [3], "x": [1]}, key="row")
    kept = np.concatenate([~k.excluded for k in known])
    norm = np.linalg.norm(acts[kept].astype(np.float64), axis=1).mean()
    contexts = sum(len(k.contexts) for k in known)

    stores = open_stores(folders)

    page = " ".join(ElementTree.fromstring(stores._repr_html_()).itertext())
    for shown in (repr(stores), " ".join(page.split())):
        assert f"2 activation stores read as one: {folders[0]}, {folders[1]}" in shown
        assert f"381 tokens in {contexts} contexts of up to 16, 18 documents" in shown
        assert f"{norm:,.2f}" in shown
        assert "marks" in shown
        assert stores.stores[0].fingerprint[:12] in shown
    assert "17 of 17 units committed" in repr(stores)
    assert "100%" in page


def test_stores_of_another_cut_show_both(pair, tmp_path):
    folders, _, _ = pair
    export_store(open_store(folders[1]), tmp_path / "whole")

    text = repr(open_stores([folders[0], tmp_path / "whole"]))

    assert "units of 24, " in text


def test_what_a_harvest_has_committed_since_is_seen_after_a_refresh(make_known, pair, tmp_path):
    folders, _, _ = pair
    known = make_known(seed=5, rows=100)
    known.build(tmp_path / "growing")
    known.fill(tmp_path / "growing", skip=(1, 4))
    stores = open_stores([folders[0], tmp_path / "growing"])
    coverage = stores.coverage(SITE)
    assert (coverage.units, coverage.total_units) == (14, 16)
    assert (coverage.rows, coverage.total_rows) == (350 - 24 - 4, 350)

    known.fill(tmp_path / "growing", skip=(0, 1, 2, 3))

    assert stores.coverage(SITE) == coverage
    assert stores.refresh().coverage(SITE).rows == 350 - 24
    assert "15 of 16 units committed" in repr(stores)
    np.testing.assert_array_equal(stores.take([349], SITE), known.acts[SITE][[99]])


def test_as_xarray_stores_are_one_dataset_numbered_through(pair):
    folders, acts, known = pair
    lengths = [len(context) for k in known for context in k.contexts]
    rows = np.random.default_rng(0).permutation(381)[:50]

    data = open_stores(folders).to_xarray([SITE])

    assert dict(data.sizes) == {"row": 381, "dim": 6}
    expected = {
        "token": np.concatenate([k.ids for k in known]),
        "position": np.concatenate([k.positions for k in known]),
        "document_number": np.concatenate([known[0].document, known[1].document + 9]),
        "context": np.repeat(np.arange(len(lengths)), lengths),
        "split": np.concatenate([k.split for k in known]),
        "char": np.concatenate([context.chars for k in known for context in k.contexts]),
        str(SITE): acts,
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(data[name].values, values)
        np.testing.assert_array_equal(data[name].isel(row=rows).values, values[rows])
    np.testing.assert_array_equal(data[str(SITE)].isel(row=300, dim=2).values, acts[300, 2])
    with pytest.raises(SiteNotStored, match=r"resid_post\.7"):
        open_stores(folders).to_xarray(["resid_post.7"])


def test_rows_of_one_store_that_are_not_committed_are_nan_in_the_dataset(make_known, tmp_path):
    folders = [tmp_path / "0", tmp_path / "1"]
    for seed, folder in enumerate(folders):
        known = make_known(seed=seed, rows=100)
        known.build(folder)
        known.fill(folder, skip=(2,) if seed else ())

    data = open_stores(folders).to_xarray()[str(SITE)]

    missing = np.isnan(data.values).any(axis=1)
    assert np.flatnonzero(missing).tolist() == list(range(148, 172))
    assert data.attrs["committed"] == "9 of 10 units committed"


@pytest.mark.parametrize("shuffle", ["exact", "pool", "none"])
@pytest.mark.parametrize("path", ["mapped", "zarr"])
def test_batches_are_drawn_from_all_stores_together(pair, shuffle, path):
    folders, acts, known = pair
    stores = open_stores(folders, path=path)

    batches = list(stores.batches(SITE, 10, shuffle=shuffle, pool_rows=80, epochs=1, last="ragged"))

    rows = np.concatenate([batch.rows for batch in batches])
    kept = np.concatenate([~k.excluded for k in known])
    np.testing.assert_array_equal(np.sort(rows), np.flatnonzero(kept))
    for batch in batches:
        np.testing.assert_array_equal(batch.acts, acts[batch.rows])


@pytest.mark.parametrize("shuffle", ["exact", "pool"])
def test_a_reader_of_many_stores_resumes(pair, shuffle):
    folders, _, _ = pair
    how = {"shuffle": shuffle, "pool_rows": 80, "epochs": 2}
    whole = [b.rows.tolist() for b in open_stores(folders).batches(SITE, 10, **how)]
    begun = open_stores(folders).batches(SITE, 10, **how)
    first = [b.rows.tolist() for b in islice(begun, 7)]
    state = json.loads(json.dumps(begun.state_dict()))

    rest = [b.rows.tolist() for b in open_stores(folders).batches(SITE, 10, state=state, **how)]

    assert first + rest == whole
    with pytest.raises(StateMismatch, match=r"stores.0.fingerprint"):
        open_stores(folders[::-1]).batches(SITE, 10, state=state, **how)


def test_statistics_are_merged(pair):
    folders, acts, known = pair
    kept = np.concatenate([~k.excluded & (k.split == "train") for k in known])

    moments = open_stores(folders).moments(SITE, split="train")

    assert moments.count == kept.sum()
    np.testing.assert_allclose(moments.mean, acts[kept].mean(0, dtype=np.float64), rtol=1e-10)


def test_stores_of_another_width_are_refused_with_the_difference(pair, make_known, tmp_path):
    folders, _, _ = pair
    other = make_known(dim=5)
    other.build(tmp_path / "narrow")
    other.fill(tmp_path / "narrow")

    with pytest.raises(StoreMismatch, match="dim: stored 6, asked 5"):
        open_stores([folders[0], tmp_path / "narrow"])


def test_stores_of_another_model_are_refused_with_the_difference(
    pair, make_known, tmp_path, monkeypatch
):
    folders, _, _ = pair
    monkeypatch.setattr(
        f"{make_known.__module__}.Provenance",
        lambda model: Provenance(model={"name": "none", "revision": "1"}),
    )
    make_known(seed=7).build(tmp_path / "later")

    with pytest.raises(StoreMismatch, match=r'model\.revision: stored "0", asked "1"'):
        open_stores([folders[0], tmp_path / "later"])


def test_stores_of_one_model_under_two_names_are_read_as_one(
    pair, make_known, tmp_path, monkeypatch
):
    folders, _, _ = pair
    monkeypatch.setattr(
        f"{make_known.__module__}.Provenance",
        lambda model: Provenance(model={"name": "renamed", "family": "new", "revision": "0"}),
    )
    make_known(seed=7).build(tmp_path / "renamed")

    stores = open_stores([folders[0], tmp_path / "renamed"])

    assert len(stores) == sum(map(len, stores.stores))


def test_one_store_twice_is_refused(pair):
    folders, _, _ = pair

    with pytest.raises(StoreMismatch, match="hold the same rows"):
        open_stores([folders[0], folders[1], folders[0]])
    with pytest.raises(StoreMismatch, match="No store was given"):
        open_stores([])


def test_a_site_that_one_store_lacks_is_refused_by_the_stores_name(pair, tmp_path):
    folders, _, _ = pair
    part = export_store(open_store(folders[0]), tmp_path / "part", sites=[Site(0)]).store
    stores = open_stores([folders[1], part.url])

    assert stores.sites == (Site(0),)
    with pytest.raises(SiteNotStored, match=f"No activations of resid_post.3 in {part.url}"):
        stores.batches(SITE, 10)


def test_a_split_that_no_store_has_is_refused_with_the_nearest(pair):
    folders, _, _ = pair

    with pytest.raises(UnknownSplit, match=r"no split 'tst' in .*/0, .*/1\n.*did you mean 'test'"):
        open_stores(folders).moments(SITE, split="tst")
