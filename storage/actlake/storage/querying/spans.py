"""From characters of a document to its tokens. Pure.

A store keeps where each token starts, not where it ends: a token reaches to where the next one
begins that starts later. Pieces of one character (an emoji is often three tokens) thus share
its whole extent, a token that ends within a character (a space and the first byte of "Å") reaches
into it, and white space that a tokenizer leaves out belongs to the token before it.
What is not text has no extent: a separator (it starts where the text ends), a beginning of text,
and tokens whose place is unknown (-1).

A token belongs to a span if the two overlap.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, eq=False)
class TokenExtents:
    """Which characters each token of one document covers; only tokens that cover some.

    Attributes
    ----------
    tokens
        (n,) int64, the tokens' places among all tokens of the document.
    starts, stops
        (n,) int64, both ascending: token ``tokens[i]`` covers ``starts[i] <= c < stops[i]``.
    """

    tokens: Array
    starts: Array
    stops: Array

    @classmethod
    def of(
        cls, chars: Array, special: Array, *, length: int | None, within: Array | None = None
    ) -> Self:
        """Of all tokens of one document, in the order of its text.

        Parameters
        ----------
        chars
            (n,) start character of each token; -1 where unknown.
        special
            (n,) bool, the special tokens: one that starts where its successor does stands beside
            the text, as a beginning of text does.
        length
            Characters of the text. None if the text was not kept: the last token then covers one
            character, and a special one at the end none.
        within
            (n,) bool, the tokens that end within a character with which the next one starts;
            None: there are none.
        """
        known = np.flatnonzero(chars >= 0)
        starts = np.asarray(chars)[known].astype(np.int64)
        special = np.asarray(special)[known]
        if length is None:
            last = int(starts[-1]) if len(starts) else 0
            length = last if len(starts) and special[-1] else last + 1
        distinct = np.unique(starts)
        following = np.append(distinct[1:], length)
        stops = following[np.searchsorted(distinct, starts)]
        if within is not None:
            stops = np.minimum(stops + np.asarray(within)[known], length)
        beside = special & (np.append(starts[1:], -1) == starts)
        covers = (stops > starts) & ~beside
        return cls(known[covers], starts[covers], stops[covers])

    def overlapping(self, begins: Array, ends: Array) -> tuple[Array, Array]:
        """The tokens of many spans ``begins[i] <= c < ends[i]``.

        Returns
        -------
        first, last
            (spans,) int64: the span's tokens are ``tokens[first[i]:last[i]]``, none if equal.
        """
        first = np.searchsorted(self.stops, begins, side="right")
        last = np.searchsorted(self.starts, ends, side="left")
        return first, np.where(np.asarray(begins) < ends, np.maximum(first, last), first)
