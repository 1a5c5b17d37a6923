"""What a question is given, checked before anything is read."""

import re
from typing import Any, get_args

import numpy as np

from actlake.storage.errors import InvalidQuery, NotInStore

Array = np.ndarray[Any, Any]


def check_text(name: str, given: object) -> None:
    """Refuse what is not text.

    Raises
    ------
    InvalidQuery
        It is of another type, which is named.
    """
    if not isinstance(given, str):
        raise InvalidQuery(
            f"{name} is {given!r}, of type {type(given).__name__}\nhint: give it as text"
        )


def check_choice(name: str, given: object, choice: Any) -> None:
    """Refuse what is none of the words of a ``Literal``.

    Raises
    ------
    InvalidQuery
        All words are named.
    """
    *others, last = map(repr, get_args(choice))
    if given not in get_args(choice):
        raise InvalidQuery(f"{name} is {', '.join(others)} or {last}, not {given!r}")


def names_of(criterion: str, given: Any) -> list[str | int]:
    """The names and numbers of tokens; one alone is a list of one.

    Raises
    ------
    InvalidQuery
        There is none, or one is neither text nor a whole number.
    """
    names = _several(criterion, given)
    for name in names:
        if not (isinstance(name, str) or _is_whole(name)):
            raise InvalidQuery(
                f"A {criterion} is named by text or by a whole number, not by {name!r}, of type "
                f"{type(name).__name__}\nhint: give one, or a list of them"
            )
    return [name if isinstance(name, str) else int(name) for name in names]


def ids_of(criterion: str, given: Any) -> list[str]:
    """Ids of documents as the store has them, as text; one alone is a list of one.

    A whole number is the id that is written with its digits: 12 is ``"12"``, and not ``"012"``.

    Raises
    ------
    InvalidQuery
        There is none, or one is neither text nor a whole number.
    """
    return [str(name) for name in names_of(criterion, given)]


def document_numbers_of(criterion: str, given: Any, total: int, *, of: str) -> Array:
    """(n,) int64, ascending, each once: numbers of documents, of which there are `total`.

    Raises
    ------
    InvalidQuery
        There is none, or one is no whole number.
    NotInStore
        No document of `of` has such a number.
    """
    numbers = _several(criterion, given)
    for number in numbers:
        if not _is_whole(number):
            raise InvalidQuery(
                f"{criterion} is a whole number, not {number!r}, of type {type(number).__name__}\n"
                "hint: documents are numbered from 0; their ids are asked for by another name"
            )
        if not 0 <= number < total:
            raise NotInStore(
                f"There is no document number {number}; {of} has {total:,}\n"
                "hint: documents are numbered from 0; their ids are asked for by another name"
            )
    return np.unique(np.array(numbers, np.int64))


def _is_whole(given: object) -> bool:
    return isinstance(given, int | np.integer) and not isinstance(given, bool)


def _several(criterion: str, given: Any) -> list[Any]:
    several = _listed(given)
    if not several:
        raise InvalidQuery(f"{criterion} is an empty list\nhint: give at least one")
    return several


def _listed(given: Any) -> list[Any]:
    if isinstance(given, str | bytes):  # both would be taken apart
        return [given]
    try:
        return list(given)
    except TypeError:
        return [given]


def check_sought(text: str) -> None:
    """Refuse a text that cannot be searched.

    Raises
    ------
    InvalidQuery
        It is empty, or no text.
    """
    check_text("text", text)
    if not text:
        raise InvalidQuery("An empty text stands everywhere\nhint: give at least one character")


def pattern_of(regex: "str | re.Pattern[str]") -> re.Pattern[str]:
    """A regular expression, compiled.

    Raises
    ------
    InvalidQuery
        It is empty, of bytes, no text, or cannot be read.
    """
    written = regex.pattern if isinstance(regex, re.Pattern) else regex
    check_text("regex", written)
    if not written:
        raise InvalidQuery(
            "An empty pattern matches everywhere, and covers no token\n"
            "hint: give one that matches at least one character"
        )
    try:
        return re.compile(regex)
    except re.error as error:
        raise InvalidQuery(
            f"{regex!r} is not a regular expression: {error}\n"
            "hint: it is Python's `re`; find(text=…) takes every character as it is"
        ) from error
