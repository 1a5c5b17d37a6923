"""Where a corpus's text is: files, a data set, or the text that is on every machine.

Configs are inert: nothing is opened or resolved here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from actlake.platform.corpus.errors import InvalidCorpusConfig

FileFormat = Literal["text", "jsonl", "parquet"]
Undecodable = Literal["refuse", "skip"]


@dataclass(frozen=True, kw_only=True)
class Files:
    """Text, JSONL or Parquet files; the format follows from each file's suffix.

    ``.txt``, ``.text``, ``.md``, ``.rst``: a file is a document, its id the path below the
    pattern's root. ``.jsonl``, ``.ndjson``, ``.parquet``: a line or row is a document. Text and
    JSONL may be compressed (``.gz``, ``.zst``).
    """

    path: str | tuple[str, ...]
    """A file, a folder (all files below it) or a pattern such as ``texts/**/*.txt``; or several.
    Files are read in the order of their paths; hidden ones are left out. A name that exists is
    meant as it is, also with ``*``, ``?`` or ``[ ]`` in it."""

    format: Literal["auto"] | FileFormat = "auto"
    """How to read the files; `auto` goes by suffix and refuses a suffix it does not know."""

    encoding: str = "utf-8"
    """Encoding of text and JSONL, as Python calls it: ``latin-1``, ``cp1252``, ``utf-16``, …; a
    byte order mark is not text. Parquet says its own."""

    text_column: str = "text"
    """Column of JSONL and Parquet that holds the text. ``meta.body`` is the field `body` inside the
    column `meta`, here and wherever a column is named, unless a column is called so."""

    messages_column: str | None = None
    """Column that holds a conversation, a list of {role, content}, in the place of a text: it is
    written in the tokenizer's chat template, and each message is a segment named after its role. A
    template that writes the day takes 26 July 2024 for it, always."""

    ids_column: str | None = None
    """Column that holds token ids, a list of whole numbers of the tokenizer's vocabulary, in the
    place of a text, for texts that were generated: nothing is tokenised. A text in `text_column` is
    kept where there is one; where a token stands in it is known if it tokenises to these ids."""

    segments_column: str | None = None
    """Column that names the parts of each text: a list of {name, stop}, each stop the character
    (with `ids_column`, the token) after the part's last. They become the label table `segments`."""

    id_column: str | None = None
    """Column of JSONL and Parquet that holds a document's id; null: a hash of the text."""

    columns: tuple[str, ...] | Mapping[str, str] | None = None
    """Columns of JSONL and Parquet kept beside the text; null keeps all. ``{author: meta.name}``
    keeps them under other names."""

    undecodable: Undecodable = "refuse"
    """What to do with a text that is not in its encoding or a line that is not JSON: `refuse` the
    corpus, or `skip` the document, counted and named in the report."""

    def __post_init__(self) -> None:
        if not self.path or "" in self.paths:
            raise InvalidCorpusConfig("A corpus needs a path\nhint: set corpus.source.path")
        _check_encoding(self.encoding)
        _check_columns(self)

    @property
    def paths(self) -> tuple[str, ...]:
        """All patterns, also when there is one."""
        return (self.path,) if isinstance(self.path, str) else tuple(self.path)


@dataclass(frozen=True, kw_only=True)
class HubDataset:
    """A data set that the Hugging Face package `datasets` can stream, a row a document.

    Needs ``pip install "actlake[datasets]"``.
    """

    dataset: str
    """Its name on the hub, such as ``roneneldan/TinyStories``, or a local folder of data files."""

    subset: str | None = None
    """Its configuration, where it has several."""

    dataset_split: str = "train"
    """Which of the data set's own splits is read."""

    revision: str | None = None
    """Commit, tag or branch on the hub; null is the default branch as it is on that day."""

    text_column: str = "text"
    """Column that holds the text; ``meta.body`` is the field `body` inside the column `meta`."""

    messages_column: str | None = None
    """Column that holds a conversation, a list of {role, content}, in the place of a text: it is
    written in the tokenizer's chat template, and each message is a segment named after its role. A
    template that writes the day takes 26 July 2024 for it, always."""

    ids_column: str | None = None
    """Column that holds token ids, a list of whole numbers of the tokenizer's vocabulary, in the
    place of a text, for texts that were generated: nothing is tokenised. A text in `text_column` is
    kept where there is one; where a token stands in it is known if it tokenises to these ids."""

    segments_column: str | None = None
    """Column that names the parts of each text: a list of {name, stop}, each stop the character
    (with `ids_column`, the token) after the part's last. They become the label table `segments`."""

    id_column: str | None = None
    """Column that holds a document's id; null: a hash of the text."""

    columns: tuple[str, ...] | Mapping[str, str] | None = None
    """Columns kept beside the text; null keeps all. ``{author: meta.name}`` keeps them under other
    names."""

    def __post_init__(self) -> None:
        if not self.dataset:
            raise InvalidCorpusConfig("A data set needs a name\nhint: set corpus.source.dataset")
        _check_columns(self)


@dataclass(frozen=True, kw_only=True)
class Builtin:
    """Text that is on every machine: the standard library's reference prose, a topic a document."""

    builtin: Literal["demo"] = "demo"
    """`demo`: Python's `pydoc_data.topics`, about 0.5 MB of English, depending on the version."""


def _check_encoding(name: str) -> None:
    try:
        "".encode(name)
    except (LookupError, ValueError) as error:
        raise InvalidCorpusConfig(
            f"Text cannot be in the encoding {name!r}: {error}\n"
            "hint: set corpus.source.encoding to a name that Python knows, such as utf-8, latin-1, "
            "cp1252, utf-16 or shift_jis"
        ) from error


def _check_columns(source: Files | HubDataset) -> None:
    if source.messages_column is None:
        return
    for name, usual in (("text_column", "text"), ("ids_column", None), ("segments_column", None)):
        if (given := getattr(source, name)) != usual:
            raise InvalidCorpusConfig(
                f"Conversations are in the column {source.messages_column!r} and are written, and "
                f"divided into segments, by the chat template; {name} {given!r} would do it again\n"
                f"hint: leave out corpus.source.{name} or corpus.source.messages_column"
            )
