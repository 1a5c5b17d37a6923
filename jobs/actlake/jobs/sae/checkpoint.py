"""Checkpoints of a training: whole or absent, the last few kept.

    checkpoints/step-000001000/
        state.json          format, step, positions of the readers, facts of each SAE
        NAME.safetensors    weights, Adam's moments and counters of each SAE

A folder of this name is complete: it was written under another name and renamed.
"""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from actlake.jobs.sae.errors import CheckpointDamaged
from actlake.platform.plain_json import json_text
from actlake.platform.runs import whole_folder
from actlake.platform.safetensors_files import readable, written

FORMAT = 1
STATE = "state.json"
_NAME = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class State:
    """What a training is after `step` steps, but for tensors."""

    step: int
    readers: Mapping[str, Any]
    """Positions of the training rows and of the held-out rows."""
    facts: Mapping[str, Mapping[str, Any]]
    """Of each SAE, by name."""
    identity: Mapping[str, Any] = field(default_factory=dict)
    """What the training is; another one must not go on from here."""


class Checkpoints:
    """The checkpoints of one training.

    Parameters
    ----------
    folder
        Where they are, and nothing else is.
    keep
        How many stay.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.folder = folder
        self._keep = keep

    def steps(self) -> list[int]:
        """Steps of the whole ones, the last one at the end."""
        if not self.folder.is_dir():
            return []
        found = (_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def save(self, state: State, tensors: Mapping[str, Mapping[str, Tensor]]) -> Path:
        """Write a checkpoint, then remove those that are too many; its folder.

        A checkpoint of the same step is there already where a run was stopped just after it; it
        holds the same.
        """
        to = self._at(state.step)
        if not to.exists():
            with whole_folder(to) as partial:
                for name, parts in tensors.items():
                    with written(partial / f"{name}.safetensors") as path:
                        save_file(dict(parts), path)
                content = {
                    "format": FORMAT,
                    "step": state.step,
                    "readers": state.readers,
                    "facts": state.facts,
                    "identity": state.identity,
                }
                (partial / STATE).write_text(f"{json_text(content)}\n", encoding="utf-8")
        for step in self.steps()[: -self._keep]:
            self._remove(self._at(step))
        return to

    def load(self) -> State | None:
        """The last one; None where there is none.

        Raises
        ------
        CheckpointDamaged
            It cannot be read, or a newer actlake wrote it.
        """
        steps = self.steps()
        if not steps:
            return None
        path = self._at(steps[-1]) / STATE
        try:
            content = json.loads(path.read_bytes())
            format_ = content.pop("format")
            if format_ == FORMAT:
                return State(**content)
        except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
            raise _damaged(path, error) from error
        raise CheckpointDamaged(
            f"{path} is of format {format_}; this version of actlake reads {FORMAT}\n"
            "hint: install a newer actlake"
        )

    def tensors(self, step: int, name: str) -> dict[str, Tensor]:
        """The tensors of an SAE.

        Raises
        ------
        CheckpointDamaged
            They cannot be read.
        """
        path = self._at(step) / f"{name}.safetensors"
        try:
            return load_file(readable(path))
        except (FileNotFoundError, SafetensorError) as error:
            raise _damaged(path, error) from error

    def _remove(self, checkpoint: Path) -> None:
        """Rename first, so that one which is half removed has not the name of a whole one."""
        checkpoint.rename(self.folder / f".{checkpoint.name}.removed")
        for left in self.folder.glob(".step-*.removed"):
            shutil.rmtree(left)

    def _at(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}"


def _damaged(path: Path, error: Exception) -> CheckpointDamaged:
    return CheckpointDamaged(
        f"{path} cannot be read: {type(error).__name__}: {error}\n"
        f"hint: remove {path.parent}, and the same command goes on from the checkpoint before it"
    )
