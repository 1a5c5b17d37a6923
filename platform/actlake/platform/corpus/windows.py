"""Cut strands of tokens into contexts. Pure: no text, no files, no config.

    strand    a document's tokens with what joins them: [BOS] tokens [separator]
    context   at most `context_length` rows of one split, beginning with a BOS where asked for

Each split has one open context, so strands of different splits may come in any order.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from actlake.platform.corpus.tokenise import UNKNOWN_CHARACTER, Int32s
from actlake.storage.corpus import Context


@dataclass(frozen=True, slots=True, eq=False)
class Strand:
    """What one document puts into contexts, in order."""

    split: str
    document: int
    """Ordinal of the document."""
    ids: Int32s
    """(n,) token ids."""
    chars: Int32s
    """(n,) start character of each in the document's text; -1 where it is not known."""


def fitting(num_tokens: int, budget: int, *, room: int, context_length: int, bos_rows: int) -> int:
    """How many tokens of a strand can be laid out within a budget of rows.

    Parameters
    ----------
    budget
        Rows that may still be made, the BOS of each context that is opened included.
    room
        Rows free in the context that is open; 0 if none is.
    bos_rows
        Tokens with which every context begins; 0 if with none.
    """
    if budget <= room:
        return min(num_tokens, budget)
    contexts, rest = divmod(budget - room, context_length)
    return min(num_tokens, room + contexts * (context_length - bos_rows) + max(0, rest - bos_rows))


class Windows:
    """The open contexts, one a split; a full one is handed out and forgotten."""

    def __init__(self, context_length: int, *, bos: tuple[int, ...] = ()) -> None:
        """`bos`: ids of the tokens that begin every context; mostly one or none."""
        assert context_length > len(bos), (context_length, bos)
        self._length = context_length
        self._bos = bos
        self._open: dict[str, _Window] = {}
        self.rows = 0
        """Rows made so far, those in open contexts included."""
        self.bos_rows = 0
        """How many of them are there only to begin a context."""

    def room(self, split: str) -> int:
        """Rows free in the split's open context; 0 if none is open."""
        window = self._open.get(split)
        return 0 if window is None else window.room

    def fill(self, strand: Strand) -> Iterator[Context]:
        """Lay a strand out; yields each context that it fills."""
        at = 0
        while at < len(strand.ids):
            window = self._open.get(strand.split) or self._begin(strand, at)
            taken = window.put(strand, at)
            at += taken
            self.rows += taken
            if window.room == 0:
                yield from self.close(strand.split)

    def _begin(self, strand: Strand, at: int) -> "_Window":
        window = self._open[strand.split] = _Window(self._length)
        begins = at == 0 and strand.chars[0] != UNKNOWN_CHARACTER
        window.put_bos(self._bos, strand.document, begins_document=begins)
        self.rows += len(self._bos)
        self.bos_rows += len(self._bos)
        return window

    def close(self, split: str) -> Iterator[Context]:
        """Hand out the split's open context, if there is one, full or not."""
        window = self._open.pop(split, None)
        if window is not None:
            yield window.context(split)

    def close_all(self) -> Iterator[Context]:
        """Hand out what is open, in order of split."""
        for split in sorted(self._open):
            yield from self.close(split)


class _Window:
    def __init__(self, length: int) -> None:
        self._ids = np.empty(length, np.int32)
        self._documents = np.empty(length, np.int64)
        self._chars = np.empty(length, np.int32)
        self._filled = 0

    @property
    def room(self) -> int:
        return len(self._ids) - self._filled

    def put(self, strand: Strand, start: int) -> int:
        """Take as many tokens as there is room for; returns how many."""
        n = min(self.room, len(strand.ids) - start)
        rows = slice(self._filled, self._filled + n)
        self._ids[rows] = strand.ids[start : start + n]
        self._documents[rows] = strand.document
        self._chars[rows] = strand.chars[start : start + n]
        self._filled += n
        return n

    def put_bos(self, bos: tuple[int, ...], document: int, *, begins_document: bool) -> None:
        """Begin with a BOS; within a document, or with none of it known, it has no place."""
        assert self._filled == 0
        n = len(bos)
        self._ids[:n] = bos
        self._documents[:n] = document
        self._chars[:n] = 0 if begins_document else UNKNOWN_CHARACTER
        self._filled = n

    def context(self, split: str) -> Context:
        n = self._filled
        return Context(self._ids[:n], self._documents[:n], self._chars[:n], split)
