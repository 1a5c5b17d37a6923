"""Rows as readable text: each with what stands around it.

A byte-level tokenizer may split a character over several tokens, none of which decodes to
anything readable alone. So the rows around a token are decoded as a whole, and where the token
is part of a character, the mark widens to the whole of it. In a store without a tokenizer,
tokens read as their ids.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from actlake.storage.errors import StoreDamaged
from actlake.storage.extents import Extent
from actlake.storage.printable import printable

if TYPE_CHECKING:  # rows.py shows passages
    from actlake.storage.store import ActivationStore

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Passage:
    """A row in what stands around it, within what the model saw at once."""

    row: int
    document: str
    """Id of the row's document."""
    before: str
    token: str
    """The row's text; the whole character where the token is part of one."""
    after: str

    def __str__(self) -> str:
        """One line, in which every character can be seen; the token stands in ⟦ ⟧."""
        return printable(f"{self.before}⟦{self.token}⟧{self.after}")

    def as_html(self) -> str:
        """As `str`, marked up."""
        before, token, after = (
            html.escape(printable(part)) for part in (self.before, self.token, self.after)
        )
        return f"{before}<mark>{token}</mark>{after}"


@dataclass(frozen=True, slots=True)
class Passages:
    """Some rows in their context: shows itself as text, and in a notebook as HTML."""

    lines: tuple[Passage, ...]
    num_rows: int
    """Of how many rows these are the first."""

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, place: int) -> Passage:
        return self.lines[place]

    def __repr__(self) -> str:
        width = max((len(f"{line.row:,}") for line in self.lines), default=0)
        shown = [f"{line.row:>{width},}  {line}" for line in self.lines]
        return "\n".join([*shown, *([self._rest] if self._rest else [])])

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><td style='opacity:.6;text-align:right'>{line.row:,}</td>"
            f"<td style='opacity:.6;text-align:left'>{html.escape(printable(line.document))}</td>"
            "<td style='text-align:left;font-family:monospace;white-space:pre-wrap'>"
            f"{line.as_html()}</td></tr>"
            for line in self.lines
        )
        return f"<table>{cells}</table><small>{html.escape(self._rest)}</small>"

    @property
    def _rest(self) -> str:
        left = self.num_rows - len(self.lines)
        return f"… and {left:,} more rows" if left else ""


def passages(
    store: "ActivationStore",
    rows: Array,
    documents: Sequence[str],
    *,
    before: int,
    after: int,
) -> tuple[Passage, ...]:
    """Each row with up to `before` and `after` tokens of its own context.

    Parameters
    ----------
    rows
        (n,) int64.
    documents
        The ids of the rows' documents, n of them.
    """
    tokenizer = _tokenizer(store)
    lines = []
    for row, document in zip(rows.tolist(), documents, strict=True):
        ids, place = _ids_around(store, row, before=before, after=after)
        texts = _as_ids(ids, place) if tokenizer is None else marked(tokenizer, ids, place)
        lines.append(Passage(row, document, *texts))
    return tuple(lines)


def _tokenizer(store: "ActivationStore") -> Any:
    """The store's tokenizer; None where it has none."""
    try:
        return store.tokenizer
    except StoreDamaged:
        return None


def _ids_around(
    store: "ActivationStore", row: int, *, before: int, after: int
) -> tuple[list[int], int]:
    """The token ids around a row, within its context, and the row's place among them."""
    around = Extent(max(0, row - before), row + after + 1)
    (around,) = (rows for rows in store.schema.held(around) if row in rows)
    start = around.start
    positions = store.tokens["position"].read(around.start, around.stop)
    at = row - start
    begins = np.flatnonzero(positions == 0)  # other contexts may begin before and after the row
    first = int(max(begins[begins <= at], default=0))
    last = int(min(begins[begins > at], default=len(positions)))
    return store.tokens["id"].read(start + first, start + last).tolist(), at - first


def _as_ids(ids: list[int], place: int) -> tuple[str, str, str]:
    """Before, at and after a place, as `marked`."""
    words = [str(token) for token in ids]
    before, after = words[:place], words[place + 1 :]
    return "".join(f"{word} " for word in before), words[place], "".join(f" {w}" for w in after)


def marked(tokenizer: Any, ids: list[int], place: int) -> tuple[str, str, str]:
    """The text of `ids` before, at and after a place; the three joined are the whole text.

    Where the token is part of a character, the mark takes in the tokens that share it.
    """

    def text(stop: int) -> str:
        return str(tokenizer.decode(ids[:stop], skip_special_tokens=False))

    whole = text(len(ids))
    first, last = place, place + 1
    while first > 0 and not whole.startswith(text(first)):
        first -= 1
    while last < len(ids) and not whole.startswith(text(last)):
        last += 1
    start = len(text(first)) if first else 0
    stop = max(start, len(text(last))) if last < len(ids) else len(whole)
    return whole[:start], whole[start:stop], whole[stop:]
