"""What readers hand on: passages, and the places where there is none to be had.

Readers of tables yield a `Row` as the file has it; `passages` makes of it a text with an id and
checked columns. Everything is in the order of the source.
"""

import datetime
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from actlake.platform.corpus.errors import ColumnMissing, InvalidColumn, UndecodableText
from actlake.storage.corpus import Scalar
from actlake.storage.errors import nearest

_INT64 = range(-(2**63), 2**63)


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
    columns: Mapping[str, Scalar] = field(default_factory=dict)


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


@dataclass(frozen=True, kw_only=True)
class ColumnPlan:
    """Which columns of a table mean what."""

    text: str
    id: str | None
    keep: tuple[str, ...] | None
    """None keeps all."""
    also: tuple[str, ...] = ()
    """Kept in any case, since the splits need them."""

    @property
    def needed(self) -> tuple[str, ...] | None:
        """All columns to be read; None: whatever there is."""
        if self.keep is None:
            return None
        wanted = (self.text, *((self.id,) if self.id else ()), *self.keep, *self.also)
        return tuple(dict.fromkeys(wanted))


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
    """Refuse a table without the columns that `plan` names."""
    names = list(present)
    wanted = {plan.text: "text_column", **({plan.id: "id_column"} if plan.id else {})}
    for name in (*wanted, *(plan.keep or ()), *plan.also):
        if name not in names:
            setting = wanted.get(name, "columns" if name not in plan.also else "the splits")
            raise ColumnMissing(
                f"{place} has no column {name!r}, which {setting} names\n"
                f"It has: {', '.join(map(repr, names)) or 'none'}\n" + nearest(name, names)
            )


def refuse(unreadable: Unreadable) -> UndecodableText:
    """The error for an unreadable place where such places are not to be skipped."""
    return UndecodableText(
        f"{unreadable.place}: {unreadable.reason}\n"
        "hint: convert the file to UTF-8 (iconv -f latin1 -t utf-8) or mend the line, or leave "
        "such documents out, counted, with corpus.source.undecodable: skip"
    )


def _passage(row: Row, plan: ColumnPlan) -> Passage | Unreadable:
    check_columns(row.place, row.fields, plan)
    text = row.fields[plan.text]
    if text is None:
        text = ""
    if not isinstance(text, str):
        raise InvalidColumn(
            f"{row.place}: the text column {plan.text!r} holds {type(text).__name__}\n"
            "hint: name the column with the text in corpus.source.text_column"
        )
    if not _encodable(text):
        return Unreadable(row.place, "the text holds half of a surrogate pair, which is not UTF-8")
    return Passage(
        place=row.place,
        source=row.source,
        id=None if plan.id is None else _given_id(row, plan.id),
        text=text,
        columns=_kept_columns(row, plan),
    )


def _given_id(row: Row, column: str) -> str:
    value = row.fields[column]
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
    names = row.fields if plan.keep is None else dict.fromkeys((*plan.keep, *plan.also))
    return {
        name: _scalar(row.fields[name], f"{row.place}: the column {name!r}")
        for name in names
        if name not in (plan.text, plan.id)
    }


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
