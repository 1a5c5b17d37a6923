"""The SAEs of a configuration: a list, a grid, or both, each with a name of its own.

>>> from actlake.jobs.sae.config import SAEConfig, SAESpec
>>> from actlake.storage import Site
>>> base = SAESpec(site=Site(9), d_sae=2304, options={"k": 32})
>>> config = SAEConfig(store="s", out="o", sae=base, grid={"options.k": (16, 32)})
>>> [spec.name for spec in expand(config)]
['resid_post.9-topk-2304-k16', 'resid_post.9-topk-2304-k32']
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from actlake.jobs.sae.config import SAEConfig, SAESpec
from actlake.jobs.sae.errors import InvalidSAE
from actlake.platform.config import from_dict, to_dict

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,99}")
TAKEN = ("checkpoints", "pictures", "log", "wandb")
"""Names of other folders in a result."""

_IN_EVERY_NAME = ("name", "site", "target", "sites", "architecture", "d_sae")
_SHORT = {
    "learning_rate": "lr", "l1_coefficient": "l1", "l0_coefficient": "l0",
    "dead_after_rows": "dead", "matryoshka_widths": "nested",
}  # fmt: skip
"""Fields that have a shorter name in a folder's."""


def expand(config: SAEConfig) -> tuple[SAESpec, ...]:
    """All SAEs of a configuration, in the order in which they are written.

    Each of `config.saes` is `config.sae` with some fields changed; the grid's combinations are
    changes of each of those. Every one has a name.

    Raises
    ------
    InvalidSAE
        One reads no site, two have one name, or a name cannot be a folder's.
    ConfigError
        A change names a field that there is not, or has a wrong type.
    """
    base = to_dict(config.sae)
    written = [
        _changed(_changed(base, _nested(change)), combination)
        for change in config.saes or ({},)
        for combination in _combinations(config.grid)
    ]
    specs = [
        from_dict(SAESpec, values, source=f"SAE {number} of {len(written)}")
        for number, values in enumerate(written, start=1)
    ]
    for number, spec in enumerate(specs, start=1):
        if not spec.inputs:
            raise InvalidSAE(
                f"SAE {number} of {len(specs)} reads no site\n"
                "hint: such as --sae.site resid_post.9, or `site` in each of saes"
            )
    named = _with_names(specs)
    for spec in named:
        _check_name(str(spec.name))
    _refuse_twins(named)
    return named


def _combinations(grid: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*grid.values()):
        yield _nested(dict(zip(grid, values, strict=True)))


def _nested(change: Mapping[str, Any]) -> dict[str, Any]:
    """``{"options.k": 1}`` as ``{"options": {"k": 1}}``; keys without dots stay."""
    nested: dict[str, Any] = {}
    for key, value in change.items():
        *above, last = key.split(".")
        place = nested
        for step in above:
            place = place.setdefault(step, {})
        if isinstance(value, Mapping) and isinstance(place.get(last), dict):
            place[last] |= value
        else:
            place[last] = dict(value) if isinstance(value, Mapping) else value
    return nested


def _changed(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with a change; mappings are changed key by key."""
    changed = dict(base)
    if change.get("architecture", base["architecture"]) != base["architecture"]:
        changed["options"] = {}  # a k means nothing to another architecture
    if change.get("sites"):
        changed["site"] = None
    elif change.get("site") is not None:
        changed["sites"] = []
    for key, value in change.items():
        old = changed.get(key)
        mixed = isinstance(old, Mapping) and isinstance(value, Mapping)
        changed[key] = {**old, **value} if mixed else value  # type: ignore[dict-item]
    return changed


def _with_names(specs: Sequence[SAESpec]) -> tuple[SAESpec, ...]:
    given = Counter(spec.name for spec in specs)
    flat = [_flat(spec) for spec in specs]
    varying = [
        key
        for key in dict.fromkeys(key for values in flat for key in values)
        if len({str(values.get(key)) for values in flat}) > 1
    ]
    return tuple(
        spec
        if spec.name is not None and given[spec.name] == 1
        else replace(spec, name=_name(spec, values, varying))
        for spec, values in zip(specs, flat, strict=True)
    )


def _name(spec: SAESpec, values: Mapping[str, Any], varying: Sequence[str]) -> str:
    sites = "+".join(map(str, spec.inputs)) + (f"-to-{spec.target}" if spec.target else "")
    words = [spec.name or f"{sites.replace('+', '-')}-{spec.architecture}-{spec.d_sae}"]
    for key in varying:
        if key in values and values[key] is not None:
            last = key.rsplit(".", 1)[-1]
            words.append(f"{_SHORT.get(last, last)}{_as_word(values[key])}")
    return "-".join(words)


def _as_word(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return re.sub(r"[^A-Za-z0-9_.\-]+", "_", text).strip("_")


def _flat(spec: SAESpec) -> dict[str, Any]:
    """What may tell an SAE from another, by dotted key, without what is in every name."""
    values: dict[str, Any] = {}
    for key, value in to_dict(spec).items():
        if isinstance(value, dict):
            values |= {f"{key}.{inner}": one for inner, one in value.items()}
        elif key not in _IN_EVERY_NAME:
            values[key] = value
    return values


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or name in TAKEN:
        raise InvalidSAE(
            f"{name!r} cannot name an SAE, which is a folder of the result\n"
            "hint: letters, digits, _ . and -, at most 100 of them, and none of "
            f"{', '.join(TAKEN)}"
        )


def _refuse_twins(specs: Sequence[SAESpec]) -> None:
    twins = [name for name, number in Counter(spec.name for spec in specs).items() if number > 1]
    if twins:
        raise InvalidSAE(
            f"{len(specs)} SAEs are asked for, and several of them are {twins[0]}\n"
            "hint: let them differ, such as in their seed, or give each a name"
        )
