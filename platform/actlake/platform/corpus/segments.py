"""The parts of a document that have a name: prompt and answer, or who said what.

They are kept with the document, as JSON in its column ``segments``, and become a label table of the
store, in which each token is of the segment, or segments, that it overlaps.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from actlake.platform.corpus.errors import InvalidColumn

SEGMENTS = "segments"
"""The column of documents, and the label table."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a text; it begins where the one before it ends."""

    name: str
    stop: int
    """The character, or of given ids the token, after its last."""


Counted = Literal["characters", "tokens"]
"""What the stops of segments count."""


def segments_of(
    value: object, length: int, place: str, *, of: Counted = "characters"
) -> tuple[Segment, ...]:
    """What a column says of the segments of a text, or of ids: a list of ``{name, stop}``.

    Raises
    ------
    InvalidColumn
        It is no such list, or the segments do not follow each other to the end.
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise _invalid(place, f"holds {value!r}", of)
    segments = []
    reached = 0
    for number, given in enumerate(value):
        name, stop = (given.get("name"), given.get("stop")) if _is_mapping(given) else (None, None)
        if not isinstance(name, str) or not name or isinstance(stop, bool):
            raise _invalid(place, f"holds {given!r} at place {number}", of)
        if not isinstance(stop, int) or stop < reached:
            raise _invalid(
                place, f"has {name!r} stop at {stop!r}, after one that stops at {reached}", of
            )
        segments.append(Segment(name, stop))
        reached = stop
    if reached != length:
        raise _invalid(place, f"ends at {of[:-1]} {reached:,} of {length:,}", of)
    return tuple(segments)


def as_json(segments: Sequence[Segment]) -> str:
    """The form in which a document keeps its segments."""
    return json.dumps([[s.name, s.stop] for s in segments], ensure_ascii=False)


def from_json(text: str) -> list[Segment]:
    """Read what `as_json` wrote."""
    return [Segment(name, stop) for name, stop in json.loads(text)]


def _is_mapping(value: object) -> bool:
    return isinstance(value, Mapping)


def _invalid(place: str, what: str, of: Counted) -> InvalidColumn:
    return InvalidColumn(
        f"{place}: the segments column {what}\n"
        f"hint: give a list of {{name, stop}}, in order, each stop the number of {of} up to the "
        "segment's end, the last one all of them"
    )
