"""From a mapping to a dataclass, with every mistake named at once."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast, get_args, get_origin

from actlake.platform.config.errors import ConfigError
from actlake.platform.config.kinds import (
    Written,
    config_fields,
    dataclass_members,
    default_of,
    is_dataclass_type,
    is_required,
    mapping_items,
    members,
    plain,
    sequence_items,
    words_for,
    written_parser,
)
from actlake.platform.config.yaml_text import parse_scalar, parse_texts
from actlake.storage.errors import ActlakeError, nearest

C = TypeVar("C")

_WRONG = object()
_SHOWN = 60


def from_dict(
    kind: type[C],
    values: Mapping[str, Any],
    *,
    base: C | None = None,
    source: str = "the configuration",
    origin: Callable[[str], str] = lambda key: "",
) -> C:
    """Make a `kind` of `values`, which are as YAML or JSON would give them.

    Parameters
    ----------
    kind
        A dataclass; see `actlake.platform.config` for the types its fields may have.
    values
        Its fields by name, nested as it is.
    base
        Where fields that are not given come from; None means the defaults of the class.
    source
        Where the values are from, for the message.
    origin
        Where the value of a dotted key was set, such as ``train.yaml, line 7``.

    Raises
    ------
    ConfigError
        Unknown keys, wrong types, missing fields, values that a class refuses: all of them.
    """
    reader = _Reader(origin)
    made = reader.dataclass(kind, values, "", base)
    if reader.problems or reader.missing:
        raise ConfigError(reader.message(source))
    return cast(C, made)


@dataclass
class _Reader:
    """Reads values and collects what is wrong with them."""

    origin: Callable[[str], str]
    problems: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def message(self, source: str) -> str:
        lines = [f"Cannot read {source}"]
        for problem in self.problems:
            lines += ["  " + line for line in problem.splitlines()]
        if self.missing:
            lines.append(f"  not given, and required: {', '.join(self.missing)}")
        return "\n".join(lines)

    def wrong(self, key: str, words: str) -> Any:
        where = self.origin(key)
        self.problems.append(f"{key} ({where}): {words}" if where else f"{key}: {words}")
        return _WRONG

    def dataclass(self, kind: type, values: Mapping[str, Any], key: str, base: Any) -> Any:
        known = config_fields(kind)
        before = len(self.problems) + len(self.missing)
        for name in values:
            if name not in known:
                self.wrong(_join(key, name), f"there is no such key in {kind.__name__}\n"
                           + nearest(str(name), known))  # fmt: skip
        made = {}
        for name, (declared, field_) in known.items():
            inner = _join(key, name)
            if name in values:
                default = _base_value(base, name, field_)
                made[name] = self.value(declared, values[name], inner, default)
            elif base is not None:
                made[name] = getattr(base, name)
            elif is_required(field_):
                self.missing.append(f"{inner} ({words_for(declared)})")
        if len(self.problems) + len(self.missing) > before:
            return _WRONG
        try:
            return kind(**made)
        except (ActlakeError, ValueError, TypeError, LookupError) as error:
            return self.wrong(key or kind.__name__, str(error))

    def value(self, declared: Any, value: Any, key: str, base: Any = None) -> Any:
        """`value` as the type `declared`, or `_WRONG` when that has been noted as a problem."""
        kinds = members(declared)
        if isinstance(value, Written):
            value = _opened(kinds, value, key)
        for kind in kinds:
            if _is_already(kind, value):
                return value
        if isinstance(value, Mapping) and dataclass_members(declared):
            return self._member(declared, value, key, base)
        if len(kinds) == 1:
            return self._one(kinds[0], value, key)
        for kind in sorted(kinds, key=_text_last):
            trial = _Reader(self.origin)
            made = trial._one(kind, value, key)
            if not trial.problems and not trial.missing:
                return made
        containers = [kind for kind in kinds if _fits_container(kind, value)]
        if len(containers) == 1:  # its inside is wrong, which says more than a list of types
            return self._one(containers[0], value, key)
        return self._not(declared, value, key)

    def _one(self, kind: Any, value: Any, key: str) -> Any:
        kind = plain(kind)
        if (items := sequence_items(kind)) is not None:
            return self._sequence(kind, items, value, key)
        if get_origin(kind) is tuple:
            return self._tuple(kind, value, key)
        if (items := mapping_items(kind)) is not None:
            return self._mapping(kind, items, value, key)
        if (parse := written_parser(kind)) is not None:
            return self._parsed(kind, parse, value, key)
        if get_origin(kind) is Literal:
            return self._literal(kind, value, key)
        return self._scalar(kind, value, key)

    def _scalar(self, kind: Any, value: Any, key: str) -> Any:
        if kind is Any or kind is object:
            return parse_scalar(value) if isinstance(value, Written) else value
        if kind is str and isinstance(value, str):
            return str(value)
        if isinstance(value, Written):
            value = parse_scalar(value)
        if kind is type(None) and value is None:
            return None
        if kind is bool and isinstance(value, bool):
            return value
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if kind is float and is_number:
            return float(value)
        if kind is int and is_number and (isinstance(value, int) or value.is_integer()):
            return int(value)
        hint = ""
        if kind is str and (is_number or isinstance(value, bool)):
            hint = f"\nhint: in YAML, put text that looks like something else in quotes: '{value}'"
        return self._not(kind, value, key, hint)

    def _literal(self, kind: Any, value: Any, key: str) -> Any:
        options = get_args(kind)
        for option in options:
            if isinstance(value, Written):
                if str(option).lower() == str(value) or str(option) == value:
                    return option
            elif type(option) is type(value) and option == value:
                return option
        hint = f"\n{nearest(str(value), map(str, options))}" if len(options) > 1 else ""
        return self._not(kind, value, key, hint)

    def _parsed(self, kind: Any, parse: Callable[[str], Any], value: Any, key: str) -> Any:
        if not isinstance(value, str):
            return self._not(kind, value, key)
        try:
            return parse(str(value))
        except (ActlakeError, ValueError) as error:
            return self.wrong(key, str(error))

    def _sequence(self, kind: Any, items: Any, value: Any, key: str) -> Any:
        if not isinstance(value, list | tuple):
            hint = "" if isinstance(value, Mapping) else f"\nhint: write [{_show(value, '')}]"
            return self._not(kind, value, key, hint)
        made = [self.value(items, item, f"{key}[{i}]") for i, item in enumerate(value)]
        if any(item is _WRONG for item in made):
            return _WRONG
        if get_origin(kind) is frozenset:
            return frozenset(made)
        return made if get_origin(kind) is list else tuple(made)

    def _tuple(self, kind: Any, value: Any, key: str) -> Any:
        kinds = get_args(kind)
        if not isinstance(value, list | tuple) or len(value) != len(kinds):
            return self._not(kind, value, key)
        pairs = enumerate(zip(kinds, value, strict=True))
        made = [self.value(item_kind, item, f"{key}[{i}]") for i, (item_kind, item) in pairs]
        return _WRONG if any(item is _WRONG for item in made) else tuple(made)

    def _mapping(self, kind: Any, items: Any, value: Any, key: str) -> Any:
        if not isinstance(value, Mapping):
            return self._not(kind, value, key)
        made = {str(name): self.value(items, v, _join(key, name)) for name, v in value.items()}
        return _WRONG if any(item is _WRONG for item in made.values()) else made

    def _member(self, declared: Any, value: Mapping[str, Any], key: str, base: Any) -> Any:
        """A dataclass, of the member of the union that the keys tell."""
        candidates = dataclass_members(declared)
        fitting = [kind for kind in candidates if _fits(kind, value, base)]
        if len(candidates) == 1 or len(fitting) == 1:
            kind = fitting[0] if fitting else candidates[0]
            return self.dataclass(kind, value, key, base if type(base) is kind else None)
        if len(fitting) > 1:
            names = ", ".join(words_for(kind) for kind in fitting)
            return self.wrong(key, f"these keys fit more than one: {names}\n"
                              "hint: give a key that only the one you mean has")  # fmt: skip
        return self._no_member(candidates, value, key)

    def _no_member(self, candidates: list[type], value: Mapping[str, Any], key: str) -> Any:
        """Say what is wrong, in terms of the member that is meant when that is clear."""
        meant = _meant(candidates, value)
        if meant is not None:
            return self.dataclass(meant, value, key, None)
        everything = sorted({name for kind in candidates for name in config_fields(kind)})
        unknown = [str(name) for name in value if name not in everything]
        hint = "hint: give the keys of one of them, with all that it requires"
        return self.wrong(
            key,
            f"keys {', '.join(map(str, value)) or '(none)'} fit none of "
            f"{'; '.join(map(words_for, candidates))}\n"
            + (nearest(unknown[0], everything) if unknown else hint),
        )

    def _not(self, declared: Any, value: Any, key: str, hint: str = "") -> Any:
        return self.wrong(key, f"{_show(value)} is not {words_for(declared)}{hint}")


def _fits(kind: type, values: Mapping[str, Any], base: Any) -> bool:
    """Whether the keys of `values`, and those literals that name a variant, are those of `kind`."""
    known = config_fields(kind)
    if any(name not in known for name in values):
        return False
    if type(base) is not kind and any(
        is_required(field_) and name not in values for name, (_, field_) in known.items()
    ):
        return False
    return all(
        _Reader(lambda key: "")._one(declared, values[name], name) is not _WRONG
        for name, (declared, _) in known.items()
        if name in values and get_origin(plain(declared)) is Literal
    )


def _meant(candidates: list[type], values: Mapping[str, Any]) -> type | None:
    """The member whose name is given, or else the only one with most of the keys."""
    named = [kind for kind in candidates if _is_named(kind, values)]
    if len(named) == 1:
        return named[0]
    known = [sum(name in config_fields(kind) for name in values) for kind in candidates]
    best = max(known)
    return candidates[known.index(best)] if best > 0 and known.count(best) == 1 else None


def _is_named(kind: type, values: Mapping[str, Any]) -> bool:
    """Whether a key of `values` is a literal with one option, and that of `kind`."""
    for name, (declared, _) in config_fields(kind).items():
        options = get_args(declared) if get_origin(plain(declared)) is Literal else ()
        if len(options) == 1 and name in values and str(values[name]) == str(options[0]):
            return True
    return False


def _opened(kinds: tuple[Any, ...], text: Written, key: str) -> Any:
    """Text of a command line as a list or mapping, where the field has such a type."""
    takes_list = any(sequence_items(k) is not None or get_origin(k) is tuple for k in kinds)
    takes_keys = any(
        mapping_items(k) is not None or (is_dataclass_type(k) and written_parser(k) is None)
        for k in kinds
    )
    stripped = text.strip()
    if (takes_list and stripped.startswith("[")) or (takes_keys and stripped.startswith("{")):
        return _all_written(parse_texts(stripped, name=key))
    if takes_list and not (type(None) in kinds and parse_scalar(stripped) is None):
        return [Written(item.strip()) for item in stripped.split(",") if item.strip()]
    return text


def _all_written(value: Any) -> Any:
    if isinstance(value, list):
        return [_all_written(item) for item in value]
    if isinstance(value, dict):
        return {str(name): _all_written(item) for name, item in value.items()}
    return Written(value)


def _is_already(kind: Any, value: Any) -> bool:
    """Whether `value` is a finished object of a class of ours, as Python callers give them."""
    is_ours = is_dataclass_type(kind) or (written_parser(kind) is not None)
    return is_ours and isinstance(value, cast(type, kind))


def _fits_container(kind: Any, value: Any) -> bool:
    if isinstance(value, Mapping):
        return mapping_items(kind) is not None
    is_list = sequence_items(kind) is not None or get_origin(kind) is tuple
    return isinstance(value, list | tuple) and is_list


def _text_last(kind: Any) -> int:
    """Order in which members of a union are tried: text takes anything, so it comes last."""
    if kind is type(None):
        return 0
    if kind is str:
        return 3
    return 2 if written_parser(kind) is not None else 1


def _base_value(base: Any, name: str, field_: Any) -> Any:
    if base is not None:
        return getattr(base, name)
    return None if is_required(field_) else default_of(field_)


def _join(key: str, name: Any) -> str:
    return f"{key}.{name}" if key else str(name)


def _show(value: Any, quote: str = "'") -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    if isinstance(value, str):
        shown = value if len(value) <= _SHOWN else value[:_SHOWN] + "…"
        return f"{quote}{shown}{quote}"
    if isinstance(value, Mapping):
        return f"a mapping ({', '.join(map(str, value)) or 'empty'})"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return str(value)
