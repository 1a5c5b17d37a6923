"""One long text has parts in every split, if that is asked for; the refusal says how."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from actlake.platform.corpus import CorpusConfig, Files, SplitByHash, lay_out
from actlake.platform.corpus.cut import cut_documents, parts_of
from actlake.platform.corpus.errors import InvalidCorpusConfig, SplitEmpty
from actlake.platform.corpus.passages import Passage, Unreadable
from actlake.storage.corpus import Context, Document

PROSE = "".join(
    f"Chapter {chapter}.\n\nThe river ran past the mill. " * 3 + "Then it rained.\n"
    for chapter in range(40)
)


class Sink:
    def __init__(self) -> None:
        self.documents: list[Document] = []

    def add_document(self, document: Document) -> int:
        self.documents.append(document)
        return len(self.documents) - 1

    def add_context(self, context: Context) -> None:
        pass


def letters() -> PreTrainedTokenizerFast:
    vocabulary = {chr(code): code for code in range(1, 128)} | {"<end>": 0}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")


def laid_out(path: Path, **how: object) -> tuple[Sink, object]:
    sink = Sink()
    config = CorpusConfig(source=Files(path=str(path)), context_length=64, **how)
    return sink, lay_out(config, letters(), sink)


@given(text=st.text(alphabet="ab .\n"), characters=st.integers(2, 12))
def test_the_parts_of_a_text_are_the_text_and_of_about_the_length_asked_for(text, characters):
    parts = list(parts_of([text], characters))

    assert "".join(parts) == text
    assert all(characters // 2 <= len(part) <= characters for part in parts[:-1])
    assert len(parts[-1]) <= characters + characters // 2
    if len(parts) > 1:
        assert len(parts[-1]) > characters // 2


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("one two.\n\nthree. four\nfive six seven eight", "one two.\n\n"),
        ("one two three. four\nfive six seven eight nine", "one two three. four\n"),
        ("one two three. four five six seven eight nine", "one two three. "),
        ("one two three four five six seven eight nine", "one two three four "),
        ("a" * 60, "a" * 20),
    ],
)
def test_a_text_is_cut_where_a_paragraph_line_sentence_or_word_ends(text, first):
    assert next(parts_of([text], 20)) == first


def test_parts_are_called_after_their_document_and_keep_its_columns():
    whole = Passage("f:1", "f", "doc", "a" * 50, {"topic": "x"})
    unnamed = Passage("f:2", "f", None, "b" * 50)
    short = Passage("f:3", "f", "short", "c")
    unread = Unreadable("f:4", "no JSON")

    found = list(cut_documents([whole, unnamed, short, unread], 20))

    assert [part.id for part in found[:2]] == ["doc#1", "doc#2"]
    assert found[1].place == "f:1, part 2"
    assert found[1].columns == {"topic": "x"}
    assert [part.id for part in found[2:4]] == [None, None]
    assert found[4:] == [short, unread]


def test_one_text_file_leaves_a_split_empty_and_one_flag_fills_it(tmp_path):
    (tmp_path / "book.txt").write_text(PROSE)

    with pytest.raises(SplitEmpty) as refused:
        laid_out(tmp_path / "book.txt")
    flag = re.search(r"set --corpus\.cut_documents (\d+)", str(refused.value))
    assert flag is not None
    sink, report = laid_out(tmp_path / "book.txt", cut_documents=int(flag[1]))

    assert all(rows > 0 for rows in report.rows_per_split.values())
    assert "".join(document.text for document in sink.documents) == PROSE
    assert sink.documents[0].id == "book.txt#1"


def test_where_parts_are_still_too_few_smaller_ones_are_proposed(tmp_path):
    (tmp_path / "book.txt").write_text(PROSE)

    with pytest.raises(SplitEmpty, match=r"set --corpus\.cut_documents 5000, or"):
        laid_out(tmp_path / "book.txt", cut_documents=10_000)


def test_a_document_in_a_split_of_its_own_is_not_cut_by_default(tmp_path):
    (tmp_path / "book.txt").write_text(PROSE)

    sink, _ = laid_out(tmp_path, splits=SplitByHash(fractions={"train": 1.0}))

    assert [document.id for document in sink.documents] == ["book.txt"]


def test_parts_without_characters_are_refused():
    with pytest.raises(InvalidCorpusConfig, match=r"cut_documents is 1; .*\nhint: such as"):
        CorpusConfig(cut_documents=1)
