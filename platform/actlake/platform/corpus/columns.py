"""The columns that a document keeps beside its text."""

from collections.abc import Mapping

from actlake.platform.corpus.errors import InvalidColumn
from actlake.platform.corpus.passages import Passage
from actlake.platform.corpus.segments import SEGMENTS, as_json
from actlake.storage.corpus import Scalar

OWN_COLUMNS = ("id", "source", "split", "text", "document_id", "document_number", SEGMENTS)
"""What every document has, in its table or in questions about rows; a user's column of such a name
is kept as ``original_<name>``."""


class KeptColumns:
    """Checks, document by document, that each column keeps one type."""

    def __init__(self, *, leave_out: str | None = None) -> None:
        """`leave_out`: the column that says the split, which need not be kept twice."""
        self._leave_out = leave_out
        self._kinds: dict[str, str] = {}

    def of(self, passage: Passage) -> dict[str, Scalar]:
        """The passage's columns under the names they are kept by.

        Raises
        ------
        InvalidColumn
            A column had another type before, or its new name is taken.
        """
        columns: dict[str, Scalar] = {}
        for name, value in passage.columns.items():
            if name != self._leave_out:
                kept = _kept_name(name, passage.columns, passage.place)
                self._check_kind(kept, value, passage.place)
                columns[kept] = value
        if passage.segments is not None:
            columns[SEGMENTS] = as_json(passage.segments)
        return columns

    def _check_kind(self, column: str, value: Scalar, place: str) -> None:
        if value is None:
            return
        kind = _kind(value)
        known = self._kinds.setdefault(column, kind)
        if kind != known:
            raise InvalidColumn(
                f"{place}: the column {column!r} holds {kind}, {value!r}; in earlier documents it "
                f"held {known}\nhint: give it one type, or leave it out of corpus.source.columns"
            )


def _kept_name(name: str, columns: Mapping[str, Scalar], place: str) -> str:
    if name not in OWN_COLUMNS:
        return name
    kept = f"original_{name}"
    if kept in columns:
        raise InvalidColumn(
            f"{place}: the column {name!r} would be kept as {kept!r}, which there is already\n"
            "hint: name the ones to keep in corpus.source.columns"
        )
    return kept


def _kind(value: Scalar) -> str:
    if isinstance(value, bool):
        return "a truth value"
    return "text" if isinstance(value, str) else "a number"
