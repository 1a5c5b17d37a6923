"""From text to rows: where a text or a regular expression stands in the documents.

Tokenizers cut one text in many ways ("New York", " New York", "NEW YORK"), so tokens are not
searched: the documents' text is, and what is found is mapped to tokens by their characters. What
was not laid out as rows is not found. Where a store was made without text, it is decoded from the
tokens, and checked to be the text that the tokens' characters count.

The last token of an occurrence is asked for because the model has seen all of it there. Where a
context begins within the occurrence no token has, so it is left out, and counted.
"""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow.compute as pc

from actlake.storage.errors import InvalidQuery
from actlake.storage.querying.document_table import document_batches
from actlake.storage.querying.ranges import expanded
from actlake.storage.querying.spans import TokenExtents
from actlake.storage.querying.vocabulary import INCOMPLETE

if TYPE_CHECKING:  # query.py searches for the store
    from actlake.storage.store import ActivationStore

Array = np.ndarray[Any, Any]
At = Literal["last", "first", "all"]
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Occurrences:
    """Where a text or pattern stands in a store."""

    rows: Array
    """(n,) int64, ascending and each once."""
    across_contexts: int
    """How many were left out because no token has seen all of them."""


def rows_of_text(
    store: "ActivationStore",
    sought: str | re.Pattern[str],
    *,
    at: At,
    among: Array | None = None,
) -> Occurrences:
    """The tokens of every occurrence.

    Parameters
    ----------
    sought
        Searched in each document. Occurrences of a text may overlap; those of a pattern are
        Python's, which do not, and empty ones do not count. Where all are empty (``^``,
        ``(?=Paris)``), a warning is logged.
    at
        Which tokens of an occurrence: its last (which has seen all of it), its first, or all.
    among
        (m,) ordinals of the documents to search; by default all.

    Raises
    ------
    InvalidQuery
        A document was stored without its text, and its tokens do not decode to it.
    """
    wanted = None if among is None else np.isin(np.arange(store.schema.documents), among)
    found = []
    num_empty = num_covering = num_across = num_unplaced = 0
    for ordinal, text in _texts(store, wanted, sought):
        tokens = document_tokens(store, ordinal, text) if text is not None else None
        if tokens is None:
            tokens, text = _decoded(store, ordinal)
        assert text is not None
        spans = _spans(sought, text)
        begins, ends = np.array([s for s in spans if s[0] < s[1]], np.int64).reshape(-1, 2).T
        num_covering += len(begins)
        num_empty += len(spans) - len(begins)
        rows, extents = tokens
        num_unplaced += len(rows) > 0 and not len(extents.stops)
        if len(extents.stops):
            inside = ends <= extents.stops[-1]  # what follows was not laid out
            first, last = extents.overlapping(begins[inside], ends[inside])
            some = last > first
            first, last = first[some], last[some]
            if at == "last":
                ending = rows[extents.tokens[last - 1]]
                whole = store.lookup.contexts(rows[extents.tokens[first]]) == store.lookup.contexts(
                    ending
                )
                num_across += int((~whole).sum())
                found.append(ending[whole])
            else:
                found.append(rows[extents.tokens[_places(first, last, at)]])
    if num_unplaced:
        logger.warning(
            "In %s documents of %s nobody knows where in the text a token stands: they were given "
            "as ids, and not searched", f"{num_unplaced:,}", store.url,
        )  # fmt: skip
    if num_empty and not num_covering:
        logger.warning(
            "All %s matches of %r in %s are empty, and cover no token; match a character at least",
            f"{num_empty:,}",
            sought if isinstance(sought, str) else sought.pattern,
            store.url,
        )
    each_once = np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)
    return Occurrences(each_once, num_across)


def _spans(sought: str | re.Pattern[str], text: str) -> list[tuple[int, int]]:
    """The characters ``start <= c < stop`` of each occurrence."""
    if isinstance(sought, re.Pattern):
        return [match.span() for match in sought.finditer(text)]
    starts = []
    start = text.find(sought)
    while start >= 0:
        starts.append(start)
        start = text.find(sought, start + 1)
    return [(start, start + len(sought)) for start in starts]


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


def _ending_within(store: "ActivationStore", ids: Array, chars: Array) -> Array:
    """(n,) bool, the tokens that end within a character, as far as the tokenizer tells."""
    partial = store.lookup.vocabulary.ending_within
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
    own_text = store.lookup.vocabulary.texts.get(int(ids[last]))
    if len(separators):
        reach = int(separators[0])
    elif own_text is None:  # nobody knows it: no tokenizer, or an id that it has not
        reach = int(chars[last]) + 1 if text is None else len(text)
    else:
        reach = int(chars[last]) + max(1, len(own_text))
    return reach if text is None else min(len(text), reach)


def _texts(
    store: "ActivationStore", wanted: Array | None, sought: str | re.Pattern[str]
) -> Iterator[tuple[int, str | None]]:
    """The documents that may hold it: ordinal and text (None if it was not kept)."""
    for first, batch in document_batches(store, ["text"], wanted=wanted):
        column = batch["text"]
        places = np.arange(batch.num_rows)
        if isinstance(sought, str):
            may = pc.fill_null(pc.match_substring(column, sought), True)
            places = places[may.to_numpy(zero_copy_only=False)]
        for place in places.tolist():
            if wanted is None or wanted[first + place]:
                yield first + place, column[place].as_py()


def _decoded(store: "ActivationStore", ordinal: int) -> tuple[tuple[Array, TokenExtents], str]:
    if not store.lookup.vocabulary.pieces:
        raise InvalidQuery(
            f"{store.url} was made without text, and has no tokenizer to decode its tokens\n"
            "hint: find(token=…) takes the id of a token"
        )
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


def _places(first: Array, last: Array, at: Literal["first", "all"]) -> Array:
    return first if at == "first" else expanded(first, last - first)[1]
