"""Some rows of a store: a sorted set of row numbers that reads, shows and combines itself."""

import html
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from actlake.storage.arrays import as_rows
from actlake.storage.errors import EmptySelection, InvalidQuery
from actlake.storage.querying.arguments import check_choice
from actlake.storage.querying.parts import Part, parts_of, refuse_gaps
from actlake.storage.querying.passages import Passage, Passages, passages
from actlake.storage.row_indexing import Missing
from actlake.storage.sites import Site

if TYPE_CHECKING:  # both hand them out
    from actlake.storage.reading.many import ManyStores
    from actlake.storage.store import ActivationStore

Array = np.ndarray[Any, Any]
_SHOWN = 5


class Rows:
    """Rows of a store, or of several as one, ascending, each once. `find` makes them.

    ``a & b``, ``a | b``, ``a - b`` and ``a ^ b`` are the rows of both, of either, of the first
    only, and of exactly one.

    Attributes
    ----------
    store
        Whose rows they are.
    rows
        (n,) int64 row numbers, read-only.
    found_by
        What they were found by, for people.
    """

    def __init__(
        self, store: "ActivationStore | ManyStores", rows: Any, *, found_by: str = "rows"
    ) -> None:
        numbers = np.array(as_rows(rows, len(store), of=store.url))
        refuse_gaps(store, numbers)
        if len(numbers) > 1 and not (numbers[1:] > numbers[:-1]).all():
            numbers = np.unique(numbers)
        numbers.flags.writeable = False
        self.store = store
        self.rows = numbers
        self.found_by = found_by

    # As a set.

    @property
    def count(self) -> int:
        """How many rows."""
        return len(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[int]:
        return iter(self.rows.tolist())

    def __contains__(self, row: object) -> bool:
        if not isinstance(row, int | np.integer):
            return False
        place = int(np.searchsorted(self.rows, row))
        return place < len(self.rows) and int(self.rows[place]) == row

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self.rows if dtype is None else self.rows.astype(dtype)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Rows):
            return NotImplemented
        same = self.store.fingerprint == other.store.fingerprint
        return same and np.array_equal(self.rows, other.rows)

    __hash__ = None  # type: ignore[assignment]  # compared by its rows

    def __and__(self, other: "Rows") -> "Rows":
        return self._with(other, np.intersect1d, "&")

    def __or__(self, other: "Rows") -> "Rows":
        return self._with(other, np.union1d, "|")

    def __sub__(self, other: "Rows") -> "Rows":
        return self._with(other, np.setdiff1d, "-")

    def __xor__(self, other: "Rows") -> "Rows":
        return self._with(other, np.setxor1d, "^")

    def _with(self, other: object, combine: Callable[[Array, Array], Array], sign: str) -> "Rows":
        if not isinstance(other, Rows):
            return NotImplemented  # type: ignore[no-any-return]  # from an operator
        rows = combine(self.rows, other.numbers_in(self.store))
        return Rows(self.store, rows, found_by=f"({self.found_by}) {sign} ({other.found_by})")

    def numbers_in(self, store: "ActivationStore | ManyStores") -> Array:
        """(n,) int64: `rows`, if they are rows of that store.

        Raises
        ------
        InvalidQuery
            They are of a store with other tokens, where the same numbers mean other rows.
        """
        if self.store.fingerprint != store.fingerprint:
            raise InvalidQuery(
                f"Rows of {self.store.url} and of {store.url} are not the same tokens\n"
                "hint: use rows with the store that found them"
            )
        return self.rows

    def sample(self, n: int, seed: int) -> "Rows":
        """`n` of the rows, drawn without repetition; the same for the same seed.

        All of them if there are no more than `n`.

        Raises
        ------
        EmptySelection
            There is no row to draw.
        """
        self._refuse_none()
        if n < 1:
            raise InvalidQuery(f"A sample has at least one row, not {n}")
        drawn = np.random.default_rng(seed).permutation(len(self.rows))[:n]
        found_by = f"{min(n, len(self)):,} of {self.found_by}"
        return Rows(self.store, np.sort(self.rows[drawn]), found_by=found_by)

    def committed(self, *sites: str | Site) -> "Rows":
        """Those whose activations are there: of the given sites, or of all stored ones."""
        parts = parts_of(self.store)
        present = [_committed(part.store, part.among(self.rows), sites) for part in parts]
        rows = self.rows[np.concatenate(present)]
        return Rows(self.store, rows, found_by=f"{self.found_by}, committed")

    # What they hold.

    def acts(self, sites: str | Site | Sequence[str | Site], *, missing: Missing = "raise") -> Any:
        """Their activations: (n, dim) of a site; of several sites, a dict of such arrays.

        Parameters
        ----------
        missing
            What a row of a unit that is not committed gives: an error, or NaN.

        Raises
        ------
        EmptySelection
            There is no row.
        InvalidQuery
            `missing` is neither word.
        SiteNotStored, RowsNotCommitted
            As their names say; `committed` gives the rows that are there.
        """
        check_choice("missing", missing, Missing)
        self._refuse_none()
        if isinstance(sites, str | Site):
            return self._acts(sites, missing)
        return {site: self._acts(site, missing) for site in map(Site.parse, sites)}

    def _acts(self, site: str | Site, missing: Missing) -> Array:
        parts = [
            part.store[site].take(local, missing=missing)
            for part in parts_of(self.store)
            if len(local := part.among(self.rows))
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def table(self) -> pa.Table:
        """Everything but activations, as Arrow (``.to_pandas()``, ``polars.from_arrow``).

        Columns: row, id, token (the text), document_number, document_id, position, char, context,
        split.
        """
        return pa.concat_tables(
            [_table(part, part.among(self.rows)) for part in parts_of(self.store)]
        )

    def context(self, before: int = 8, after: int = 8, *, limit: int | None = 10) -> Passages:
        """Readable text around each row, the row's token marked; ids if there is no tokenizer.

        Parameters
        ----------
        before, after
            Tokens to each side, within what the model saw at once.
        limit
            Rows to show, the first; None for all.

        Raises
        ------
        EmptySelection
            There is no row.
        """
        self._refuse_none()
        if before < 0 or after < 0:
            raise InvalidQuery(f"before and after count tokens, and are {before} and {after}")
        return self._passages(before, after, limit)

    def _passages(self, before: int, after: int, limit: int | None) -> Passages:
        shown = self.rows[:limit]
        lines = [
            replace(line, row=line.row + part.first_row)
            for part in parts_of(self.store)
            for line in _passages_of(part.store, part.among(shown), before, after)
        ]
        return Passages(tuple(lines), len(self))

    def _refuse_none(self) -> None:
        if not len(self):
            raise EmptySelection(
                f"No row of {self.store.url} is found by {self.found_by}\n"
                "hint: look at len(rows) first, or ask for less"
            )

    # For people.

    def __repr__(self) -> str:
        head = self._headline()
        return "\n".join([head, *([repr(self._passages(6, 6, _SHOWN))] if len(self) else [])])

    def _repr_html_(self) -> str:
        shown = self._passages(6, 6, _SHOWN)._repr_html_() if len(self) else ""
        return f"<b>{html.escape(self._headline())}</b>{shown}"

    def _headline(self) -> str:
        if not len(self):
            return f"no rows: {self.found_by}"
        splits: Counter[str] = Counter()
        num_documents = 0
        for part in parts_of(self.store):
            rows = part.among(self.rows)
            codes, counts = np.unique(part.store.lookup.splits(rows), return_counts=True)
            names = [part.store.schema.splits[code] for code in codes.tolist()]
            splits.update(dict(zip(names, counts.tolist(), strict=True)))
            num_documents += len(np.unique(part.store.tokens["document"].take(rows)))
        counted = ", ".join(f"{split} {count:,}" for split, count in splits.items())
        how_many, where = _counted(len(self), "row"), _counted(num_documents, "document")
        return f"{how_many} in {where} ({counted}): {self.found_by}"


def _committed(store: "ActivationStore", rows: Array, sites: Sequence[str | Site]) -> Array:
    """(n,) bool: which rows are there to be read."""
    edges = np.array(store.readable(sites or None).runs(), np.int64).reshape(-1)
    unit = rows // store.schema.geometry.unit_rows
    present: Array = np.searchsorted(edges, unit, side="right") % 2 == 1
    return present


def _table(part: Part, rows: Array) -> pa.Table:
    """The rows of one store as Arrow, numbered through."""
    store = part.store
    ids = store.tokens["id"].take(rows)
    vocabulary = store.lookup.vocabulary
    distinct, places = np.unique(ids, return_inverse=True)
    texts = pa.array([vocabulary.text(token) for token in distinct.tolist()], pa.string())
    splits = pa.DictionaryArray.from_arrays(
        pa.array(store.lookup.splits(rows)), pa.array(store.schema.splits)
    )
    return pa.table(
        {
            "row": rows + part.first_row,
            "id": ids,
            "token": texts.take(pa.array(places)),
            "document_number": store.tokens["document"].take(rows) + part.first_document,
            "document_id": pa.array(_document_ids(store, rows), pa.string()),
            "position": store.tokens["position"].take(rows),
            "char": store.tokens["char"].take(rows),
            "context": store.lookup.contexts(rows) + part.first_context,
            "split": splits.cast(pa.string()),
        }
    )


def _passages_of(
    store: "ActivationStore", rows: Array, before: int, after: int
) -> tuple[Passage, ...]:
    return passages(store, rows, _document_ids(store, rows), before=before, after=after)


def _document_ids(store: "ActivationStore", rows: Array) -> list[str]:
    ids: list[str] = store.lookup.document_ids[store.tokens["document"].take(rows)].tolist()
    return ids


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
