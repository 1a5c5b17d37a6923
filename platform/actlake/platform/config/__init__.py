"""YAML and a command line in, one frozen and validated dataclass out.

    config = read_config(Harvest, argv, command="actlake harvest")

A job's configuration is a frozen dataclass, nested as deep as it likes, each field with a
docstring under it. Types say what is allowed: int, float, bool, str, Path, Site, Literal,
tuples, lists, dicts with text as keys, Optional and other unions, dataclasses.

A union of dataclasses is told apart by its keys. Where two members would fit, that is an
error; give such members a field ``kind: Literal["…"]``, each with its own word.

`to_dict` and `from_dict` go both ways without loss; `to_yaml` writes what ``--config`` reads.
"""

from actlake.platform.config.command_line import read_command, read_config, to_yaml
from actlake.platform.config.kinds import ConfigError
from actlake.platform.config.structure import from_dict, register_written, to_dict

__all__ = [
    "ConfigError",
    "from_dict",
    "read_command",
    "read_config",
    "register_written",
    "to_dict",
    "to_yaml",
]
