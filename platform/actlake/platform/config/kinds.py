"""The types that fields of a configuration have: what they are made of, and words for them."""

import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from inspect import getdoc
from typing import Annotated, Any, Literal, NewType, Union, get_args, get_origin, get_type_hints

from docstring_parser import DocstringStyle, parse_from_object

from actlake.storage.errors import ActlakeError

WORDS: dict[Any, str] = {
    int: "a whole number", float: "a number", bool: "true or false", str: "text",
    type(None): "null", Any: "anything",
}  # fmt: skip
"""Words for a type; `register_written` adds those that are written as text."""


class ConfigError(ActlakeError, ValueError):
    """A configuration cannot be used; the message names every key that is wrong, and why."""


def members(kind: Any) -> tuple[Any, ...]:
    """The members of a union, unions inside it opened up; just the type when it is none."""
    if get_origin(kind) is Annotated:
        return members(get_args(kind)[0])
    if isinstance(kind, NewType):
        return members(kind.__supertype__)
    if get_origin(kind) in (Union, types.UnionType):
        return tuple(inner for member in get_args(kind) for inner in members(member))
    return (kind,)


def is_config(kind: Any) -> bool:
    """Whether `kind` is a dataclass that is given key by key."""
    return isinstance(kind, type) and is_dataclass(kind) and kind not in WORDS


def is_list(kind: Any) -> bool:
    """Whether `kind` is a list or a tuple of any length."""
    origin = get_origin(kind)
    return origin in (list, Sequence) or (origin is tuple and get_args(kind)[-1:] == (...,))


def is_mapping(kind: Any) -> bool:
    """Whether `kind` is a mapping."""
    return get_origin(kind) in (dict, Mapping)


def is_container(kind: Any) -> bool:
    """Whether `kind` is a list, tuple or mapping."""
    return is_list(kind) or is_mapping(kind) or get_origin(kind) is tuple


@cache
def config_fields(kind: type) -> Mapping[str, tuple[Any, Any]]:
    """The fields that are given when a `kind` is made: (type, default), MISSING without one."""
    hints = get_type_hints(kind, include_extras=True)
    return {
        field.name: (
            hints[field.name],
            field.default if field.default_factory is MISSING else field.default_factory(),
        )
        for field in fields(kind)
        if field.init
    }


def field_docs(kind: type) -> dict[str, str]:
    """The docstring under each field of a dataclass, as one paragraph; none without source."""
    docs: dict[str, str] = {}
    for owner in filter(is_dataclass, reversed(kind.__mro__)):
        for param in parse_from_object(owner, DocstringStyle.NUMPYDOC).params:
            docs[param.arg_name] = " ".join((param.description or "").split())
    return docs


def class_doc(kind: type) -> str:
    """The first paragraph of a class's docstring; empty for the one dataclasses make up."""
    text = getdoc(kind) or ""
    return "" if text.startswith(f"{kind.__name__}(") else " ".join(text.split("\n\n")[0].split())


def words_for(declared: Any) -> str:
    """A type in words for a person: ``a whole number or null``."""
    if len(kinds := members(declared)) > 1:
        words = [words_for(kind) for kind in kinds]
        return f"{', '.join(words[:-1])} or {words[-1]}"
    kind, inside = kinds[0], get_args(kinds[0])
    if kind in WORDS:
        return WORDS[kind]
    if get_origin(kind) is Literal:
        return f"{'one of ' if len(inside) > 1 else ''}{', '.join(map(as_written, inside))}"
    if is_config(kind):
        return f"{kind.__name__} ({', '.join(config_fields(kind)) or 'no keys'})"
    if is_list(kind):
        return f"a list, each {words_for(inside[0])}"
    if get_origin(kind) is tuple:
        return f"a list of {len(inside)}: {', '.join(map(words_for, inside))}"
    return f"keys with {words_for(inside[1])}" if is_mapping(kind) else str(kind)


def as_written(option: Any) -> str:
    """An option of a Literal as YAML has it."""
    return str(option).lower() if isinstance(option, bool) else str(option)
