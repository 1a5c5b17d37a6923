"""The xarray view has the store's names and numbers, and reads them only when asked."""

import sys

import numpy as np
import pytest

from actlake.storage import Lease, Site
from actlake.storage.errors import MissingExtra, SiteNotStored
from actlake.storage.location import LocalFolder
from actlake.storage.verify import revoke_shards

SITE = "resid_post.2"


def test_dimensions_and_coordinates_are_named_and_hold_the_stores_numbers(told):
    dataset = told.store().to_xarray()

    assert dict(dataset.sizes) == {"row": len(told.ids), "dim": 5}
    np.testing.assert_array_equal(dataset[SITE].values, told.acts)
    np.testing.assert_array_equal(dataset.token.values, told.ids)
    np.testing.assert_array_equal(dataset.position.values, told.positions)
    np.testing.assert_array_equal(dataset.document.values, told.documents)
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


def test_nothing_is_read_before_values_are_asked_for(told, monkeypatch):
    store = told.store()
    read = []
    take = store[SITE].take
    monkeypatch.setattr(
        store[SITE], "take", lambda rows, **how: read.append(len(rows)) or take(rows, **how)
    )

    dataset = store.to_xarray()
    part = dataset[SITE].isel(row=slice(8, 10))
    shown = repr(dataset) + dataset._repr_html_()

    assert SITE in shown
    assert read == []
    np.testing.assert_array_equal(part.values, told.acts[8:10])
    assert read == [2]


def test_units_that_are_not_committed_are_nan(told):
    with Lease.acquire(LocalFolder(told.folder)) as lease:
        revoke_shards(lease, [(Site(2), 1)])

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
