"""Attaching a label table to a store, and the table once it is attached."""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from actlake.storage.errors import InvalidQuery, LabelsMisaligned, LabelsNotAttached
from actlake.storage.printable import printable
from actlake.storage.querying.arguments import check_choice
from actlake.storage.querying.labels.alignment import KEYS, fit
from actlake.storage.querying.labels.given_table import read_table
from actlake.storage.querying.labels.label_file import (
    check_name,
    is_attached,
    labels_relation,
    read_about,
    write_labels,
)
from actlake.storage.querying.rows import Rows

if TYPE_CHECKING:  # store.py attaches labels
    from actlake.storage.store import ActivationStore

Array = np.ndarray[Any, Any]
Key = (
    Literal["document", "document_number", "row"]
    | tuple[Literal["document", "document_number"], Literal["start"], Literal["stop"]]
)
Misaligned = Literal["refuse", "drop"]


class Labels:
    """An attached label table. `ActivationStore.labels` opens one.

    Attributes
    ----------
    name
        Under which it is attached; in SQL the name of its table.
    key
        ``document``, ``span`` or ``row``: what a label is of.
    alignment
        How the given table fitted.
    columns
        Names of the label columns, without the key.
    """

    def __init__(self, store: "ActivationStore", name: str) -> None:
        self.store = store
        self.name = name
        self.key, self.columns, self.alignment = read_about(store, name)

    def table(self) -> pa.Table:
        """As stored: by document number, or by row (spans: a row a token of each span)."""
        relation = labels_relation(self.store, self.name)
        return pa.Table.from_batches(list(relation.reader()), relation.schema)

    @cached_property
    def _aligned(self) -> pa.Table:
        table = self.table()
        if self.key == "document":
            which, rows = self.store.lookup.documents.rows_of_each(
                table["document_number"].to_numpy()
            )
            order = np.argsort(rows, kind="stable")
            table = table.select(self.columns).take(pa.array(which[order]))
            return table.add_column(0, "row", pa.array(rows[order]))
        return table.select(["row", *self.columns])

    @property
    def rows(self) -> Array:
        """(n,) int64, the labelled rows, ascending; a row in several spans comes several times."""
        return np.asarray(self._aligned["row"].to_numpy())

    def values(self, column: str | None = None) -> Array:
        """(n,) the labels of `rows`, one after the other.

        Parameters
        ----------
        column
            Which column; may be left out if there is one only.

        Raises
        ------
        LabelsNotAttached
            There is no such column, or which one is not clear.
        """
        if column is None and len(self.columns) == 1:
            column = self.columns[0]
        if column not in self.columns:
            raise LabelsNotAttached(
                f"The labels {self.name!r} have no column {column!r}\n"
                f"hint: there is {', '.join(self.columns)}"
            )
        return np.asarray(self._aligned[column].to_numpy())

    def to_arrow(self) -> pa.Table:
        """``row`` and the label columns: `rows` and all `values` as one table."""
        return self._aligned

    def found(self) -> Rows:
        """The labelled rows as a set."""
        return Rows(self.store, self.rows, found_by=f"labels {self.name}")

    def __len__(self) -> int:
        return int(self._aligned.num_rows)

    def __repr__(self) -> str:
        columns = printable(", ".join(self.columns))
        return f"Labels {self.name!r} by {self.key}: {columns}\n{self.alignment}"


def attach_labels(
    store: "ActivationStore",
    name: str,
    table: Any,
    *,
    key: Key,
    misaligned: Misaligned = "refuse",
    replace: bool = False,
) -> Labels:
    """Attach a label table; see `ActivationStore.attach_labels`."""
    check_name(name)
    check_choice("misaligned", misaligned, Misaligned)
    keys = _key_columns(key)
    if is_attached(store, name) and not replace:
        raise InvalidQuery(
            f"Labels called {name!r} are attached to {store.url} already\n"
            "hint: give another name, or replace=True"
        )
    given = read_table(table)
    columns = _label_columns(given, keys)
    fitted = fit(store, given, keys)
    alignment = fitted.alignment(given, keys)
    if alignment.misaligned and misaligned == "refuse":
        raise LabelsMisaligned(
            f"The labels {name!r} do not fit {store.url}: {alignment}\n"
            f"such as {'; '.join(alignment.examples)}\n"
            f'hint: {_meant(keys)}correct them, or leave them out with misaligned="drop"'
        )
    if not alignment.kept:
        raise LabelsMisaligned(
            f"No label of {name!r} fits {store.url}: {alignment}\n"
            f"hint: {_meant(keys)}store.documents(['id']) lists the documents"
        )
    write_labels(store, name, given.select(columns), KEYS[keys], fitted, alignment)
    return Labels(store, name)


def _key_columns(key: Any) -> tuple[str, ...]:
    columns = (key,) if isinstance(key, str) else key
    is_span = isinstance(key, list | tuple) and len(key) > 1
    if (isinstance(key, str) or is_span) and tuple(columns) in KEYS:
        return tuple(columns)
    raise InvalidQuery(
        f"Labels cannot be keyed by {key!r}\n"
        'hint: key is "document", ("document", "start", "stop") or "row"; "document_number" '
        'stands in the place of "document" where documents are named by their place'
    )


def _meant(keys: Sequence[str]) -> str:
    """How documents were taken to be named, for a hint."""
    if "document" in keys:
        return (
            "`document` is taken for ids, compared as text (12 is '12', not '012'); places in the "
            "store stand in a column `document_number`, and the key is called so; "
        )
    return ""


def _label_columns(given: pa.Table, keys: Sequence[str]) -> list[str]:
    lacking = [name for name in keys if name not in given.column_names]
    if lacking:
        raise InvalidQuery(
            f"The label table has no key column {lacking[0]!r}, but "
            f"{', '.join(given.column_names)}\nhint: rename its columns, or give another key"
        )
    columns = [name for name in given.column_names if name not in keys]
    of_a_key = {name for names in KEYS for name in names}
    clash = [name for name in columns if name.lower() in of_a_key]
    if clash or not columns:
        what = f"a column {clash[0]!r}, which is a key's name" if clash else "no column of labels"
        raise InvalidQuery(
            f"The label table keyed by {', '.join(keys)} has {what}\nhint: drop or rename it"
        )
    return columns
