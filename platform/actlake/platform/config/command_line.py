"""The command line of a job: files, overrides, help.

    actlake harvest --config run.yaml --corpus.max_tokens 100000 --sites resid_post.6,resid_post.9

Files are read in the order given, a later one over an earlier one; what stands on the command
line itself wins over all files. Keys are dotted; ``-`` in a key is ``_``. A value is what its
field's type makes of the text, so nothing needs quotes beyond the shell's own:

    --name 123              text for a text field, a number for a number
    --sites a,b             a list; also '[a, b]'
    --corpus '{demo: true}' the whole value, instead of what a file says
    --corpus.demo true      one key inside it
    --verify                a field that is true or false; `--verify false` for the other
"""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from actlake.platform.config.errors import ConfigError
from actlake.platform.config.help import help_text
from actlake.platform.config.kinds import Written, config_fields, dataclass_members, members
from actlake.platform.config.reading import from_dict
from actlake.platform.config.writing import to_yaml
from actlake.platform.config.yaml_text import parse_texts, parse_yaml

C = TypeVar("C")

COMMAND_LINE = "command line"

_OPTION = re.compile(r"--\w")


def read_config(
    kind: type[C],
    argv: Sequence[str] | None = None,
    *,
    command: str,
    description: str = "",
    examples: Sequence[str] = (),
    base: C | None = None,
) -> C:
    """Read the configuration of a job from its command line.

    ``--help`` and ``--print-config`` print their answer and raise SystemExit(0).

    Parameters
    ----------
    kind
        The configuration, a frozen dataclass.
    argv
        Arguments after the command's name; None means those of this process.
    command
        How the command is called, such as ``actlake harvest``.
    description
        What it does, for ``--help``; empty means the docstring of `kind`.
    examples
        Whole command lines for ``--help``.
    base
        Where fields that are not given come from: a recipe. None means the class's defaults.

    Raises
    ------
    ConfigError
        A file cannot be read, or the configuration is wrong; every wrong key is named, with
        the file and line, or command line, where it was set.
    """
    config, _ = read_command(
        kind, argv, command=command, description=description, examples=examples, base=base
    )
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
    """As `read_config`, with flags that are no part of the configuration.

    Parameters
    ----------
    flags
        Name to what it does, for ``--help``: ``{"plan": "Print the plan and stop."}`` makes
        ``--plan`` known.

    Returns
    -------
    config, given
        The configuration, and the names of the flags that were given.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    flags = flags or {}
    given = _Given()
    for name, text in _options(arguments, command):
        if name in ("help", "h"):
            _print_and_exit(help_text(kind, command, description, examples, flags))
        given.add(kind, name, text, flags, command)
    config = from_dict(
        kind,
        given.values,
        base=base,
        source=f"the configuration of `{command}`",
        origin=given.origin,
    )
    if "print_config" in given.flags:
        _print_and_exit(to_yaml(config, docs=True))
    return config, frozenset(given.flags)


@dataclass
class _Given:
    """What files and command line say, merged, and where each key was set."""

    files: dict[str, Any] = field(default_factory=dict)
    overrides: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    overridden: set[str] = field(default_factory=set)
    flags: set[str] = field(default_factory=set)

    @property
    def values(self) -> dict[str, Any]:
        """Overrides over files."""
        return _merged(self.files, self.overrides)

    def add(
        self,
        kind: type,
        name: str,
        text: str | None,
        flags: Mapping[str, str],
        command: str,
    ) -> None:
        """Take in one option."""
        if name == "config":
            self._read_file(_required(name, text, "the path of a YAML file", command))
        elif name == "print_config" or name in flags or name.replace("_", "-") in flags:
            if text is not None:
                raise ConfigError(f"--{name.replace('_', '-')} takes no value, not {text!r}")
            self.flags.add(name if name in ("print_config", *flags) else name.replace("_", "-"))
        else:
            if text is None and _is_switch(kind, name):
                text = "true"
            self._override(name, _required(name, text, "a value", command))

    def origin(self, key: str) -> str:
        """Where `key`, or the nearest key around it, was set."""
        also = any(name.startswith(f"{key}.") for name in self.overridden)
        while key:
            if key in self.overridden:
                return COMMAND_LINE
            if key in self.places:
                return f"{self.places[key]}, and {COMMAND_LINE}" if also else self.places[key]
            key = key[: max(key.rfind("."), key.rfind("["), 0)]
        return COMMAND_LINE if also else ""

    def _read_file(self, path: str) -> None:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"Cannot read the configuration file {path}: {error.strerror}\n"
                "hint: paths are relative to the current folder"
            ) from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"The configuration file {path} is not UTF-8: {error}") from error
        parsed = parse_yaml(text, name=path)
        content = {} if parsed.content is None else parsed.content
        if not isinstance(content, dict):
            raise ConfigError(f"{path} holds no keys\nhint: write lines such as `key: value`")
        self.files = _merged(self.files, content)
        self.places |= {key: f"{path}, line {line}" for key, line in parsed.lines.items()}

    def _override(self, name: str, text: str) -> None:
        *parents, last = name.split(".")
        inside = self.overrides
        for parent in parents:
            known = inside.get(parent)
            if isinstance(known, Written) and known.strip().startswith("{"):
                known = _texts(parse_texts(known, name=f"--{name}"))
            inside[parent] = known if isinstance(known, dict) else {}
            inside = inside[parent]
        inside[last] = Written(text)
        self.overridden.add(name)


class _Whole(dict[str, Any]):
    """Keys that replace what files say instead of adding to it."""


def _texts(value: Any) -> Any:
    if isinstance(value, dict):
        return _Whole({str(name): _texts(item) for name, item in value.items()})
    return [_texts(item) for item in value] if isinstance(value, list) else Written(value)


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for name, value in above.items():
        old = merged.get(name)
        adds = isinstance(old, dict) and isinstance(value, dict) and not isinstance(value, _Whole)
        merged[name] = _merged(old, value) if adds and old is not None else value
    return merged


def _options(arguments: Sequence[str], command: str) -> Iterator[tuple[str, str | None]]:
    """The options: name with ``_`` for ``-``, and the text after it, None when none follows."""
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "-h":
            yield "help", None
            continue
        if not _OPTION.match(word):
            raise ConfigError(
                f"`{command}` does not know what to do with {word!r}\n"
                "hint: configuration files are given with --config FILE, values with --KEY VALUE"
            )
        name, equals, text = word[2:].partition("=")
        name = name.replace("-", "_")
        if equals:
            yield name, text
        elif rest and not rest[0].startswith("--") and rest[0] != "-h":
            yield name, rest.pop(0)
        else:
            yield name, None


def _required(name: str, text: str | None, what: str, command: str) -> str:
    if text is None:
        raise ConfigError(
            f"`{command}`: --{name} needs {what} after it\n"
            f"hint: a value that begins with -- is given as --{name}=VALUE"
        )
    return text


def _is_switch(kind: type, name: str) -> bool:
    """Whether a dotted name is a field that is true or false, so that it may stand alone."""
    first, _, inside = name.partition(".")
    known = config_fields(kind)
    if first not in known:
        return False
    declared, _ = known[first]
    if inside:
        return any(_is_switch(member, inside) for member in dataclass_members(declared))
    return bool in members(declared)


def _print_and_exit(text: str) -> None:
    sys.stdout.write(text)
    raise SystemExit(0)
