"""An exported store is a store: whole, named after its parent, and the same when killed."""

import numpy as np
import pytest

from actlake.storage import Site, open_store, verify
from actlake.storage.errors import (
    EmptySelection,
    RowsNotCommitted,
    SiteNotStored,
    StoreExists,
    StoreMismatch,
    UnknownSplit,
)
from actlake.storage.export import export_store

SITE = Site(3)


def contexts_where(known, keep):
    """The rows of contexts that hold a row of the mask."""
    lengths = [len(context) for context in known.contexts]
    number = np.repeat(np.arange(len(lengths)), lengths)
    return np.flatnonzero(np.isin(number, np.unique(number[keep])))


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({}, lambda k: k.ids >= 0),
        ({"splits": ["test"]}, lambda k: k.split == "test"),
        ({"documents": ["doc-3", "doc-5"]}, lambda k: np.isin(k.document, [3, 5])),
        ({"where": "id = 11"}, lambda k: k.ids == 11),
        ({"where": [17, 200]}, lambda k: np.isin(np.arange(k.rows), [17, 200])),
    ],
)
def test_the_chosen_contexts_are_copied_whole(known, full, tmp_path, chosen, expected):
    rows = contexts_where(known, expected(known))

    copy = export_store(open_store(full), tmp_path / "copy", **chosen).store

    np.testing.assert_array_equal(copy.tokens["id"][:], known.ids[rows])
    np.testing.assert_array_equal(copy.tokens["position"][:], known.positions[rows])
    np.testing.assert_array_equal(copy[SITE][:], known.acts[SITE][rows])
    names = copy.documents(["id"])["id"].to_numpy(zero_copy_only=False)
    old = np.array([document.id for document in known.documents])
    np.testing.assert_array_equal(names[copy.tokens["document"][:]], old[known.document[rows]])
    assert verify(copy).is_whole


def test_an_export_has_the_sites_asked_for_and_names_its_parent(full, tmp_path):
    parent = open_store(full)

    copy = export_store(parent, tmp_path / "copy", sites=["resid_pre.4"], splits=["train"]).store

    assert copy.sites == (SITE,)
    assert copy.schema.splits == ("train",)
    assert copy.provenance.corpus["exported_from"]["fingerprint"] == parent.fingerprint
    assert copy.fingerprint != parent.fingerprint
    assert copy.moments(SITE).count == parent.moments(SITE, split="train").count
    np.testing.assert_allclose(
        copy.moments(SITE).mean, parent.moments(SITE, split="train").mean, rtol=1e-12, atol=1e-14
    )


def test_a_killed_export_goes_on_and_ends_in_the_same_bytes(full, tmp_path, tree):
    class Killed(Exception):
        pass

    def die(done, total):
        if done == 3:
            raise Killed

    export_store(open_store(full), tmp_path / "undisturbed")
    with pytest.raises(Killed):
        export_store(open_store(full), tmp_path / "copy", progress=die)
    result = export_store(open_store(full), tmp_path / "copy")
    again = export_store(open_store(full), tmp_path / "copy")

    assert tree(tmp_path / "copy") == tree(tmp_path / "undisturbed")
    assert 0 < result.units_done == result.store.schema.num_units - 3
    assert again.units_done == 0


def test_another_export_to_the_same_place_is_refused(full, tmp_path):
    export_store(open_store(full), tmp_path / "copy", splits=["train"])

    with pytest.raises(StoreMismatch, match=r"splits: stored \[\"train\"\], asked \[\"test\"\]"):
        export_store(open_store(full), tmp_path / "copy", splits=["test"])


@pytest.mark.parametrize(
    ("chosen", "error", "words"),
    [
        ({"sites": ["resid_post.7"]}, SiteNotStored, "hint"),
        ({"splits": ["dev"]}, UnknownSplit, "no split 'dev'"),
        ({"documents": ["doc-3", "doc-99"]}, EmptySelection, "no document 'doc-99' .1 of 2"),
        ({"where": "position > 900"}, EmptySelection, "Nothing of .* is chosen"),
    ],
)
def test_what_is_not_there_cannot_be_exported(full, tmp_path, chosen, error, words):
    with pytest.raises(error, match=words):
        export_store(open_store(full), tmp_path / "copy", **chosen)
    assert not (tmp_path / "copy").exists()


def test_rows_that_are_not_committed_are_not_exported(known, folder, tmp_path):
    known.build(folder)
    known.fill(folder, skip=(2,))
    store = open_store(folder)

    with pytest.raises(RowsNotCommitted, match=r"of the .* chosen contexts .* are not committed"):
        export_store(store, tmp_path / "copy")
    copy = export_store(store, tmp_path / "start", where=list(range(20))).store
    assert 20 <= len(copy) <= 48


def test_a_store_is_not_exported_onto_itself(full):
    with pytest.raises(StoreExists, match="is the store that is exported"):
        export_store(open_store(full), full)
