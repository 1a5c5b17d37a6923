"""A split that follows from a column: what belongs together stays together."""

import json

import pytest
from tests.platform.test_corpus_cut import Sink, letters

from actlake.platform.config import from_dict
from actlake.platform.corpus import Builtin, CorpusConfig, Files, SplitByHash, lay_out, split_of
from actlake.platform.corpus.errors import ColumnMissing, InvalidColumn, SplitEmpty

HALVES = {"train": 0.5, "test": 0.5}


def divided(path, rows, *, columns=None, fractions=HALVES, **how):
    """The documents laid out, divided by the column `pair`."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sink = Sink()
    config = CorpusConfig(
        source=Files(path=str(path), columns=columns),
        splits=SplitByHash(fractions=fractions, by="pair"),
        **how,
    )
    lay_out(config, letters(), sink)
    return sink.documents


def pairs(number):
    return [
        {"text": f"{condition} text {pair}", "pair": pair, "condition": condition}
        for condition in ("clean", "noisy")
        for pair in range(number)
    ]


def test_members_of_a_pair_are_in_one_split_and_pairs_are_divided_by_the_shares(tmp_path):
    documents = divided(tmp_path / "a.jsonl", pairs(400))

    of_pair = {}
    for document in documents:
        of_pair.setdefault(document.columns["pair"], set()).add(document.split)
    assert len(documents) == 800
    assert {len(splits) for splits in of_pair.values()} == {1}
    assert 160 < sum(splits == {"train"} for splits in of_pair.values()) < 240


def test_the_split_is_that_of_the_value_whatever_else_is_in_the_corpus(tmp_path):
    rows = pairs(40)

    for given in (rows, rows[::-1], [{**row, "pair": str(row["pair"])} for row in rows]):
        for document in divided(tmp_path / "a.jsonl", given):
            assert document.split == split_of(str(document.columns["pair"]), HALVES)


def test_the_column_is_read_and_kept_where_it_is_not_among_those_to_keep(tmp_path):
    documents = divided(tmp_path / "a.jsonl", pairs(20), columns=("condition",))

    assert set(documents[0].columns) == {"pair", "condition"}


def test_parts_of_a_document_stay_together_as_its_value_says(tmp_path):
    rows = [{"text": f"words of {pair} " * 60, "pair": pair} for pair in range(20)]

    documents = divided(tmp_path / "a.jsonl", rows, cut_documents=100)

    assert len(documents) > 100
    assert len({(d.columns["pair"], d.split) for d in documents}) == 20


@pytest.mark.parametrize("value", [None, 0.5])
def test_a_value_that_no_split_can_follow_from_is_refused_by_place(tmp_path, value):
    rows = [{"text": "a", "pair": value}]

    with pytest.raises(
        InvalidColumn, match=r"a\.jsonl:1: the column 'pair', .* holds (None|0\.5)\nhint: give it"
    ):
        divided(tmp_path / "a.jsonl", rows)


def test_a_column_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    with pytest.raises(ColumnMissing, match=r"'pair', which the splits names\nIt has: 'text', 'p"):
        divided(tmp_path / "a.jsonl", [{"text": "a", "pairs": 1}])
    demo = CorpusConfig(source=Builtin(), splits=SplitByHash(by="pair"))
    with pytest.raises(
        ColumnMissing, match=r"'pair', which corpus\.splits\.by names\nIt has: none"
    ):
        lay_out(demo, letters(), Sink())


def test_where_one_value_leaves_a_split_empty_cutting_is_not_proposed(tmp_path):
    rows = [{"text": f"text {i}", "pair": "all"} for i in range(50)]

    with pytest.raises(SplitEmpty, match=r"\nhint: documents of one 'pair' are in one split") as e:
        divided(tmp_path / "a.jsonl", rows)
    assert "cut_documents" not in str(e.value)


def test_it_is_given_beside_the_fractions():
    config = from_dict(CorpusConfig, {"splits": {"fractions": HALVES, "by": "author"}})

    assert config.splits == SplitByHash(fractions=HALVES, by="author")
