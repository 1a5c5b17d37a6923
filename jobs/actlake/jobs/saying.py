"""How a command tells a person something: as it is written, whatever is in it."""

from rich.console import Console
from rich.text import Text


def say(words: object, console: Console | None = None) -> None:
    """Print `words`, by default as the command's answer on stdout.

    A path may hold ``[brackets]`` or ``:words:`` that Rich would read as markup in a string; in a
    `Text` they are themselves.
    """
    (console or Console()).print(Text(str(words)), soft_wrap=True)
