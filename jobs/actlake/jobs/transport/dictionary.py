"""A small reader of sparse autoencoders in the files of SAELens, without SAELens.

    sae = read_dictionary("saes/layer-9")
    features_NF = sae.encode(rows_ND)

A folder holds ``cfg.json`` and ``sae_weights.safetensors``. Read are the architectures that
SAELens saves for inference: ``standard``, ``topk``, ``jumprelu`` (also what batch-top-k becomes)
and ``gated``. Features are computed as there (sae_lens 6, ``saes/*_sae.py``), in float32.

Shapes:  N rows   D width of the stream   F features
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from actlake.jobs.transport.errors import DictionaryMismatch
from actlake.storage.errors import nearest
from actlake.storage.sites import Site

Array = np.ndarray[Any, Any]

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
NEEDED: Mapping[str, tuple[str, ...]] = {
    "standard": ("W_enc", "b_enc", "W_dec", "b_dec"),
    "topk": ("W_enc", "b_enc", "W_dec", "b_dec"),
    "jumprelu": ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"),
    "gated": ("W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag"),
}
"""The tensors of each architecture."""


@dataclass(frozen=True, eq=False)
class Dictionary:
    """An SAE that can be computed with NumPy."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Array]

    @property
    def architecture(self) -> str:
        """How features are computed."""
        return str(self.config["architecture"])

    @property
    def width(self) -> int:
        """D, width of the rows it reads."""
        return len(self.tensors["W_enc"])

    @property
    def decoder(self) -> Array:
        """(F, D) W_dec: the direction that each feature writes."""
        return self.tensors["W_dec"]

    @property
    def num_features(self) -> int:
        """F."""
        return len(self.decoder)

    @property
    def hook(self) -> str | None:
        """The place it was trained on, as it says itself."""
        found = self.config.get("hook_name") or self.config.get("metadata", {}).get("hook_name")
        return None if found is None else str(found)

    def encode(self, rows: Array) -> Array:
        """Features of rows, (N, D) to (N, F) float32; 0 where a feature does not fire."""
        part = self.tensors
        rows = rows.astype(np.float32, copy=False)
        if self.config.get("apply_b_dec_to_input", True):
            rows = rows - part["b_dec"]
        if self.architecture == "gated":
            projected = rows @ part["W_enc"]
            magnitude = projected * np.exp(part["r_mag"]) + part["b_mag"]
            gated: Array = np.where(projected + part["b_gate"] > 0, np.maximum(magnitude, 0), 0)
            return gated
        before = rows @ part["W_enc"] + part["b_enc"]
        if self.architecture == "jumprelu":
            jumped: Array = np.where(before > part["threshold"], np.maximum(before, 0), 0)
            return jumped
        if self.architecture == "topk":
            return self._top(before)
        positive: Array = np.maximum(before, 0)
        return positive

    def _top(self, before: Array) -> Array:
        if self.config.get("rescale_acts_by_decoder_norm", False):
            before = before * self._norms
        k = int(self.config["k"])
        if k >= before.shape[1]:
            return np.maximum(before, 0)
        chosen = np.argpartition(before, -k, axis=1)[:, -k:]
        features = np.zeros_like(before)
        values = np.maximum(np.take_along_axis(before, chosen, axis=1), 0)
        np.put_along_axis(features, chosen, values, axis=1)
        return features

    @cached_property
    def _norms(self) -> Array:
        norms: Array = np.linalg.norm(self.decoder, axis=1)
        return norms

    def reads(self, site: Site) -> bool:
        """Whether it was trained on this site, or does not say on which."""
        known = {site.sae_lens_hook, str(site), None}
        if site.point == "resid_post":
            known |= {Site(site.layer + 1, "resid_pre").sae_lens_hook}
            known |= {f"{blocks}.{site.layer}" for blocks in ("model.layers", "transformer.h")}
        return self.hook in known

    def check(self, site: Site, width: int, *, any_hook: bool = False) -> None:
        """Refuse to read a site it was not made for.

        Raises
        ------
        DictionaryMismatch
            The width or the hook is another one.
        """
        if self.width != width:
            raise DictionaryMismatch(
                f"The SAE reads rows of width {self.width}, and {site} has {width}\n"
                "hint: give an SAE of this model"
            )
        if not any_hook and not self.reads(site):
            raise DictionaryMismatch(
                f"The SAE was trained on {self.hook}, and the target is {site} "
                f"({site.sae_lens_hook})\n"
                "hint: choose pairs that end at its hook, or set dictionary.any_hook: true"
            )


def read_dictionary(path: str) -> Dictionary:
    """Read an SAE from a folder, or from ``REPOSITORY:FOLDER`` of the hub.

    Raises
    ------
    DictionaryMismatch
        There is none, or it is one that cannot be computed here.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir() and ":" in path:
        folder = _fetch(*path.split(":", 1))
    try:
        config = json.loads((folder / CONFIG).read_text())
        tensors = load_file(folder / WEIGHTS)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DictionaryMismatch(
            f"There is no SAE in {path}: it needs {CONFIG} and {WEIGHTS}\n"
            "hint: SAELens writes both with save_inference_model; of the hub write "
            "REPOSITORY:FOLDER"
        ) from error
    except (ValueError, SafetensorError) as error:
        raise DictionaryMismatch(f"The SAE in {path} cannot be read: {error}") from error
    _check_kind(path, config, tensors)
    return Dictionary(config, {name: part.astype(np.float32) for name, part in tensors.items()})


def _check_kind(path: str, config: Mapping[str, Any], tensors: Mapping[str, Array]) -> None:
    architecture = config.get("architecture", "standard")
    if architecture not in NEEDED:
        raise DictionaryMismatch(
            f"The SAE in {path} is of architecture {architecture!r}\n"
            f"{nearest(str(architecture), NEEDED)}; a training checkpoint becomes one of these "
            "with SAELens' save_inference_model"
        )
    missing = [name for name in NEEDED[architecture] if name not in tensors]
    if missing:
        raise DictionaryMismatch(
            f"The SAE in {path} lacks {', '.join(missing)}; it has {', '.join(sorted(tensors))}\n"
            "hint: save it again with SAELens' save_inference_model"
        )
    normalised = config.get("normalize_activations", "none")
    if normalised not in ("none", None):
        raise DictionaryMismatch(
            f"The SAE in {path} expects inputs normalised by {normalised!r}\n"
            "hint: fold the normalisation into the weights before saving "
            "(fold_activation_norm_scaling_factor)"
        )


def _fetch(repository: str, folder: str) -> Path:
    from huggingface_hub import errors, hf_hub_download

    try:
        files = [
            Path(hf_hub_download(repository, f"{folder.strip('/')}/{name}".lstrip("/")))
            for name in (CONFIG, WEIGHTS)
        ]
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, ValueError, OSError) as error:
        raise DictionaryMismatch(
            f"The SAE {folder!r} of {repository!r} cannot be fetched: {error}\n"
            "hint: check the names and the connection; or give a local folder"
        ) from error
    return files[0].parent
