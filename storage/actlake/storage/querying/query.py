r"""Find the rows that are meant, in one line.

    store.find(token=" Paris")                          by token, through an index
    store.find(text="New York", split="test")           by text, however it is tokenised
    store.find(regex=r"\bclass \w+", at="all")
    store.find(document="pydoc/assert", where="position < 10 and sentiment.label = 'positive'")

Every criterion narrows what the others find. Rows are found by what the tokens are, whether
their activations are committed or not.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from actlake.storage.errors import InvalidQuery, NotInStore
from actlake.storage.querying.parts import Part, parts_of
from actlake.storage.querying.rows import Rows
from actlake.storage.querying.sql import rows_where
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
    if at not in ("last", "first", "all"):
        raise InvalidQuery(f"at is 'last', 'first' or 'all', not {at!r}")
    parts = parts_of(store)
    ids = None if token is None else _token_ids(parts, token)
    documents = None if document is None else _ordinals(parts, document)
    patterns = _patterns(text, regex)
    if split is not None and len(parts) == 1:
        parts[0].store.lookup.split_code(split)
    elif split is not None:
        store.check_split(split)  # type: ignore[union-attr]  # several stores
    found = []
    for part in parts:
        rows = None if ids is None else _rows_of_tokens(part.store, ids)
        ordinals = None if documents is None else documents[part.number]
        if ordinals is not None:
            rows = _both(rows, _rows_of_documents(part.store, ordinals))
        for pattern, literal in patterns:
            among = ordinals
            if rows is not None:
                among = np.unique(part.store.tokens["document"].take(rows))
            here = rows_of_text(part.store, pattern, at=at, literal=literal, among=among)
            rows = _both(rows, here)
        if split is not None:
            rows = _of_split(part.store, rows, split)
        if where is not None:
            found.append(rows_where(part.store, where, among=rows, first_row=part.first_row))
        else:
            assert rows is not None
            found.append(rows + part.first_row)
    found_by = ", ".join(f"{name} {_shown(asked[name])}" for name in asked)
    return Rows(store, np.concatenate(found), found_by=found_by)


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
    return sorted({number for name in _listed(token) for number in _ids_of(parts, name)})


def _ids_of(parts: Sequence[Part], token: str | int) -> list[int]:
    vocabulary = parts[0].store.lookup.vocabulary
    if isinstance(token, str):
        return vocabulary.ids(token)
    token = int(token)
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
    for name in _listed(document):
        refused: list[NotInStore] = []
        for part, ordinals in zip(parts, of_each, strict=True):
            local = name if isinstance(name, str) else int(name) - part.first_document
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
        if not text:
            raise InvalidQuery("An empty text stands everywhere\nhint: give at least one character")
        found.append((re.compile(re.escape(text)), text))
    if regex is not None:
        try:
            found.append((re.compile(regex), None))
        except re.error as error:
            raise InvalidQuery(
                f"{regex!r} is not a regular expression: {error}\n"
                "hint: it is Python's `re`; find(text=…) takes every character as it is"
            ) from error
    return found


def _listed(value: Any) -> list[str | int]:
    if isinstance(value, str | int | np.integer):
        return [value]  # type: ignore[list-item]  # NumPy's integers are as good
    listed = list(value)
    if not listed:
        raise InvalidQuery("find was given an empty list\nhint: give at least one")
    return listed


def _both(rows: Array | None, found: Array) -> Array:
    return found if rows is None else np.intersect1d(rows, found, assume_unique=True)


def _shown(value: Any) -> str:
    shown = value.pattern if isinstance(value, re.Pattern) else value
    text = repr(shown)
    return text if len(text) <= 60 else f"{text[:57]}…"
