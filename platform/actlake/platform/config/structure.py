"""From mappings to dataclasses and back, by cattrs, which gathers all that is wrong.

The hooks are stricter than cattrs' own (``true`` is no number, a text no list), read text of a
command line as its field's type says, take what is missing inside a nested dataclass from the
default of its field, choose the member of a union by its keys, and speak in words.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from cattrs import Converter, cols, errors, gen

from actlake.platform.config import kinds
from actlake.platform.config.kinds import ConfigError, config_fields
from actlake.platform.config.yaml_text import Written, opened, parse_scalar
from actlake.storage.errors import ActlakeError, nearest
from actlake.storage.sites import Site

T = TypeVar("T")
Hook = Callable[[Any, Any], Any]

_SHOWN = 60


def from_dict(
    kind: type[T],
    values: Mapping[str, Any],
    *,
    base: T | None = None,
    source: str = "the configuration",
    origin: Callable[[str], str] = lambda key: "",
) -> T:
    """Make a `kind` of `values`, which are as YAML or JSON would give them.

    Parameters
    ----------
    kind
        A dataclass; see `actlake.platform.config` for the types its fields may have.
    base
        Where fields that are not given come from; None means the defaults of the class.
    source, origin
        For the message: where the values are from, and where that of a dotted key was set.

    Raises
    ------
    ConfigError
        Unknown keys, wrong types, missing fields, values that a class refuses: all of them.
    """
    try:
        return _CONVERTER.structure(_Over(values, base), kind)
    except errors.BaseValidationError as error:
        lines = [f"Cannot read {source}"]
        for dotted, words in _problems(error, ""):
            key = dotted.removeprefix(".")
            place = f" ({origin(key)})" if origin(key) else ""
            lines += f"{key or kind.__name__}{place}: {words}".splitlines()
        raise ConfigError("\n  ".join(lines)) from error


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as JSON would hold it: every field, in order; `from_dict` reads it.

    Tuples become lists; paths, sites and other types that are written become text. A float
    that is not finite stays one.

    Raises
    ------
    ConfigError
        A field holds something that cannot be written.
    """
    written: dict[str, Any] = _CONVERTER.unstructure(config)
    return written


def register_written(kind: type[T], parse: Callable[[str], T], words: str) -> None:
    """Let fields have the type `kind`, which is written as text.

    Parameters
    ----------
    kind
        The type. ``str`` of a value must give what `parse` reads.
    parse
        Raises ValueError or an `ActlakeError` for other text.
    words
        What it is, with an article and an example: ``a site such as resid_post.6``.
    """

    def read(value: Any, _: Any) -> Any:
        if isinstance(value, kind):
            return value
        return parse(str(value)) if isinstance(value, str) else _refuse(kind, value)

    kinds.WORDS[kind] = words
    _CONVERTER.register_structure_hook(kind, read)
    _CONVERTER.register_unstructure_hook(kind, str)


class _Over(dict[str, Any]):
    """Keys that are given over a dataclass which has the others."""

    def __init__(self, values: Mapping[str, Any], base: Any) -> None:
        super().__init__(values)
        self.base = base


def _problems(error: Exception, key: str) -> Iterator[tuple[str, str]]:
    """Dotted key and words of everything that cattrs found."""
    if isinstance(error, errors.BaseValidationError):
        for inner in error.exceptions:
            note = _note(inner)
            step = getattr(note, "name", getattr(note, "index", None))
            here = "" if note is None else f"[{step}]" if isinstance(step, int) else f".{step}"
            yield from _problems(inner, f"{key}{here}")
    elif isinstance(error, errors.ForbiddenExtraKeysError):
        for name in sorted(map(str, error.extra_fields)):
            known = nearest(name, config_fields(error.cl))
            yield f"{key}.{name}", f"there is no such key in {error.cl.__name__}\n{known}"
    elif isinstance(error, KeyError) and (note := _note(error)):  # cattrs did not find the key
        yield key, f"not given, and required: {kinds.words_for(note.type)}"
    elif isinstance(error, ActlakeError | ValueError | TypeError | LookupError):
        yield key, str(error)
    else:
        raise error


def _note(error: Exception) -> Any:
    """What cattrs noted about the field, item or key at which `error` arose."""
    noted = errors.AttributeValidationNote | errors.IterableValidationNote
    return next((n for n in getattr(error, "__notes__", ()) if isinstance(n, noted)), None)


def _refuse(declared: Any, value: Any, hint: str = "") -> Any:
    text = repr(str(value)) if isinstance(value, str) else json.dumps(value, default=str)
    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
    ending = f"\nhint: {hint}" if hint else ""
    raise ConfigError(f"{shown} is not {kinds.words_for(declared)}{ending}")


def _scalar(value: Any, kind: Any) -> Any:
    if kind is str and isinstance(value, str):
        return str(value)
    if isinstance(value, Written):
        value = parse_scalar(value)
    if kind is Any or (kind in (bool, type(None)) and isinstance(value, kind)):
        return value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and (kind is float or (kind is int and value % 1 == 0)):
        return kind(value)
    hint = f"in YAML, put text that looks like something else in quotes: '{value}'"
    return _refuse(kind, value, hint if kind is str and is_number else "")


def _literal(value: Any, kind: Any) -> Any:
    options = {kinds.as_written(option): option for option in get_args(kind)}
    for words, option in options.items():
        if (type(option) is type(value) and option == value) or (
            isinstance(value, Written) and value in (words, str(option))
        ):
            return option
    hint = nearest(str(value), options).removeprefix("hint: ")
    return _refuse(kind, value, hint if len(options) > 1 else "")


def _container(kind: Any, converter: Converter) -> Hook:
    """Lists, tuples and mappings, by cattrs once it is sure that `value` is one."""
    inside, is_list, is_mapping = get_args(kind), kinds.is_list(kind), kinds.is_mapping(kind)
    if is_mapping:
        read: Hook = cols.mapping_structure_factory(kind, converter, structure_to=dict)
    elif is_list:
        read = cols.list_structure_factory(list[inside[0]], converter)  # type: ignore[valid-type]
    else:
        read = gen.make_hetero_tuple_structure_fn(kind, converter)

    def structure(value: Any, _: Any) -> Any:
        value = opened(value, "{" if is_mapping else "[")
        if isinstance(value, Written) and not is_mapping:
            value = [Written(item.strip()) for item in value.split(",") if item.strip()]
        if not isinstance(value, Mapping if is_mapping else list | tuple):
            hint = f"write [{value}]" if isinstance(value, str) and not is_mapping else ""
            return _refuse(kind, value, hint)
        if not (is_list or is_mapping or len(value) == len(inside)):
            return _refuse(kind, value)
        made = read(value, kind)
        return tuple(made) if isinstance(made, list) and get_origin(kind) is not list else made

    return structure


def _dataclass(kind: Any, converter: Converter) -> Hook:
    read = gen.make_dict_structure_fn(kind, converter, _cattrs_forbid_extra_keys=True)

    def structure(value: Any, _: Any) -> Any:
        if isinstance(value, kind) or not isinstance(value, Mapping):
            return value if isinstance(value, kind) else _refuse(kind, value)
        base = getattr(value, "base", None)
        filled = dict(value)
        for name, (declared, default) in config_fields(kind).items():
            below = getattr(base, name) if type(base) is kind else default
            if name in value and any(map(kinds.is_config, kinds.members(declared))):
                item = opened(value[name], "{")
                filled[name] = _Over(item, below) if isinstance(item, Mapping) else item
            elif name not in value and type(base) is kind:
                filled[name] = below
        return read(filled, kind)

    return structure


def _union(declared: Any, converter: Converter) -> Hook:
    order = {type(None): 0, Path: 2, Site: 2, str: 3}  # text takes anything, so it comes last
    tried = sorted(kinds.members(declared), key=lambda kind: order.get(kind, 1))
    configs = [kind for kind in kinds.members(declared) if kinds.is_config(kind)]

    def structure(value: Any, _: Any) -> Any:
        if configs and isinstance(value, Mapping):
            return converter.structure(value, _meant(configs, value))
        inside = []
        for kind in tried:
            try:
                return converter.structure(value, kind)
            except errors.BaseValidationError as error:
                inside.append(error)
            except (ActlakeError, ValueError):
                continue
        if len(inside) == 1:  # what is wrong inside says more than a list of types
            raise inside[0]
        return _refuse(declared, value)

    return structure


def _meant(configs: list[type], value: Mapping[str, Any]) -> type:
    """The member of a union with the fewest foreign keys, then the fewest missing ones."""

    def misfit(kind: type) -> tuple[int, int]:
        known, has_base = config_fields(kind), type(getattr(value, "base", None)) is kind
        foreign = sum(name not in known or _is_other(known[name][0], value[name]) for name in value)
        missing = {name for name, (_, default) in known.items() if default is MISSING}
        return foreign, 0 if has_base else len(missing - set(value))

    misfits = [misfit(kind) for kind in configs]
    least = min(misfits)
    if len(configs) == 1 or (misfits.count(least) == 1 and least[0] < max(len(value), 1)):
        return configs[misfits.index(least)]
    known = [name for kind in configs for name in config_fields(kind)]
    unknown = [str(name) for name in value if name not in known]
    raise ConfigError(
        f"keys {', '.join(map(str, value)) or '(none)'} do not tell which is meant: "
        f"{'; '.join(map(kinds.words_for, configs))}\n"
        + (nearest(unknown[0], known) if unknown else "hint: give those of one, and of no other")
    )


def _is_other(declared: Any, value: Any) -> bool:
    """Whether `value` is none of the options of a field that tells variants apart."""
    options = [str(option).lower() for option in get_args(declared)]
    return _is_literal(declared) and str(value).lower() not in options


def _is_literal(kind: Any) -> bool:
    return get_origin(kind) is Literal


def _unwritable(value: Any) -> Any:
    raise ConfigError(
        f"{value!r}, a {type(value).__name__}, cannot be written to a file\n"
        "hint: types that can be written as text are made known with `register_written`"
    )


_CONVERTER = Converter(
    unstruct_collection_overrides={tuple: list},
    unstructure_fallback_factory=lambda kind: _unwritable,
)
for _kind in (int, float, bool, str, type(None)):
    _CONVERTER.register_structure_hook(_kind, _scalar)
    _CONVERTER.register_unstructure_hook(_kind, lambda value: value)
_CONVERTER.register_structure_hook_func(lambda kind: kind is Any, _scalar)
_CONVERTER.register_structure_hook_func(_is_literal, _literal)
_CONVERTER.register_unstructure_hook_func(_is_literal, lambda value: value)
_CONVERTER.register_structure_hook_factory(kinds.is_container, _container)
_CONVERTER.register_structure_hook_factory(kinds.is_config, _dataclass)
_CONVERTER.register_structure_hook_factory(lambda kind: len(kinds.members(kind)) > 1, _union)
register_written(Path, Path, "a path")
register_written(Site, Site.parse, "a site such as resid_post.6")
