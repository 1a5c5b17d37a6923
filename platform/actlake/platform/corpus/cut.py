"""Cut long documents into several, so that one text has parts in every split."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from actlake.platform.corpus.passages import Passage, Unreadable

_ENDS = ("\n\n", "\n", ". ", " ")
"""After what a text is cut, the best first: a paragraph, a line, a sentence, a word."""


def cut_documents(
    items: Iterable[Passage | Unreadable], characters: int
) -> Iterator[Passage | Unreadable]:
    """Each document as several of about so many characters; what is unreadable passes through.

    The parts of a document ``a.txt`` are called ``a.txt#1``, ``a.txt#2``, …; a document that is
    named after its content has parts named after theirs. Each keeps the document's columns.
    """
    for item in items:
        parts = parts_of(item.text, characters) if isinstance(item, Passage) else []
        if isinstance(item, Unreadable) or len(parts) == 1:
            yield item
            continue
        for number, text in enumerate(parts, start=1):
            yield replace(
                item,
                place=f"{item.place}, part {number}",
                id=None if item.id is None else f"{item.id}#{number}",
                text=text,
            )


def parts_of(text: str, characters: int) -> list[str]:
    """A text in pieces, which joined are the text.

    Each is at most `characters` long and at least half of that; the last may be half as long
    again, or shorter where it is the only one. They end with a paragraph, line, sentence or word
    where one ends in their second half.
    """
    parts = []
    begin = 0
    while len(text) - begin > characters + characters // 2:
        end = _end(text, begin + characters // 2, begin + characters)
        parts.append(text[begin:end])
        begin = end
    return [*parts, text[begin:]]


def _end(text: str, least: int, most: int) -> int:
    for mark in _ENDS:
        found = text.rfind(mark, least - len(mark), most)
        if found >= 0:
            return found + len(mark)
    return most
