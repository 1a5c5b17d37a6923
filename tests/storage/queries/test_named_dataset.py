"""The xarray view has the store's names and numbers, and reads them only when asked."""

import pickle
import sys

import numpy as np
import pytest

from actlake.storage.arrays import RowArray
from actlake.storage.errors import MissingExtra, SiteNotStored

SITE = "resid_post.2"


def test_dimensions_and_coordinates_are_named_and_hold_the_stores_numbers(told):
    dataset = told.store().to_xarray()

    assert dict(dataset.sizes) == {"row": len(told.ids), "dim": 5}
    np.testing.assert_array_equal(dataset[SITE].values, told.acts)
    np.testing.assert_array_equal(dataset.token.values, told.ids)
    np.testing.assert_array_equal(dataset.position.values, told.positions)
    np.testing.assert_array_equal(dataset.document_number.values, told.documents)
    np.testing.assert_array_equal(dataset.split.values, told.splits)
    np.testing.assert_array_equal(dataset.context.values, np.cumsum(told.positions == 0) - 1)


@pytest.mark.parametrize(
    "key",
    [
        {"row": 3},
        {"row": -1, "dim": 2},
        {"row": slice(4, 40, 5)},
        {"row": [7, 3, 3]},
        {"row": slice(2, 9), "dim": [4, 0]},
        {"row": [], "dim": slice(1, 3)},
    ],
)
def test_selections_are_those_of_numpy(told, key):
    selected = told.store().to_xarray()[SITE].isel(key)

    rows = told.acts[key["row"]] if key["row"] != [] else told.acts[:0]
    expected = rows[..., key["dim"]] if "dim" in key else rows
    np.testing.assert_array_equal(selected.values, expected)


@pytest.fixture
def read(monkeypatch):
    """What is read of any array of any store, as (name, rows)."""
    seen = []
    take, between = RowArray.take, RowArray.read

    def watched_take(array, rows, **how):
        seen.append((array.spec.name, len(rows)))
        return take(array, rows, **how)

    def watched_read(array, start, stop, **how):
        seen.append((array.spec.name, stop - start))
        return between(array, start, stop, **how)

    monkeypatch.setattr(RowArray, "take", watched_take)
    monkeypatch.setattr(RowArray, "read", watched_read)
    return seen


def test_nothing_is_read_before_values_are_asked_for(told, read):
    dataset = told.store().to_xarray()
    part = dataset.isel(row=slice(8, 10))
    shown = repr(dataset) + dataset._repr_html_() + repr(part)

    assert SITE in shown
    assert read == []
    np.testing.assert_array_equal(part[SITE].values, told.acts[8:10])
    assert [rows for _, rows in read] == [2]
    read.clear()
    np.testing.assert_array_equal(part.token.values, told.ids[8:10])
    assert read == [("tokens/id", 2)]


def test_bfloat16_is_given_out_as_float32(make_told):
    told = make_told(dtype="bfloat16")
    stored = told.acts.astype(np.float32)

    acts = told.store().to_xarray()[SITE]

    assert acts.dtype == acts.values.dtype == np.float32
    np.testing.assert_array_equal(acts.values, stored)
    np.testing.assert_allclose(acts.mean("row").values, stored.mean(axis=0), atol=1e-6)


def test_a_pickled_dataset_reads_what_it_did(told, read):
    dataset = told.store().to_xarray()

    arrived = pickle.loads(pickle.dumps(dataset))

    assert read == []
    assert arrived.identical(dataset)
    np.testing.assert_array_equal(arrived[SITE].values, told.acts)
    assert arrived.split.values.tolist() == told.splits


def test_units_that_are_not_committed_are_nan(make_told):
    told = make_told(skip=(1,))

    values = told.store().to_xarray()[SITE].values

    assert np.isnan(values[16:32]).all()
    np.testing.assert_array_equal(values[:16], told.acts[:16])


def test_an_unknown_site_is_refused(told):
    with pytest.raises(SiteNotStored, match="did you mean"):
        told.store().to_xarray(["resid_post.3"])


def test_without_xarray_the_error_names_the_extra(told, monkeypatch):
    monkeypatch.setitem(sys.modules, "xarray", None)

    with pytest.raises(MissingExtra, match=r'needs xarray.*\n.*"actlake\[query\]"'):
        told.store().to_xarray()
