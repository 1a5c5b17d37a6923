"""Cut long documents into several, so that one text has parts in every split."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain

from actlake.platform.corpus.passages import Passage, Unreadable

_ENDS = ("\n\n", "\n", ". ", " ")
"""After what a text is cut, the best first: a paragraph, a line, a sentence, a word."""


def cut_documents(
    items: Iterable[Passage | Unreadable], characters: int
) -> Iterator[Passage | Unreadable]:
    """Each document as several of about so many characters; what is unreadable passes through."""
    for item in items:
        if isinstance(item, Unreadable):
            yield item
        else:
            yield from in_parts(item, parts_of([item.text], characters))


def in_parts(passage: Passage, parts: Iterator[str]) -> Iterator[Passage]:
    """A document of each part, with the columns of the whole; the document itself, if it is one.

    The parts of a document ``a.txt`` are called ``a.txt#1``, ``a.txt#2``, …; a document that is
    named after its content has parts named after theirs.
    """
    first, second = next(parts), next(parts, None)
    if second is None:
        yield replace(passage, text=first)
        return
    for number, text in enumerate(chain((first, second), parts), start=1):
        yield replace(
            passage,
            place=f"{passage.place}, part {number}",
            id=None if passage.id is None else f"{passage.id}#{number}",
            text=text,
        )


def parts_of(pieces: Iterable[str], characters: int) -> Iterator[str]:
    """A text, given in pieces of any length, in parts, which joined are the text; at least one.

    Each is at most `characters` long and at least half of that; the last may be half as long
    again, or shorter where it is the only one. They end with a paragraph, line, sentence or word
    where one ends in their second half. In memory is a piece, and what is not yet cut.
    """
    text = ""
    for piece in pieces:
        text += piece
        begin = 0
        while len(text) - begin > characters + characters // 2:
            end = _end(text, begin, characters)
            yield text[begin:end]
            begin = end
        text = text[begin:]
    yield text


def _end(text: str, begin: int, characters: int) -> int:
    least, most = begin + characters // 2, begin + characters
    for mark in _ENDS:
        found = text.rfind(mark, max(begin, least - len(mark)), most)
        if found >= 0:
            return found + len(mark)
    return most
