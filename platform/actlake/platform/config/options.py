"""The options of a command, by argparse: one for every field, which ``--help`` explains."""

import argparse
import dataclasses
import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

from actlake.platform.config import kinds
from actlake.platform.config.structure import to_dict
from actlake.platform.config.yaml_text import yaml_text


class Parser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` whose errors are ours."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        raise kinds.ConfigError(
            f"`{self.prog}`: {message}\nhint: files are given with --config FILE, values with "
            "--KEY VALUE, or with --KEY=VALUE where they begin with -"
        )


class _Help(argparse.RawDescriptionHelpFormatter):
    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        # Without brackets around what may be left out.
        return "" if action.metavar is None else str(action.metavar)

    def _get_help_string(self, action: argparse.Action) -> str:
        return _unmarked(action.help or "").replace("%", "%%")


def options_parser(
    kind: type, base: Any, command: str, about: str, examples: Sequence[str],
    flags: Mapping[str, str],
) -> Parser:  # fmt: skip
    """A parser that gives ``config`` (files), ``given`` ((key, text) in order), and flags."""
    width = min(max(shutil.get_terminal_size().columns, 40), 100)
    shown_examples = "\n\n  ".join(["examples:", "\n  ".join(examples)]) if examples else ""
    parser = Parser(
        prog=command, epilog=shown_examples, description=textwrap.fill(_unmarked(about), width),
        usage=f"{command} [--config FILE] [--KEY VALUE ...]" + "".join(f" [--{f}]" for f in flags),
        formatter_class=lambda prog: _Help(prog, 2, 6, width), allow_abbrev=False,
    )  # fmt: skip
    parser.set_defaults(given=[])
    what = "Read keys from a YAML file; several are read one over the other."
    parser.add_argument("--config", metavar="FILE", action="append", default=[], help=what)
    everything = {"print-config": "Print the whole configuration as YAML, and stop.", **flags}
    for flag, what in everything.items():
        parser.add_argument(f"--{flag}", dest=f"--{flag}", action="store_true", help=what)
    _add_keys(parser, kind, base, "", "keys, in the file or as --KEY VALUE (which wins)", width)
    return parser


def _add_keys(parser: Parser, kind: type, base: Any, above: str, title: str, width: int) -> None:
    """An option for each field of `kind`; a section of the help for each dataclass."""
    section = parser.add_argument_group(title)
    inside, shared = [], []
    docs = kinds.field_docs(kind)
    for name, (declared, default) in kinds.config_fields(kind).items():
        key, members = f"{above}{name}", kinds.members(declared)
        default = getattr(base, name) if type(base) is kind else default
        configs = [member for member in members if kinds.is_config(member)]
        words = " or ".join(m.__name__ if m in configs else kinds.words_for(m) for m in members)
        if default is dataclasses.MISSING:
            words += "; required"
        elif len(members) > 1 or not configs:
            known = type(default).__name__ if type(default) in configs else None
            words += f"; default: {known or yaml_text(to_dict(default))}"
        try:
            option = section.add_argument(
                f"--{key}", dest="given", action="append", type=partial(_pair, key),
                metavar=f"({words})", help=docs.get(name) or " ",
            )  # fmt: skip
        except argparse.ArgumentError:  # another member of the union has this key
            shared.append(f"{name} ({words})")
            continue
        if bool in members:
            option.nargs, option.const = "?", (key, "true")
            if default is True and not above:
                _add_negative(section, key)
        alone = len(configs) == 1
        inside += [(m, default, key, key if alone else f"{key} as {m.__name__}") for m in configs]
    also = f" Also: {', '.join(shared)}." if shared else ""
    about = (kinds.class_doc(kind) if above else "") + also
    section.description = textwrap.fill(_unmarked(about), width - 2)
    for member, default, key, title in inside:
        _add_keys(parser, member, default, f"{key}.", title, width)


def _add_negative(section: Any, key: str) -> None:
    """What is done unless it is said otherwise is said otherwise in a word of its own."""
    section.add_argument(
        f"--no_{key}", dest="given", action="append_const", const=(key, "false"),
        help=f"The same as --{key} false.",
    )  # fmt: skip


def _unmarked(text: str) -> str:
    """Docs without the marks of reStructuredText."""
    return re.sub(r"``?([^`]+)``?", r"\1", text)


def _pair(key: str, text: str) -> tuple[str, str]:
    return key, text
