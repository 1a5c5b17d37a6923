"""Rows of documents, or of stores, that differ in a condition: aligned, complete, or refused."""

from pathlib import Path

import numpy as np
import pytest

from actlake.storage import (
    Context,
    Document,
    Geometry,
    Provenance,
    Site,
    open_store,
    open_stores,
    paired_stores,
    write_store,
)
from actlake.storage.errors import EmptySelection, InvalidQuery, LabelsNotAttached

SITE = Site(2)
BOS, END = 1, 2
PAIRS = 12


def build(folder: Path, documents, *, seed=0, model="one", dtype="float32", splits=("train",)):
    """A context a document: BOS, its tokens, END; documents are (id, columns, tokens)."""
    rng = np.random.default_rng(seed)
    contexts = [
        Context(
            np.array([BOS, *tokens, END], np.int32),
            np.full(len(tokens) + 2, number),
            np.arange(len(tokens) + 2, dtype=np.int32),
            "train",
        )
        for number, (_, _, tokens) in enumerate(documents)
    ]
    acts = rng.normal(size=(sum(map(len, contexts)), 6)).astype(dtype)
    write_store(
        folder,
        [*(Document(name, "made", "train", None, columns) for name, columns, _ in documents),
         *contexts],
        {SITE: acts},
        provenance=Provenance(model={"name": model, "revision": model}),
        splits=splits,
        context_length=64,
        special_ids=(BOS, END),
        geometry=Geometry(unit_rows=64),
    )  # fmt: skip
    return open_store(folder), acts


def prompts(*, longer=0):
    """Pairs in another order in each condition, and documents that are of none."""
    rng = np.random.default_rng(1)
    documents = []
    for condition in ("noisy", "clean", "other"):
        for pair in rng.permutation(PAIRS).tolist():
            tokens = [100 + pair, *([50] * (pair % 4)), 200 + len(condition)]
            tokens += [7] * longer if condition == "noisy" else []
            documents.append(
                (f"{condition}-{pair}", {"pair": pair, "condition": condition}, tokens)
            )
    return documents


@pytest.fixture
def store(tmp_path):
    return build(tmp_path / "store", prompts())


def rows_by_hand(documents):
    """Of each document's id the rows of its own tokens."""
    rows, start = {}, 0
    for name, _, tokens in documents:
        rows[name] = list(range(start + 1, start + 1 + len(tokens)))
        start += len(tokens) + 2
    return rows


def test_the_last_tokens_of_each_pair_stand_side_by_side(store):
    opened, acts = store
    rows = rows_by_hand(prompts())

    pairs = opened.paired(on="pair", column="condition", of=("clean", "noisy"))

    assert sorted(pairs.keys) == list(range(PAIRS))
    assert pairs.rows.tolist() == [[rows[f"clean-{k}"][-1], rows[f"noisy-{k}"][-1]]
                                   for k in pairs.keys]  # fmt: skip
    clean, noisy = pairs.acts(SITE)
    np.testing.assert_array_equal(clean, acts[pairs.rows[:, 0]])
    np.testing.assert_array_equal(noisy, acts[pairs.rows[:, 1]])
    assert pairs["noisy"].rows.tolist() == sorted(pairs.rows[:, 1].tolist())
    assert list(pairs.acts([SITE])) == [SITE]


def test_every_token_has_its_partner_of_the_same_place(store):
    opened, _ = store
    rows = rows_by_hand(prompts())

    pairs = opened.paired(on="pair", column="condition", of=("noisy", "clean", "other"), at="token")

    wanted = [
        list(line)
        for k in dict.fromkeys(pairs.keys)
        for line in zip(*(rows[f"{name}-{k}"] for name in pairs.conditions), strict=True)
    ]
    assert pairs.rows.tolist() == wanted
    assert len(pairs) == len(pairs.keys) == sum(2 + k % 4 for k in range(PAIRS))


def test_members_of_different_length_are_refused_token_by_token_and_serve_at_the_last(tmp_path):
    opened, _ = build(tmp_path / "store", prompts(longer=2))
    how = {"on": "pair", "column": "condition", "of": ("clean", "noisy")}

    with pytest.raises(
        InvalidQuery, match=r"12 pairs have different numbers .*: clean \d, noisy \d"
    ):
        opened.paired(**how, at="token")

    assert len(opened.paired(**how)) == PAIRS


def test_labels_say_which_token_of_each_member_is_meant(store):
    opened, _ = store
    rows = rows_by_hand(prompts())
    first = [own[0] for own in rows.values()]
    opened.attach_labels("subject", {"row": first, "is": ["subject"] * len(first)}, key="row")

    pairs = opened.paired(on="pair", column="condition", of=("clean", "noisy"), at="subject")
    asked = opened.paired(
        on="pair", column="condition", of=("clean", "noisy"), where="id >= 100 and id < 200"
    )

    assert pairs.rows.tolist() == [[rows[f"clean-{k}"][0], rows[f"noisy-{k}"][0]]
                                   for k in pairs.keys]  # fmt: skip
    np.testing.assert_array_equal(asked.rows, pairs.rows)
    with pytest.raises(LabelsNotAttached, match="subject"):
        opened.paired(on="pair", column="condition", of=("clean", "noisy"), at="subjects")


def test_a_pair_without_a_partner_is_refused_or_counted(tmp_path):
    documents = [d for d in prompts() if d[0] not in ("noisy-3", "clean-5")]
    documents.append(("loose", {"pair": None, "condition": "clean"}, [9]))
    opened, _ = build(tmp_path / "store", documents)
    how = {"on": "pair", "column": "condition", "of": ("clean", "noisy")}

    with pytest.raises(
        InvalidQuery, match=r"2 of 12 pairs .* lack a condition: .*[35].*\nhint: .*drop"
    ):
        opened.paired(**how)

    pairs = opened.paired(**how, incomplete="drop")
    assert set(pairs.keys) == set(range(PAIRS)) - {3, 5}
    assert sum(pairs.left_out.values()) == 3
    assert "1 documents without pair" in repr(pairs)


def test_a_member_without_such_a_row_is_refused_or_counted(store):
    opened, _ = store
    how = {"on": "pair", "column": "condition", "of": ("clean", "noisy"), "where": "id <> 105"}

    with pytest.raises(InvalidQuery, match=r"1 of 12 pairs .* have no row there in a condition: 4"):
        opened.paired(**(how | {"where": "id >= 100 and id <> 205 and id <> 104"}))

    fewer = opened.paired(**(how | {"where": "id < 200 and id <> 104"}), incomplete="drop")
    assert 4 not in fewer.keys
    with pytest.raises(EmptySelection, match=r"no pairs .* with rows in each of clean, noisy"):
        opened.paired(**(how | {"where": "id > 5000"}), incomplete="drop")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"on": "pairs"}, r"no column 'pairs'\nhint: did you mean 'pair'"),
        ({"column": "conditions"}, r"no column 'conditions'"),
        ({"of": ("clean", "nosy")}, r"condition 'nosy' and pair\nhint: did you mean 'noisy'"),
        ({"of": ("clean",)}, "two or more different conditions"),
        ({"of": ("clean", "clean")}, "two or more different conditions"),
        ({"on": "condition"}, "Two documents of .* have condition 'noisy'"),
        ({"incomplete": "skip"}, "incomplete"),
    ],
)
def test_what_cannot_be_paired_is_refused_with_what_there_is(store, how, words):
    opened, _ = store

    with pytest.raises(InvalidQuery, match=words):
        opened.paired(**({"on": "pair", "column": "condition", "of": ("clean", "noisy")} | how))


def test_the_members_of_a_pair_may_be_in_different_stores(tmp_path):
    documents = prompts()
    one, first = build(tmp_path / "one", [d for d in documents if "noisy" in d[0]])
    two, second = build(tmp_path / "two", [d for d in documents if "noisy" not in d[0]], seed=3)
    both = open_stores([one.location, two.location])
    how = {"on": "pair", "column": "condition", "of": ("clean", "noisy")}

    pairs = both.paired(**how)

    clean, noisy = pairs.acts(SITE)
    every = np.concatenate([first, second])
    np.testing.assert_array_equal(clean, every[pairs.rows[:, 0]])
    np.testing.assert_array_equal(noisy, every[pairs.rows[:, 1]])
    table = pairs.table().to_pandas()
    assert set(table[table.condition == "noisy"].document_id) == {f"noisy-{k}" for k in range(12)}


def test_stores_of_different_models_are_one_table_over_the_documents_of_both(tmp_path):
    documents = prompts()
    plain, exact = build(tmp_path / "plain", documents)
    quantised, rough = build(
        tmp_path / "int8", documents[::-1], seed=7, model="int8", dtype="float16"
    )

    pairs = paired_stores({"float32": plain, "int8": quantised}, at="token")

    one, other = pairs.acts(SITE)
    np.testing.assert_array_equal(one, exact[pairs.rows[:, 0]])
    np.testing.assert_array_equal(other, rough[pairs.rows[:, 1]])
    table = pairs.table().to_pandas()
    assert list(table.columns[:5]) == ["line", "key", "condition", "row", "id"]
    assert table.condition.tolist() == ["float32", "int8"] * len(pairs)
    sides = [table[table.condition == name] for name in ("float32", "int8")]
    assert sides[0].id.tolist() == sides[1].id.tolist()
    assert sides[0].document_id.tolist() == sides[1].document_id.tolist() == list(pairs.keys)


def test_documents_that_only_one_store_has_are_counted(tmp_path):
    documents = prompts()
    one, _ = build(tmp_path / "one", documents)
    two, _ = build(tmp_path / "two", documents[:20], model="two")

    with pytest.raises(InvalidQuery, match="16 of 36 documents lack a condition"):
        paired_stores({"one": one, "two": two})

    assert len(paired_stores({"one": one, "two": two}, incomplete="drop")) == 20
