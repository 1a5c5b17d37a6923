"""JSON that any program can read, also where numbers are not finite.

The JSON standard has no NaN and no infinity, and Python writes them all the same, as words
that break other readers. Here they are the strings "NaN", "Infinity" and "-Infinity", which
``float(...)`` reads back; `number` does so for a value that must be a number.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

_WORDS = ("NaN", "Infinity", "-Infinity")


def json_text(value: Any, *, indent: int | None = None) -> str:
    """`value` as standard JSON; NumPy scalars become numbers, tuples lists, paths text."""
    return json.dumps(_plain(value), indent=indent, ensure_ascii=False, allow_nan=False)


def number(value: Any) -> Any:
    """`value`, or the float it stands for when it is one of the three words."""
    return float(value) if isinstance(value, str) and value in _WORDS else value


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else json.dumps(value)  # one of `_WORDS`
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return _plain(value.item())  # a NumPy scalar, or a tensor with one number
    return str(value)
