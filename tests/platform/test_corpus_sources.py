"""Reading texts: files, tables, data sets, the demo text; and what is refused."""

import gzip
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actlake.platform.corpus import (
    Beginning,
    Builtin,
    CorpusConfig,
    Files,
    HubDataset,
    SplitByColumn,
    corpus_provenance,
)
from actlake.platform.corpus.errors import (
    ColumnMissing,
    CorpusNotFound,
    InvalidColumn,
    MissingExtra,
    UndecodableText,
    UnknownFormat,
    UnreadableFile,
)
from actlake.platform.corpus.passages import Passage, Unreadable
from actlake.platform.corpus.read import read_corpus


def read(source, **config):
    return list(read_corpus(CorpusConfig(source=source, **config)))


def read_files(path, **source):
    return read(Files(path=str(path), **source))


def write_lines(path: Path, *rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def texts(tmp_path):
    for name, text in {
        "b.txt": "two",
        "a/z.md": "one\r\n",
        "a/deep/y.txt": "ü",
        ".hid.txt": "x",
    }.items():
        path = tmp_path / "texts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    return tmp_path / "texts"


@pytest.mark.parametrize("pattern", ["", "**", "**/*.*", "../texts/**"])
def test_text_files_come_sorted_and_are_called_by_their_path_below_the_root(texts, pattern):
    found = read_files(f"{texts}/{pattern}")

    assert [(p.id, p.source, p.text) for p in found] == [
        ("a/deep/y.txt", "a/deep/y.txt", "ü"),
        ("a/z.md", "a/z.md", "one\r\n"),
        ("b.txt", "b.txt", "two"),
    ]


def test_ids_are_the_same_from_wherever_the_path_is_given(texts, monkeypatch):
    monkeypatch.chdir(texts.parent)

    assert [p.id for p in read_files("texts/a/*.md")] == ["z.md"]
    assert [p.id for p in read_files(texts / "a" / "*.md")] == ["z.md"]
    assert [p.id for p in read_files("texts/b.txt")] == ["b.txt"]


def test_several_patterns_share_a_root_and_read_each_file_once(texts):
    found = read(Files(path=(f"{texts}/a/**/*", f"{texts}/*.txt", f"{texts}/b.txt")))

    assert [p.id for p in found] == ["a/deep/y.txt", "a/z.md", "b.txt"]


@pytest.fixture
def brackets(tmp_path):
    """Folders and files whose names would be patterns for their neighbours."""
    for name in ("set[1]", "set1", "set?", "setx", "deep/set[1]", "deep/set1"):
        folder = tmp_path / "all" / name
        folder.mkdir(parents=True)
        (folder / "a.txt").write_text(name)
    (tmp_path / "all" / "b[1].txt").write_text("b[1]")
    (tmp_path / "all" / "b1.txt").write_text("b1")
    (tmp_path / "all" / "*.txt").write_text("star")
    return tmp_path / "all"


@pytest.mark.parametrize(
    ("pattern", "texts", "names"),
    [
        ("set[1]", ["set[1]"], ["a.txt"]),
        ("set[1]/*.txt", ["set[1]"], ["a.txt"]),
        ("set[1]/**/*.txt", ["set[1]"], ["a.txt"]),
        ("set?/*.txt", ["set?"], ["a.txt"]),
        ("b[1].txt", ["b[1]"], ["b[1].txt"]),
        ("*.txt", ["star"], ["*.txt"]),
        ("**/set[1]/*.txt", ["deep/set[1]", "set[1]"], ["deep/set[1]/a.txt", "set[1]/a.txt"]),
        ("set[1-1]/*.txt", ["set1"], ["set1/a.txt"]),
    ],
)
def test_a_name_that_exists_is_a_name_and_not_a_pattern(brackets, pattern, texts, names):
    found = read_files(brackets / pattern)

    assert [p.text for p in found] == texts
    assert [p.id for p in found] == names


def test_a_pattern_of_brackets_is_one_where_nothing_is_called_so(brackets):
    for folder in (brackets / "set[1]", brackets / "deep" / "set[1]"):
        (folder / "a.txt").unlink()
        folder.rmdir()

    assert [p.text for p in read_files(brackets / "set[1]" / "*.txt")] == ["set1"]


def test_names_with_brackets_say_nothing_of_the_machine(brackets):
    files = CorpusConfig(source=Files(path=str(brackets / "set[1]" / "*.txt")))
    never = Beginning("never", (), (), "asked for")

    assert corpus_provenance(files, never)["source"]["path"] == ["*.txt"]


def test_a_data_set_folder_that_would_be_read_as_a_pattern_is_refused(tmp_path):
    for name in ("set[1]", "set1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jsonl").write_text(json.dumps({"text": name}))

    with pytest.raises(CorpusNotFound, match=r"set\[1\]'[\s\S]*hint: rename the folder"):
        read(HubDataset(dataset=str(tmp_path / "set[1]")))
    assert [p.text for p in read(HubDataset(dataset=str(tmp_path / "set1")))] == ["set1"]


def test_a_pattern_that_matches_nothing_is_refused(texts):
    with pytest.raises(CorpusNotFound, match=r"No file matches '.*\.csv'.*\nhint: give a file"):
        read_files(texts / "*.csv")


def test_a_suffix_that_says_nothing_is_refused_unless_the_format_is_given(texts):
    (texts / "code.py").write_text("pass")

    with pytest.raises(UnknownFormat, match=r"'code\.py'(.|\n)*hint: .*corpus\.source\.format"):
        read_files(texts)

    assert [p.text for p in read_files(texts / "*.py", format="text")] == ["pass"]


def test_a_byte_order_mark_is_not_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "two"}\n')

    assert [p.text for p in read_files(tmp_path)] == ["one", "two"]


def test_a_file_that_is_not_utf8_is_refused_by_name_and_byte(tmp_path):
    (tmp_path / "a.txt").write_bytes("naïve".encode("latin-1"))

    with pytest.raises(
        UndecodableText, match=r"a\.txt: not UTF-8 at byte 2 \(0xef\)\nhint: .*skip"
    ):
        read_files(tmp_path)


def test_a_utf16_file_is_recognised_in_the_message(tmp_path):
    (tmp_path / "a.txt").write_bytes("one".encode("utf-16"))

    with pytest.raises(UndecodableText, match="looks like UTF-16"):
        read_files(tmp_path)


def test_undecodable_files_and_lines_are_named_where_they_are_skipped(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff")
    (tmp_path / "b.jsonl").write_bytes(
        b'{"text": "fine"}\n\n{"text": "cut\n[1]\n{"text": "\xe4"}\n{"text": "\\ud800"}\n'
    )

    found = read_files(tmp_path, undecodable="skip")

    assert [p.text for p in found if isinstance(p, Passage)] == ["fine"]
    assert [(p.place, p.reason.split(":")[0]) for p in found if isinstance(p, Unreadable)] == [
        ("a.txt", "not UTF-8 at byte 0 (0xff)"),
        ("b.jsonl:3", "not JSON at column 10"),
        ("b.jsonl:4", "a JSON list, not an object with columns"),
        ("b.jsonl:5", "not UTF-8 at byte 46 (0xe4)"),
        ("b.jsonl:6", "the text holds half of a surrogate pair, which is not UTF-8"),
    ]


def test_a_malformed_line_is_refused_by_file_and_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{"text": }\n')

    with pytest.raises(UndecodableText, match=r"a\.jsonl:2: not JSON at column 10"):
        read_files(tmp_path / "a.jsonl")


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_jsonl_is_read_the_same_however_it_is_compressed(tmp_path, suffix):
    data = b'{"text": "one", "label": 1}\r\n{"text": null, "label": null}\n{"text": "\\u00fc"}'
    path = tmp_path / f"a.jsonl{suffix}"
    if suffix == ".gz":
        path.write_bytes(gzip.compress(data[:30]) + gzip.compress(data[30:]))
    elif suffix == ".zst":
        with pa.output_stream(str(path), compression="zstd") as stream:
            stream.write(data)
    else:
        path.write_bytes(data)

    found = read_files(path)

    assert [(p.text, p.id, dict(p.columns)) for p in found] == [
        ("one", None, {"label": 1}),
        ("", None, {"label": None}),
        ("ü", None, {}),
    ]
    assert [p.place for p in found] == [f"a.jsonl{suffix}:{i}" for i in (1, 2, 3)]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_file_that_is_cut_short_is_refused(tmp_path, suffix):
    whole = gzip.compress(b'{"text": "one"}\n' * 100)
    if suffix == ".zst":
        buffer = pa.BufferOutputStream()
        with pa.CompressedOutputStream(buffer, "zstd") as stream:
            stream.write(b'{"text": "one"}\n' * 100)
        whole = buffer.getvalue().to_pybytes()
    (tmp_path / f"a.jsonl{suffix}").write_bytes(whole[:-6])

    with pytest.raises(UnreadableFile, match=r"cannot be read: (Comp|Trunc).*\nhint: fetch"):
        read_files(tmp_path)


def test_parquet_rows_keep_ids_and_columns(tmp_path):
    table = pa.table(
        {
            "body": ["one", "two", None],
            "key": [7, 8, 9],
            "score": [0.5, None, 2.0],
            "when": pa.array([0, 86_400, None], pa.timestamp("s")),
            "unwanted": [[1], [2], [3]],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")

    found = read_files(tmp_path, text_column="body", id_column="key", columns=("score", "when"))

    assert [(p.id, p.text, dict(p.columns)) for p in found] == [
        ("7", "one", {"score": 0.5, "when": "1970-01-01T00:00:00"}),
        ("8", "two", {"score": None, "when": "1970-01-02T00:00:00"}),
        ("9", "", {"score": 2.0, "when": None}),
    ]
    assert found[1].place == "a.parquet:row 1"


def test_a_parquet_text_that_is_not_utf8_is_named_by_its_row(tmp_path):
    binary = pa.array([b"one", b"\xff", b"three"], pa.binary())
    pq.write_table(pa.table({"text": binary.view(pa.string())}), tmp_path / "a.parquet")

    found = read_files(tmp_path, undecodable="skip")

    assert [p.place for p in found] == ["a.parquet:row 0", "a.parquet:row 1", "a.parquet:row 2"]
    assert isinstance(found[1], Unreadable)


def test_what_is_not_parquet_is_refused(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")

    with pytest.raises(UnreadableFile, match=r"a\.parquet cannot be read as Parquet"):
        read_files(tmp_path)


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_a_table_without_the_text_column_is_refused_with_those_it_has(tmp_path, format):
    if format == "jsonl":
        write_lines(tmp_path / "a.jsonl", {"txt": "one", "label": 1})
    else:
        pq.write_table(pa.table({"txt": ["one"], "label": [1]}), tmp_path / "a.parquet")

    with pytest.raises(
        ColumnMissing,
        match=r"no column 'text', which text_column names\nIt has: 'txt', 'label'\n.*'txt'",
    ):
        read_files(tmp_path)
    with pytest.raises(ColumnMissing, match="no column 'labels', which columns names"):
        read_files(tmp_path, text_column="txt", columns=("labels",))
    with pytest.raises(ColumnMissing, match="no column 'id', which id_column names"):
        read_files(tmp_path, text_column="txt", id_column="id")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": 7}, "the text column 'text' holds int"),
        ({"text": "a", "id": None}, "the id column 'id' holds None"),
        ({"text": "a", "id": "\ud800"}, "is not UTF-8"),
        ({"text": "a", "id": "1", "meta": {"b": 1}}, "the column 'meta' holds dict"),
        ({"text": "a", "id": "1", "n": 2**63}, "the column 'n' holds int"),
        ({"text": "a", "id": "1", "n": "\udfff"}, "the column 'n' holds str"),
    ],
)
def test_values_that_a_column_cannot_hold_are_refused_by_place(tmp_path, row, message):
    write_lines(tmp_path / "a.jsonl", {"text": "fine", "id": "0"}, {"id": "1", **row})

    with pytest.raises(InvalidColumn, match=rf"a\.jsonl:2: .*{message}|a\.jsonl:2: .*\nhint") as e:
        read_files(tmp_path, id_column="id")
    assert message in str(e.value)
    assert "hint:" in str(e.value)


def test_the_split_column_is_read_even_where_it_is_not_kept(tmp_path):
    pq.write_table(pa.table({"text": ["one"], "part": ["a"], "x": [1]}), tmp_path / "a.parquet")

    (found,) = read(
        Files(path=str(tmp_path), columns=()), splits=SplitByColumn(column="part", names=("a",))
    )

    assert dict(found.columns) == {"part": "a"}


def test_the_demo_text_is_there_without_a_network():
    found = read(Builtin())

    assert [p.id for p in found] == sorted(p.id for p in found)
    assert found[0].id == "pydoc/assert"
    assert sum(len(p.text) for p in found) > 300_000
    assert {p.source for p in found} == {"pydoc_data.topics"}


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_a_local_data_set_is_streamed_row_by_row(tmp_path, format):
    rows = [{"text": f"text {i}", "label": i, "meta": [i]} for i in range(5)]
    folder = tmp_path / "stories"
    folder.mkdir()
    if format == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")
    else:
        write_lines(folder / "train.jsonl", *rows)

    found = read(HubDataset(dataset=str(folder), columns=("label",)))

    assert [(p.text, p.columns["label"], p.source) for p in found] == [
        (f"text {i}", i, "stories/train") for i in range(5)
    ]
    with pytest.raises(InvalidColumn, match="the column 'meta' holds list"):
        read(HubDataset(dataset=str(folder)))
    with pytest.raises(ColumnMissing, match="no column 'body'"):
        read(HubDataset(dataset=str(folder), text_column="body"))


def test_a_data_set_or_split_that_is_not_there_is_refused(tmp_path):
    write_lines(tmp_path / "train.jsonl", {"text": "one"})

    with pytest.raises(CorpusNotFound, match=r"split 'test'.*cannot be opened(.|\n)*hint:"):
        read(HubDataset(dataset=str(tmp_path), dataset_split="test"))
    with pytest.raises(CorpusNotFound, match=r"nowhere.*cannot be opened"):
        read(HubDataset(dataset=str(tmp_path / "nowhere")))


def test_a_missing_package_is_named_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)

    with pytest.raises(MissingExtra, match=r"'x/y' needs.*\nhint: pip install .*\[datasets\]"):
        read(HubDataset(dataset="x/y"))
