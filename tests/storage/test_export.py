"""An exported store is a store: whole, named after its parent, and the same when killed."""

import numpy as np
import pytest

from actlake.jobs.export import main
from actlake.storage import (
    ActivationStore,
    Context,
    RowArray,
    Site,
    open_store,
    open_stores,
    verify,
)
from actlake.storage.errors import (
    EmptySelection,
    InvalidQuery,
    NotInStore,
    RowsNotCommitted,
    SiteNotStored,
    StoreDamaged,
    StoreExists,
    StoreMismatch,
    UnknownSplit,
)
from actlake.storage.export import export_store

SITE = Site(3)


class Killed(Exception):
    pass


def die_after(units):
    """A `progress` that kills the export once so many units are done."""

    def progress(done, total):
        if done == units:
            raise Killed

    return progress


def pack(known):
    """Give what is known packed contexts: full windows, each of pieces of several documents."""
    names = np.array([document.split for document in known.documents])
    rng = np.random.default_rng(1)
    known.contexts = []
    for number, start in enumerate(range(0, known.rows, 16)):
        window = slice(start, start + 16)
        ids, split = known.ids[window], ("train", "train", "test")[number % 3]
        places = np.arange(len(ids), dtype=np.int32)
        documents = np.sort(rng.choice(np.flatnonzero(names == split), len(ids)))
        known.contexts.append(Context(ids, documents, places, split))
        known.document[window], known.split[window] = documents, split
        known.positions[window] = places
    known.excluded = (known.positions == 0) | np.isin(known.ids, [7, 8])


@pytest.fixture(params=["documents", "packed"])
def parent(request, known, folder):
    """A finished store of `known`, in either layout."""
    if request.param == "packed":
        pack(known)
    known.build(folder, layout=request.param)
    known.fill(folder)
    return open_store(folder)


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
        ({"splits": "test"}, lambda k: k.split == "test"),
        ({"documents": "doc-3"}, lambda k: k.document == 3),
        ({"document_numbers": [3, 5]}, lambda k: np.isin(k.document, [3, 5])),
        ({"documents": ["doc-3", "doc-5"]}, lambda k: np.isin(k.document, [3, 5])),
        ({"where": "id = 11"}, lambda k: k.ids == 11),
        ({"where": [17, 200]}, lambda k: np.isin(np.arange(k.rows), [17, 200])),
    ],
)
def test_the_chosen_contexts_are_copied_whole(known, parent, tmp_path, chosen, expected):
    rows = contexts_where(known, expected(known))

    copy = export_store(parent, tmp_path / "copy", **chosen).store

    assert copy.schema.layout == parent.schema.layout
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
    assert copy.provenance.corpus["exported_from"] == parent.fingerprint
    assert copy.fingerprint != parent.fingerprint
    assert copy.moments(SITE).count == parent.moments(SITE, split="train").count
    np.testing.assert_allclose(
        copy.moments(SITE).mean, parent.moments(SITE, split="train").mean, rtol=1e-12, atol=1e-14
    )


def test_a_killed_export_goes_on_and_ends_in_the_same_bytes(full, tmp_path, tree):
    export_store(open_store(full), tmp_path / "undisturbed")
    with pytest.raises(Killed):
        export_store(open_store(full), tmp_path / "copy", progress=die_after(3))
    result = export_store(open_store(full), tmp_path / "copy")
    again = export_store(open_store(full), tmp_path / "copy")

    assert tree(tmp_path / "copy") == tree(tmp_path / "undisturbed")
    assert 0 < result.units_done == result.store.schema.num_units - 3
    assert again.units_done == 0


def test_another_export_to_the_same_place_is_refused(full, tmp_path):
    export_store(open_store(full), tmp_path / "copy", splits=["train"])

    with pytest.raises(StoreMismatch, match=r"splits: stored \[\"train\"\], asked \[\"test\"\]"):
        export_store(open_store(full), tmp_path / "copy", splits=["test"])


DIFFERENT_CONTEXTS = r"another than was asked for:\n(.*\n)*  corpus\.contexts\.sha256: stored"


def test_a_killed_export_does_not_go_on_once_its_labels_are_others(parent, tmp_path):
    """Its rows would be of other tokens than its documents say, and nothing could tell."""
    few, many = ({"row": [row], "x": [1]} for row in (3, 200))
    parent.attach_labels("m", few, key="row")
    with pytest.raises(Killed):
        export_store(parent, tmp_path / "copy", where="x = 1", progress=die_after(1))
    parent.attach_labels("m", many, key="row", replace=True)

    with pytest.raises(StoreMismatch, match=DIFFERENT_CONTEXTS):
        export_store(parent, tmp_path / "copy", where="x = 1")
    parent.attach_labels("m", few, key="row", replace=True)
    assert verify(export_store(parent, tmp_path / "copy", where="x = 1").store).is_whole


def test_two_functions_of_one_name_are_not_one_export(parent, tmp_path):
    done = export_store(parent, tmp_path / "copy", where=lambda block: block["id"] == 11)

    with pytest.raises(StoreMismatch, match=DIFFERENT_CONTEXTS):
        export_store(parent, tmp_path / "copy", where=lambda block: block["id"] == 12)
    again = export_store(parent, tmp_path / "copy", where=lambda block: block["id"] == 11)
    assert again.units_done == 0
    assert again.contexts == done.contexts > 0


def test_one_document_by_id_and_by_number_is_one_export(full, tmp_path):
    export_store(open_store(full), tmp_path / "copy", documents="doc-3")

    again = export_store(open_store(full), tmp_path / "copy", document_numbers=3)

    assert again.units_done == 0


def test_other_words_that_choose_the_same_contexts_are_one_export(parent, tmp_path):
    export_store(parent, tmp_path / "copy", documents="doc-3")

    again = export_store(parent, tmp_path / "copy", where="document_number = 3")

    assert again.units_done == 0


def test_what_was_chosen_is_kept_as_a_count_and_a_hash_however_much_it_is(full, tmp_path):
    store = open_store(full)
    names = store.documents(["id"])["id"].to_pylist()

    few = export_store(store, tmp_path / "few", documents=names[:2]).store.provenance.corpus
    many = export_store(store, tmp_path / "many", documents=names[:6]).store.provenance.corpus

    for chosen in (few["source"]["documents"], few["contexts"], many["contexts"]):
        assert chosen.keys() == {"count", "sha256"}
        assert len(chosen["sha256"]) == 64
    assert [kept["source"]["documents"]["count"] for kept in (few, many)] == [2, 6]
    assert not any(name in str(kept) for name in names for kept in (few, many))


def test_however_few_contexts_are_read_at_once_the_copy_is_the_same(
    parent, tmp_path, tree, monkeypatch
):
    export_store(parent, tmp_path / "at once", where="position = 3")
    monkeypatch.setattr("actlake.storage.export._CONTEXTS_AT_ONCE", 4)
    monkeypatch.setattr("actlake.storage.querying.document_table._DOCUMENTS_AT_ONCE", 2)

    export_store(parent, tmp_path / "by four", where="position = 3")

    assert tree(tmp_path / "by four") == tree(tmp_path / "at once")


def test_the_corpus_is_read_in_a_few_pieces_and_documents_never_whole(full, tmp_path, monkeypatch):
    store = open_store(full)
    reads = []
    take, read = RowArray.take, RowArray.read
    corpus = {id(array) for array in (*store.tokens.values(), *store.contexts.values())}

    def counted(how):
        def call(self, *args, **kwargs):
            if id(self) in corpus:
                reads.append(self.spec.name)
            return how(self, *args, **kwargs)

        return call

    monkeypatch.setattr(RowArray, "take", counted(take))
    monkeypatch.setattr(RowArray, "read", counted(read))
    monkeypatch.delattr(ActivationStore, "documents")

    result = export_store(store, tmp_path / "copy")

    assert result.contexts == 26
    assert len(reads) < 13


def test_a_damaged_token_is_not_copied(full, tmp_path):
    shard = next(full.glob("rows.zarr/tokens/id/c.1*"))
    data = bytearray(shard.read_bytes())
    data[9] ^= 4
    shard.write_bytes(bytes(data))

    with pytest.raises(StoreDamaged, match=r"tokens/id/c\.1 in .* fails its CRC32C"):
        export_store(open_store(full), tmp_path / "copy")


def test_one_site_may_stand_alone(full, tmp_path):
    copy = export_store(open_store(full), tmp_path / "copy", sites="resid_post.3").store

    assert copy.sites == (SITE,)


@pytest.mark.parametrize(
    ("chosen", "error", "words"),
    [
        ({"sites": ["resid_post.7"]}, SiteNotStored, "hint"),
        ({"sites": "resid_post.7"}, SiteNotStored, r"No activations of resid_post\.7"),
        ({"splits": ["dev"]}, UnknownSplit, "no split 'dev'"),
        ({"splits": "tset"}, UnknownSplit, "no split 'tset'.*\n.*did you mean 'test'"),
        ({"documents": ["doc-3", "doc-99"]}, NotInStore, "'doc-99'.*\nhint: did you mean 'doc-"),
        ({"documents": 9}, NotInStore, "no document '9'"),
        ({"document_numbers": 9}, NotInStore, "no document number 9"),
        ({"sites": []}, InvalidQuery, "empty list of sites .*\nhint: .*leave `sites` out for all"),
        ({"splits": []}, InvalidQuery, "empty list of splits"),
        ({"documents": ()}, InvalidQuery, "empty list of documents"),
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

    with pytest.raises(
        RowsNotCommitted, match=r"of the .* chosen contexts .* are not there for all"
    ):
        export_store(store, tmp_path / "copy")
    copy = export_store(store, tmp_path / "start", where=list(range(20))).store
    assert 20 <= len(copy) <= 48


def test_a_store_is_not_exported_onto_itself(full):
    with pytest.raises(StoreExists, match="is the store that is exported"):
        export_store(open_store(full), full)


def test_only_one_opened_store_is_exported(full, tmp_path):
    with pytest.raises(InvalidQuery, match=r"not ManyStores\nhint: .*one by one"):
        export_store(open_stores([full]), tmp_path / "copy")
    with pytest.raises(InvalidQuery, match="not str\nhint: give what open_store returns"):
        export_store(str(full), tmp_path / "copy")


def test_the_command_prints_a_path_as_it_is(full, tmp_path, capsys):
    to = tmp_path / "r[/x]:100:"

    statuses = [main([str(full), str(to), "--splits", "test"]) for _ in range(2)]

    first, second = capsys.readouterr().out.splitlines()
    assert statuses == [0, 0]
    assert first.startswith(f"{to} holds ")
    assert second == f"{to} is complete already; nothing was done"
