"""Another store on the same path, or other numerics: refused, and the difference is shown."""

from dataclasses import replace

import pytest

from actlake.storage import Lease, Provenance, StoreBuilder, StoreRequest, open_store
from actlake.storage.errors import FormatTooNew, StoreDamaged, StoreExists, StoreMismatch
from actlake.storage.location import locate
from actlake.storage.resume import check_same, use_numerics
from actlake.storage.sealed import seal, unseal

REQUEST = StoreRequest(
    layout="documents",
    context_length=16,
    splits=("train", "test"),
    special_ids=(7, 8),
)
PROVENANCE = Provenance(model={"name": "none", "revision": "0"})
NUMERICS = {"torch": "2.6", "device": "cpu", "threads": 2}


def test_the_store_that_was_asked_for_is_gone_on_with(full):
    check_same(open_store(full), REQUEST, PROVENANCE)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layout": "packed"}, r'  layout: stored "documents", asked "packed"'),
        ({"splits": ("train",)}, r'  splits: stored \["train", "test"\], asked \["train"\]'),
    ],
)  # fmt: skip
def test_another_schema_on_the_same_path_is_refused_with_the_difference(full, changes, words):
    with pytest.raises(StoreMismatch, match=rf"{words}\nhint: give another path"):
        check_same(open_store(full), replace(REQUEST, **changes), PROVENANCE)


def test_another_model_on_the_same_path_is_refused_with_the_difference(full):
    asked = Provenance(model={"name": "none", "revision": "1"}, tokenizer={"crc": "ab"})
    words = r'model.revision: stored "0", asked "1"\n  tokenizer.crc: stored "\(nothing\)", asked'

    with pytest.raises(StoreMismatch, match=words):
        check_same(open_store(full), REQUEST, asked)


RENAMED = Provenance(
    model={"name": "renamed", "family": "another", "revision": "0"},
    tokenizer={"class": "OfAnotherRelease"},
    corpus={"source": {"path": "/nowhere"}},
)


def test_names_are_not_compared_where_a_hash_says_what_it_is(full):
    check_same(open_store(full), REQUEST, RENAMED)


def test_names_are_told_where_something_else_differs(full):
    other = replace(RENAMED, model=RENAMED.model | {"revision": "1"})
    words = (
        r'model.revision: stored "0", asked "1"\n.*path.*\n.*\n  model.name: stored "none", asked'
    )

    with pytest.raises(StoreMismatch, match=words):
        check_same(open_store(full), REQUEST, other)


def test_without_a_revision_a_model_is_known_by_its_name(full):
    with pytest.raises(StoreMismatch, match=r'model.name: stored "\(nothing\)", asked "none"'):
        check_same(open_store(full), REQUEST, Provenance(model={"name": "none"}))


def test_a_fingerprint_is_whole_and_is_shown_shortened(full):
    store = open_store(full)

    assert len(store.fingerprint) == 64
    assert store.fingerprint[:12] in repr(store)
    assert store.fingerprint[:13] not in repr(store)


def test_a_store_is_not_built_over_another(full):
    with (
        Lease.acquire(locate(full)) as lease,
        pytest.raises(StoreExists, match=r"There is a store at .* already"),
    ):
        StoreBuilder(lease, REQUEST, PROVENANCE)
    assert len(open_store(full)) == 250


def test_the_same_numerics_keep_their_number(full):
    with Lease.acquire(locate(full)) as lease:
        assert use_numerics(lease, NUMERICS) == 0
        assert use_numerics(lease, dict(reversed(NUMERICS.items()))) == 0
    with Lease.acquire(locate(full)) as lease:
        assert use_numerics(lease, NUMERICS) == 0
        assert lease.ledger.state.numerics == [NUMERICS]


def test_other_numerics_are_refused_with_the_difference(full):
    with Lease.acquire(locate(full)) as lease:
        use_numerics(lease, NUMERICS)
        words = r'other numerics:\n  torch: stored "2.6", asked "2.7"\nhint: .* allow other'

        with pytest.raises(StoreMismatch, match=words):
            use_numerics(lease, NUMERICS | {"torch": "2.7"})
        assert lease.ledger.state.numerics == [NUMERICS]


def test_other_numerics_that_are_allowed_are_recorded(full):
    other = NUMERICS | {"device": "cuda"}
    with Lease.acquire(locate(full)) as lease:
        use_numerics(lease, NUMERICS)

        assert use_numerics(lease, other, allow_other=True) == 1
        assert use_numerics(lease, NUMERICS) == 0
    assert open_store(full).ledger.numerics == [NUMERICS, other]


def rewrite(folder, **changes):
    path = folder / "store.json"
    path.write_bytes(seal(unseal(path.read_bytes(), name="store.json") | changes))


@pytest.mark.parametrize(("number", "hint"), [(3, "pip install --upgrade"), (1, "make the store")])
def test_a_store_of_another_format_is_refused_by_its_number(full, number, hint):
    rewrite(full, format=number)
    words = rf"is of format {number}; this actlake reads format 2\nhint: {hint}"

    with pytest.raises(FormatTooNew, match=words):
        open_store(full)


def test_a_store_json_of_something_else_is_not_taken_for_a_store(tmp_path):
    (tmp_path / "store.json").write_text('{"shop": "open"}')

    with pytest.raises(StoreDamaged, match=r"store.json is not a whole sealed JSON file"):
        open_store(tmp_path)


def test_a_store_whose_ledger_is_gone_says_so(full):
    for path in (full / "ledger").iterdir():
        path.unlink()

    with pytest.raises(StoreDamaged, match=r"ledger of .* is gone[\s\S]*hint: restore"):
        open_store(full)


@pytest.mark.parametrize("missing", [0, 5])
def test_a_ledger_with_a_missing_entry_says_which(full, missing):
    path = sorted((full / "ledger").glob("*.json"))[missing]
    path.unlink()

    with pytest.raises(
        StoreDamaged, match=rf"has no entry {path.stem}, but has[\s\S]*hint: restore"
    ):
        open_store(full)


def test_a_reordered_ledger_is_noticed(full):
    first, second = sorted((full / "ledger").glob("*.json"))[3:5]
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)

    with pytest.raises(StoreDamaged, match=rf"{first.name} is another entry[\s\S]*reordered"):
        open_store(full)


def test_a_truncated_ledger_entry_is_named(full):
    path = sorted((full / "ledger").glob("*.json"))[3]
    path.write_bytes(path.read_bytes()[:-40])

    with pytest.raises(StoreDamaged, match=rf"{path.name} is not a whole sealed JSON file"):
        open_store(full)


@pytest.mark.parametrize("content", [None, b"PAR1 but not really"])
def test_missing_or_broken_documents_are_named(full, content):
    (full / "documents.parquet").unlink()
    if content is not None:
        (full / "documents.parquet").write_bytes(content)

    with pytest.raises(StoreDamaged, match=r"documents.parquet of .* cannot be read[\s\S]*hint:"):
        open_store(full).documents()


def test_a_folder_called_like_a_partition_adds_no_column(full):
    moved = full.rename(full.with_name("model=gpt2"))

    assert open_store(moved).documents().column_names == ["id", "source", "split", "text", "n"]
