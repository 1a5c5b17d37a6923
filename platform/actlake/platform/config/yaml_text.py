"""YAML as a person expects it, with the line of every key.

Differences from PyYAML's rules of 2005: ``1e-4`` is a number; ``yes``, ``no``, ``on`` and
``off`` are text; dates and ``1:30`` are text; ``010`` is text; a key given twice is an error.
"""

import re
from typing import Any

import yaml

from actlake.platform.config.kinds import ConfigError

_SCALARS = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?(0|[1-9][0-9_]*)",
    "float": r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9][0-9_]*(?=[eE]))([eE][-+]?[0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    "merge": r"<<",
}
_NO_TEXT = re.compile("|".join(_SCALARS.values()))


class Written(str):
    """Text from a command line: the type of its field says what it is."""

    __slots__ = ()


class _Loader(yaml.SafeLoader):
    """SafeLoader with the rules above."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  PyYAML's way


class _WrittenLoader(yaml.BaseLoader):
    def construct_scalar(self, node: Any) -> Written:
        return Written(super().construct_scalar(node))


class _Dumper(yaml.SafeDumper):
    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Quotes around what would be read as something else; odd characters escaped."""
        plain = text.isprintable() and not _NO_TEXT.fullmatch(text)
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


_Dumper.add_representer(str, _Dumper.represent_text)
for _name, _pattern in _SCALARS.items():
    _rule = re.compile(rf"(?:{_pattern})\Z")
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _rule, None)


def parse_yaml(text: str, *, name: str) -> tuple[Any, dict[str, int]]:
    """The content of a YAML document, and the line of each dotted key, counted from 1.

    Raises
    ------
    ConfigError
        It is not YAML, or a key is given twice; `name` says where it is from.
    """
    loader = _Loader(text)
    lines: dict[str, int] = {}
    try:
        node = loader.get_single_node()
        if node is None:
            return None, lines
        _note_lines(node, "", lines, name)
        return loader.construct_document(node), lines
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{name} is not YAML: {' '.join(str(error).split())}") from error


def parse_scalar(text: str) -> Any:
    """Text of a command line as YAML would read it; what is no scalar stays text."""
    try:
        value = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError):
        return text
    return text if isinstance(value, list | dict) else value


def opened(value: Any, bracket: str) -> Any:
    """Text of a command line as the list or keys that it is, when it begins with `bracket`."""
    if not isinstance(value, Written) or not value.lstrip().startswith(bracket):
        return value
    try:
        return yaml.load(value, _WrittenLoader)
    except yaml.YAMLError:
        return value


def yaml_text(value: Any) -> str:
    """`value` as one line of YAML that `parse_yaml` reads back as it was."""
    text: str = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, sort_keys=False,
        width=float("inf"),
    )  # fmt: skip
    return text.removesuffix("...\n").rstrip("\n")


def _note_lines(node: yaml.Node, above: str, lines: dict[str, int], name: str) -> None:
    steps = []
    if isinstance(node, yaml.SequenceNode):
        steps = [(f"[{i}]", item, item) for i, item in enumerate(node.value)]
    elif isinstance(node, yaml.MappingNode):
        steps = [(f".{key.value}", key, item) for key, item in node.value]
    for step, place, item in steps:
        key, line = f"{above}{step}".removeprefix("."), place.start_mark.line + 1
        if key in lines:
            raise ConfigError(f"{name}, line {line}: {key} is given twice, first on line "
                              f"{lines[key]}\nhint: remove one of them")  # fmt: skip
        lines[key] = line
        _note_lines(item, key, lines, name)
