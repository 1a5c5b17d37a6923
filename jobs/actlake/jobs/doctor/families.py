"""``docs/families.md``: what of each family of decoders can be read, measured.

    python -m actlake.jobs.doctor.families docs/families.md

Some minutes on two cores. `parse` reads from the page what `render` wrote.
"""

import importlib.metadata
import logging
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from actlake.platform.model_map.families import (
    FamilyFound,
    Verdict,
    decoder_families,
    measure_families,
)
from actlake.platform.models.points import POINTS

logger = logging.getLogger(__name__)

_SECTIONS: dict[Verdict, tuple[str, str]] = {
    "whole": (
        "Every site",
        "The stream is transformers' own to the bit with a cut at every layer, the sums inside "
        "each block hold, every edit moves what is predicted, the head's logits are the model's.",
    ),
    "stream": (
        "The stream",
        "The same, with `resid_pre` and `resid_post` only: what is inside their blocks is of no "
        "known kind, or does not add up as the remark says.",
    ),
    "refused": ("Refused", "Before any text is read, with this reason."),
    "unbuilt": ("Not tried", "No tiny decoder comes of the defaults of their configuration."),
    "broken": ("Not right", "These fail late, or are wrong; do not trust what is read of them."),
}
_INTRODUCTION = (
    "What actlake does with every family that transformers {version} can build with a head that "
    "predicts text: {good} of {all} are read, to the last bit. A tiny random model of each was "
    "measured as `actlake doctor --model FAMILY --random` does; real weights are measured with "
    "`actlake doctor --model NAME`. A name is the `model_type` of a config.json; of a model with "
    "more than text it is that of its text decoder, where transformers builds that by itself. BERT "
    "and its like were built as decoders (`is_decoder: true`), and are refused otherwise. This "
    "page is written by `python -m actlake.jobs.doctor.families docs/families.md`, in some minutes."
)
GOOD: tuple[Verdict, ...] = ("whole", "stream")


def render(found: Sequence[FamilyFound]) -> str:
    """The page."""
    version = importlib.metadata.version("transformers")
    good = sum(one.verdict in GOOD for one in found)
    introduction = _INTRODUCTION.format(version=version, good=good, all=len(found))
    lines = [
        "# Families",
        "",
        *textwrap.wrap(introduction, 100, break_on_hyphens=False),
        "",
        "| | families |",
        "|---|---|",
        *(f"| {title} | {sum(one.verdict == verdict for one in found)} |"
          for verdict, (title, _) in _SECTIONS.items()),
    ]  # fmt: skip
    for verdict, (title, means) in _SECTIONS.items():
        rows = [one for one in found if one.verdict == verdict]
        if rows:
            lines += ["", f"## {title}", "", *textwrap.wrap(means, 100), ""]
            lines += ["| families | remark |", "|---|---|", *_grouped(rows)]
    return "\n".join(lines) + "\n"


def _grouped(found: Iterable[FamilyFound]) -> Iterator[str]:
    """A row of a table for each remark, with the families that have it."""
    families: dict[str, list[str]] = {}
    for one in found:
        families.setdefault(_remark(one), []).append(one.family)
    for remark, names in families.items():
        yield f"| {', '.join(names)} | {remark} |"


# How reasons begin that differ in the name of the family only.
_BEGINNING = re.compile(
    r"^(A model of the family '[^']*' |Models of the family '[^']*' cannot be harvested: |"
    r"No tiny decoder of the family '[^']*' comes of its defaults: )"
)


def _remark(found: FamilyFound) -> str:
    missing = [point for point in POINTS if point not in found.points]
    parts = [f"no {', '.join(missing)}"] if found.verdict == "whole" and missing else []
    parts += [_BEGINNING.sub("", found.reason)] if found.reason else []
    return "; ".join(parts).replace("|", "\\|")


def parse(page: str) -> dict[Verdict, list[str]]:
    """Of a page, the families of each section."""
    listed: dict[Verdict, list[str]] = {}
    for verdict, (title, _) in _SECTIONS.items():
        section = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)
        cells = re.findall(r"^\| ([\w., -]+) \|", section[1] if section else "", re.MULTILINE)
        rows = [name for cell in cells for name in cell.split(", ")]
        listed[verdict] = sorted(name for name in rows if name != "families")
    return listed


def main(arguments: Sequence[str]) -> None:
    """Measure all families and write the page."""
    (file,) = arguments
    found = []
    families = decoder_families()
    for one in measure_families(families):
        found.append(one)
        logger.info("%d of %d: %s %s", len(found), len(families), one.family, one.verdict)
    Path(file).write_text(render(found), encoding="utf-8")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    main(sys.argv[1:])
