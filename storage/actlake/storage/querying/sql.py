"""SQL over a store's tables, by DuckDB: streamed, and shut off from files and the network.

Only SELECT is taken. DuckDB runs with external access off, extensions off and its configuration
locked, and sees no Python variables: a query reads the store's tables and nothing else.
"""

import html
import json
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from actlake.storage.errors import InvalidQuery, StoreError, missing_extra
from actlake.storage.printable import printable, printable_lines
from actlake.storage.querying.arguments import check_text
from actlake.storage.querying.labels.label_file import attached_names, labels_relation
from actlake.storage.querying.parts import Part, parts_of
from actlake.storage.querying.relations import (
    Relation,
    documents_relation,
    joined,
    tokens_relation,
    vocabulary_relation,
)
from actlake.storage.querying.rows import Rows

if TYPE_CHECKING:  # both run queries
    from actlake.storage.reading.many import ManyStores
    from actlake.storage.store import ActivationStore

Array = np.ndarray[Any, Any]
_SHOWN = 20


class SqlResult:
    """What a query gives; it runs when it is read, and streams where it is read in batches.

    Shown, it runs for its first rows only.

    Any library that takes Arrow streams takes it as it is: ``polars.DataFrame(result)``.

    Attributes
    ----------
    query
        The SQL.
    columns
        Names of the result's columns.
    """

    def __init__(self, store: "ActivationStore | ManyStores", query: str) -> None:
        check_text("The query", query)
        self.query = query
        self._store = store
        self._everything = _tables(store)
        self._tables = _narrowed(self._everything, query, what="The query", among=self._everything)
        self.columns = _columns(self._tables, query, among=self._everything)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The result, a batch at a time, without holding it.

        Raises
        ------
        InvalidQuery
            It fails on the way: a cast that is impossible, too little memory.
        """
        with self._running() as reader:
            yield from reader

    def _running(self, limit: int | None = None) -> AbstractContextManager[pa.RecordBatchReader]:
        return _running(
            self._tables, self.query, what="The query", among=self._everything, limit=limit
        )

    @cached_property
    def _table(self) -> pa.Table:
        with self._running() as reader:
            return reader.read_all()

    def table(self) -> pa.Table:
        """The whole result as Arrow; kept, so that it runs once."""
        return self._table

    def to_pandas(self) -> Any:
        """The whole result as a pandas data frame."""
        return self._table.to_pandas()

    def rows(self) -> Rows:
        """The rows that its column ``row`` names.

        Raises
        ------
        InvalidQuery
            It has no such column, or the column does not hold row numbers.
        """
        if "row" not in self.columns:
            raise InvalidQuery(
                f"The result has no column `row`, but {', '.join(self.columns)}\n"
                "hint: select tokens.row to get rows"
            )
        column = self._table["row"]
        if not pa.types.is_integer(column.type) or column.null_count:
            raise InvalidQuery(
                f"The column `row` is of type {column.type} with {column.null_count:,} nulls; "
                "row numbers are integers\nhint: select tokens.row as it is"
            )
        return Rows(self._store, column.to_numpy(), found_by=f"sql {_one_line(self.query)}")

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        running = self._running()
        source = running.__enter__()

        def batches() -> Iterator[pa.RecordBatch]:
            try:
                yield from source
            finally:
                running.__exit__(None, None, None)

        reader = pa.RecordBatchReader.from_batches(source.schema, batches())
        return reader.__arrow_c_stream__(requested_schema)

    def __repr__(self) -> str:
        rows, rest = self._shown()
        return "\n".join([*(" | ".join(row) for row in [self._head, *rows]), *rest])

    def _repr_html_(self) -> str:
        rows, rest = self._shown()
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self._head)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(value)}</td>" for value in row) + "</tr>"
            for row in rows
        )
        return f"<table><tr>{head}</tr>{body}</table><small>{''.join(rest)}</small>"

    @property
    def _head(self) -> list[str]:
        return [printable(name) for name in self.columns]

    def _shown(self) -> tuple[list[list[str]], list[str]]:
        """The first rows, and a line on the others; how many there are if all were read before."""
        read = vars(self).get("_table")
        if read is not None:
            first, left = read, f"{read.num_rows - _SHOWN:,} more rows"
        else:
            with self._running(limit=_SHOWN + 1) as reader:
                first, left = reader.read_all(), "more rows"
        columns = [column.to_pylist() for column in first.slice(0, _SHOWN).columns]
        rows = [[printable(str(value)) for value in row] for row in zip(*columns, strict=True)]
        return rows, [f"… and {left}"] if first.num_rows > _SHOWN else []


def rows_where(
    store: "ActivationStore",
    where: str,
    *,
    among: Array | None,
    first_row: int = 0,
    elsewhere: Mapping[str, Relation] | None = None,
) -> Array:
    """The rows that meet a predicate, (n,) int64, ascending; see `rows_where_in_batches`."""
    found = list(
        rows_where_in_batches(store, where, among=among, first_row=first_row, elsewhere=elsewhere)
    )
    return np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)


def rows_where_in_batches(
    store: "ActivationStore",
    where: str,
    *,
    among: Array | None = None,
    first_row: int = 0,
    elsewhere: Mapping[str, Relation] | None = None,
) -> Iterator[Array]:
    """The rows that meet a predicate, some at a time, in any order, perhaps several times.

    The predicate sees the columns of tokens, of documents and of the attached labels, with nulls
    where there is no label. A plain name is the tokens' column, else the documents'; what has
    the same name in another table is called after its table, as ``document_id``.

    Parameters
    ----------
    among
        (n,) int64 and ascending, the rows to ask about; None for all of the store.
    first_row
        The number of the store's first row: rows are numbered from there in what is asked and
        answered, but not in `among`.
    elsewhere
        Label tables of the stores that are asked together (`label_tables`): those that this store
        lacks have no label here.

    Raises
    ------
    InvalidQuery
        It is empty, not a predicate, or names columns that there are not.
    MissingExtra
        The extra ``query`` is not installed.
    """
    check_text("where", where)
    if not where.strip():
        raise InvalidQuery(
            "An empty predicate says nothing of a row\n"
            "hint: leave where out, or give one such as 'position > 0'"
        )
    what = f"where={where!r}"
    names = _names(f"SELECT 1 WHERE (\n{where}\n)", what=what)
    shift = {"row": first_row}
    lacking = {name: relation.emptied() for name, relation in (elsewhere or {}).items()}
    tables = {
        name: relation.shifted(shift) if relation.schema.names[0] == "row" else relation
        for name, relation in _told_apart(lacking | _tables_of_one(store)).items()
    }
    joins = []
    for name, relation in tables.items():
        key, *columns = (column.lower() for column in relation.schema.names)
        if name not in _UNJOINED and (names is None or names & {name, *columns}):
            joins.append(f'LEFT JOIN "{name}" USING ({key})')
    # A subquery on tokens asks all of them, whatever rows are asked about.
    asked = tables["tokens"] if among is None else tokens_relation(store, among).shifted(shift)
    query = f'SELECT row FROM "{_ASKED}" AS tokens {" ".join(joins)} WHERE\n(\n{where}\n)'
    narrowed = _narrowed(tables | {_ASKED: asked}, query, what=what, among=tables)
    with _running(narrowed, query, what=what, among=tables) as reader:
        for batch in reader:
            yield batch["row"].to_numpy(zero_copy_only=False)


# Like nothing that anybody may write: DuckDB names the table most like an unknown one.
_ASKED = "·"
_UNJOINED = {"tokens", "vocabulary"}


def _told_apart(tables: Mapping[str, Relation]) -> dict[str, Relation]:
    """The tables, with a prefix on columns that would have the name of another table's."""
    apart = dict(tables)
    taken = _lower(tables["tokens"])
    documents = tables["documents"].renamed({}, without=["split"])  # it is the tokens' too
    apart["documents"] = _prefixed(documents, "document", taken)
    taken |= _lower(apart["documents"])
    for name in apart.keys() - _UNJOINED - {"documents"}:
        apart[name] = _prefixed(apart[name], name, taken)
    return apart


def _prefixed(relation: Relation, prefix: str, taken: frozenset[str]) -> Relation:
    """With a prefix on names that are taken, but for the first column: by it tables are joined."""
    names = {}
    for column in relation.schema.names[1:]:
        name, others = column, taken
        while name.lower() in others:
            name, others = f"{prefix}_{name}", taken | _lower(relation)
        names[column] = name
    return relation.renamed(names)


def _lower(relation: Relation) -> frozenset[str]:
    return frozenset(name.lower() for name in relation.schema.names)


def label_tables(parts: Sequence[Part]) -> dict[str, Relation]:
    """The label tables of stores that are asked together, each of the first store that has it.

    None for a store alone, which knows its own.
    """
    tables: dict[str, Relation] = {}
    for part in parts if len(parts) > 1 else ():
        for name in attached_names(part.store):
            if name not in tables:
                tables[name] = labels_relation(part.store, name)
    return tables


def _tables(store: "ActivationStore | ManyStores") -> dict[str, Relation]:
    """Of several stores: the tables of each one after the other, numbered through."""
    if not hasattr(store, "stores"):
        return _tables_of_one(store)
    of_each: dict[str, list[tuple[int, Relation]]] = {}
    for part in parts_of(store):
        for name, relation in _tables_of_one(part.store).items():
            key = relation.schema.names[0]
            shift = part.shift if name == "tokens" else {key: part.shift.get(key, 0)}
            of_each.setdefault(name, []).append((part.number, relation.shifted(shift)))
    _, vocabulary = of_each.pop("vocabulary")[0]  # they have one tokenizer
    tables = {name: joined(name, relations) for name, relations in of_each.items()}
    return tables | {"vocabulary": vocabulary}


def _tables_of_one(store: "ActivationStore") -> dict[str, Relation]:
    tables = {
        "tokens": tokens_relation(store),
        "documents": documents_relation(store),
        "vocabulary": vocabulary_relation(store),
    }
    return tables | {name: labels_relation(store, name) for name in attached_names(store)}


def _narrowed(
    tables: Mapping[str, Relation], query: str, *, what: str, among: Mapping[str, Relation]
) -> dict[str, Relation]:
    """The tables with the columns that a query names, so that no others are read.

    What a query names is worked out from its syntax tree. Where that is too few, DuckDB refuses
    the query; it is then asked again with every column.
    """
    names = _names(query, what=what)
    everything = dict(tables)
    if names is None:
        return everything
    narrow = {name: relation.only(names) for name, relation in tables.items()}
    duckdb = _duckdb()
    try:
        with _connection(narrow) as connection:
            connection.sql(query)
    except (duckdb.BinderException, duckdb.CatalogException):
        return everything
    except duckdb.Error as error:
        raise _refused(error, among, what=what) from error
    return narrow


_WIDE = {"STAR", "SHOW_REF", "PIVOT", "NATURAL"}


def _names(query: str, *, what: str) -> frozenset[str] | None:
    """All names of columns, tables and aliases in a query, lower case; None for every column."""
    found: set[str] = set()
    alone: set[str] = set()
    tables: set[str] = set()
    for node in _nodes(_tree(query, what=what)):
        if {node.get("type"), node.get("class"), node.get("ref_type")} & _WIDE:
            return None
        if node.get("column_name_alias"):  # renames columns by their place
            return None
        parts = [str(name).lower() for name in node.get("column_names") or ()]
        found.update(parts)
        found.update(str(name).lower() for name in node.get("using_columns") or ())
        if len(parts) == 1:
            alone.update(parts)
        if node.get("type") == "BASE_TABLE":
            tables.update((str(node["table_name"]).lower(), str(node["alias"]).lower()))
    return None if alone & tables else frozenset(found)  # a table's name alone is its whole row


def _tree(query: str, *, what: str) -> Any:
    """The syntax tree of one SELECT statement."""
    duckdb = _duckdb()
    with _connection({}) as connection:
        try:
            [(text,)] = connection.execute("SELECT json_serialize_sql(?)", [query]).fetchall()
        except duckdb.Error as error:
            raise InvalidQuery(f"{what} is not SQL: {error}") from error
    tree = json.loads(text)
    if not tree["error"]:
        if len(tree["statements"]) != 1:
            raise InvalidQuery(
                f"{what} holds {len(tree['statements'])} statements\nhint: give one SELECT"
            )
        return tree["statements"]
    message = str(tree["error_message"]).strip()
    if tree.get("error_type") == "not implemented":
        raise InvalidQuery(
            f"{what} is no SELECT: {_one_line(query)}\n"
            "hint: a store is only read; SELECT and WITH … SELECT are taken"
        )
    place = str(tree.get("position", ""))
    near = f" (… {_one_line(query[max(0, int(place) - 20) :])})" if place.isdigit() else ""
    raise InvalidQuery(f"{what} is not valid SQL: {message}{near}\nhint: it is DuckDB's SQL")


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
        tree = list(tree.values())
    if isinstance(tree, list):
        for part in tree:
            yield from _nodes(part)


class _Scanned:
    """A relation that DuckDB can scan, and what went wrong while it did."""

    def __init__(self, relation: Relation) -> None:
        self._relation = relation
        self.error: StoreError | None = None

    def __arrow_c_schema__(self) -> Any:
        return self._relation.schema.__arrow_c_schema__()

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        reader = pa.RecordBatchReader.from_batches(self._relation.schema, self._batches())
        return reader.__arrow_c_stream__()

    def _batches(self) -> Iterator[pa.RecordBatch]:
        try:
            yield from self._relation.reader()
        except StoreError as error:  # DuckDB would keep its words only
            self.error = error
            raise


def _columns(
    tables: Mapping[str, Relation], query: str, *, among: Mapping[str, Relation]
) -> tuple[str, ...]:
    """Names of the result's columns; nothing is read."""
    duckdb = _duckdb()
    try:
        with _connection(tables) as connection:
            return tuple(connection.sql(query).columns)
    except duckdb.Error as error:
        raise _refused(error, among, what="The query") from error


@contextmanager
def _running(
    tables: Mapping[str, Relation],
    query: str,
    *,
    what: str,
    among: Mapping[str, Relation],
    limit: int | None = None,
) -> Iterator[pa.RecordBatchReader]:
    """The result, or its first `limit` rows, as a reader that pulls; errors are in our words.

    `tables` are what is scanned, `among` what the message says there is.
    """
    duckdb = _duckdb()
    scanned = {name: _Scanned(relation) for name, relation in tables.items()}
    try:
        with _connection(scanned) as connection:
            result = connection.sql(query)
            reader = pa.RecordBatchReader.from_stream(
                result if limit is None else result.limit(limit)
            )
            try:
                yield reader
            finally:
                reader.close()
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        if isinstance(error, StoreError):
            raise
        for scan in scanned.values():
            if scan.error is not None:
                raise scan.error from error
        raise _refused(error, among, what=what) from error


@contextmanager
def _connection(tables: Mapping[str, Any]) -> Iterator[Any]:
    duckdb = _duckdb()
    spill = Path(tempfile.gettempdir()) / f"actlake-sql-{uuid.uuid4().hex}"  # made if needed
    connection = duckdb.connect(
        ":memory:",
        config={
            "enable_external_access": "false",
            "autoload_known_extensions": "false",
            "autoinstall_known_extensions": "false",
            "allow_community_extensions": "false",
            "python_enable_replacements": "false",
            "temp_directory": str(spill),
            "lock_configuration": "true",
        },
    )
    try:
        for name, relation in tables.items():
            scan = relation if isinstance(relation, _Scanned) else _Scanned(relation)
            connection.register(name, scan)
        yield connection
    finally:
        connection.close()


def _duckdb() -> Any:
    try:
        import duckdb
    except ModuleNotFoundError as error:
        raise missing_extra("SQL over a store", package="duckdb", extra="query") from error
    return duckdb


def _refused(error: Exception, tables: Mapping[str, Relation], *, what: str) -> InvalidQuery:
    there = "; ".join(f"{name}({', '.join(r.schema.names)})" for name, r in tables.items())
    said = f"{what} cannot be answered. {str(error).strip()}\nhint: there are {there}"
    return InvalidQuery(printable_lines(said))  # it may quote the text


def _one_line(query: str) -> str:
    text = " ".join(query.split())
    return text if len(text) <= 80 else f"{text[:79]}…"
