r"""Find the rows that are meant, in one line.

    store.find(token=" Paris")                          by token, through an index
    store.find(text="New York", split="test")           by text, however it is tokenised
    store.find(regex=r"\bclass \w+", at="all")
    store.find(document="pydoc/assert", where="position < 10 and sentiment.label = 'positive'")

Every criterion narrows what the others find. Rows are found by what the tokens are, whether
their activations are committed or not.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from actlake.storage.errors import InvalidQuery, NotInStore, unknown_split
from actlake.storage.querying.arguments import (
    check_choice,
    check_text,
    names_of,
    pattern_of,
    pattern_of_text,
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
TokenName = str | int | Sequence[str | int]
DocumentName = str | int | Sequence[str | int]


class Criteria(TypedDict, total=False):
    """What `find` takes."""

    token: TokenName | None
    text: str | None
    regex: str | re.Pattern[str] | None
    document: DocumentName | None
    split: str | None
    where: str | None
    at: At


def find(
    store: "ActivationStore | ManyStores",
    *,
    token: TokenName | None = None,
    text: str | None = None,
    regex: str | re.Pattern[str] | None = None,
    document: DocumentName | None = None,
    split: str | None = None,
    where: str | None = None,
    at: At = "last",
) -> Rows:
    """The rows that meet all criteria; see `ActivationStore.find`.

    Of several stores each is asked for itself; rows and ordinals of documents are numbered through.
    """
    given = {
        "token": token,
        "text": text,
        "regex": regex,
        "document": document,
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
        ordinals=None if document is None else _ordinals(parts, document),
        patterns=_patterns(text, regex),
        split=None if split is None else _known_split(parts, split, url=store.url),
        where=where,
        elsewhere={} if where is None else label_tables(parts),
        at=at,
    )
    rows = np.concatenate([_rows_of_part(part, question) for part in parts])
    found_by = ", ".join(f"{name} {_shown(asked[name])}" for name in asked)
    return Rows(store, rows, found_by=found_by)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Question:
    """What is asked of each store."""

    ids: list[int] | None
    ordinals: list[Array] | None
    """Of each store, the documents that are meant."""
    patterns: list[tuple[re.Pattern[str], str | None]]
    """Each with the text that every match contains, where there is one."""
    split: str | None
    where: str | None
    elsewhere: Mapping[str, Relation]
    """The label tables of all stores, where there are several."""
    at: At


def _rows_of_part(part: Part, asked: _Question) -> Array:
    """(n,) int64: what is found in one store, numbered through."""
    store = part.store
    rows = None if asked.ids is None else _rows_of_tokens(store, asked.ids)
    ordinals = None if asked.ordinals is None else asked.ordinals[part.number]
    if ordinals is not None:
        rows = _both(rows, _rows_of_documents(store, ordinals))
    for pattern, literal in asked.patterns:
        among = ordinals
        if rows is not None:
            among = np.unique(store.tokens["document"].take(rows))
        here = rows_of_text(store, pattern, at=asked.at, literal=literal, among=among)
        rows = _both(rows, here)
    if asked.split is not None:
        rows = _of_split(store, rows, asked.split)
    if asked.where is None:
        assert rows is not None, asked
        return rows + part.first_row
    return rows_where(
        store, asked.where, among=rows, first_row=part.first_row, elsewhere=asked.elsewhere
    )


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
        raise NotInStore(
            f"There is no token {token}; the store's tokenizer has "
            f"{len(vocabulary.pieces):,} tokens, from 0 to {max(vocabulary.pieces):,}\n"
            "hint: give a token's id, or its text"
        )
    return [token]


def _ordinals(parts: Sequence[Part], document: DocumentName) -> list[Array]:
    """Of each store, the ordinals of the documents that are meant; an id may be in several."""
    of_each: list[set[int]] = [set() for _ in parts]
    for name in names_of("document", document):
        refused: list[NotInStore] = []
        for part, ordinals in zip(parts, of_each, strict=True):
            local = name if isinstance(name, str) else name - part.first_document
            try:
                ordinals.add(part.store.lookup.ordinal(local))
            except NotInStore as error:
                refused.append(error)
        if len(refused) == len(parts):
            raise refused[0]
    return [np.array(sorted(ordinals), np.int64) for ordinals in of_each]


def _rows_of_documents(store: "ActivationStore", ordinals: Array) -> Array:
    _, rows = store.lookup.documents.rows_of_each(ordinals)
    return np.sort(rows)


def _patterns(
    text: str | None, regex: str | re.Pattern[str] | None
) -> list[tuple[re.Pattern[str], str | None]]:
    found: list[tuple[re.Pattern[str], str | None]] = []
    if text is not None:
        found.append((pattern_of_text(text), text))
    if regex is not None:
        found.append((pattern_of(regex), None))
    return found


def _both(rows: Array | None, found: Array) -> Array:
    return found if rows is None else np.intersect1d(rows, found, assume_unique=True)


def _shown(value: Any) -> str:
    shown = value.pattern if isinstance(value, re.Pattern) else value
    text = repr(shown)
    return text if len(text) <= 60 else f"{text[:57]}…"
