"""The text of ``--help``: every field, its type in words, its default and its docs."""

import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

from actlake.platform.config.kinds import (
    class_doc,
    config_fields,
    dataclass_members,
    default_of,
    field_docs,
    is_required,
    is_written,
    members,
    words_for,
)
from actlake.platform.config.writing import written_value
from actlake.platform.config.yaml_text import yaml_text

_NARROWEST, _WIDEST = 60, 100


def help_text(
    kind: type,
    command: str,
    description: str,
    examples: Sequence[str],
    flags: Mapping[str, str],
) -> str:
    """The whole help of a command whose configuration is `kind`."""
    width = min(max(shutil.get_terminal_size().columns, _NARROWEST), _WIDEST)
    shown_flags = "".join(f" [--{flag}]" for flag in flags)
    lines = [f"usage: {command} [--config FILE] [--KEY VALUE ...]{shown_flags}", ""]
    lines += [*textwrap.wrap(_unmarked(description or class_doc(kind)), width), ""]
    options = {
        "config FILE": "Read keys from a YAML file; several are read one over the other.",
        "print-config": "Print the whole configuration as YAML, and stop.",
        "help": "Print this, and stop.",
        **flags,
    }
    for name, about in options.items():
        lines += _entry(f"--{name}", about, "", width)
    lines += ["", "keys, in the file or as --KEY VALUE (which wins):", ""]
    lines += _fields(kind, "", None, width)
    if examples:
        lines += ["", "examples:", ""]
        lines += [f"  {example}" for example in examples]
    return "\n".join(lines).rstrip() + "\n"


def _fields(kind: type, prefix: str, defaults: Any, width: int) -> Iterator[str]:
    docs = field_docs(kind)
    for name, (declared, field) in config_fields(kind).items():
        key = f"{prefix}{name}"
        if defaults is not None:
            default, required = getattr(defaults, name), False
        else:
            required = is_required(field)
            default = None if required else default_of(field)
        inside = dataclass_members(declared)
        state = "required" if required else f"default: {_shown(default)}"
        what = _one_of(declared, inside)
        yield from _entry(f"{key}  ({what}; {state})", docs.get(name, ""), "", width)
        for member in inside:
            if len(inside) > 1:
                title = f"{key} as {member.__name__}:"
                yield from _entry(title, class_doc(member), "  ", width)
            own = default if type(default) is member else None
            yield from _fields(member, f"{key}.", own, width)


def _one_of(declared: Any, inside: list[type]) -> str:
    others = [member for member in members(declared) if member not in inside]
    names = [member.__name__ for member in inside] + [words_for(member) for member in others]
    return " or ".join(names)


def _shown(default: Any) -> str:
    if is_dataclass(default) and not isinstance(default, type) and not is_written(default):
        return type(default).__name__
    text = yaml_text(written_value(default, "default")).removesuffix("...\n")
    return " ".join(text.split())


def _entry(title: str, about: str, indent: str, width: int) -> Iterator[str]:
    yield from textwrap.wrap(
        title, width, initial_indent=f"{indent}  ", subsequent_indent=f"{indent}      ",
        break_on_hyphens=False,
    )  # fmt: skip
    yield from textwrap.wrap(
        _unmarked(about), width, initial_indent=f"{indent}      ",
        subsequent_indent=f"{indent}      ", break_on_hyphens=False,
    )  # fmt: skip


def _unmarked(text: str) -> str:
    """Docs without the marks of reStructuredText."""
    return re.sub(r"``?([^`]+)``?", r"\1", text)
