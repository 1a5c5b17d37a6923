"""Labels of tokens that any store's own text gives, for probes that need no data set.

    token_features    capitalised    the token's first letter is a capital
                      digit          a digit is in it
                      multi_token    the word it is part of is made of several tokens
    previous_token    previous_token the text of the token before it, where that is one of the most
                                     frequent ones

The first two can be read off the token itself and are at their best in the embedding; the third
and fourth need other tokens, so that attention has to bring them there ("Token Erasure",
arXiv:2406.20086, looks for the fourth over the layers).

Rows of the default exclusion (position 0, special tokens) have no labels. A word is a run of
letters, digits and underscores in the text.
"""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from actlake.jobs.probe.datasets.errors import InvalidDataSet, TextNotKept
from actlake.jobs.probe.datasets.labelled_corpus import LabelTable
from actlake.storage.moments import is_excluded
from actlake.storage.querying.document_table import document_batches
from actlake.storage.querying.text_search import document_tokens

if TYPE_CHECKING:
    from actlake.storage import ActivationStore

Array = np.ndarray[Any, Any]

_WORD = re.compile(r"\w+")


def token_features(
    store: "ActivationStore", *, previous: int = 20, limit: int | None = None
) -> tuple[LabelTable, LabelTable]:
    """The label tables of a store, keyed by row.

    Parameters
    ----------
    previous
        How many of the most frequent tokens are classes of ``previous_token``.
    limit
        Most rows of each table, spread evenly over the store; by default all.

    Raises
    ------
    InvalidDataSet
        Nothing is left to label, or the store has no tokenizer and tokens no text.
    TextNotKept
        The store was made without its text, which words are found in.
    """
    if previous < 2 or (limit is not None and limit < 1):
        raise InvalidDataSet(
            f"previous is {previous} and limit {limit}\n"
            "hint: previous has at least two tokens to tell apart, limit at least one row"
        )
    if not store.lookup.vocabulary.pieces:
        raise InvalidDataSet(
            f"{store.url} has no tokenizer, and labels are made of its tokens' texts\n"
            "hint: attach labels of your own, store.attach_labels(…)"
        )
    ids = np.asarray(store.tokens["id"][:])
    positions = np.asarray(store.tokens["position"][:])
    excluded = is_excluded(positions, ids, special_ids=store.schema.special_ids)
    labelled = np.flatnonzero(~excluded)
    if not len(labelled):
        raise InvalidDataSet(f"{store.url} has no row besides position 0 and special tokens")
    features = _spread(labelled, limit)
    return (
        LabelTable("token_features", "row", _features(store, ids, features)),
        LabelTable("previous_token", "row", _previous(store, ids, excluded, previous, limit)),
    )


def _features(store: "ActivationStore", ids: Array, rows: Array) -> pa.Table:
    vocabulary = store.lookup.vocabulary
    distinct, places = np.unique(ids[rows], return_inverse=True)
    texts = [vocabulary.text(token).strip() for token in distinct.tolist()]
    capitalised = np.array([text[:1].isupper() for text in texts])
    digit = np.array([any(map(str.isdigit, text)) for text in texts])
    return pa.table(
        {
            "row": rows,
            "capitalised": capitalised[places],
            "digit": digit[places],
            "multi_token": _in_long_words(store, len(ids))[rows],
        }
    )


def _in_long_words(store: "ActivationStore", num_rows: int) -> Array:
    """(rows,) bool: which tokens share a word with other tokens."""
    found = np.zeros(num_rows, bool)
    for ordinal, text in _texts(store):
        rows, extents = document_tokens(store, ordinal, text)
        spans = np.array([m.span() for m in _WORD.finditer(text)], np.int64).reshape(-1, 2)
        first, last = extents.overlapping(spans[:, 0], spans[:, 1])
        long = last - first > 1
        edges = np.zeros(len(extents.tokens) + 1, np.int64)
        np.add.at(edges, first[long], 1)
        np.add.at(edges, last[long], -1)
        found[rows[extents.tokens[np.cumsum(edges)[:-1] > 0]]] = True
    return found


def _texts(store: "ActivationStore") -> Iterator[tuple[int, str]]:
    for first, batch in document_batches(store, ["text"]):
        for place, text in enumerate(batch["text"].to_pylist()):
            if text is None:
                raise TextNotKept(
                    f"{store.url} was made without its text, and words are found in it\n"
                    "hint: harvest with corpus.keep_text: true"
                )
            yield first + place, text


def _previous(
    store: "ActivationStore", ids: Array, excluded: Array, number: int, limit: int | None
) -> pa.Table:
    """Rows whose predecessor, in the same context, is among the most frequent tokens."""
    has_one = np.flatnonzero(~excluded[1:] & ~excluded[:-1]) + 1  # position 0 begins a context
    if not len(has_one):
        raise InvalidDataSet(f"{store.url} has no two tokens in a row to label")
    tokens, counts = np.unique(ids[has_one - 1], return_counts=True)
    frequent = tokens[np.lexsort((tokens, -counts))][:number]
    rows = _spread(has_one[np.isin(ids[has_one - 1], frequent)], limit)
    vocabulary = store.lookup.vocabulary
    names = {token: vocabulary.text(token) for token in frequent.tolist()}
    if len(set(names.values())) < len(names):  # parts of characters read alike
        names = {token: f"{text} ({token})" for token, text in names.items()}
    return pa.table(
        {"row": rows, "previous_token": [names[token] for token in ids[rows - 1].tolist()]}
    )


def _spread(rows: Array, limit: int | None) -> Array:
    if limit is None or limit >= len(rows):
        return rows
    chosen: Array = rows[np.linspace(0, len(rows) - 1, limit).astype(np.int64)]
    return chosen
