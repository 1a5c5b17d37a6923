"""What a pipeline is, as it is written."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from actlake.jobs.pipeline.errors import InvalidPipeline

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """One command of a pipeline."""

    command: str
    """harvest, sae, transport or probe."""

    config: Mapping[str, Any] = field(default_factory=dict)
    """Its configuration, as in a file of its own."""

    files: tuple[str, ...] = ()
    """Configuration files of the command, read before `config`."""

    after: tuple[str, ...] = ()
    """Steps to wait for, beside those whose results this one's configuration names."""


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """Commands that use each other's results."""

    steps: Mapping[str, StepConfig]
    """By name. A step waits for those whose result (store or out) its configuration names."""

    parallel: int = 1
    """Steps that may run side by side. On one machine each takes all cores it can get."""

    logs: str = "pipeline-logs"
    """Folder of the steps' output, a file each."""

    def __post_init__(self) -> None:
        if not self.steps:
            raise InvalidPipeline("A pipeline needs at least one step\nhint: see `actlake run -h`")
        if self.parallel < 1:
            raise InvalidPipeline(f"parallel is {self.parallel}\nhint: 1 or more")
        for name in self.steps:
            if not _NAME.fullmatch(name):
                raise InvalidPipeline(
                    f"{name!r} cannot name a step\n"
                    "hint: letters, digits, _ . and -, since it also names its log"
                )
