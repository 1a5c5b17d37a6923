"""Write SAEs for others: SAELens' inference files, whole or absent.

`publish` writes ``cfg.json`` and ``sae_weights.safetensors``, which `actlake.jobs.sae.read_sae`
and, but for crosscoders, ``sae_lens.SAE.load_from_disk`` read. A crosscoder becomes something that
SAELens loads with `export_side_by_side`. The formats are told in ``docs/sae-format.md``.
"""

import importlib.metadata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from actlake.jobs.sae.architectures import BatchTopKOptions, TopKOptions
from actlake.jobs.sae.errors import DictionaryMismatch
from actlake.jobs.sae.inference_form import inference_form
from actlake.jobs.sae.scaling import Scaling
from actlake.jobs.sae.topk import TopKSAE
from actlake.jobs.sae.trainable import TrainableSAE
from actlake.jobs.sae.trained import CONFIG, WEIGHTS, TrainedSAE
from actlake.platform.plain_json import json_text
from actlake.platform.runs import whole_folder
from actlake.platform.safetensors_files import written

__all__ = ["Scaling", "export_side_by_side", "publish", "recalibrate", "write_sae"]

FORMAT = 1
"""Of our own additions: crosscoders, and the lineage in the metadata."""

_DROPPED_BITS = 9
"""Of a float32's 23 bits of mantissa, when thresholds are counted: 14 remain, 0.006 %."""

_OLDEST_READER = "6.54.12"


def recalibrate(sae: TrainableSAE, batches: Iterable[Tensor]) -> float:
    """Set the threshold used after training so that k latents a row are active on average.

    During training the threshold follows the batches' smallest chosen value slowly, from 0, and
    is too low after a short training. Here it is read off all rows at once.

    Parameters
    ----------
    sae
        One whose top-k becomes a threshold; others are left alone.
    batches
        Held-out rows, scaled as in training: (B, D) or (B, S, D).

    Returns
    -------
    float
        The threshold, in the units that were compared in training; NaN where there is none.
    """
    if not isinstance(sae, TopKSAE) or not sae.has_threshold:
        return float("nan")
    options = sae.form.options
    assert isinstance(options, TopKOptions | BatchTopKOptions)
    counts = torch.zeros(1 << (31 - _DROPPED_BITS), dtype=torch.int64, device=sae.device)
    num_rows = 0
    with torch.no_grad():
        for rows in batches:
            num_rows += len(rows)
            for values in sae.compared(rows):
                bits = values[values > 0].float().view(torch.int32) >> _DROPPED_BITS
                counts += torch.bincount(bits, minlength=len(counts))
        from_top = counts.flip(0).cumsum(0)
        place = int(torch.searchsorted(from_top, int(options.k * num_rows)))
        if num_rows:
            bits = torch.tensor(max(0, len(counts) - 1 - place) << _DROPPED_BITS, dtype=torch.int32)
            sae.threshold.fill_(bits.view(torch.float32).item())
    return float(sae.threshold)


def publish(
    sae: TrainableSAE | TrainedSAE,
    folder: Path,
    *,
    scaling: Scaling | None = None,
    metadata: Mapping[str, Any],
) -> None:
    """Write an SAE in the form that is used; `folder` appears only when it is complete.

    Parameters
    ----------
    sae
        In training, or already in the form that is used.
    folder
        Must not exist, or be empty.
    scaling
        What training multiplied rows by, to be folded into the weights of one in training.
    metadata
        JSON-able: ``hook_name``, ``hf_hook_name``, ``model_name``, fingerprints, … Keys of
        SAELens and our own; they stand beside how it was trained.

    Raises
    ------
    ResultExists
        Something is at `folder`.
    """
    if isinstance(sae, TrainableSAE):
        sae = inference_form(sae, scaling)
    about = {
        **sae.metadata,
        **metadata,
        "sae_lens_version": _reader_version(),
        "actlake_format": FORMAT,
    }
    write_sae(TrainedSAE({**sae.config, "metadata": about}, sae.tensors), folder)


def write_sae(sae: TrainedSAE, folder: Path) -> None:
    """Write the two files as they are; `folder` appears only when it is complete.

    Raises
    ------
    ResultExists
        Something is at `folder`.
    """
    with whole_folder(folder) as partial:
        with written(partial / WEIGHTS) as path:
            save_file(_as_stored(sae), path)
        (partial / CONFIG).write_text(f"{json_text(sae.config, indent=2)}\n", encoding="utf-8")


def export_side_by_side(sae: TrainedSAE, folder: Path) -> None:
    """Write a crosscoder as an SAE, for SAELens, of rows in which its sites lie side by side.

    What is loaded reads and gives (B, S·D) rows: the sites' rows one after the other, in the order
    of ``hook_names`` in the metadata. No hook of a model gives such rows, so its ``hook_name`` is
    null, and SAELens' own evaluations cannot run it.

    Raises
    ------
    DictionaryMismatch
        It is no crosscoder.
    ResultExists
        Something is at `folder`.
    """
    if sae.num_sites == 1:
        raise DictionaryMismatch(
            f"This is no crosscoder, but {sae.architecture}\n"
            "hint: SAELens loads the folder as it is"
        )
    config = {name: value for name, value in sae.config.items() if name != "num_sites"}
    config |= {
        "architecture": sae.architecture.removesuffix("_crosscoder"),
        "d_in": sae.num_sites * sae.d_in,
        "metadata": {**sae.metadata, "hook_name": None},
    }
    write_sae(TrainedSAE(config, sae.tensors), folder)


def _as_stored(sae: TrainedSAE) -> dict[str, Tensor]:
    stored = {name: part.cpu() for name, part in sae.tensors.items()}
    if sae.num_sites > 1:
        sites = (sae.num_sites, sae.d_in)
        stored["W_enc"] = torch.unflatten(stored["W_enc"], 0, sites)
        stored["W_dec"] = torch.unflatten(stored["W_dec"], 1, sites)
        stored["b_dec"] = torch.unflatten(stored["b_dec"], 0, sites)
    return {name: part.contiguous() for name, part in stored.items()}


def _reader_version() -> str:
    """SAELens converts files that do not name a version of its own from 6 on."""
    try:
        return importlib.metadata.version("sae-lens")
    except importlib.metadata.PackageNotFoundError:
        return _OLDEST_READER
