"""Text of others, such as a corpus's, as it may be shown on a terminal.

A terminal obeys what it is told in escape sequences, which a text may hold: to clear the screen,
to name the window, to type for the user. Marks of writing direction show a line in another order
than it is written. So whatever a person is shown of a store goes through here.
"""

_IN_ONE_LINE = {"\n": "↵", "\t": "⇥", "\r": "␍"}
_CONTROLS = {code: chr(0x2400 + code) for code in range(0x20)} | {0x7F: "␡"}
# C1 controls, line and paragraph separators, marks of direction, halves of surrogate pairs.
_OTHERS = (
    *range(0x80, 0xA0),
    0x61C,
    0x200E,
    0x200F,
    *range(0x2028, 0x202F),
    *range(0x2066, 0x206A),
    *range(0xD800, 0xE000),
)
_SHOWN = _CONTROLS | {code: ascii(chr(code))[1:-1] for code in _OTHERS}
_LINES = {code: text for code, text in _SHOWN.items() if chr(code) not in "\n\t"}
_LINE = _SHOWN | str.maketrans(_IN_ONE_LINE)


def printable(text: str) -> str:
    """A text in one line, with a character that can be seen for each that controls."""
    return text.translate(_LINE)


def printable_lines(text: str) -> str:
    """As `printable`, but lines and tabs stay."""
    return text.translate(_LINES)
