"""The pure parts of a corpus: windows, budgets, splits, names."""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actlake.platform.corpus.config import SplitByColumn, SplitByHash
from actlake.platform.corpus.errors import ColumnMissing, DuplicateDocument, InvalidColumn
from actlake.platform.corpus.identity import Identities, SeenNames, content_id
from actlake.platform.corpus.passages import Passage
from actlake.platform.corpus.splits import split_of, split_of_document
from actlake.platform.corpus.windows import Strand, Windows, fitting

BOS = 99
documents = st.lists(st.tuples(st.sampled_from(["train", "test"]), st.integers(1, 40)), max_size=12)
lengths = st.integers(3, 17)
begins = st.sampled_from([(), (BOS,), (BOS, BOS)])


def strand(split, document, length, first=0):
    ids = np.arange(first, first + length, dtype=np.int32) + 1000
    return Strand(split, document, ids, np.arange(length, dtype=np.int32))


def laid_out(docs, length, bos):
    windows = Windows(length, bos=bos)
    contexts, first = [], 0
    for ordinal, (split, num_tokens) in enumerate(docs):
        contexts += windows.fill(strand(split, ordinal, num_tokens, first))
        first += num_tokens
    return windows, contexts + list(windows.close_all())


@given(documents, lengths, begins)
def test_every_token_of_every_document_stands_once_and_in_order_in_its_split(docs, length, bos):
    _, contexts = laid_out(docs, length, bos)

    found = defaultdict(list)
    for context in contexts:
        kept = context.ids != BOS
        found[context.split] += context.ids[kept].tolist()
    expected = defaultdict(list)
    first = 1000
    for split, num_tokens in docs:
        expected[split] += range(first, first + num_tokens)
        first += num_tokens
    assert found == expected


@given(documents, lengths, begins)
def test_only_the_last_context_of_a_split_is_short(docs, length, bos):
    windows, contexts = laid_out(docs, length, bos)

    by_split = defaultdict(list)
    for context in contexts:
        by_split[context.split].append(len(context))
    for sizes in by_split.values():
        assert all(size == length for size in sizes[:-1])
        assert 1 <= sizes[-1] <= length
    assert windows.rows == sum(map(len, contexts))
    assert windows.bos_rows == len(bos) * len(contexts)


def test_a_context_bos_has_no_place_in_a_document_that_it_does_not_begin():
    windows = Windows(4, bos=(BOS,))

    contexts = [*windows.fill(strand("train", 0, 5)), *windows.close_all()]

    assert [c.ids.tolist() for c in contexts] == [[BOS, 1000, 1001, 1002], [BOS, 1003, 1004]]
    assert [c.chars.tolist() for c in contexts] == [[0, 0, 1, 2], [-1, 3, 4]]
    assert [c.documents.dtype for c in contexts] == [np.dtype(np.int64)] * 2
    assert {a.dtype for c in contexts for a in (c.ids, c.chars)} == {np.dtype(np.int32)}


@given(
    st.integers(0, 40),
    st.integers(0, 60),
    lengths,
    begins,
    st.integers(1, 40),
)
def test_as_many_tokens_fit_as_the_budget_of_rows_allows(tokens, budget, length, bos, before):
    windows = Windows(length, bos=bos)
    list(windows.fill(strand("train", 0, before)))
    room, rows_before = windows.room("train"), windows.rows

    def rows_for(n):
        trial = Windows(length, bos=bos)
        list(trial.fill(strand("train", 0, before)))
        list(trial.fill(strand("train", 1, n)))
        return trial.rows - rows_before

    n = fitting(tokens, budget, room=room, context_length=length, bos_rows=len(bos))

    assert rows_for(n) <= budget
    assert n == tokens or rows_for(n + 1) > budget


@given(st.text(max_size=20), st.integers(0, 2**31))
def test_a_split_follows_from_key_and_seed_whatever_the_order_of_the_fractions(key, seed):
    fractions = {"train": 0.7, "validation": 0.2, "test": 0.1, "unused": 0.0}

    split = split_of(key, fractions, seed)

    assert split == split_of(key, dict(reversed(fractions.items())), seed)
    assert split in ("train", "validation", "test")


def test_splits_get_their_shares_and_other_seeds_divide_otherwise():
    fractions = {"train": 0.8, "test": 0.2}

    splits = [split_of(f"document {i}", fractions) for i in range(10_000)]
    others = [split_of(f"document {i}", fractions, seed=1) for i in range(10_000)]

    assert 0.19 < splits.count("test") / 10_000 < 0.21
    assert splits != others


def test_where_documents_fall_is_fixed_for_good():
    splits = [split_of(f"pydoc/{name}", {"train": 0.5, "test": 0.5}) for name in "abcdefgh"]

    assert splits == ["test", "test", "train", "train", "test", "test", "test", "train"]


def test_a_split_column_with_an_unknown_split_or_none_at_all_is_refused():
    by_column = SplitByColumn(column="part", names=("train", "test"))

    with pytest.raises(InvalidColumn, match=r"a\.jsonl:3: .*holds 'tset'\nhint: .*'test'"):
        split_of_document(by_column, "key", {"part": "tset"}, "a.jsonl:3")
    with pytest.raises(ColumnMissing, match=r"no column 'part'.*\nIt has: 'label'"):
        split_of_document(by_column, "key", {"label": 1}, "a.jsonl:3")

    assert split_of_document(by_column, "key", {"part": "test"}, "a.jsonl:3") == "test"
    assert split_of_document(SplitByHash(), "key", {}, "a.jsonl:3") in ("train", "test")


def test_copies_of_a_text_get_ids_of_their_own_and_one_key():
    identities = Identities()

    names = [identities.name(Passage("p", "s", None, text)) for text in ("a", "b", "a", "a")]

    a = content_id("a")
    assert [name.id for name in names] == [a, content_id("b"), f"{a}-2", f"{a}-3"]
    assert [name.key for name in names] == [a, content_id("b"), a, a]
    assert [name.repeated for name in names] == [False, False, True, True]


def test_one_id_for_two_documents_is_refused():
    identities = Identities()
    identities.name(Passage("a.jsonl:1", "a.jsonl", "7", "one"))

    with pytest.raises(DuplicateDocument, match=r"a\.jsonl:2: the id '7' was given.*\nhint:"):
        identities.name(Passage("a.jsonl:2", "a.jsonl", "7", "two"))


def test_names_are_remembered_across_all_runs(monkeypatch):
    monkeypatch.setattr("actlake.platform.corpus.identity._WAITING_AT_MOST", 16)
    seen = SeenNames()

    assert all(seen.add(f"name {i}") for i in range(1000))
    assert not any(seen.add(f"name {i}") for i in range(1000))
    assert len(seen._runs) <= 7
