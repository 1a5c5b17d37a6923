"""Probes on disk: safetensors and JSON, and back.

    probe = Probe.load("runs/probes/probes/topic/token/resid_post.9/logistic")
    probe.predict(rows)               # NumPy in, NumPy out; torch in, torch out
    probe.direction("python")         # (D,) in the residual stream: steer, project, compare

A folder holds ``probe.safetensors`` (``weight`` (K, D) and ``bias`` (K,)) and ``probe.json``.
Scores are ``rows @ weight.T + bias`` on activations as they are stored: whatever standardising
there was is folded in. Nothing of actlake is needed to read them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from actlake.jobs.probe.config import TaskKind
from actlake.jobs.probe.errors import InvalidProbe, ProbeNotFound
from actlake.platform.runs import whole_folder
from actlake.platform.safetensors_files import readable, written
from actlake.storage.errors import nearest
from actlake.storage.sites import Site

Array = np.ndarray[Any, Any]

FORMAT = 1
WEIGHTS, ABOUT = "probe.safetensors", "probe.json"


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear probe of one site. Made by a run, or read by `load`."""

    site: Site
    probe: str
    """``logistic``, ``mean_difference``, ``lda``, ``ridge`` or ``logistic_rankR``."""
    kind: TaskKind
    """What it predicts."""
    classes: tuple[str, ...]
    """Names; of a multilabel task its labels. Empty for numbers."""
    weight: Array
    """(K, D) float32: a row a class or label; one row for two classes (towards the second) and
    for numbers."""
    bias: Array
    """(K,) float64."""
    about: Mapping[str, Any]
    """Everything in ``probe.json``: task, pooling, offset, store, model, penalty, scores."""

    @classmethod
    def load(cls, path: str | Path) -> "Probe":
        """Read a probe from its folder.

        Raises
        ------
        ProbeNotFound
            There is none, it is damaged, or of a newer format.
        """
        about, tensors = _read(Path(path))
        return cls(
            Site.parse(about["site"]), about["probe"], about["kind"], tuple(about["classes"]),
            tensors["weight"], tensors["bias"], about,
        )  # fmt: skip

    def decision(self, rows: Any) -> Any:
        """Scores (…, K) of rows (…, D): log-odds, logits up to a constant, or numbers.

        Sums are float64 in NumPy; in torch they are of the rows' type on their device, float32
        at least.
        """
        self._check_width(rows.shape[-1])
        if isinstance(rows, np.ndarray):
            return rows.astype(np.float64) @ self.weight.T.astype(np.float64) + self.bias
        import torch

        plain = rows if rows.dtype in (torch.float32, torch.float64) else rows.float()
        weight, bias = (
            torch.from_numpy(part).to(plain.device, plain.dtype)
            for part in (self.weight, self.bias)
        )
        return plain @ weight.T + bias

    def predict_proba(self, rows: Any) -> Any:
        """Probabilities (…, C) of the classes; of a multilabel task (…, labels) of each label.

        Raises
        ------
        InvalidProbe
            It predicts numbers.
        """
        scores = self.decision(rows)
        if self.kind == "regression":
            raise InvalidProbe(
                f"The probe of {self.about['task']!r} predicts numbers, not classes\n"
                "hint: use predict"
            )
        if isinstance(scores, np.ndarray):
            return self._numpy_probabilities(scores)
        import torch

        if self.kind == "multilabel":
            return torch.sigmoid(scores)
        if self.kind == "binary":
            scores = torch.cat([torch.zeros_like(scores), scores], dim=-1)
        return torch.softmax(scores, dim=-1)

    def predict(self, rows: Any) -> Any:
        """What it says of rows (…, D).

        Numbers (…,); of classes, in NumPy their names and in torch their places in `classes`;
        of a multilabel task (…, labels) bool.
        """
        scores = self.decision(rows)
        if self.kind == "regression":
            return scores[..., 0]
        if self.kind == "multilabel":
            return scores > 0
        codes = (scores[..., 0] > 0) if self.kind == "binary" else scores.argmax(-1)
        if isinstance(scores, np.ndarray):
            return np.array(self.classes)[codes.astype(np.int64)]
        return codes.long()

    def direction(self, name: str | None = None) -> Array:
        """(D,) float32 of length 1: the way in which a class or label becomes more likely.

        Along it the probe reads. What leads from the activations of one class to those of
        another, to steer by, is the difference of their means: of the kinds of probes only the
        direction of ``mean_difference`` is that.

        Parameters
        ----------
        name
            The class or label. Of two classes the second if left out. Of more, the direction
            is its weights less the mean of the others'.

        Raises
        ------
        InvalidProbe
            There is no such class, or it is not said which.
        """
        if self.kind == "regression":
            found = self.weight[0]
        elif self.kind == "binary":
            place = 1 if name is None else self._place(name)
            found = self.weight[0] if place else -self.weight[0]
        else:
            place = self._place(name)
            found = self.weight[place]
            if self.kind == "multiclass":
                found = found - np.delete(self.weight, place, axis=0).mean(axis=0)
        length = np.linalg.norm(found)
        return np.asarray(found / (length if length > 0 else 1), np.float32)

    def _place(self, name: str | None) -> int:
        if name is None or name not in self.classes:
            raise InvalidProbe(
                f"The probe of {self.about['task']!r} has no class {name!r}\n"
                f"{nearest(str(name), self.classes)}"
            )
        return self.classes.index(name)

    def _numpy_probabilities(self, scores: Array) -> Array:
        if self.kind != "multiclass":
            odds = np.exp(-np.abs(scores))
            yes: Array = np.where(scores >= 0, 1, odds) / (1 + odds)
            return yes if self.kind == "multilabel" else np.concatenate([1 - yes, yes], axis=-1)
        grown = np.exp(scores - scores.max(axis=-1, keepdims=True))
        found: Array = grown / grown.sum(axis=-1, keepdims=True)
        return found

    def _check_width(self, width: int) -> None:
        if width != self.weight.shape[1]:
            raise InvalidProbe(
                f"The probe of {self.site} reads rows of {self.weight.shape[1]:,} dimensions, and "
                f"these have {width:,}\nhint: give rows of that site, of the same model"
            )


def save_probe(
    weight: Array,
    bias: Array,
    *,
    site: Site,
    probe: str,
    kind: TaskKind,
    classes: Sequence[str],
    about: Mapping[str, Any],
    to: Path,
) -> Path:
    """Write a probe; the folder appears when it is complete."""
    described = {
        "format": FORMAT, "site": str(site), "probe": probe, "kind": kind,
        "classes": list(classes), **about,
    }  # fmt: skip
    with whole_folder(to) as folder:
        tensors: dict[str, Array] = {
            "weight": np.ascontiguousarray(weight, np.float32),
            "bias": np.ascontiguousarray(bias, np.float64),
        }
        with written(folder / WEIGHTS) as path:
            save_file(tensors, path)
        (folder / ABOUT).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    return to


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise ProbeNotFound(
                f"The probe in {folder} has format {about['format']}; this actlake reads "
                f"{FORMAT}\nhint: install a newer actlake"
            )
        tensors = load_file(readable(folder / WEIGHTS))
        if not {"weight", "bias"} <= tensors.keys():
            raise ProbeNotFound(f"The probe in {folder} is damaged: no weight or bias")
    except FileNotFoundError as error:
        raise ProbeNotFound(
            f"There is no probe in {folder}: no {Path(str(error.filename)).name}\n"
            "hint: give a folder such as RESULT/probes/topic/token/resid_post.9/logistic"
        ) from error
    except (ValueError, KeyError, SafetensorError) as error:
        raise ProbeNotFound(f"The probe in {folder} is damaged: {error!r}") from error
    return about, tensors
