"""From a dataclass to a mapping and to YAML."""

import textwrap
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

from actlake.platform.config.errors import ConfigError
from actlake.platform.config.kinds import config_fields, field_docs, is_written
from actlake.platform.config.yaml_text import yaml_text

_WIDTH = 92


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as JSON would hold it: every field, in order; `from_dict` reads it.

    Tuples become lists; paths, sites and other types that are written become text. A float
    that is not finite stays one.

    Raises
    ------
    ConfigError
        A field holds something that cannot be written.
    """
    return {
        name: written_value(getattr(config, name), name) for name in config_fields(type(config))
    }


def to_yaml(config: Any, *, docs: bool = False) -> str:
    """A configuration as YAML that ``--config`` reads back, with the fields' docs if wanted."""
    return "".join(_yaml_lines(config, docs=docs, indent=""))


def written_value(value: Any, key: str) -> Any:
    """One value as `to_dict` writes it; `key` is for the message when it cannot be."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if is_written(value):
        return str(value)
    if is_dataclass(value):
        return {
            name: written_value(getattr(value, name), f"{key}.{name}")
            for name in config_fields(type(value))
        }
    if isinstance(value, Mapping):
        return {str(name): written_value(item, f"{key}.{name}") for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [written_value(item, f"{key}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, frozenset):
        return sorted(written_value(item, key) for item in value)
    raise ConfigError(
        f"{key} holds a {type(value).__name__}, which cannot be written to a file\n"
        "hint: types that can be written as text are made known with `register_written`"
    )


def _yaml_lines(config: Any, *, docs: bool, indent: str) -> list[str]:
    lines = []
    about = field_docs(type(config)) if docs else {}
    for name in config_fields(type(config)):
        value = getattr(config, name)
        if name in about:
            lines += [f"{indent}# {line}\n" for line in textwrap.wrap(about[name], _WIDTH)]
        if is_dataclass(value) and not is_written(value) and config_fields(type(value)):
            lines.append(f"{indent}{name}:\n")
            lines += _yaml_lines(value, docs=docs, indent=f"{indent}  ")
        else:
            lines.append(textwrap.indent(yaml_text({name: written_value(value, name)}), indent))
    return lines
