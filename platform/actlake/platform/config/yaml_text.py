"""YAML as a person expects it, with the line of every key.

Differences from PyYAML's rules of 2005: ``1e-4`` is a number; ``yes``, ``no``, ``on`` and
``off`` are text; dates and ``1:30`` are text; ``010`` is text; a key given twice is an error.
"""

import re
from dataclasses import dataclass
from typing import Any

import yaml

from actlake.platform.config.errors import ConfigError

_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?(0|[1-9][0-9_]*)")
_FLOAT = re.compile(
    r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9][0-9_]*(?=[eE]))([eE][-+]?[0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_SCALARS = (
    ("tag:yaml.org,2002:null", _NULL),
    ("tag:yaml.org,2002:bool", _BOOL),
    ("tag:yaml.org,2002:int", _INT),
    ("tag:yaml.org,2002:float", _FLOAT),
)


_PLAIN = (str, int, float, bool)


class _Loader(yaml.SafeLoader):
    """SafeLoader with the rules above."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  PyYAML's way


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes text which either set of rules would read as something else."""

    yaml_implicit_resolvers = {  # noqa: RUF012  PyYAML's way
        first: list(rules) for first, rules in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }

    def represent_sequence(
        self, tag: str, sequence: Any, flow_style: Any = None
    ) -> yaml.SequenceNode:
        """Lists of plain values on one line."""
        plain = all(item is None or isinstance(item, _PLAIN) for item in sequence)
        return super().represent_sequence(tag, sequence, flow_style=plain)

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Characters that do not print, such as odd line ends, are escaped in double quotes."""
        style = None if text.isprintable() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    def ignore_aliases(self, data: Any) -> bool:
        """No anchors: equal lists are written out twice."""
        return True


_Dumper.add_representer(str, _Dumper.represent_text)
for _tag, _pattern in _SCALARS:
    _whole = re.compile(rf"(?:{_pattern.pattern})\Z")
    _Loader.add_implicit_resolver(_tag, _whole, None)
    _Dumper.add_implicit_resolver(_tag, _whole, None)
_Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"<<\Z"), None)


@dataclass(frozen=True)
class Parsed:
    """A YAML document and where its keys stand."""

    content: Any
    lines: dict[str, int]
    """Dotted key to line, counted from 1."""


def parse_yaml(text: str, *, name: str) -> Parsed:
    """Read one YAML document; `name` says where it is from.

    Raises
    ------
    ConfigError
        It is not YAML, or a key is given twice.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        lines: dict[str, int] = {}
        if node is not None:
            _note_lines(node, "", lines, name)
        content = None if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} is not YAML: {_one_line(error)}") from error
    except RecursionError as error:
        raise ConfigError(f"{name} contains itself or is nested too deep") from error
    finally:
        loader.dispose()
    return Parsed(content, lines)


def parse_scalar(text: str) -> Any:
    """Text of a command line as YAML would read it; what is no scalar stays text."""
    try:
        value = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError):
        return text
    return text if isinstance(value, list | dict) else value


def parse_texts(text: str, *, name: str) -> Any:
    """A YAML list or mapping with every scalar left as text.

    Raises
    ------
    ConfigError
        It is not YAML.
    """
    try:
        return yaml.load(text, yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: {text!r} cannot be read: {_one_line(error)}") from error


def yaml_text(value: Any) -> str:
    """`value` as YAML that `parse_yaml` reads back as it was."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _note_lines(node: yaml.Node, prefix: str, lines: dict[str, int], name: str) -> None:
    if isinstance(node, yaml.SequenceNode):
        for place, item in enumerate(node.value):
            key = f"{prefix}[{place}]"
            lines[key] = item.start_mark.line + 1
            _note_lines(item, key, lines, name)
    if not isinstance(node, yaml.MappingNode):
        return
    seen = set()
    for key_node, value_node in node.value:
        key = f"{prefix}.{key_node.value}" if prefix else str(key_node.value)
        line = key_node.start_mark.line + 1
        if key in seen and key_node.value != "<<":
            raise ConfigError(f"{name}, line {line}: {key} is given twice, first on line "
                              f"{lines[key]}\nhint: remove one of them")  # fmt: skip
        seen.add(key)
        lines[key] = line
        _note_lines(value_node, key, lines, name)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
