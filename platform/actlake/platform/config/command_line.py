"""The command line of a job: files, overrides, help.

    actlake harvest --config run.yaml --corpus.max_tokens 100000 --sites resid_post.6,resid_post.9

Files are read in the order given, a later one over an earlier one; what stands on the command
line itself wins over all files. Keys are dotted; ``-`` in a key is ``_``. A value is what its
field's type makes of the text, so nothing needs quotes beyond the shell's own:

    --name 123              text for a text field, a number for a number
    --sites a,b             a list; also '[a, b]'
    --corpus '{demo: true}' the whole value, instead of what a file says
    --corpus.demo true      one key inside it
    --verify                a field that is true or false; `--verify false` for the other, and
                            `--no-verify` where true is the default
"""

import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from actlake.platform.config.kinds import ConfigError, class_doc, field_docs
from actlake.platform.config.options import Parser, options_parser
from actlake.platform.config.structure import from_dict, to_dict
from actlake.platform.config.yaml_text import Written, opened, parse_yaml, yaml_text

C = TypeVar("C")

COMMAND_LINE = "command line"


def read_config(kind: type[C], argv: Sequence[str] | None = None, **options: Any) -> C:
    """As `read_command`, with its options, for a command that has no flags."""
    config: C = read_command(kind, argv, **options)[0]
    return config


def read_command(
    kind: type[C],
    argv: Sequence[str] | None = None,
    *,
    command: str,
    description: str = "",
    examples: Sequence[str] = (),
    flags: Mapping[str, str] | None = None,
    base: C | None = None,
) -> tuple[C, frozenset[str]]:
    """Read the configuration of a job, a frozen dataclass `kind`, from its command line.

    ``--help`` and ``--print-config`` print their answer and raise SystemExit(0).

    Parameters
    ----------
    argv
        Arguments after the command's name; None means those of this process.
    command
        How the command is called, such as ``actlake harvest``.
    description
        What it does, for ``--help``; empty means the docstring of `kind`.
    examples
        Whole command lines for ``--help``.
    flags
        Flags that are no part of the configuration: ``{"plan": "Print the plan and stop."}``.
    base
        Where fields that are not given come from: a recipe. None means the class's defaults.

    Returns
    -------
    config, given
        The configuration, and the names of the flags that were given.

    Raises
    ------
    ConfigError
        A file cannot be read, or the configuration is wrong; every wrong key is named, with
        the file and line, or command line, where it was set.
    """
    flags = flags or {}
    about = description or class_doc(kind)
    parser = options_parser(kind, base, command, about, examples, flags)
    words = [_underscored(word, flags) for word in (sys.argv[1:] if argv is None else argv)]
    known, rest = parser.parse_known_args(words)
    values: dict[str, Any] = {}
    places: dict[str, str] = {}
    for path in known.config:
        content, lines = _read_file(path)
        values = _merged(values, content)
        places |= {key: f"{path}, line {line}" for key, line in lines.items()}
    for key, text in [*known.given, *_pairs(rest, parser)]:
        _set(values, key, text)
        places = {name: at for name, at in places.items() if not name.startswith(f"{key}.")}
        places[key] = COMMAND_LINE
    config = from_dict(
        kind, values, base=base, source=f"the configuration of `{command}`",
        origin=partial(_origin, places),
    )  # fmt: skip
    if vars(known)["--print-config"]:
        sys.stdout.write(to_yaml(config, docs=True))
        raise SystemExit(0)
    return config, frozenset(flag for flag in flags if vars(known)[f"--{flag}"])


def _underscored(word: str, flags: Mapping[str, str]) -> str:
    name, equals, text = word.partition("=")
    if not name.startswith("--") or name[2:] in ("print-config", *flags):
        return word
    return f"--{name[2:].replace('-', '_')}{equals}{text}"


def _pairs(rest: Sequence[str], parser: Parser) -> Iterator[tuple[str, str]]:
    """Keys without an option of their own: those inside mappings, and wrong ones."""
    words = iter(rest)
    for word in words:
        if not re.match(r"--\w", word):
            parser.error(f"does not know what to do with {word!r}")
        key, equals, text = word[2:].partition("=")
        yield key, text if equals else next(words, "true")


def _read_file(path: str) -> tuple[dict[str, Any], dict[str, int]]:
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"Cannot read the configuration file {path}: {error.strerror}\n"
            "hint: paths are relative to the current folder"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"The configuration file {path} is not UTF-8: {error}") from error
    content, lines = parse_yaml(text, name=path)
    if not isinstance(content, dict | None):
        raise ConfigError(f"{path} holds no keys\nhint: write lines such as `key: value`")
    return content or {}, lines


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for name, value in above.items():
        old = merged.get(name)
        if isinstance(old, dict) and isinstance(value, dict):
            value = _merged(old, value)
        merged[name] = value
    return merged


def _set(values: dict[str, Any], key: str, text: str) -> None:
    """Put the text of one option where its dotted key says."""
    *parents, last = key.split(".")
    for parent in parents:
        inside = opened(values.get(parent), "{")
        values[parent] = dict(inside) if isinstance(inside, dict) else {}
        values = values[parent]
    values[last] = Written(text)


def _origin(places: Mapping[str, str], key: str) -> str:
    """Where `key`, or the nearest key around it, was set, and whether something inside it."""
    inside = [place for name, place in places.items() if name.startswith(f"{key}.")]
    while key and key not in places:
        key = key[: max(key.rfind("."), key.rfind("["), 0)]
    found = [places[key]] if key else []
    found += [COMMAND_LINE] if COMMAND_LINE in inside else []
    return ", and ".join(dict.fromkeys(found))


def to_yaml(config: Any, *, docs: bool = False) -> str:
    """A configuration as YAML that ``--config`` reads back, with the fields' docs if wanted."""
    return "".join(_yaml_lines(config, to_dict(config), docs=docs, indent=""))


def _yaml_lines(config: Any, plain: dict[str, Any], *, docs: bool, indent: str) -> Iterator[str]:
    about = field_docs(type(config)) if docs else {}
    for name, value in plain.items():
        for line in textwrap.wrap(about.get(name, ""), 92):
            yield f"{indent}# {line}\n"
        inner = getattr(config, name)
        if is_dataclass(inner) and isinstance(value, dict) and value:
            yield f"{indent}{name}:\n"
            yield from _yaml_lines(inner, value, docs=docs, indent=f"{indent}  ")
        else:
            yield f"{indent}{name}: {yaml_text(value)}\n"
