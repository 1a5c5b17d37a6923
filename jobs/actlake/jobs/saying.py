"""How a command tells a person something: as it is written, whatever is in it, on any terminal."""

import codecs
import sys

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from actlake.storage.printable import printable_lines

_PLAIN = {
    "–": "-", "—": "-", "−": "-", "…": "...", "·": ".", "×": "x", "→": "->", "←": "<-", "±": "+-",
    "≤": "<=", "≥": ">=", "≠": "!=", "≈": "~", "²": "2", "³": "3", "½": "1/2", "°": " degrees",
    "α": "alpha", "β": "beta", "λ": "lambda", "μ": "mu", "σ": "sigma", "Δ": "Delta",
    "“": '"', "”": '"', "‘": "'", "’": "'", "├": "|", "└": "`", "│": "|", "─": "-",
}  # fmt: skip
"""What stands for a character where it cannot be shown; for blocks of bars it is ``#``."""

_BLOCKS = range(0x2580, 0x25A0)
_HANDLER = "actlake_plain"
_WIDE = 10_000
"""Characters in which any table has room."""


def show_what_can_be_shown() -> None:
    """Let no output fail for a character: what stdout and stderr cannot encode is put plainly.

    Their encoding is the terminal's (``PYTHONIOENCODING``, ``LANG=C``), and stays what it is. A
    name of a file that is not in it is written with escapes.
    """
    codecs.register_error(_HANDLER, _plainly)
    for stream in (sys.stdout, sys.stderr):
        # A notebook's and a test's may not be able to, and take every character.
        if (reconfigure := getattr(stream, "reconfigure", None)) is not None:
            reconfigure(errors=_HANDLER)


def _plainly(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    plain = (_PLAIN.get(one, "#" if ord(one) in _BLOCKS else one) for one in text)
    return "".join(plain).encode("ascii", "backslashreplace").decode(), error.end


def say(words: object, console: Console | None = None) -> None:
    """Print `words`, by default as the command's answer on stdout.

    A path may hold ``[brackets]`` or ``:words:`` that Rich would read as markup in a string; in a
    `Text` they are themselves. What controls a terminal is shown, and not done.
    """
    (console or Console()).print(Text(printable_lines(str(words))), soft_wrap=True)


def say_table(table: Table, console: Console | None = None) -> None:
    """Print a table of texts whole; where it is too wide, each of its rows as lines of its own."""
    console = console or Console()
    columns = [list(map(str, column.cells)) for column in table.columns]
    wide = console.options.update(max_width=_WIDE)
    if Measurement.get(console, wide, table).maximum <= console.width:
        console.print(table)
        return
    names = [str(column.header) for column in table.columns]
    for cells in zip(*columns, strict=True):
        lines = (f"{name}: {cell}" for name, cell in zip(names, cells, strict=True))
        say("\n  ".join(lines), console)
