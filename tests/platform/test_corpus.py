"""A corpus laid out: what a sink gets, and what the report says of it."""

import json
import logging
import tracemalloc
from dataclasses import replace
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import actlake.platform.corpus as face
from actlake.platform.config import from_dict
from actlake.platform.corpus import (
    Beginning,
    Builtin,
    CorpusConfig,
    Documents,
    Files,
    HubDataset,
    Packed,
    SplitByColumn,
    SplitByHash,
    corpus_provenance,
    lay_out,
)
from actlake.platform.corpus.errors import (
    CorpusEmpty,
    DocumentTooLong,
    DuplicateDocument,
    InvalidColumn,
    InvalidCorpusConfig,
    SplitEmpty,
    TokenizerUnfit,
    UndecodableText,
)

ONE_SPLIT = SplitByHash(fractions={"train": 1.0})
TRAINING_TEXT = ["the cat sat on the mat and the dog sat on the log", "a bat, a hat; that is that."]


class Sink:
    """Keeps what it gets; a document comes before the contexts that name it."""

    def __init__(self):
        self.documents = []
        self.contexts = []

    def add_document(self, document):
        self.documents.append(document)
        return len(self.documents) - 1

    def add_context(self, context):
        assert len(context) > 0
        assert context.documents.max() < len(self.documents)
        self.contexts.append(context)

    @property
    def plain(self):
        rows = [
            (c.split, c.ids.tolist(), c.documents.tolist(), c.chars.tolist()) for c in self.contexts
        ]
        return self.documents, rows


def tokenizer_with(**special):
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(TRAINING_TEXT, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, model_max_length=8, **special)


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_with(bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("corpus")


def write_rows(folder, rows):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Files(path=str(path), id_column="id" if all("id" in row for row in rows) else None)


def write_texts(folder, *texts):
    return write_rows(folder, [{"text": text, "id": str(i)} for i, text in enumerate(texts)])


def encode(tokenizer, text):
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def rows_of(sink, ordinal):
    """Ids and characters of a document's rows, in the order of the store."""
    pairs = [
        (int(i), int(char))
        for c in sink.contexts
        for i, d, char in zip(c.ids, c.documents, c.chars, strict=True)
        if d == ordinal
    ]
    return [i for i, _ in pairs], [char for _, char in pairs]


def check_sums(report, sink):
    assert report.documents == len(sink.documents) == sum(report.documents_per_split.values())
    assert report.contexts == len(sink.contexts)
    assert report.rows == sum(map(len, sink.contexts)) == sum(report.rows_per_split.values())
    assert report.rows == report.text_tokens + report.separators + report.bos_tokens
    for split, rows in report.rows_per_split.items():
        assert rows == sum(len(c) for c in sink.contexts if c.split == split)


texts = st.lists(st.text(st.sampled_from("the cat sat on mat, é\n漢"), max_size=40), max_size=12)
layouts = st.sampled_from(
    [
        Packed(),
        Packed(separator="none"),
        Documents(),
        Documents(long_documents="truncate"),
    ]
)
splits = SplitByHash(
    fractions={"train": 0.6, "test": 0.4, "unused": 0.0}, allow_empty=("train", "test")
)
configs = st.builds(
    CorpusConfig,
    layout=layouts,
    context_length=st.integers(2, 20),
    bos=st.sampled_from(["never", "context", "document"]),
    splits=st.just(splits),
    max_tokens=st.none() | st.integers(2, 150),
)


@settings(deadline=None, max_examples=120)
@given(texts=texts, config=configs)
def test_every_token_stands_once_in_order_in_a_context_of_its_split(
    texts, config, folder, tokenizer
):
    config = replace(config, source=write_texts(folder, "the", *texts))
    sink = Sink()

    report = lay_out(config, tokenizer, sink)

    check_sums(report, sink)
    assert report.empty_documents + report.documents <= len(texts) + 1
    expected = {str(i): encode(tokenizer, text) for i, text in enumerate(["the", *texts])}
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    seen = placed = 0
    for ordinal, document in enumerate(sink.documents):
        ids, chars = rows_of(sink, ordinal)
        text = [(i, char) for i, char in zip(ids, chars, strict=True) if i not in (bos, eos)]
        whole = expected[document.id]
        assert [i for i, _ in text] == whole[: len(text)]
        assert [char for _, char in text] == sorted(char for _, char in text)
        assert all(
            char == len(document.text) for i, char in zip(ids, chars, strict=True) if i == eos
        )
        assert all(char in (0, -1) for i, char in zip(ids, chars, strict=True) if i == bos)
        assert ids[-1] == eos or eos not in ids
        seen, placed = seen + len(whole), placed + len(text)
    assert (report.tokens_seen, report.text_tokens) == (seen, placed)
    for context in sink.contexts:
        assert {sink.documents[d].split for d in context.documents} == {context.split}
        assert len(context) <= config.context_length
        assert context.ids[0] == bos or config.bos != "context"
    if config.max_tokens is None:
        assert report.documents == sum(1 for ids in expected.values() if ids)
        assert report.cut_tokens == 0
    else:
        short = config.bos != "never"  # a lone BOS is not worth a row
        assert report.rows <= config.max_tokens
        assert not report.budget_reached or report.rows >= config.max_tokens - short


@settings(deadline=None, max_examples=60)
@given(texts=texts, config=configs, batch_documents=st.integers(1, 5))
def test_rows_do_not_depend_on_how_many_documents_are_tokenised_at_once(
    texts, config, batch_documents, folder, tokenizer
):
    config = replace(config, source=write_texts(folder, "the", *texts))
    whole, batched = Sink(), Sink()

    report = lay_out(config, tokenizer, whole)
    report_batched = lay_out(config, tokenizer, batched, batch_documents=batch_documents)

    assert whole.plain == batched.plain
    assert report == report_batched


def test_rows_do_not_depend_on_threads(folder, tokenizer, monkeypatch):
    config = CorpusConfig(source=write_texts(folder, *TRAINING_TEXT * 20), splits=ONE_SPLIT)
    sinks = {"true": Sink(), "false": Sink()}

    for parallel, sink in sinks.items():
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", parallel)
        lay_out(config, tokenizer, sink)

    assert sinks["true"].plain == sinks["false"].plain


@given(text=st.text(st.characters(max_codepoint=126), min_size=1, max_size=60))
@settings(deadline=None, max_examples=60)
def test_characters_slice_the_text_back_into_tokens(text, folder, tokenizer):
    config = CorpusConfig(source=write_texts(folder, text), splits=ONE_SPLIT, context_length=7)
    sink = Sink()

    lay_out(config, tokenizer, sink)

    ids, chars = rows_of(sink, 0)
    pieces = [text[a:b] for a, b in pairwise(chars)]
    assert pieces == [tokenizer.decode([i]) for i in ids[:-1]]


def test_packed_documents_follow_each_other_separated_and_tails_come_last(folder, tokenizer):
    config = CorpusConfig(
        source=write_rows(
            folder,
            [
                {"text": "aaa", "part": "train"},
                {"text": "bb", "part": "test"},
                {"text": "ccccc", "part": "train"},
            ],
        ),
        splits=SplitByColumn(column="part", names=("train", "test")),
        context_length=4,
    )
    sink = Sink()

    report = lay_out(config, tokenizer, sink)

    shown = [
        (c.split, "".join(tokenizer.decode(c.ids)), c.documents.tolist(), c.chars.tolist())
        for c in sink.contexts
    ]
    assert shown == [
        ("train", "aaa</s>", [0, 0, 0, 0], [0, 1, 2, 3]),
        ("train", "cccc", [2, 2, 2, 2], [0, 1, 2, 3]),
        ("test", "bb</s>", [1, 1, 1], [0, 1, 2]),
        ("train", "c</s>", [2, 2], [4, 5]),
    ]
    assert {a.dtype.name for c in sink.contexts for a in (c.ids, c.chars)} == {"int32"}
    assert report.rows_per_split == {"train": 10, "test": 3}
    assert (report.separators, report.text_tokens) == (3, 10)


@pytest.mark.parametrize(
    ("bos", "layout", "expected"),
    [
        ("context", Packed(), ["<s>aa", "<s>a</s>", "<s>bb", "<s>bb", "<s></s>"]),
        ("document", Packed(), ["<s>aa", "a</s><s>", "bbb", "b</s>"]),
        ("context", Documents(), ["<s>aa", "<s>a", "<s>bb", "<s>bb"]),
        ("document", Documents(), ["<s>aa", "a", "<s>bb", "bb"]),
        ("never", Documents(), ["aaa", "bbb", "b"]),
        ("never", Documents(long_documents="truncate"), ["aaa", "bbb"]),
        ("document", Documents(long_documents="truncate"), ["<s>aa", "<s>bb"]),
        ("never", Packed(separator="none"), ["aaa", "bbb", "b"]),
        ("never", Packed(separator="<s>"), ["aaa", "<s>bb", "bb<s>"]),
    ],
)
def test_where_bos_and_separators_stand(folder, tokenizer, bos, layout, expected):
    source = write_texts(folder, "aaa", "bbbb")
    config = CorpusConfig(source=source, splits=ONE_SPLIT, bos=bos, layout=layout, context_length=3)
    sink = Sink()

    report = lay_out(config, tokenizer, sink)

    assert ["".join(tokenizer.decode(c.ids)) for c in sink.contexts] == expected
    check_sums(report, sink)
    assert report.tokens_seen == 7


def test_truncated_and_continued_documents_are_counted(folder, tokenizer):
    source = write_texts(folder, "aa", "bbbb", "ccccc")
    config = CorpusConfig(source=source, splits=ONE_SPLIT, layout=Documents(), context_length=3)
    truncating = replace(config, layout=Documents(long_documents="truncate"))

    continued = lay_out(config, tokenizer, Sink())
    truncated = lay_out(truncating, tokenizer, Sink())

    assert (continued.continued_documents, continued.truncated_tokens) == (2, 0)
    assert (truncated.truncated_documents, truncated.truncated_tokens) == (2, 1 + 2)
    assert truncated.text_tokens == 8
    assert "2 documents truncated by 3 tokens" in str(truncated)


def test_a_document_longer_than_a_context_is_refused_where_asked_for(folder, tokenizer):
    config = CorpusConfig(
        source=write_texts(folder, "aa", "bbbb"),
        layout=Documents(long_documents="refuse"),
        context_length=3,
        bos="context",
    )

    with pytest.raises(DocumentTooLong, match=r"jsonl:2 has 4 tokens; a context holds 2.*\nhint:"):
        lay_out(config, tokenizer, Sink())


def test_the_budget_cuts_the_last_document_and_reading_stops(folder, tokenizer):
    source = write_texts(folder, "aaaa", "bbbb", "cccc")
    source_file = folder / "rows.jsonl"
    source_file.write_text(source_file.read_text() + "this line is never an error\n")
    config = CorpusConfig(source=source, splits=ONE_SPLIT, context_length=4, max_tokens=7)
    sink = Sink()

    report = lay_out(config, tokenizer, sink)

    assert ["".join(tokenizer.decode(c.ids)) for c in sink.contexts] == ["aaaa", "</s>bb"]
    assert [document.text for document in sink.documents] == ["aaaa", "bbbb"]
    assert (report.rows, report.cut_tokens, report.tokens_seen) == (7, 2, 8)
    assert report.budget_reached
    with pytest.raises(UndecodableText, match=r"rows\.jsonl:4"):
        lay_out(replace(config, max_tokens=None), tokenizer, Sink())


def test_empty_and_skipped_documents_are_counted_and_named(folder, tokenizer):
    source = replace(write_texts(folder, "", "aa", ""), undecodable="skip")
    path = folder / "rows.jsonl"
    path.write_text(path.read_text() + "oops\n" * 7)
    sink = Sink()

    report = lay_out(CorpusConfig(source=source, splits=ONE_SPLIT), tokenizer, sink)

    assert (report.documents, report.empty_documents, report.skipped_documents) == (1, 2, 7)
    assert report.documents_seen == 10
    assert report.empty_examples == ("rows.jsonl:1", "rows.jsonl:3")
    assert report.skipped_examples[0].startswith("rows.jsonl:4 (not JSON at column 1: ")
    assert len(report.skipped_examples) == 5
    assert "2 documents empty: rows.jsonl:1, rows.jsonl:3" in str(report)
    assert "7 documents skipped: rows.jsonl:4 (not" in str(report)


def test_columns_are_kept_and_those_named_like_ours_are_renamed(folder, tokenizer):
    rows = [
        {"text": "a", "id": 1, "source": "wiki", "label": 1, "split": "x"},
        {"text": "b", "id": 2, "source": None, "label": 1.5, "part": True},
    ]
    source = replace(write_rows(folder, rows), id_column=None)
    sink = Sink()

    lay_out(CorpusConfig(source=source, splits=ONE_SPLIT), tokenizer, sink)

    assert [dict(d.columns) for d in sink.documents] == [
        {"original_id": 1, "original_source": "wiki", "label": 1, "original_split": "x"},
        {"original_id": 2, "original_source": None, "label": 1.5, "part": True},
    ]
    assert [d.source for d in sink.documents] == ["rows.jsonl"] * 2


def test_a_column_that_changes_its_type_is_refused_by_place(folder, tokenizer):
    source = write_rows(folder, [{"text": "a", "n": 1}, {"text": "b", "n": "1"}])

    with pytest.raises(InvalidColumn, match=r"jsonl:2: the column 'n' holds text.*held a number"):
        lay_out(CorpusConfig(source=source), tokenizer, Sink())


def test_a_column_is_not_kept_under_a_name_that_is_taken(folder, tokenizer):
    source = write_rows(folder, [{"text": "a", "split": "x", "original_split": "y"}])

    with pytest.raises(InvalidColumn, match=r"would be kept as 'original_split', which there is"):
        lay_out(CorpusConfig(source=source), tokenizer, Sink())


def test_copies_of_a_text_stay_in_one_split(folder, tokenizer):
    source = write_rows(folder, [{"text": text} for text in "abcdefgh" * 5])
    sink = Sink()

    report = lay_out(
        CorpusConfig(source=source, splits=SplitByHash(fractions={"a": 0.5, "b": 0.5})),
        tokenizer,
        sink,
    )

    places = {document.text: document.split for document in sink.documents}
    assert all(places[document.text] == document.split for document in sink.documents)
    assert len({document.id for document in sink.documents}) == 40
    assert report.repeated_documents == 32


def test_an_id_given_twice_is_refused(folder, tokenizer):
    source = write_rows(folder, [{"text": "a", "id": 1}, {"text": "b", "id": 1}])

    with pytest.raises(DuplicateDocument, match=r"rows\.jsonl:2: the id '1'"):
        lay_out(CorpusConfig(source=source), tokenizer, Sink())


def test_a_split_that_is_needed_and_empty_is_refused_with_the_rows_of_each(folder, tokenizer):
    config = CorpusConfig(source=write_texts(folder, "aaa"))
    allowed = SplitByHash(allow_empty=("test", "train"))

    with pytest.raises(SplitEmpty, match=r"(?s)The split .* rows: test \d, train \d\).*hint:"):
        lay_out(config, tokenizer, Sink())

    report = lay_out(replace(config, splits=allowed), tokenizer, Sink())
    assert sorted(report.rows_per_split.values()) == [0, 4]


def test_a_corpus_without_a_token_is_refused(folder, tokenizer):
    with pytest.raises(CorpusEmpty, match=r"2 documents seen, 2 empty, 0 skipped(.|\n)*hint:"):
        lay_out(CorpusConfig(source=write_texts(folder, "", "")), tokenizer, Sink())


@pytest.mark.parametrize(
    ("config", "special", "message"),
    [
        (CorpusConfig(), {}, "no end-of-text token.*\nhint: set corpus.layout.separator"),
        (CorpusConfig(bos="document", layout=Documents()), {}, "no beginning-of-text token"),
        (CorpusConfig(layout=Packed(separator="<sep>")), {}, "'<sep>' is no token of the tok"),
    ],
)
def test_a_tokenizer_without_a_token_that_is_needed_is_refused(config, special, message):
    with pytest.raises(TokenizerUnfit, match=message):
        lay_out(config, tokenizer_with(**special), Sink())


def test_documents_need_neither_separator_nor_bos(folder):
    config = CorpusConfig(
        source=write_texts(folder, "aaa"), layout=Documents(), splits=ONE_SPLIT, keep_text=False
    )
    sink = Sink()

    report = lay_out(config, tokenizer_with(), sink)

    assert report.rows == 3
    assert sink.documents[0].text is None


def test_a_slow_tokenizer_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(TokenizerUnfit, match="Slow is a slow tokenizer"):
        lay_out(CorpusConfig(), Slow(), Sink())


def test_nobody_is_warned_of_documents_longer_than_the_models_limit(folder, tokenizer, caplog):
    config = CorpusConfig(source=write_texts(folder, "the cat " * 50), splits=ONE_SPLIT)
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        report = lay_out(config, tokenizer, Sink())
    finally:
        logger.removeHandler(caplog.handler)

    assert report.rows > tokenizer.model_max_length
    assert [record for record in caplog.records if record.name.startswith("transformers")] == []


def test_progress_is_told_of_documents_and_rows(folder, tokenizer):
    told = []

    def progress(*, documents, rows):
        told.append((documents, rows))

    config = CorpusConfig(source=write_texts(folder, "aaa", "", "bb"), splits=ONE_SPLIT)
    lay_out(config, tokenizer, Sink(), progress)

    assert told == [(1, 4), (1, 4), (2, 7)]


def test_a_corpus_is_read_only_as_far_as_it_is_laid_out(folder, tokenizer, monkeypatch):
    produced = []

    def endless(file, encoding):
        from actlake.platform.corpus.passages import Row

        for i in range(10**9):
            produced.append(i)
            yield Row(f"{file.name}:{i}", file.name, {"text": f"{i} the cat"})

    monkeypatch.setattr("actlake.platform.corpus.read.read_jsonl", endless)
    source = write_rows(folder, [{"text": "a"}])
    config = CorpusConfig(source=source, splits=ONE_SPLIT, max_tokens=1000)

    report = lay_out(config, tokenizer, Sink(), batch_documents=16)

    assert report.rows == 1000
    assert len(produced) <= report.documents + 16


class Nowhere:
    """A sink that keeps nothing."""

    documents = 0

    def add_document(self, document):
        self.documents += 1
        return self.documents - 1

    def add_context(self, context):
        pass


def test_memory_does_not_grow_with_the_corpus(folder, tokenizer):
    def peak_bytes(num_documents):
        rows = [{"text": f"{i:05d} the cat sat on the mat" * 100} for i in range(num_documents)]
        config = CorpusConfig(source=write_rows(folder, rows), splits=ONE_SPLIT)
        del rows
        tracemalloc.start()
        lay_out(config, tokenizer, Nowhere(), batch_documents=16)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak_bytes(16)
    few, many = peak_bytes(48), peak_bytes(480)

    assert many < few + 200_000 < few + 480 * 2_000


def test_all_formats_give_the_same_rows(tmp_path, tokenizer):
    rows = [{"text": text, "id": str(i)} for i, text in enumerate(TRAINING_TEXT * 3)]
    jsonl = write_rows(tmp_path, rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    (tmp_path / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data" / "train.parquet")
    sources = [
        jsonl,
        replace(jsonl, path=str(tmp_path / "rows.parquet")),
        HubDataset(dataset=str(tmp_path / "data"), id_column="id"),
    ]
    sinks = [Sink() for _ in sources]

    for source, sink in zip(sources, sinks, strict=True):
        lay_out(CorpusConfig(source=source, splits=ONE_SPLIT), tokenizer, sink)

    assert sinks[0].plain[1] == sinks[1].plain[1] == sinks[2].plain[1]
    assert [d.id for d in sinks[0].documents] == [d.id for d in sinks[2].documents]


def test_the_demo_text_is_laid_out_with_a_real_tokenizer(smollm2_folder):
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    sink = Sink()

    report = lay_out(CorpusConfig(max_tokens=80_000), tokenizer, sink)

    check_sums(report, sink)
    assert report.rows == 80_000
    assert report.rows_per_split["train"] > 50_000
    assert report.rows_per_split["test"] > 1_000
    first = sink.documents[0]
    ids, chars = rows_of(sink, 0)
    assert ids[-1] == tokenizer.eos_token_id
    assert first.text.isascii()
    pieces = [first.text[a:b] for a, b in pairwise(chars)]
    assert pieces == [tokenizer.decode([i]) for i in ids[:-1]]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, CorpusConfig()),
        ({"source": {"path": "a/*.txt"}}, CorpusConfig(source=Files(path="a/*.txt"))),
        (
            {"source": {"path": ["a", "b"], "columns": ["x"]}},
            CorpusConfig(source=Files(path=("a", "b"), columns=("x",))),
        ),
        ({"source": {"dataset": "x/y"}}, CorpusConfig(source=HubDataset(dataset="x/y"))),
        ({"source": {"builtin": "demo"}}, CorpusConfig(source=Builtin())),
        ({"layout": {"kind": "documents"}}, CorpusConfig(layout=Documents())),
        ({"layout": {"kind": "packed"}}, CorpusConfig(layout=Packed())),
        ({"splits": {"fractions": {"train": 1}}}, CorpusConfig(splits=ONE_SPLIT)),
        (
            {"splits": {"column": "part", "names": ["a"]}},
            CorpusConfig(splits=SplitByColumn(column="part", names=("a",))),
        ),
    ],
)
def test_yaml_says_which_source_layout_and_splits_are_meant(given, expected):
    assert from_dict(CorpusConfig, given) == expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CorpusConfig(context_length=0), "context of 0 tokens.*\nhint: .*2 or more"),
        (lambda: CorpusConfig(max_tokens=0), "max_tokens is 0"),
        (lambda: SplitByHash(fractions={"train": 0.5}), "sum to 1"),
        (lambda: SplitByHash(fractions={"train": 1.5, "test": -0.5}), "between 0 and 1"),
        (lambda: SplitByHash(fractions={"train": float("nan")}), "between 0 and 1"),
        (lambda: SplitByHash(fractions={}), "There is no split"),
        (lambda: SplitByHash(fractions={"a/b": 1}), "cannot be called 'a/b'"),
        (lambda: SplitByHash(allow_empty=("dev",)), "names the split 'dev'\nhint: .*train, test"),
        (lambda: SplitByColumn(column="c", names=("a", "a")), "named twice"),
        (lambda: Files(path=""), "needs a path"),
        (lambda: Files(path=()), "needs a path"),
        (lambda: HubDataset(dataset=""), "needs a name"),
        (lambda: Packed(separator=""), "separator is empty"),
    ],
)
def test_sizes_and_names_that_cannot_be_are_refused(make, message):
    with pytest.raises(InvalidCorpusConfig, match=message):
        make()


def test_provenance_says_nothing_of_this_machine(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    patterns = (f"{tmp_path}/**/*.txt", f"{tmp_path}/a.txt", str(tmp_path))
    bos = Beginning("never", (), (), "asked for")

    files = corpus_provenance(CorpusConfig(source=Files(path=patterns)), bos)
    data_set = corpus_provenance(CorpusConfig(source=HubDataset(dataset=str(tmp_path / "d"))), bos)
    demo = corpus_provenance(CorpusConfig(), bos)

    assert files["source"]["path"] == ["**/*.txt", "a.txt", "**"]
    assert str(tmp_path) not in json.dumps([files, data_set, demo])
    assert len(demo["source"]["sha256"]) == 16
    assert files["context_length"] == 256


def test_the_face_holds_what_it_says():
    assert all(hasattr(face, name) for name in face.__all__)
    assert len(set(face.__all__)) == len(face.__all__)
