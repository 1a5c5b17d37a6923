"""Input as people have it: encodings, columns inside columns, and which documents are read."""

import gzip
import json
import tracemalloc
from collections.abc import Mapping
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.platform.test_corpus_cut import Sink, letters

from actlake.platform.config import from_dict, to_dict
from actlake.platform.corpus import (
    CorpusConfig,
    Files,
    HubDataset,
    Sample,
    SplitByColumn,
    SplitByHash,
    lay_out,
)
from actlake.platform.corpus.chosen import LeftOut
from actlake.platform.corpus.errors import (
    ColumnMissing,
    InvalidColumn,
    InvalidCorpusConfig,
    UndecodableText,
)
from actlake.platform.corpus.passages import Passage, Unreadable
from actlake.platform.corpus.read import read_corpus

ONE_SPLIT = SplitByHash(fractions={"train": 1.0})


def read(source, **config):
    return list(read_corpus(CorpusConfig(source=source, **config)))


def texts_of(source, **config):
    return [p.text for p in read(source, **config) if isinstance(p, Passage)]


def laid_out(source, **config):
    sink = Sink()
    config = CorpusConfig(source=source, splits=ONE_SPLIT, context_length=64, **config)
    return sink, lay_out(config, letters(), sink)


def write_lines(path, rows, encoding="utf-8", end="\n"):
    lines = (json.dumps(row, ensure_ascii=False) + end for row in rows)
    path.write_bytes("".join(lines).encode(encoding))
    return str(path)


ROWS = [{"text": "naïve"}, {"text": "two\u2028lines"}, {"text": "дом"}, {"text": "“x”"}]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("encoding", "rows"),
    [
        ("latin-1", ROWS[:1]),
        ("cp1252", [ROWS[0], ROWS[3]]),
        ("utf-8-sig", ROWS),
        ("utf-16", ROWS),
        ("utf-32-le", ROWS),
        ("koi8-r", [ROWS[2]]),
        ("shift_jis", [ROWS[2], {"text": "表示"}]),
        ("iso2022_jp", [{"text": "表示"}]),
    ],
)
def test_text_and_jsonl_in_any_encoding_are_the_same_text(tmp_path, encoding, rows, end):
    path = write_lines(tmp_path / "a.jsonl", rows, encoding, end)
    (tmp_path / "b.txt").write_bytes("".join(row["text"] for row in rows).encode(encoding))

    assert texts_of(Files(path=path, encoding=encoding)) == [row["text"] for row in rows]
    assert texts_of(Files(path=str(tmp_path / "b.txt"), encoding=encoding)) == [
        "".join(row["text"] for row in rows)
    ]


def test_an_encoding_that_python_does_not_know_is_refused():
    with pytest.raises(InvalidCorpusConfig, match=r"'latin-99'[\s\S]*hint: .*corpus\.source\.enc"):
        Files(path="x", encoding="latin-99")
    with pytest.raises(InvalidCorpusConfig, match="not a text encoding"):
        Files(path="x", encoding="base64")


def test_what_is_not_in_the_encoding_is_named_by_its_byte(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\x81"}\n{"text": "c"}\n')
    source = Files(path=str(tmp_path / "a.jsonl"), encoding="cp1252")

    with pytest.raises(UndecodableText, match=r"a\.jsonl:2: not cp1252 at byte 24 \(0x81\)\nhint"):
        read(source)
    skipping = read(replace(source, undecodable="skip"))
    assert [type(item) for item in skipping] == [Passage, Unreadable, Passage]


def test_after_a_wrong_byte_of_utf16_the_rest_of_the_file_is_left_out_and_said(tmp_path):
    good = '{"text": "a"}\n'.encode("utf-16-le")
    (tmp_path / "a.jsonl").write_bytes(good + b"\x00\xdc" + good)

    first, wrong = read(
        Files(path=str(tmp_path / "a.jsonl"), encoding="utf-16-le", undecodable="skip")
    )

    assert first.text == "a"
    assert wrong.reason == "not utf-16-le at byte 28 (0x00); the rest of the file is left out"


def test_a_long_text_that_is_cut_is_not_held(tmp_path):
    line = "The river ran past the mill. Ünd then it rained.\n"
    path = tmp_path / "a.txt"
    path.write_text("\ufeff" + line * 400_000, encoding="utf-8")
    config = CorpusConfig(source=Files(path=str(path)), cut_documents=1_000)

    tracemalloc.start()
    length = parts = 0
    for parts, part in enumerate(read_corpus(config), start=1):
        length += len(part.text)
        if parts == 1:
            assert (part.id, part.text[:9]) == ("a.txt#1", "The river")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert length == 400_000 * len(line)
    assert parts > 19_000
    assert peak < 12_000_000 < path.stat().st_size // 1.6


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_of_a_long_text_that_is_not_decodable_no_part_is_read(tmp_path, suffix):
    data = b"word " * 500_000 + b"\xff"
    (tmp_path / f"a.txt{suffix}").write_bytes(gzip.compress(data) if suffix else data)

    (wrong,) = read(Files(path=str(tmp_path), undecodable="skip"), cut_documents=100)

    assert wrong == Unreadable(f"a.txt{suffix}", "not UTF-8 at byte 2500000 (0xff)")


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.dictionary(pa.int8(), pa.large_string()),
    ],
    ids=str,
)
def test_text_of_any_arrow_string_type_is_read_and_what_is_null_or_blank_is_counted(tmp_path, kind):
    texts = pa.array(["one", None, "", "one", "two"])
    column = texts.dictionary_encode() if pa.types.is_dictionary(kind) else texts
    pq.write_table(pa.table({"text": column.cast(kind)}), tmp_path / "a.parquet")

    sink, report = laid_out(Files(path=str(tmp_path)))

    assert [document.text for document in sink.documents] == ["one", "one", "two"]
    assert (report.documents_seen, report.documents, report.empty_documents) == (5, 3, 2)
    assert "2 documents empty: a.parquet:row 1, a.parquet:row 2" in str(report)


def nested(path, format):
    rows = [
        {"meta": {"body": "one", "who": {"name": "Ada", "born": 1815}}, "n": 1, "a.b": "dot"},
        {"meta": {"body": "two", "who": None}, "n": 2, "a.b": "dots"},
    ]
    if format == "jsonl":
        return Files(path=write_lines(path / "a.jsonl", rows))
    pq.write_table(pa.Table.from_pylist(rows), path / "train.parquet")
    if format == "parquet":
        return Files(path=str(path))
    return HubDataset(dataset=str(path))


@pytest.mark.parametrize("format", ["jsonl", "parquet", "datasets"])
def test_columns_inside_columns_are_read_and_kept_under_the_names_asked_for(tmp_path, format):
    source = nested(tmp_path, format)

    found = read(
        replace(
            source,
            text_column="meta.body",
            id_column="n",
            columns={"author": "meta.who.name", "dotted": "a.b"},
        )
    )
    plain = read(replace(source, text_column="a.b", columns=("meta.who.born",)))

    assert [(p.id, p.text, dict(p.columns)) for p in found] == [
        ("1", "one", {"author": "Ada", "dotted": "dot"}),
        ("2", "two", {"author": None, "dotted": "dots"}),
    ]
    assert [(p.text, dict(p.columns)) for p in plain] == [
        ("dot", {"meta.who.born": 1815}),
        ("dots", {"meta.who.born": None}),
    ]


@pytest.mark.parametrize("format", ["jsonl", "parquet", "datasets"])
def test_a_field_that_is_not_inside_a_column_is_refused_with_those_that_are(tmp_path, format):
    source = replace(nested(tmp_path, format), columns=("n",))

    with pytest.raises(
        ColumnMissing,
        match=r"no column 'meta\.bodi', which text_column names\nIt has: 'body', 'who'",
    ):
        read(replace(source, text_column="meta.bodi"))
    with pytest.raises(ColumnMissing, match=r"no column 'mata\.body'"):
        read(replace(source, text_column="mata.body"))


def test_a_split_may_be_written_inside_a_column_or_in_one_kept_under_that_name(tmp_path):
    rows = [{"text": "a", "meta": {"part": "train"}}, {"text": "b", "meta": {"part": "test"}}]
    source = Files(path=write_lines(tmp_path / "a.jsonl", rows), columns=())

    def split_of_each(source, column):
        sink = Sink()
        splits = SplitByColumn(column=column, names=("train", "test"))
        lay_out(CorpusConfig(source=source, splits=splits), letters(), sink)
        return [(document.text, document.split) for document in sink.documents]

    assert split_of_each(source, "meta.part") == [("a", "train"), ("b", "test")]
    renamed = replace(source, columns={"part": "meta.part"})
    assert split_of_each(renamed, "part") == [("a", "train"), ("b", "test")]


def test_renamed_columns_come_from_the_command_line_and_go_back():
    given = {"source": {"path": "x", "columns": {"author": "meta.who"}}, "sample": {"fraction": 1}}

    config = from_dict(CorpusConfig, given)

    assert isinstance(config.source.columns, Mapping)
    assert config.sample == Sample(fraction=1.0)
    assert from_dict(CorpusConfig, to_dict(config)) == config
    assert from_dict(Files, {"path": "x", "columns": ["a"]}).columns == ("a",)


def test_no_more_documents_than_asked_for_have_rows(tmp_path):
    rows = [{"text": ""}, *({"text": f"text {i}"} for i in range(9)), {"text": 7}]
    source = Files(path=write_lines(tmp_path / "a.jsonl", rows))

    sink, report = laid_out(source, max_documents=3)

    assert [document.text for document in sink.documents] == ["text 0", "text 1", "text 2"]
    assert (report.documents, report.empty_documents, report.budget_reached) == (3, 1, True)
    with pytest.raises(InvalidColumn):
        laid_out(source, max_documents=10)


def test_a_sample_is_a_matter_of_the_document_and_the_seed_and_counts_the_rest(tmp_path):
    rows = [{"text": f"text {i}", "id": str(i)} for i in range(2_000)]
    source = Files(path=write_lines(tmp_path / "a.jsonl", rows), id_column="id")
    backwards = Files(path=write_lines(tmp_path / "b.jsonl", rows[::-1]), id_column="id")

    def drawn(source, **how):
        return {p.id for p in read(source, sample=Sample(**how)) if isinstance(p, Passage)}

    tenth = drawn(source, fraction=0.1)
    assert 150 < len(tenth) < 250
    assert drawn(backwards, fraction=0.1) == tenth
    assert tenth < drawn(source, fraction=0.3)
    assert len(tenth & drawn(source, fraction=0.1, seed=1)) < 50

    sink, report = laid_out(source, sample=Sample(fraction=0.1))
    assert {document.id for document in sink.documents} == tenth
    assert (report.documents_seen, report.unsampled_documents) == (2_000, 2_000 - len(tenth))
    assert f"{2_000 - len(tenth):,} documents left out by the sample" in str(report)


def test_a_sample_is_divided_into_splits_as_the_whole_is(tmp_path):
    rows = [{"text": f"text {i}", "id": str(i)} for i in range(2_000)]
    source = Files(path=write_lines(tmp_path / "a.jsonl", rows), id_column="id")
    sink = Sink()
    config = CorpusConfig(
        source=source,
        sample=Sample(fraction=0.5),
        splits=SplitByHash(fractions={"train": 0.5, "test": 0.5}),
    )

    lay_out(config, letters(), sink)

    in_train = sum(document.split == "train" for document in sink.documents)
    assert 0.42 < in_train / len(sink.documents) < 0.58


def test_of_equal_texts_the_first_stays_and_the_others_are_counted(tmp_path):
    texts = ["one", "two", "one", "", "One", "two", "one", ""]
    rows = [{"text": text, "id": str(i)} for i, text in enumerate(texts)]
    source = Files(path=write_lines(tmp_path / "a.jsonl", rows))

    for given in (source, replace(source, id_column="id")):
        sink, report = laid_out(given, deduplicate=True)

        assert [document.text for document in sink.documents] == ["one", "two", "One"]
        assert (report.duplicate_documents, report.empty_documents) == (3, 2)
        assert report.documents_seen == 8
        assert "3 documents left out whose text is an earlier one's" in str(report)

    assert [type(item) for item in read(source, deduplicate=True)].count(LeftOut) == 3
    assert laid_out(source)[1].repeated_documents == 3


@pytest.mark.parametrize("batch", [1, 3, 256])
def test_what_is_left_out_does_not_depend_on_the_batch(tmp_path, batch):
    rows = [{"text": f"text {i % 40}"} for i in range(100)]
    config = CorpusConfig(
        source=Files(path=write_lines(tmp_path / "a.jsonl", rows)),
        splits=ONE_SPLIT,
        sample=Sample(fraction=0.5),
        deduplicate=True,
        max_documents=10,
    )

    reports = [lay_out(config, letters(), Sink(), batch_documents=n) for n in (batch, 7)]

    assert reports[0] == reports[1]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"max_documents": 0}, r"max_documents is 0; .*\n *hint: .*corpus\.max_documents"),
        ({"sample": {"fraction": 0}}, r"sample of 0\.0 .*\n *hint: set corpus\.sample\.fraction"),
        ({"sample": {"fraction": 1.5}}, r"sample of 1\.5 .*\n *hint: set corpus\.sample\.fraction"),
    ],
)
def test_sizes_that_cannot_be_are_refused_before_a_text_is_read(how, message):
    with pytest.raises(ValueError, match=message):
        from_dict(CorpusConfig, how)
