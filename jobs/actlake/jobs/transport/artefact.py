"""Operators on disk: safetensors and JSON, and back.

    operator = TransportOperator.load("runs/transport/operators/resid_post.3--resid_post.9/ridge")
    mapped = operator(rows)               # NumPy in, NumPy out; torch in, torch out

A folder holds ``operator.safetensors`` (``weight`` and ``bias``; or ``left``, ``right`` and the
two means of a family of ranks) and ``operator.json``, which says what it maps and of which
store. Nothing of actlake is needed to read them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from actlake.jobs.transport.errors import InvalidTransport, OperatorNotFound
from actlake.jobs.transport.operators import AffineMap, RankedMaps
from actlake.jobs.transport.pairs import Pair
from actlake.platform.runs import whole_folder
from actlake.platform.safetensors_files import readable, written

Array = np.ndarray[Any, Any]

FORMAT = 1
WEIGHTS, ABOUT = "operator.safetensors", "operator.json"


@dataclass(frozen=True, eq=False)
class TransportOperator:
    """y ≈ T x + b, from one site to another. Made by a fit, or read by `load`."""

    pair: Pair
    kind: str
    weight: Array
    """(Y, X) float32."""
    bias: Array
    """(Y,) float32."""
    about: Mapping[str, Any]
    """Everything in ``operator.json``: store, model, α, rank, R²."""

    @classmethod
    def load(cls, path: str | Path, *, rank: int | None = None) -> "TransportOperator":
        """Read an operator from its folder.

        Parameters
        ----------
        rank
            Of a family of ranks (svd, reduced, cca), which one; the largest if left out.

        Raises
        ------
        OperatorNotFound
            There is none, it is damaged, or of a newer format.
        InvalidRank
            The family has no map of that rank.
        InvalidTransport
            A rank was asked for of a map that has only one.
        """
        about, tensors = _read(Path(path))
        pair = Pair.parse(about["pair"])
        if "left" not in tensors:
            if rank is not None:
                raise InvalidTransport(
                    f"The operator in {path} is a {about['kind']} map and has no other ranks\n"
                    "hint: save svd, reduced or cca to choose a rank when loading"
                )
            return cls(pair, about["kind"], tensors["weight"], tensors["bias"], about)
        family = RankedMaps(
            about["kind"], tensors["left"], tensors["right"], tensors["mean_x"], tensors["mean_y"]
        )
        one = family.of_rank(family.max_rank if rank is None else rank)
        return cls(pair, one.kind, one.weight, one.bias, {**about, "rank": rank})

    def __call__(self, rows: Any) -> Any:
        """Map rows, (…, X) to (…, Y): a NumPy array, or a torch tensor on its own device."""
        if isinstance(rows, np.ndarray):
            return rows.astype(np.float32, copy=False) @ self.weight.T + self.bias
        import torch

        weight, bias = (
            torch.from_numpy(part).to(rows.device, rows.dtype) for part in (self.weight, self.bias)
        )
        return rows @ weight.T + bias


def save_operator(
    fitted: AffineMap | RankedMaps, pair: Pair, about: Mapping[str, Any], *, to: Path
) -> Path:
    """Write an operator; the folder appears when it is complete."""
    tensors = (
        {"weight": fitted.weight, "bias": fitted.bias}
        if isinstance(fitted, AffineMap)
        else {
            "left": fitted.left, "right": fitted.right,
            "mean_x": fitted.mean_x, "mean_y": fitted.mean_y,
        }
    )  # fmt: skip
    described = {
        "format": FORMAT,
        "pair": str(pair),
        "source": str(pair.source),
        "target": str(pair.target),
        "offset": pair.offset,
        "kind": fitted.kind,
        **about,
    }
    with whole_folder(to) as folder:
        plain = {name: np.ascontiguousarray(part, np.float32) for name, part in tensors.items()}
        with written(folder / WEIGHTS) as path:
            save_file(plain, path)
        (folder / ABOUT).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    return to


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise OperatorNotFound(
                f"The operator in {folder} has format {about['format']}; this actlake reads "
                f"{FORMAT}\nhint: install a newer actlake"
            )
        return about, load_file(readable(folder / WEIGHTS))
    except FileNotFoundError as error:
        raise OperatorNotFound(
            f"There is no operator in {folder}: no {Path(str(error.filename)).name}\n"
            "hint: give a folder such as RESULT/operators/resid_post.3--resid_post.9/ridge"
        ) from error
    except (ValueError, KeyError, SafetensorError) as error:
        raise OperatorNotFound(f"The operator in {folder} is damaged: {error!r}") from error
