"""Rows that belong together, of documents that differ in a condition: clean and noisy prompts.

    pairs = store.paired(on="pair", column="condition", of=("clean", "noisy"))
    clean, noisy = pairs.acts("resid_post.9")           # (pairs, dim) each, aligned
    pairs.table()                                       # a row each: key, condition, row, token, …

The same of stores that differ in what made them, as quantised weights, checkpoints and context
lengths do, over the documents that all of them have:

    pairs = paired_stores({"bfloat16": store, "int8": other}, at="token")
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Required, TypeAlias, TypedDict

import numpy as np
import pyarrow as pa

from actlake.storage.errors import EmptySelection, InvalidQuery, nearest
from actlake.storage.querying.arguments import check_choice
from actlake.storage.querying.document_table import document_schema
from actlake.storage.querying.parts import Part, parts_of
from actlake.storage.querying.query import find
from actlake.storage.querying.ranges import expanded
from actlake.storage.querying.rows import Rows
from actlake.storage.sites import Site

if TYPE_CHECKING:  # both call this
    from actlake.storage.reading.many import ManyStores
    from actlake.storage.store import ActivationStore

    Asked: TypeAlias = ActivationStore | ManyStores

Array = np.ndarray[Any, Any]
Key = str | int
Incomplete = Literal["refuse", "drop"]
LAST, TOKEN = "last", "token"
_SHOWN = 3


class Pairing(TypedDict, total=False):
    """What `ActivationStore.paired` takes, which explains it; the first three are needed."""

    on: Required[str]
    column: Required[str]
    of: Required[Sequence[str]]
    at: str
    where: str | None
    incomplete: Incomplete


@dataclass(frozen=True, eq=False)
class Paired:
    """Rows of several conditions, aligned. `ActivationStore.paired` and `paired_stores` make them.

    Iterated over it gives the rows of each condition, as `Rows` are too; but those are sets, in
    the order of their store, and only `rows` and what is read here is aligned.
    """

    conditions: tuple[str, ...]
    rows: Array
    """(n, conditions) int64: the rows of line i belong together."""
    keys: tuple[Key, ...]
    """(n,) what each line is of: the value that its documents share, or their id."""
    left_out: Mapping[str, int]
    """How many documents, or lines, are not among them, by the reason."""
    stores: tuple["Asked", ...]
    """The store of each condition; mostly one and the same."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, condition: str) -> Rows:
        """The rows of a condition as a set.

        Raises
        ------
        InvalidQuery
            There is no such condition.
        """
        place = self._place(condition)
        return Rows(self.stores[place], self.rows[:, place], found_by=f"condition {condition!r}")

    def acts(self, sites: str | Site | Sequence[str | Site]) -> Any:
        """Of each condition its activations, (n, dim), line by line; of several sites, by site.

        Raises
        ------
        SiteNotStored, RowsNotCommitted
            As their names say.
        """
        if not isinstance(sites, str | Site):
            return {site: self.acts(site) for site in map(Site.parse, sites)}
        return tuple(
            store.take(self.rows[:, place], sites) for place, store in enumerate(self.stores)
        )

    def table(self) -> pa.Table:
        """Everything but activations, a row for each line and condition, lines together.

        Columns: line, key, condition, and those of `Rows.table`.
        """
        parts = []
        for place, condition in enumerate(self.conditions):
            found = Rows(self.stores[place], np.unique(self.rows[:, place])).table()
            at = np.searchsorted(found["row"].to_numpy(), self.rows[:, place])
            line = pa.array(np.arange(len(self)))
            own = {
                "line": line,
                "key": pa.array(self.keys),
                "condition": pa.array([condition] * len(self)),
            }
            taken = found.take(pa.array(at))
            parts.append(pa.table(own | {n: taken[n] for n in taken.column_names}))
        order = [(name, "ascending") for name in ("line", "place")]
        together = pa.concat_tables(
            part.append_column("place", pa.array([place] * len(self)))
            for place, part in enumerate(parts)
        )
        return together.sort_by(order).drop_columns(["place"])

    def __repr__(self) -> str:
        lost = "".join(f"; {number:,} {why}" for why, number in self.left_out.items() if number)
        return (
            f"{len(self):,} lines of {len(set(self.keys)):,} pairs, "
            f"{' | '.join(self.conditions)}{lost}"
        )

    def _place(self, condition: str) -> int:
        if condition not in self.conditions:
            raise InvalidQuery(
                f"There is no condition {condition!r}\n{nearest(condition, self.conditions)}"
            )
        return self.conditions.index(condition)


def paired(
    store: "Asked",
    *,
    on: str,
    column: str,
    of: Sequence[str],
    at: str = LAST,
    where: str | None = None,
    incomplete: Incomplete = "refuse",
) -> Paired:
    """The aligned rows of documents that differ in a condition; see `ActivationStore.paired`."""
    conditions = _conditions(of)
    check_choice("incomplete", incomplete, Incomplete)
    members: dict[str, dict[Key, int]] = {condition: {} for condition in conditions}
    without = 0
    for part in parts_of(store):
        for number, key, condition in _documents(part, on, column):
            if condition not in members:
                continue
            if key is None:
                without += 1
            elif key in members[condition]:
                raise InvalidQuery(
                    f"Two documents of {store.url} have {on} {key!r} and {column} {condition!r}, "
                    f"{_id(store, members[condition][key])!r} and {_id(store, number)!r}\n"
                    "hint: a pair has one document of each condition; name a column that tells "
                    "them apart as `on`"
                )
            else:
                members[condition][key] = number
    for condition in conditions:
        if not members[condition]:
            raise InvalidQuery(
                f"No document of {store.url} has {column} {condition!r} and {on}\n"
                + nearest(condition, _values(store, column))
            )
    asked = [(store, members[condition]) for condition in conditions]
    left_out = {f"documents without {on}": without}
    return _aligned(
        conditions, asked, at, where, incomplete, left_out, pair=f"pairs (documents of one {on})"
    )


def paired_stores(
    stores: "Mapping[str, Asked]",
    *,
    at: str = LAST,
    where: str | None = None,
    incomplete: Incomplete = "refuse",
) -> Paired:
    """The aligned rows of the documents of several stores, by their ids.

    The stores may be of different models, as of one before and after it was quantised.

    Parameters
    ----------
    stores
        By the name of each condition.
    at, where, incomplete
        As `ActivationStore.paired`; `where` is asked of each store.

    Raises
    ------
    InvalidQuery, EmptySelection, LabelsNotAttached, MissingExtra
        As `ActivationStore.paired`.
    """
    conditions = _conditions(tuple(stores))
    check_choice("incomplete", incomplete, Incomplete)
    asked: list[tuple[Asked, dict[Key, int]]] = [
        (
            store,
            {
                name: part.first_document + number
                for part in parts_of(store)
                for number, name in enumerate(part.store.lookup.document_ids.tolist())
            },
        )
        for store in stores.values()
    ]
    return _aligned(conditions, asked, at, where, incomplete, {}, pair="documents")


def _aligned(
    conditions: tuple[str, ...],
    asked: "Sequence[tuple[Asked, Mapping[Key, int]]]",
    at: str,
    where: str | None,
    incomplete: Incomplete,
    left_out: dict[str, int],
    *,
    pair: str,
) -> Paired:
    """Rows of the documents that each condition has, in the order of the first."""
    every = dict.fromkeys(key for _, documents in asked for key in documents)
    whole = [key for key in every if all(key in documents for _, documents in asked)]
    left_out[f"{pair} that lack a condition"] = _without(
        every, whole, incomplete, f"{pair} lack a condition"
    )
    lines = [
        _rows_of(store, np.array([documents[key] for key in whole], np.int64), at, where)
        for store, documents in asked
    ]
    lengths = np.array([counts for _, counts in lines])
    there: Array = np.array((lengths > 0).all(axis=0))
    kept = [key for key, is_there in zip(whole, there.tolist(), strict=True) if is_there]
    left_out[f"{pair} without a row there"] = _without(
        whole, kept, incomplete, f"{pair} have no row there in a condition"
    )
    if not kept:
        raise EmptySelection(
            f"There are no {pair} with rows in each of {', '.join(conditions)}\n"
            "hint: at and where choose rows of each document"
        )
    if at == TOKEN:
        _refuse_other_lengths(conditions, whole, lengths, there)
    rows = np.stack([_of_kept(found, there) for found in lines], axis=1)
    keys = np.repeat(np.arange(len(kept)), lengths[0][there]).tolist()
    return Paired(
        conditions, rows, tuple(kept[place] for place in keys), left_out,
        tuple(store for store, _ in asked),
    )  # fmt: skip


def _rows_of(store: "Asked", documents: Array, at: str, where: str | None) -> tuple[Array, Array]:
    """The rows meant of each document in turn, and (documents,) how many these are.

    Special tokens, beginnings and separators among them, are none.
    """
    allowed = None if where is None else find(store, where=where).rows
    found: list[tuple[Array, Array]] = []
    for part in parts_of(store):
        numbers = documents - part.first_document
        here = np.flatnonzero((numbers >= 0) & (numbers < part.store.schema.documents))
        which, rows = part.store.lookup.documents.rows_of_each(numbers[here])
        ids = part.store.tokens["id"].take(rows)
        meant = ~np.isin(ids, np.array(part.store.schema.special_ids, ids.dtype))
        if at not in (LAST, TOKEN):
            meant &= np.isin(rows, part.store.labels(at).rows)
        if allowed is not None:
            meant &= np.isin(rows + part.first_row, allowed)
        found.append((here[which[meant]], rows[meant] + part.first_row))
    which, rows = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.lexsort((rows, which))
    which, rows = which[order], rows[order]
    if at != TOKEN:
        last = np.append(np.diff(which) > 0, True)[: len(which)]
        which, rows = which[last], rows[last]
    return rows, np.bincount(which, minlength=len(documents))


def _of_kept(found: tuple[Array, Array], kept: Array) -> Array:
    """Of rows by document, those of the documents that are kept."""
    rows, counts = found
    _, places = expanded((np.cumsum(counts) - counts)[kept], counts[kept])
    chosen: Array = rows[places]
    return chosen


def _refuse_other_lengths(
    conditions: tuple[str, ...], keys: Sequence[Key], lengths: Array, there: Array
) -> None:
    other = there & (lengths != lengths[0]).any(axis=0)
    if other.any():
        at = int(other.argmax())
        counts = ", ".join(
            f"{condition} {count}"
            for condition, count in zip(conditions, lengths[:, at].tolist(), strict=True)
        )
        raise InvalidQuery(
            f"The members of {int(other.sum()):,} pairs have different numbers of tokens, such as "
            f"those of {keys[at]!r}: {counts}\n"
            'hint: at="last" or the name of labels takes one row of each; at="token" needs as many'
        )


def _without(
    every: Sequence[Key] | dict[Key, None], kept: Sequence[Key], incomplete: Incomplete, what: str
) -> int:
    """How many are left out; refused, with examples, where none may be."""
    lost = [key for key in every if key not in set(kept)] if len(kept) < len(every) else []
    if lost and incomplete == "refuse":
        shown = ", ".join(map(repr, lost[:_SHOWN])) + (", …" if len(lost) > _SHOWN else "")
        raise InvalidQuery(
            f"{len(lost):,} of {len(every):,} {what}: {shown}\n"
            'hint: complete them, or leave them out, counted, with incomplete="drop"'
        )
    return len(lost)


def _documents(part: Part, on: str, column: str) -> Iterator[tuple[int, Key | None, Any]]:
    """Of each document of a store its number, numbered through, and both values."""
    names = document_schema(part.store).names
    for name in (on, column):
        if name not in names:
            raise InvalidQuery(
                f"The documents of {part.store.url} have no column {name!r}\n{nearest(name, names)}"
            )
    table = part.store.documents(list(dict.fromkeys((on, column))))
    keys, conditions = (table[name].to_pylist() for name in (on, column))
    for number, (key, condition) in enumerate(zip(keys, conditions, strict=True)):
        yield part.first_document + number, key, condition


def _conditions(of: Sequence[str]) -> tuple[str, ...]:
    conditions = (of,) if isinstance(of, str) else tuple(of)
    if len(conditions) < 2 or len(set(conditions)) < len(conditions):
        raise InvalidQuery(
            f"Rows are paired over two or more different conditions, not {', '.join(conditions)}\n"
            'hint: such as of=("clean", "noisy")'
        )
    return conditions


def _values(store: "Asked", column: str) -> list[str]:
    values = (
        value
        for part in parts_of(store)
        for value in part.store.documents([column])[column].unique().to_pylist()
    )
    return list(dict.fromkeys(str(value) for value in values if value is not None))


def _id(store: "Asked", document: int) -> str:
    part = [part for part in parts_of(store) if part.first_document <= document][-1]
    return str(part.store.lookup.document_ids[document - part.first_document])
