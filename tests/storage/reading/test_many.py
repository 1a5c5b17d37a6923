"""Several stores of one model read as one."""

import json
from itertools import islice

import numpy as np
import pytest

from actlake.storage import Provenance, Site, open_store
from actlake.storage.errors import RowsOutOfRange, SiteNotStored, StateMismatch, StoreMismatch
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
    with pytest.raises(RowsOutOfRange, match="no row 381; there are 381"):
        stores.take([381], SITE)


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

    with pytest.raises(StoreMismatch, match="dim: stored 6, asked 5"):
        open_stores([folders[0], tmp_path / "narrow"])


def test_stores_of_another_model_are_refused_with_the_difference(
    pair, make_known, tmp_path, monkeypatch
):
    folders, _, _ = pair
    monkeypatch.setattr(
        f"{make_known.__module__}.Provenance", lambda model: Provenance(model={"name": "gpt2"})
    )
    make_known(seed=7).build(tmp_path / "gpt2")

    with pytest.raises(StoreMismatch, match=r'model\.name: stored "none", asked "gpt2"'):
        open_stores([folders[0], tmp_path / "gpt2"])


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
