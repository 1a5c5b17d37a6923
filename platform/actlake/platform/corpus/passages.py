"""What readers hand on: passages, and the places where there is none to be had.

Readers of tables yield a `Row` as the file has it; `passages` makes of it a text with an id and
checked columns. Everything is in the order of the source.
"""

import datetime
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np

from actlake.platform.corpus.errors import ColumnMissing, InvalidColumn, UndecodableText
from actlake.platform.corpus.segments import Segment, segments_of
from actlake.storage.corpus import Scalar
from actlake.storage.errors import nearest

Int32s = np.ndarray[tuple[int], np.dtype[np.int32]]
_INT64 = range(-(2**63), 2**63)
_USUAL_TEXT = "text"


@dataclass(frozen=True, slots=True)
class Passage:
    """A document as its source has it, before it is tokenised."""

    place: str
    """For messages: ``stories.jsonl:12``."""
    source: str
    """File or data set, without anything of this machine."""
    id: str | None
    """The id it was given; None: it will be named after its content."""
    text: str
    """Of one that is given as ids, what is kept beside them; may be empty."""
    columns: Mapping[str, Scalar] = field(default_factory=dict)
    segments: tuple[Segment, ...] | None = None
    """The parts of the text, or of the ids, that have names; None where nobody said any."""
    ids: Int32s | None = field(default=None, compare=False)
    """(n,) token ids that it is given as; None: its text is tokenised."""

    @property
    def content(self) -> str:
        """What it is known by without an id, and what its duplicates share."""
        return self.text if self.ids is None else " ".join(map(str, self.ids.tolist()))


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A place where a document should have been; it is counted, or ends the run."""

    place: str
    reason: str


@dataclass(frozen=True, slots=True)
class Row:
    """A line or row of a table, as it was read."""

    place: str
    source: str
    fields: Mapping[str, object]


class Vocabulary(Protocol):
    """Checks given ids; `actlake.platform.corpus.given_ids.GivenIds` is one."""

    def read(self, value: object, place: str) -> Int32s:
        """A list of token ids as (n,) int32."""
        ...


class Template(Protocol):
    """Writes conversations; `actlake.platform.corpus.chat_template.ChatTemplate` is one."""

    def written(self, value: object, place: str) -> tuple[str, tuple[Segment, ...]]:
        """A list of messages as a text, and its segments."""
        ...


@dataclass(frozen=True, kw_only=True)
class ColumnPlan:
    """Which columns of a table mean what."""

    text: str
    """The text, or with a `template` the messages."""
    id: str | None
    keep: Mapping[str, str] | None
    """The columns to keep, by the names they are kept under; None keeps all."""
    also: tuple[str, ...] = ()
    """Kept in any case, since the splits need them, unless one is kept under that name."""
    segments: str | None = None
    template: Template | None = None
    """What makes texts of messages."""
    ids: str | None = None
    """The token ids; then the text, if it is called ``text``, need not be there."""
    vocabulary: Vocabulary | None = None
    """What the ids are checked against."""

    @property
    def needed(self) -> tuple[str, ...] | None:
        """All columns to be read; None: whatever there is."""
        if self.keep is None:
            return None
        return tuple(dict.fromkeys((*self.settings, self.text)))

    @cached_property
    def kept(self) -> Mapping[str, str]:
        """The columns that must be there and are kept, by the names they are kept under."""
        return dict(zip(self.also, self.also, strict=True)) | dict(self.keep or {})

    @cached_property
    def settings(self) -> Mapping[str, str]:
        """The columns that must be there, and which setting names each."""
        settings = dict.fromkeys(self.kept.values(), "columns")
        settings |= {name: "the splits" for name in self.also if self.kept[name] == name}
        settings |= {self.id: "id_column"} if self.id else {}
        settings |= {self.segments: "segments_column"} if self.segments else {}
        if self.ids is not None:
            settings |= {self.ids: "ids_column"}
            if self.text == _USUAL_TEXT:
                return settings
        return settings | {self.text: "messages_column" if self.template else "text_column"}


def passages(rows: Iterable[Row | Unreadable], plan: ColumnPlan) -> Iterator[Passage | Unreadable]:
    """Texts with ids and checked columns; what is unreadable passes through.

    Raises
    ------
    ColumnMissing
        A row lacks a column that `plan` names; the message names those it has.
    InvalidColumn
        A text is not text, an id is neither text nor a whole number, or a kept column holds a
        list, a mapping, bytes or a number beyond 64 bits. Dates are kept as ISO text.
    """
    for row in rows:
        yield row if isinstance(row, Unreadable) else _passage(row, plan)


def check_columns(place: str, present: Iterable[str], plan: ColumnPlan) -> None:
    """Refuse a table without the columns that `plan` names, or those that they are inside of."""
    names = list(present)
    for name, setting in plan.settings.items():
        if top_column(name, names) not in names:
            raise _missing(place, name, setting, names)


def top_column(column: str, present: Container[str]) -> str:
    """The column of a table that `column` is, or is inside of: of ``meta.body`` mostly ``meta``."""
    return column if column in present else column.partition(".")[0]


def refuse(unreadable: Unreadable) -> UndecodableText:
    """The error for an unreadable place where such places are not to be skipped."""
    return UndecodableText(
        f"{unreadable.place}: {unreadable.reason}\n"
        "hint: name the files' encoding in corpus.source.encoding, such as latin-1 or utf-16, or "
        "mend the line, or leave such documents out, counted, with corpus.source.undecodable: skip"
    )


def _passage(row: Row, plan: ColumnPlan) -> Passage | Unreadable:
    for name, setting in plan.settings.items():
        _field(row, name, setting)
    ids = None
    if plan.ids is not None:
        assert plan.vocabulary is not None
        ids = plan.vocabulary.read(_field(row, plan.ids), f"{row.place}: the column {plan.ids!r}")
    has_text = plan.text in plan.settings or plan.text in row.fields
    text = _field(row, plan.text) if has_text else None
    segments = None
    if plan.template is not None:
        text, segments = plan.template.written(text, row.place)
    if text is None:
        text = ""
    if not isinstance(text, str):
        raise InvalidColumn(
            f"{row.place}: the text column {plan.text!r} holds {type(text).__name__}\n"
            "hint: name the column with the text in corpus.source.text_column"
        )
    if not _encodable(text):
        return Unreadable(row.place, "the text holds half of a surrogate pair, which is not UTF-8")
    if plan.segments is not None:
        given = _field(row, plan.segments)
        if ids is None:
            segments = segments_of(given, len(text), row.place)
        else:
            segments = segments_of(given, len(ids), row.place, of="tokens")
    return Passage(
        place=row.place,
        source=row.source,
        id=None if plan.id is None else _given_id(row, plan.id),
        text=text,
        columns=_kept_columns(row, plan),
        segments=segments,
        ids=ids,
    )


def _given_id(row: Row, column: str) -> str:
    value = _field(row, column)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise InvalidColumn(
            f"{row.place}: the id column {column!r} holds {value!r}\n"
            "hint: ids are text or whole numbers; without corpus.source.id_column documents are "
            "named after their content"
        )
    written = str(value)
    if not _encodable(written):
        raise InvalidColumn(f"{row.place}: the id {written!r} is not UTF-8\nhint: mend the id")
    return written


def _kept_columns(row: Row, plan: ColumnPlan) -> dict[str, Scalar]:
    names = plan.kept if plan.keep is not None else {n: n for n in row.fields} | dict(plan.kept)
    return {
        name: _scalar(_field(row, column), f"{row.place}: the column {column!r}")
        for name, column in names.items()
        if not (name == column and column in (plan.text, plan.id, plan.segments, plan.ids))
    }


def _field(row: Row, column: str, setting: str = "") -> object:
    """The value of a column, or of a field inside one; a field of nothing is nothing."""
    if column in row.fields:
        return row.fields[column]
    value: object = row.fields
    for name in column.split("."):
        if value is None:
            return None
        if not isinstance(value, Mapping) or name not in value:
            inside = value if isinstance(value, Mapping) else {}
            raise _missing(row.place, column, setting, list(inside))
        value = value[name]
    return value


def _missing(place: str, column: str, setting: str, names: Sequence[str]) -> ColumnMissing:
    return ColumnMissing(
        f"{place} has no column {column!r}, which {setting} names\n"
        f"It has: {', '.join(map(repr, names)) or 'none'}\n" + nearest(column, names)
    )


def _scalar(value: object, where: str) -> Scalar:
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, int) and value in _INT64:
        return value
    if isinstance(value, str) and _encodable(value):
        return value
    shown = repr(value)
    raise InvalidColumn(
        f"{where} holds {type(value).__name__}: {shown[:60]}{'…' if len(shown) > 60 else ''}\n"
        "hint: a column holds text, numbers up to 64 bits, truth values or nothing; name the ones "
        "to keep in corpus.source.columns ([] keeps none)"
    )


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
