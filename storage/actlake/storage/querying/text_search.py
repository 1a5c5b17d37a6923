"""From text to rows: where a text or a regular expression stands in the documents.

Tokenizers cut one text in many ways ("New York", " New York", "NEW YORK"), so tokens are not
searched: the documents' text is, and what is found is mapped to tokens by their characters. What
was not laid out as rows is not found. Where a store was made without text, it is decoded from the
tokens, and checked to be the text that the tokens' characters count.
"""

import logging
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow.compute as pc

from actlake.storage.errors import InvalidQuery, StoreDamaged
from actlake.storage.querying.document_table import document_batches
from actlake.storage.querying.ranges import expanded
from actlake.storage.querying.spans import TokenExtents
from actlake.storage.querying.vocabulary import INCOMPLETE

if TYPE_CHECKING:  # query.py searches for the store
    from actlake.storage.store import ActivationStore

Array = np.ndarray[Any, Any]
At = Literal["last", "first", "all"]
logger = logging.getLogger(__name__)


def rows_of_text(
    store: "ActivationStore",
    pattern: re.Pattern[str],
    *,
    at: At,
    literal: str | None = None,
    among: Array | None = None,
) -> Array:
    """The tokens of every occurrence, (n,) int64, ascending and each once.

    Parameters
    ----------
    pattern
        Searched in each document; occurrences do not overlap, empty ones do not count. Where
        all of them are empty (``^``, ``(?=Paris)``), a warning is logged.
    at
        Which tokens of an occurrence: its last (which has seen all of it), its first, or all.
    literal
        A text that every occurrence contains, to pass over documents quickly.
    among
        (m,) ordinals of the documents to search; by default all.

    Raises
    ------
    InvalidQuery
        A document was stored without its text, and its tokens do not decode to it.
    """
    wanted = None if among is None else np.isin(np.arange(store.schema.documents), among)
    found = []
    num_empty = num_covering = 0
    for ordinal, text in _texts(store, wanted, literal):
        tokens = document_tokens(store, ordinal, text) if text is not None else None
        if tokens is None:
            tokens, text = _decoded(store, ordinal)
        assert text is not None
        spans = [match.span() for match in pattern.finditer(text)]
        begins, ends = np.array([s for s in spans if s[0] < s[1]], np.int64).reshape(-1, 2).T
        num_covering += len(begins)
        num_empty += len(spans) - len(begins)
        rows, extents = tokens
        if len(extents.stops):
            inside = ends <= extents.stops[-1]  # what follows was not laid out
            first, last = extents.overlapping(begins[inside], ends[inside])
            found.append(rows[extents.tokens[_places(first, last, at)]])
    if num_empty and not num_covering:
        logger.warning(
            "All %s matches of %r in %s are empty, and cover no token; match a character at least",
            f"{num_empty:,}",
            pattern.pattern,
            store.url,
        )
    return np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)


def document_tokens(
    store: "ActivationStore", ordinal: int, text: str | None
) -> tuple[Array, TokenExtents]:
    """The rows of a document, and which characters of its text each covers.

    The last token ends where its own text does: a document may have been cut there.

    Parameters
    ----------
    text
        None if it was not kept.
    """
    rows = store.lookup.documents.rows(ordinal)
    chars = store.tokens["char"].take(rows)
    ids = store.tokens["id"].take(rows)
    special = np.isin(ids, np.array(store.schema.special_ids, ids.dtype))
    end = _end(store, ids, chars, special, text)
    within = _ending_within(store, ids, chars)
    return rows, TokenExtents.of(chars, special, length=end, within=within)


def _ending_within(store: "ActivationStore", ids: Array, chars: Array) -> Array | None:
    """(n,) bool, the tokens that end within a character; None in a store without a tokenizer."""
    try:
        partial = store.lookup.vocabulary.ending_within
    except StoreDamaged:
        return None
    later = np.append(chars[1:] > chars[:-1], False)  # the rest of it starts where it does
    found: Array = np.isin(ids, partial) & later
    return found


def _end(
    store: "ActivationStore", ids: Array, chars: Array, special: Array, text: str | None
) -> int | None:
    """Where the text ends as far as it was laid out: at its separator, or with its last token."""
    places = np.flatnonzero(~special & (chars >= 0))
    if not len(places):
        return None if text is None else len(text)
    last = places[-1]
    least = int(chars[last]) + 1 if text is None else len(text)
    separators = chars[special & (chars >= least)]
    if len(separators):
        reach = int(separators[0])
    else:
        reach = int(chars[last]) + max(1, len(store.lookup.vocabulary.text(int(ids[last]))))
    return reach if text is None else min(len(text), reach)


def _texts(
    store: "ActivationStore", wanted: Array | None, literal: str | None
) -> Iterator[tuple[int, str | None]]:
    """The documents that may hold the literal: ordinal and text (None if it was not kept)."""
    for first, batch in document_batches(store, ["text"]):
        column = batch["text"]
        places = np.arange(batch.num_rows)
        if literal is not None:
            may = pc.fill_null(pc.match_substring(column, literal), True)
            places = places[may.to_numpy(zero_copy_only=False)]
        for place in places.tolist():
            if wanted is None or wanted[first + place]:
                yield first + place, column[place].as_py()


def _decoded(store: "ActivationStore", ordinal: int) -> tuple[tuple[Array, TokenExtents], str]:
    rows, extents = document_tokens(store, ordinal, None)
    ids = store.tokens["id"].take(rows[extents.tokens]).tolist()
    text = str(store.tokenizer.decode(ids, skip_special_tokens=False))
    if len(ids):
        text = " " * int(extents.starts[0]) + text if extents.starts[0] else text
        extents = TokenExtents(
            extents.tokens,
            extents.starts,
            np.maximum(extents.stops, np.where(extents.stops == extents.stops[-1], len(text), 0)),
        )
    vocabulary = store.lookup.vocabulary
    for token, start, stop in zip(
        ids, extents.starts.tolist(), extents.stops.tolist(), strict=True
    ):
        written = vocabulary.text(token)
        if INCOMPLETE not in written and written.strip() != text[start:stop].strip():
            name = store.lookup.document_ids[ordinal]
            raise InvalidQuery(
                f"{store.url} was made without text, and the tokens of {name!r} do not decode to "
                f"it (character {start} is {text[start:stop]!r}, not {written!r})\n"
                "hint: harvest with corpus.keep_text, or find(token=…)"
            )
    return (rows, extents), text


def _places(first: Array, last: Array, at: At) -> Array:
    some = last > first
    first, last = first[some], last[some]
    if at == "first":
        return first
    if at == "last":
        return last - 1
    return expanded(first, last - first)[1]
