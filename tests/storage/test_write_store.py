"""Activations from elsewhere become a store like any other, from arrays or from blocks of rows."""

from pathlib import Path
from tempfile import TemporaryDirectory

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actlake.storage import (
    Context,
    Document,
    Geometry,
    Provenance,
    Site,
    open_store,
    verify,
    write_store,
)
from actlake.storage.errors import InvalidSchema, NonFiniteActivations, StoreError, StoreExists

SITE = Site(6)
CONTEXTS = [np.arange(1, n) for n in (5, 9, 2, 12, 7, 3)]
TOKENS = sum(map(len, CONTEXTS))
ACTS = np.random.default_rng(0).normal(size=(TOKENS, 4)).astype(np.float32)
SMALL = Geometry(unit_rows=8, chunk_bytes=4 * 8 * 4, token_chunk_rows=8, token_shard_rows=16)


@settings(max_examples=6, deadline=None)
@given(st.lists(st.integers(0, TOKENS), max_size=8), st.sampled_from([SMALL, None]))
def test_blocks_of_any_lengths_make_the_store_that_the_array_makes(cuts, geometry):
    with TemporaryDirectory() as folder:
        how = {"provenance": "some model", "geometry": geometry}
        blocks = iter(np.split(ACTS, sorted(cuts)))

        one = write_store(Path(folder) / "one", CONTEXTS, {SITE: ACTS}, **how)
        other = write_store(Path(folder) / "other", iter(CONTEXTS), {str(SITE): blocks}, **how)

        assert one.fingerprint == other.fingerprint
        for store in (one, other):
            np.testing.assert_array_equal(store[SITE][:], ACTS)
            np.testing.assert_array_equal(store.tokens["id"][:], np.concatenate(CONTEXTS))
            assert store.coverage(SITE).is_complete
            assert verify(store).is_whole


def test_without_text_tokens_and_documents_are_found_by_number_and_batches_are_read(folder):
    store = write_store(folder, CONTEXTS, {SITE: ACTS}, provenance="some model", special_ids=(3,))
    ids = np.concatenate(CONTEXTS)

    assert store.find(token=2).rows.tolist() == np.flatnonzero(ids == 2).tolist()
    assert store.find(where="id = 2") == store.find(token=2)
    assert store.find(document="3").rows.tolist() == list(range(13, 24))
    store.attach_labels("kind", {"document": ["0", "3"], "x": [1, 2]}, key="document")
    assert len(store.find(where="x = 2")) == 11
    rows = np.concatenate([b.rows for b in store.batches(SITE, 4, epochs=1, last="ragged")])
    first = np.cumsum([0, *map(len, CONTEXTS)])[:-1]
    expected = set(range(TOKENS)) - set(first.tolist()) - set(np.flatnonzero(ids == 3).tolist())
    assert sorted(rows.tolist()) == sorted(expected)


def test_documents_tell_text_splits_and_columns(folder):
    corpus = [
        Document("a", "made", "train", "one two", {"n": 1}),
        Document("b", "made", "test", "three", {"n": 2}),
        Context(np.array([1, 2]), np.array([0, 0]), np.array([0, 4]), "train"),
        Context(np.array([3]), np.array([1]), np.array([0]), "test"),
    ]

    store = write_store(folder, corpus, {SITE: ACTS[:3]}, provenance="m", splits=("test", "train"))

    assert store.find(text="two").rows.tolist() == [1]
    assert store.find(where="n = 2").rows.tolist() == [2]
    assert store.find(split="train").rows.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("given", "dtype", "stored"),
    [
        ("float16", None, "float16"),
        ("float32", None, "float32"),
        ("float64", None, "float32"),
        ("float32", "float16", "float16"),
        ("int32", "float32", "float32"),
        (ml_dtypes.bfloat16, None, ml_dtypes.bfloat16),
        ("int8", "float16", "float16"),
    ],
)
def test_rows_are_stored_as_they_are_or_as_it_is_said(folder, given, dtype, stored):
    rows = (ACTS * 10).astype(given)

    store = write_store(folder, CONTEXTS, {SITE: rows}, provenance="m", dtype=dtype)

    assert store[SITE].dtype == np.dtype(stored)
    np.testing.assert_array_equal(store[SITE][:], rows.astype(store[SITE].dtype))


def test_sites_may_be_of_other_widths_and_come_from_another_store(folder, tmp_path):
    first = write_store(folder, CONTEXTS, {SITE: ACTS}, provenance="m")
    wide = np.ones((TOKENS, 9), np.float16)

    store = write_store(
        tmp_path / "other", CONTEXTS, {SITE: first[SITE], "mlp_out.6": wide}, provenance="m"
    )

    np.testing.assert_array_equal(store[SITE][:], ACTS)
    np.testing.assert_array_equal(store["mlp_out.6"][:], wide)


@pytest.mark.parametrize(
    ("corpus", "rows", "words"),
    [
        (CONTEXTS, {SITE: ACTS[:-1]}, r"resid_post.6 has 31 rows, and the corpus 32 tokens\nhint"),
        (CONTEXTS, {SITE: ACTS[:, 0]}, r"of shape \(32,\)\nhint: give \(tokens, dim\)"),
        (CONTEXTS, {SITE: ACTS.reshape(-1, 2, 4)}, r"acts.reshape\(-1, dim\)"),
        (CONTEXTS, {SITE: ACTS.astype(int)}, "are int64\nhint: say how .* float16, bfloat16"),
        (CONTEXTS, {SITE: iter([])}, "no rows of resid_post.6"),
        (CONTEXTS, {}, "Each site has rows once; given are none"),
        (
            CONTEXTS,
            {"resid_pre.1": ACTS, "resid_post.0": ACTS},
            "once; given are resid_pre.1, resid_post.0",
        ),
        ([[0.5, 1.0]], {SITE: ACTS[:2]}, r"A context is given as float64 of shape \(2,\)"),
        ([3, 4], {SITE: ACTS[:2]}, r"A context is given as int64 of shape \(\)"),
        (
            [Context(np.array([1]), np.array([0]), np.array([0]), "train")],
            {SITE: ACTS[:1]},
            "names document 0, and 0 came before it",
        ),
        ([], {SITE: ACTS}, "and the corpus 0 tokens"),
    ],
)
def test_what_cannot_be_a_store_is_refused_before_there_is_one(folder, corpus, rows, words):
    with pytest.raises(InvalidSchema, match=words):
        write_store(folder, corpus, rows, provenance="m")

    with pytest.raises(StoreError):
        open_store(folder)


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        ([ACTS[:20]], "has 20 rows, and the corpus at least 24"),
        ([ACTS, ACTS[:1]], "has more rows, and the corpus 32 tokens"),
        ([ACTS[:9], ACTS[9:, :2]], "has rows of 2, those before of 4"),
    ],
)
def test_blocks_that_do_not_fit_are_refused_and_the_units_before_are_whole(folder, blocks, words):
    with pytest.raises(InvalidSchema, match=words):
        write_store(folder, CONTEXTS, {SITE: iter(blocks)}, provenance="m", geometry=SMALL)

    store = open_store(folder)
    assert verify(store).is_whole
    np.testing.assert_array_equal(store[SITE][:8], ACTS[:8])


def test_infinities_are_refused_or_counted_and_no_store_is_written_twice(folder, tmp_path):
    rows = ACTS.copy()
    rows[3, 1] = np.inf

    with pytest.raises(NonFiniteActivations):
        write_store(tmp_path / "refused", CONTEXTS, {SITE: rows}, provenance="m")
    store = write_store(folder, CONTEXTS, {SITE: rows}, provenance=Provenance(), nonfinite="count")

    assert verify(store).is_whole
    with pytest.raises(StoreExists):
        write_store(folder, CONTEXTS, {SITE: rows}, provenance="m")
