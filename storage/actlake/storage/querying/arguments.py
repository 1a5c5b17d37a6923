"""What a question is given, checked before anything is read."""

import re
from typing import Any, get_args

import numpy as np

from actlake.storage.errors import InvalidQuery


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
    """The names and numbers of tokens or documents; one alone is a list of one.

    Raises
    ------
    InvalidQuery
        There is none, or one is neither text nor a whole number.
    """
    names = _listed(given)
    if not names:
        raise InvalidQuery(f"{criterion} is an empty list\nhint: give at least one")
    for name in names:
        if isinstance(name, bool) or not isinstance(name, str | int | np.integer):
            raise InvalidQuery(
                f"A {criterion} is named by text or by a whole number, not by {name!r}, of type "
                f"{type(name).__name__}\nhint: give one, or a list of them"
            )
    return [name if isinstance(name, str) else int(name) for name in names]


def _listed(given: Any) -> list[Any]:
    if isinstance(given, str | bytes):  # both would be taken apart
        return [given]
    try:
        return list(given)
    except TypeError:
        return [given]


def pattern_of_text(text: str) -> re.Pattern[str]:
    """A pattern that finds a text as it is.

    Raises
    ------
    InvalidQuery
        It is empty, or no text.
    """
    check_text("text", text)
    if not text:
        raise InvalidQuery("An empty text stands everywhere\nhint: give at least one character")
    return re.compile(re.escape(text))


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
