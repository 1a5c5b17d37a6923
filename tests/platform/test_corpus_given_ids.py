"""Documents that are given as token ids: what the text would have become, or an error."""

import json
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from actlake.platform.corpus import (
    CorpusConfig,
    Documents,
    Files,
    Packed,
    SplitByHash,
    emitted_tokens,
    lay_out,
)
from actlake.platform.corpus.errors import ColumnMissing, InvalidColumn, InvalidCorpusConfig

TEXTS = [f"Boat {i} sailed with {i * 7} sacks 🦊 of naïve flour. " * (1 + i % 5) for i in range(40)]
HALVES = SplitByHash(fractions={"test": 0.5, "train": 0.5})


class Sink:
    def __init__(self):
        self.documents = []
        self.contexts = []

    def add_document(self, document):
        self.documents.append(document)
        return len(self.documents) - 1

    def add_context(self, context):
        self.contexts.append(context)

    def plain(self):
        """All of the contexts, and all of the documents."""
        contexts = [
            (c.ids.tolist(), c.documents.tolist(), c.chars.tolist(), c.split) for c in self.contexts
        ]
        return contexts, [asdict(document) for document in self.documents]


@pytest.fixture(scope="module")
def tokenizer(smollm2_folder):
    return AutoTokenizer.from_pretrained(smollm2_folder)


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def written(folder, rows, *, name="given.jsonl"):
    path = folder / name
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def laid_out(source, tokenizer, **how):
    sink = Sink()
    given = {"splits": HALVES, "context_length": 32} | how
    return sink, lay_out(CorpusConfig(source=source, **given), tokenizer, sink)


@pytest.mark.parametrize("name", ["given.jsonl", "given.parquet"])
@pytest.mark.parametrize("bos", ["never", "context", "document"])
@pytest.mark.parametrize("layout", [Packed(), Documents()])
def test_ids_with_their_text_are_laid_out_as_the_text_is(tmp_path, tokenizer, name, bos, layout):
    rows = [{"name": f"d{i}", "text": text, "tokens": ids_of(tokenizer, text)}
            for i, text in enumerate(TEXTS)]  # fmt: skip
    path = written(tmp_path, rows, name=name)

    ids, _ = laid_out(
        Files(path=path, id_column="name", ids_column="tokens"), tokenizer, bos=bos, layout=layout
    )
    text, _ = laid_out(
        Files(path=path, id_column="name", columns=()), tokenizer, bos=bos, layout=layout
    )

    assert ids.plain() == text.plain()


def test_ids_that_the_text_does_not_become_are_kept_as_they_are_and_have_no_place(
    tmp_path, tokenizer
):
    one_by_one = [i for letter in "the cat" for i in ids_of(tokenizer, letter)]
    assert one_by_one != ids_of(tokenizer, "the cat")
    rows = [{"text": "the cat", "tokens": one_by_one}, {"text": "a dog", "tokens": [40, 41]}]
    source = Files(path=written(tmp_path, rows), ids_column="tokens")

    sink, report = laid_out(
        source, tokenizer, bos="context", splits=SplitByHash(fractions={"train": 1})
    )

    (context,) = sink.contexts
    end = tokenizer.eos_token_id
    assert context.ids.tolist() == [tokenizer.bos_token_id, *one_by_one, end, 40, 41, end]
    assert set(context.chars.tolist()) == {-1}
    assert [document.text for document in sink.documents] == ["the cat", "a dog"]
    assert "2 documents whose ids are not those of a text beside them" in str(report)


def test_without_a_text_none_is_kept_and_equal_ids_are_one_document_in_one_split(
    tmp_path, tokenizer
):
    rows = [{"tokens": [50 + i % 8, 60, 61]} for i in range(16)]
    source = Files(path=written(tmp_path, rows), ids_column="tokens")

    sink, report = laid_out(source, tokenizer)
    once, left = laid_out(source, tokenizer, deduplicate=True)

    assert {document.text for document in sink.documents} == {None}
    splits = {}
    for document in sink.documents:
        splits.setdefault(document.id.partition("-")[0], set()).add(document.split)
    assert [len(each) for each in splits.values()] == [1] * 8
    assert report.repeated_documents == left.duplicate_documents == 8
    assert len(once.documents) == 8


def test_a_column_called_otherwise_has_to_be_there(tmp_path, tokenizer):
    source = Files(
        path=written(tmp_path, [{"tokens": [5]}]), ids_column="tokens", text_column="body"
    )

    with pytest.raises(ColumnMissing, match=r"no column 'body', which text_column names"):
        laid_out(source, tokenizer)


def test_no_ids_are_an_empty_document_and_counted(tmp_path, tokenizer):
    rows = [{"tokens": None}, {"tokens": []}, *({"tokens": [70 + i]} for i in range(20))]

    _, report = laid_out(Files(path=written(tmp_path, rows), ids_column="tokens"), tokenizer)

    assert (report.empty_documents, report.documents) == (2, 20)


def test_special_tokens_among_the_ids_are_themselves_and_counted(tmp_path, tokenizer):
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    rows = [{"tokens": [start, 200 + i, 201]} for i in range(20)]
    source = Files(path=written(tmp_path, rows), ids_column="tokens")

    sink, report = laid_out(source, tokenizer)

    assert sum((context.ids == start).sum() for context in sink.contexts) == 20
    assert report.special_tokens == {"<|im_start|>": 20}
    assert "taken for the tokens themselves (<|im_start|> 20)" in str(report)
    assert start in emitted_tokens(CorpusConfig(source=source), tokenizer)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([5, 49_152], r"holds 49152 at place 1, which is no token: .* are 0 to 49,151"),
        ([5, -1], r"holds -1 at place 1, which is no token"),
        ([5, 2**70], r"holds 1180591620717411303424 at place 1, which is no token"),
        ([5, None], r"holds None at place 1, which is no whole number"),
        ([5, True], r"holds True at place 1, which is no whole number"),
        ([5, 6.0], r"holds 6.0 at place 1, which is no whole number"),
        (["5"], r"holds '5' at place 0, which is no whole number"),
        ([[5]], r"holds \[5\] at place 0, which is no whole number"),
        ("5 6", r"holds '5 6', which is no list"),
        (5, r"holds 5, which is no list"),
        ({"a": 5}, r"holds {'a': 5}, which is no list"),
    ],
)  # fmt: skip
def test_what_is_no_list_of_tokens_is_refused_with_its_place(tmp_path, tokenizer, value, words):
    rows = [{"tokens": [5]}, {"tokens": value}]
    source = Files(path=written(tmp_path, rows), ids_column="tokens")

    with pytest.raises(
        InvalidColumn, match=rf"given.jsonl:2: the column 'tokens' {words}"
    ) as error:
        laid_out(source, tokenizer)

    assert "hint:" in str(error.value)


def test_an_id_that_is_no_token_within_the_vocabulary_is_refused(tmp_path, tokenizer, monkeypatch):
    words = tokenizer.get_vocab()
    hole = next(word for word, number in words.items() if number == 300)
    monkeypatch.setattr(
        type(tokenizer), "get_vocab", lambda self: {w: n for w, n in words.items() if w != hole}
    )
    source = Files(path=written(tmp_path, [{"tokens": [299, 300]}]), ids_column="tokens")

    with pytest.raises(InvalidColumn, match="holds 300 at place 1, which is no token"):
        laid_out(source, tokenizer)


@pytest.mark.parametrize("bos", ["context", "document"])
def test_ids_that_begin_as_every_context_does_would_begin_twice(tmp_path, tokenizer, bos):
    rows = [{"tokens": [tokenizer.bos_token_id, 40, 41]}]
    source = Files(path=written(tmp_path, rows), ids_column="tokens")

    with pytest.raises(InvalidColumn, match=r"would begin twice: its ids begin .*\n.*bos: never"):
        laid_out(source, tokenizer, bos=bos)

    sink, _ = laid_out(source, tokenizer, bos="never", splits=SplitByHash(fractions={"train": 1}))
    assert sink.contexts[0].ids[:3].tolist() == rows[0]["tokens"]


@pytest.mark.parametrize("stop", [2, 4])
def test_segments_that_do_not_cover_the_ids_are_refused(tmp_path, tokenizer, stop):
    rows = [{"tokens": [5, 6, 7], "parts": [{"name": "prompt", "stop": stop}]}]
    source = Files(
        path=written(tmp_path, rows), ids_column="tokens", segments_column="parts", columns=()
    )

    with pytest.raises(InvalidColumn, match=rf"ends at token {stop} of 3\n.* number of tokens"):
        laid_out(source, tokenizer)


def test_conversations_and_parts_of_texts_are_no_ids():
    with pytest.raises(InvalidCorpusConfig, match="ids_column 'tokens' would do it again"):
        Files(path="a.jsonl", messages_column="messages", ids_column="tokens")
    with pytest.raises(InvalidCorpusConfig, match=r"corpus.source.ids_column\) are not cut"):
        CorpusConfig(source=Files(path="a.jsonl", ids_column="tokens"), cut_documents=100)


def test_a_sample_of_documents_without_ids_or_text_is_drawn_by_what_they_are_given_as(
    tmp_path, tokenizer
):
    from actlake.platform.corpus import Sample

    rows = [{"tokens": [100 + i]} for i in range(200)]
    source = Files(path=written(tmp_path, rows), ids_column="tokens")

    sink, report = laid_out(source, tokenizer, sample=Sample(fraction=0.5))

    assert 60 < len(sink.documents) < 140
    assert len(sink.documents) + report.unsampled_documents == 200
    assert np.unique([document.id for document in sink.documents]).size == len(sink.documents)
