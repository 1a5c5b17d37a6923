"""Which step waits for which (pure): by the results that configurations name.

A step whose result lies at ``runs/x`` comes before every step that names ``runs/x``, or
anything inside it, somewhere in its configuration. So nobody writes an order down twice.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actlake.jobs.pipeline.errors import InvalidGraph, InvalidPipeline
from actlake.jobs.steps import texts
from actlake.storage.errors import nearest


@dataclass(frozen=True, slots=True)
class Step:
    """A step, resolved."""

    name: str
    command: str
    config: Mapping[str, Any]
    """Whole: files, keys and defaults."""
    output: str
    """Where its result is, or will be."""
    waits_for: tuple[str, ...] = ()
    """Names of steps whose results it needs."""


def order(steps: Mapping[str, tuple[Step, tuple[str, ...]]]) -> tuple[Step, ...]:
    """Steps with what they wait for, each after all of those; otherwise as they were written.

    Parameters
    ----------
    steps
        By name: the step, and the names it waits for because it says so.

    Raises
    ------
    InvalidPipeline
        Two steps have one result.
    InvalidGraph
        Steps wait for each other, or for one that is not there.
    """
    producers: dict[str, str] = {}
    for name, (step, _) in steps.items():
        if other := producers.get(_place(step.output)):
            raise InvalidPipeline(
                f"Steps {other} and {name} have one result: {step.output}\n"
                "hint: give each its own place"
            )
        producers[_place(step.output)] = name
    waiting = {}
    for name, (step, after) in steps.items():
        for other in after:
            if other not in steps:
                raise InvalidGraph(
                    f"Step {name} waits for {other!r}, which is no step\n{nearest(other, steps)}"
                )
        found = {producers[place] for place in _named(step.config) if place in producers}
        waits = tuple(sorted((found | set(after)) - {name}, key=list(steps).index))
        waiting[name] = Step(step.name, step.command, step.config, step.output, waits)
    return tuple(_sorted(waiting))


def _sorted(steps: dict[str, Step]) -> Iterator[Step]:
    left = dict(steps)
    while left:
        ready = [name for name, step in left.items() if not left.keys() & set(step.waits_for)]
        if not ready:
            raise InvalidGraph(
                f"These steps wait for each other: {', '.join(left)}\n"
                "hint: a result of each is named in the configuration of another; see `after` too"
            )
        yield left.pop(ready[0])


def _named(config: Mapping[str, Any]) -> Iterator[str]:
    """Every place that a configuration names, and the places around it."""
    for _, text in texts(config):
        place = _place(text)
        while place:
            yield place
            inside = place.rpartition("/")[0]
            place = "" if inside.endswith(":/") else inside


def _place(text: str) -> str:
    """One writing of a path; URLs as they are."""
    return text.rstrip("/") if "://" in text else os.path.normpath(Path.cwd() / text)
