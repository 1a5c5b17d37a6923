"""YAML and a command line in, one frozen and validated dataclass out.

    config = read_config(Harvest, argv, command="actlake harvest")

A job's configuration is a frozen dataclass, nested as deep as it likes, each field with a
docstring under it. Types say what is allowed: int, float, bool, str, Path, Site, Literal,
tuples, lists, dicts with text as keys, Optional and other unions, dataclasses.

A union of dataclasses is told apart by its fields: the member is taken that has all keys
which are given and all of whose required fields are given. Where two members would fit, that
is an error; give such members a field ``kind: Literal["…"]``, each with its own word.

`to_dict` and `from_dict` go both ways without loss; `to_yaml` writes what ``--config`` reads.
"""

from actlake.platform.config.command_line import read_command, read_config
from actlake.platform.config.errors import ConfigError
from actlake.platform.config.kinds import register_written
from actlake.platform.config.reading import from_dict
from actlake.platform.config.writing import to_dict, to_yaml

__all__ = [
    "ConfigError",
    "from_dict",
    "read_command",
    "read_config",
    "register_written",
    "to_dict",
    "to_yaml",
]
