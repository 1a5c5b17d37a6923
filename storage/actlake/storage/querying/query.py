r"""Find the rows that are meant, in one line.

    store.find(token=" Paris")                          by token, through an index
    store.find(text="New York", split="test")           by text, however it is tokenised
    store.find(regex=r"\bclass \w+", at="all")
    store.find(document="pydoc/assert", where="position < 10 and sentiment.label = 'positive'")

Every criterion narrows what the others find. Rows are found by what the tokens are, whether
their activations are committed or not.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from actlake.storage.errors import InvalidQuery, NotInStore, unknown_split
from actlake.storage.querying.arguments import (
    check_choice,
    check_sought,
    check_text,
    document_numbers_of,
    ids_of,
    names_of,
    pattern_of,
)
from actlake.storage.querying.parts import Part, parts_of
from actlake.storage.querying.relations import Relation
from actlake.storage.querying.rows import Rows
from actlake.storage.querying.sql import label_tables, rows_where
from actlake.storage.querying.text_search import At, rows_of_text

if TYPE_CHECKING:  # both call this
    from actlake.storage.reading.many import ManyStores
    from actlake.storage.store import ActivationStore

Array = np.ndarray[Any, Any]
logger = logging.getLogger(__name__)
TokenName = str | int | Sequence[str | int]
DocumentId = str | int | Sequence[str | int]
DocumentNumber = int | Sequence[int]


class Criteria(TypedDict, total=False):
    """What `find` takes."""

    token: TokenName | None
    text: str | None
    regex: str | re.Pattern[str] | None
    document: DocumentId | None
    document_number: DocumentNumber | None
    split: str | None
    where: str | None
    at: At


def find(
    store: "ActivationStore | ManyStores",
    *,
    token: TokenName | None = None,
    text: str | None = None,
    regex: str | re.Pattern[str] | None = None,
    document: DocumentId | None = None,
    document_number: DocumentNumber | None = None,
    split: str | None = None,
    where: str | None = None,
    at: At = "last",
) -> Rows:
    """The rows that meet all criteria; see `ActivationStore.find`.

    Of several stores each is asked for itself; rows and documents are numbered through.
    """
    given = {
        "token": token,
        "text": text,
        "regex": regex,
        "document": document,
        "document_number": document_number,
        "split": split,
        "where": where,
    }
    asked = {name: value for name, value in given.items() if value is not None}
    if not asked:
        raise InvalidQuery(
            "find was given nothing to look for\n"
            f"hint: give at least one of {', '.join(given)}; store.sql asks anything else"
        )
    check_choice("at", at, At)
    parts = parts_of(store)
    question = _Question(
        ids=None if token is None else _token_ids(parts, token),
        documents=_documents(parts, document, document_number, url=store.url),
        sought=_sought(text, regex),
        split=None if split is None else _known_split(parts, split, url=store.url),
        where=where,
        elsewhere={} if where is None else label_tables(parts),
        at=at,
    )
    found = [_rows_of_part(part, question) for part in parts]
    rows = np.concatenate([rows for rows, _ in found])
    found_by = ", ".join(f"{name} {_shown(asked[name])}" for name in asked)
    if num_across := sum(across for _, across in found):
        left_out = f"{num_across:,} across a context's border left out"
        logger.warning("find(%s): %s; no token has seen all of these", found_by, left_out)
        found_by += f" ({left_out})"
    return Rows(store, rows, found_by=found_by)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Question:
    """What is asked of each store."""

    ids: list[int] | None
    documents: list[Array] | None
    """Of each store, the numbers of the documents that are meant."""
    sought: list[str | re.Pattern[str]]
    """What is searched in the documents' text."""
    split: str | None
    where: str | None
    elsewhere: Mapping[str, Relation]
    """The label tables of all stores, where there are several."""
    at: At


def _rows_of_part(part: Part, asked: _Question) -> tuple[Array, int]:
    """What is found in one store.

    Returns
    -------
    rows
        (n,) int64, numbered through.
    across_contexts
        See `Occurrences`.
    """
    store = part.store
    rows = None if asked.ids is None else _rows_of_tokens(store, asked.ids)
    documents = None if asked.documents is None else asked.documents[part.number]
    if documents is not None:
        rows = _both(rows, _rows_of_documents(store, documents))
    num_across = 0
    for sought in asked.sought:
        among = documents
        if rows is not None:
            among = np.unique(store.tokens["document"].take(rows))
        if asked.split is not None:
            among = _both(among, _documents_of_split(store, asked.split))
        here = rows_of_text(store, sought, at=asked.at, among=among)
        rows = _both(rows, here.rows)
        num_across += here.across_contexts
    if asked.split is not None:
        rows = _of_split(store, rows, asked.split)
    if asked.where is None:
        assert rows is not None, asked
        return rows + part.first_row, num_across
    found = rows_where(
        store, asked.where, among=rows, first_row=part.first_row, elsewhere=asked.elsewhere
    )
    return found, num_across


def _documents_of_split(store: "ActivationStore", split: str) -> Array:
    if split not in store.schema.splits:  # another of the stores has it
        return np.empty(0, np.int64)
    return store.lookup.documents_of_split(split)


def _known_split(parts: Sequence[Part], split: str, *, url: str) -> str:
    check_text("split", split)
    known = dict.fromkeys(name for part in parts for name in part.store.schema.splits)
    if split not in known:
        raise unknown_split(split, known, url=url)
    return split


def _of_split(store: "ActivationStore", rows: Array | None, split: str) -> Array:
    if split not in store.schema.splits:  # another of the stores has it
        return np.empty(0, np.int64)
    if rows is None:
        return store.lookup.rows_of_split(split)
    kept: Array = rows[store.lookup.splits(rows) == store.lookup.split_code(split)]
    return kept


def _rows_of_tokens(store: "ActivationStore", ids: Sequence[int]) -> Array:
    found = [store.lookup.tokens.rows(number) for number in ids]
    return np.sort(np.concatenate(found)) if len(found) > 1 else found[0]


def _token_ids(parts: Sequence[Part], token: TokenName) -> list[int]:
    """The ids of all tokens meant, sorted; stores that are asked together have one tokenizer."""
    names = names_of("token", token)
    return sorted({number for name in names for number in _ids_of(parts, name)})


def _ids_of(parts: Sequence[Part], token: str | int) -> list[int]:
    vocabulary = parts[0].store.lookup.vocabulary
    if isinstance(token, str):
        return vocabulary.ids(token)
    occurs = token in vocabulary.pieces or any(p.store.lookup.tokens.count(token) for p in parts)
    if not occurs:
        pieces = vocabulary.pieces
        largest = max(pieces, default=0)
        known = f"the store's tokenizer has {len(pieces):,} tokens, from 0 to {largest:,}"
        raise NotInStore(
            f"There is no token {token}; {known if pieces else 'the store has no tokenizer'}\n"
            "hint: give a token's id, or its text"
        )
    return [token]


def _documents(
    parts: Sequence[Part], ids: DocumentId | None, numbers: DocumentNumber | None, *, url: str
) -> list[Array] | None:
    """Of each store, the numbers of the documents that are meant; an id may be in several."""
    by_id = None if ids is None else _documents_by_id(parts, ids)
    by_number = None if numbers is None else _documents_by_number(parts, numbers, url=url)
    if by_id is None or by_number is None:
        return by_number if by_id is None else by_id
    return [np.intersect1d(*both) for both in zip(by_id, by_number, strict=True)]


def _documents_by_id(parts: Sequence[Part], ids: DocumentId) -> list[Array]:
    names = ids_of("document", ids)
    of_each = [part.store.lookup.document_numbers(names) for part in parts]
    for name, found in zip(names, np.stack(of_each, axis=1), strict=True):
        if (found < 0).all():
            parts[0].store.lookup.document_number(name)  # refuses, and names the nearest
    return [np.unique(found[found >= 0]) for found in of_each]


def _documents_by_number(
    parts: Sequence[Part], numbers: DocumentNumber, *, url: str
) -> list[Array]:
    total = sum(part.store.schema.documents for part in parts)
    asked = document_numbers_of("document_number", numbers, total, of=url)
    local = [asked - part.first_document for part in parts]
    return [
        here[(here >= 0) & (here < part.store.schema.documents)]
        for part, here in zip(parts, local, strict=True)
    ]


def _rows_of_documents(store: "ActivationStore", documents: Array) -> Array:
    _, rows = store.lookup.documents.rows_of_each(documents)
    return np.sort(rows)


def _sought(text: str | None, regex: str | re.Pattern[str] | None) -> list[str | re.Pattern[str]]:
    sought: list[str | re.Pattern[str]] = []
    if text is not None:
        check_sought(text)
        sought.append(text)
    if regex is not None:
        sought.append(pattern_of(regex))
    return sought


def _both(rows: Array | None, found: Array) -> Array:
    return found if rows is None else np.intersect1d(rows, found, assume_unique=True)


def _shown(value: Any) -> str:
    shown = value.pattern if isinstance(value, re.Pattern) else value
    text = repr(shown)
    return text if len(text) <= 60 else f"{text[:57]}…"
