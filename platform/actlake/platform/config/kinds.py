"""The types a configuration may use, in Python and in words."""

import ast
import inspect
import textwrap
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from actlake.storage.sites import Site

T = TypeVar("T")


class Written(str):
    """Text from a command line: the type of its field says what it is."""

    __slots__ = ()


_WRITTEN: dict[type, tuple[Callable[[str], Any], str]] = {
    Path: (Path, "a path"),
    Site: (Site.parse, "a site such as resid_post.6"),
}


def register_written(kind: type[T], parse: Callable[[str], T], words: str) -> None:
    """Let fields have the type `kind`, which is written as text.

    Parameters
    ----------
    kind
        The type. ``str`` of a value must give what `parse` reads.
    parse
        Raises ValueError or an `ActlakeError` for other text.
    words
        What it is, with an article and an example: ``a site such as resid_post.6``.
    """
    _WRITTEN[kind] = (parse, words)


def written_parser(kind: Any) -> Callable[[str], Any] | None:
    """How text becomes a `kind`; None when it is not a type written as text."""
    known = _WRITTEN.get(kind) if isinstance(kind, type) else None
    return None if known is None else known[0]


def is_written(value: object) -> bool:
    """Whether `value` is of a type that is written as text."""
    return any(isinstance(value, kind) for kind in _WRITTEN)


def plain(kind: Any) -> Any:
    """`kind` without Annotated and NewType around it."""
    while True:
        if get_origin(kind) is Annotated:
            kind = get_args(kind)[0]
        elif isinstance(kind, typing.NewType):
            kind = kind.__supertype__
        else:
            return kind


def is_dataclass_type(kind: Any) -> bool:
    """Whether `kind` is a dataclass, and not one of its objects."""
    return isinstance(kind, type) and is_dataclass(kind)


def members(kind: Any) -> tuple[Any, ...]:
    """The members of a union, unions inside it opened up; just the type when it is none."""
    kind = plain(kind)
    if get_origin(kind) in (Union, types.UnionType):
        return tuple(inner for member in get_args(kind) for inner in members(member))
    return (kind,)


def dataclass_members(kind: Any) -> list[type]:
    """The dataclasses that a value of type `kind` may be, where they are read key by key."""
    return [m for m in members(kind) if is_dataclass_type(m) and written_parser(m) is None]


def sequence_items(kind: Any) -> Any | None:
    """The type of the items of a list or of a tuple of any length; None for other types."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin is tuple and len(inside) == 2 and inside[1] is Ellipsis:
        return inside[0]
    if origin in (list, Sequence, frozenset):
        return inside[0]
    return None


def mapping_items(kind: Any) -> Any | None:
    """The type of the values of a dict with text as keys; None for other types."""
    if get_origin(kind) in (dict, Mapping):
        return get_args(kind)[1]
    return None


def config_fields(kind: type) -> dict[str, tuple[Any, "Field[Any]"]]:
    """The fields that are given when a `kind` is made: name to (type, field)."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: (hints[field.name], field) for field in fields(kind) if field.init}


def is_required(field: "Field[Any]") -> bool:
    """Whether a field has no default."""
    return field.default is MISSING and field.default_factory is MISSING


def default_of(field: "Field[Any]") -> Any:
    """The default of a field that has one."""
    if field.default_factory is not MISSING:
        return field.default_factory()
    return field.default


def field_docs(kind: type) -> dict[str, str]:
    """The docstring under each field of a dataclass, as one paragraph; none without source."""
    docs: dict[str, str] = {}
    for owner in reversed(kind.__mro__):
        docs |= _docs_in_source(owner)
    return docs


def class_doc(kind: type) -> str:
    """The first paragraph of a class's docstring; empty for the one dataclasses make up."""
    text = inspect.cleandoc(kind.__doc__ or "")
    if text.startswith(f"{kind.__name__}("):
        return ""
    return " ".join(text.split("\n\n")[0].split())


@cache  # reading a module's source takes milliseconds
def _docs_in_source(kind: type) -> Mapping[str, str]:
    if not is_dataclass(kind):
        return {}
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError, SyntaxError):  # made in a console, or by a program
        return {}
    docs = {}
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    for statement, after in pairwise(body):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
            and isinstance(after.value.value, str)
        ):
            docs[statement.target.id] = " ".join(after.value.value.split())
    return docs


def words_for(kind: Any) -> str:
    """A type in words for a person: ``a whole number or null``."""
    words = [_words_for_one(member) for member in members(kind)]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    type(None): "null",
    Any: "anything",
}


def _words_for_one(kind: Any) -> str:
    if kind in _WORDS:
        return _WORDS[kind]
    if isinstance(kind, type) and kind in _WRITTEN:
        return _WRITTEN[kind][1]
    if get_origin(kind) is Literal:
        options = [str(option).lower() if isinstance(option, bool) else str(option)
                   for option in get_args(kind)]  # fmt: skip
        return options[0] if len(options) == 1 else f"one of {', '.join(options)}"
    if is_dataclass_type(kind):
        return f"{kind.__name__} ({', '.join(config_fields(kind)) or 'no keys'})"
    if (items := sequence_items(kind)) is not None:
        return f"a list, each {words_for(items)}"
    if get_origin(kind) is tuple:
        return f"a list of {len(get_args(kind))}: {', '.join(map(words_for, get_args(kind)))}"
    if (items := mapping_items(kind)) is not None:
        return f"keys with {words_for(items)}"
    return str(getattr(kind, "__name__", kind))
