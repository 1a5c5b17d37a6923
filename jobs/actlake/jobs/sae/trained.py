"""Sparse autoencoders as they are used: read from files, without SAELens.

    sae = read_sae("saes/layer-9")
    latents_BF = sae.encode(rows_BD)
    reconstruction_BD = sae(rows_BD)

A folder holds ``cfg.json`` and ``sae_weights.safetensors``, as SAELens 1 to 6 write them for
inference, or as we do for crosscoders (``docs/sae-format.md``). Latents are computed as in
sae_lens 6, in float32. Rows may be torch tensors, on the weights' device, or NumPy arrays; what
comes back is of the same kind.

Shapes:  B rows   D width in   O width out   S sites   F latents   N active pairs
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from actlake.jobs.sae.choosing import Encoder, Kept, choose_by_row
from actlake.jobs.sae.errors import DictionaryMismatch
from actlake.jobs.sae.file_fields import understood_fields, understood_tensors
from actlake.jobs.sae.matching_pursuit import pursue
from actlake.jobs.sae.scaling import Scaling
from actlake.jobs.sae.sparse import starts_of, weighted_sums
from actlake.platform.models.points import sae_lens_hook
from actlake.platform.safetensors_files import readable
from actlake.storage.sites import Site

__all__ = ["CONFIG", "WEIGHTS", "Scaling", "TrainedSAE", "read_sae"]

Rows = TypeVar("Rows", Tensor, np.ndarray[Any, Any])

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"


@dataclass(frozen=True, eq=False)
class TrainedSAE:
    """An SAE, transcoder or crosscoder as it is used."""

    config: Mapping[str, Any]
    """``cfg.json`` as SAELens 6 writes it; ``rescale_acts_by_decoder_norm`` is folded into the
    weights."""

    tensors: Mapping[str, Tensor]
    """float32, by SAELens' names; of a crosscoder with the sites side by side in each row."""

    @property
    def architecture(self) -> str:
        """How latents are computed."""
        return str(self.config.get("architecture", "standard"))

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What its makers wrote about it."""
        return self.config.get("metadata") or {}

    @property
    def num_sites(self) -> int:
        """S; 1 but for crosscoders."""
        return int(self.config.get("num_sites", 1))

    @property
    def d_in(self) -> int:
        """D, width of a row of one site that it reads."""
        if self.architecture == "matching_pursuit":
            return self.tensors["W_dec"].shape[1]
        return self.tensors["W_enc"].shape[0] // self.num_sites

    @property
    def d_out(self) -> int:
        """O, width of a row of one site that it reconstructs."""
        return self.tensors["W_dec"].shape[1] // self.num_sites

    @property
    def d_sae(self) -> int:
        """F."""
        return self.tensors["W_dec"].shape[0]

    @property
    def is_transcoder(self) -> bool:
        """Whether it predicts another site than it reads."""
        return self.architecture.endswith("transcoder")

    @property
    def decoder(self) -> Tensor:
        """(F, O) the direction that each latent writes; (F, S, D) of a crosscoder."""
        rows = self.tensors["W_dec"]
        return rows if self.num_sites == 1 else torch.unflatten(rows, 1, (self.num_sites, -1))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.tensors["W_dec"].device

    @property
    def hook(self) -> str | None:
        """The place it was trained on, as it says itself; None of a crosscoder."""
        found = self.metadata.get("hook_name")
        return None if found is None else str(found)

    @property
    def hook_out(self) -> str | None:
        """The place that a transcoder predicts, as it says itself."""
        found = self.metadata.get("hook_name_out")
        return None if found is None else str(found)

    def to(self, device: torch.device | str) -> "TrainedSAE":
        """The same on another device."""
        return replace(self, tensors={name: part.to(device) for name, part in self.tensors.items()})

    def encode(self, rows: Rows) -> Rows:
        """Latents of rows, (B, D) or (B, S, D) to (B, F) float32; 0 where one is not active."""
        return _as_given(rows, self._encode(self._flat(rows)))

    def encode_sparse(self, rows: Rows) -> tuple[Rows, Rows, Rows]:
        """The active latents of rows: row (N,), latent (N,) and value (N,), sorted by row."""
        found = self._active(self._flat(rows))
        row, latent, value = (_as_given(rows, column) for column in found)
        return row, latent, value

    def decode(self, latents: Rows) -> Rows:
        """Reconstructions of latents, (B, F) to (B, O) or (B, S, D); without a skip."""
        values = _as_tensor(latents, self.device)
        return _as_given(latents, self._sites(values @ self.tensors["W_dec"] + self._bias()))

    def reconstruct(self, rows: Rows, latents: Rows) -> Rows:
        """`decode`, and what a skip connection adds from the rows themselves."""
        decoded = self.decode(latents)
        if "W_skip" not in self.tensors:
            return decoded
        skipped = self._flat(rows) @ self.tensors["W_skip"].t()
        return _as_given(rows, self._sites(skipped + _as_tensor(decoded, self.device).flatten(1)))

    def __call__(self, rows: Rows) -> Rows:
        """Reconstructions of rows, (B, D) to (B, O), or (B, S, D) to the same; with the skip."""
        flat = self._flat(rows)
        decoder = self.tensors["W_dec"]
        if self._is_sparse:
            row, latent, value = self._active(flat)
            decoded = weighted_sums(value, decoder, latent, starts_of(row, len(flat)))
        else:
            decoded = self._encode(flat) @ decoder
        decoded = decoded + self._bias()
        if "W_skip" in self.tensors:
            decoded = decoded + flat @ self.tensors["W_skip"].t()
        return _as_given(rows, self._sites(decoded))

    def reads(self, site: Site) -> bool:
        """Whether it was trained on this site, or does not say on which."""
        known = {sae_lens_hook(site), str(site), None}
        if site.point == "resid_post":
            known |= {sae_lens_hook(Site(site.layer + 1, "resid_pre"))}
            known |= {f"{blocks}.{site.layer}" for blocks in ("model.layers", "transformer.h")}
        return self.hook in known

    def check(self, site: Site, width: int, *, any_hook: bool = False) -> None:
        """Refuse to read a site it was not made for.

        Raises
        ------
        DictionaryMismatch
            The width or the hook is another one.
        """
        if self.num_sites > 1:
            raise DictionaryMismatch(
                f"This is a crosscoder of {self.num_sites} sites, and reads them together\n"
                "hint: give an SAE of one site"
            )
        if self.d_in != width:
            raise DictionaryMismatch(
                f"The SAE reads rows of width {self.d_in}, and {site} has {width}\n"
                "hint: give an SAE of this model"
            )
        if not any_hook and not self.reads(site):
            raise DictionaryMismatch(
                f"The SAE was trained on {self.hook}, and {site} is {sae_lens_hook(site)}\n"
                "hint: choose the site of its hook, or set any_hook: true"
            )

    @property
    def _is_sparse(self) -> bool:
        return "topk" in self.architecture

    @property
    def _subtracts_bias(self) -> bool:
        return bool(self.config.get("apply_b_dec_to_input", True)) and not self.is_transcoder

    def _bias(self) -> Tensor | float:
        # A tied SAE adds back what it has subtracted, and nothing else.
        if self.architecture == "matching_pursuit" and not self._subtracts_bias:
            return 0.0
        return self.tensors["b_dec"]

    def _flat(self, rows: Rows) -> Tensor:
        return _as_tensor(rows, self.device).flatten(1)

    def _sites(self, flat: Tensor) -> Tensor:
        return flat if self.num_sites == 1 else torch.unflatten(flat, 1, (self.num_sites, -1))

    def _centred(self, flat: Tensor) -> Tensor:
        return flat - self.tensors["b_dec"] if self._subtracts_bias else flat

    @torch.no_grad()
    def _active(self, flat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if not self._is_sparse:
            latents = self._encode(flat)
            row, latent = torch.where(latents != 0)
            return row, latent, latents[row, latent]
        part, centred = self.tensors, self._centred(flat)
        none = Kept.of(torch.zeros(0, dtype=torch.int64, device=self.device), centred)
        signed = self.architecture == "abstopk"
        k = min(int(self.config["k"]), self.d_sae)
        encoder = Encoder(part["W_enc"], part["b_enc"], None)
        chosen = choose_by_row(encoder, centred, k, kept=none, by_magnitude=signed)
        active = torch.where((chosen.before != 0) if signed else (chosen.before > 0))[0]
        return chosen.rows[active], chosen.latents[active], chosen.before[active]

    @torch.no_grad()
    def _encode(self, flat: Tensor) -> Tensor:
        part = self.tensors
        if self._is_sparse:
            row, latent, value = self._active(flat)
            latents = flat.new_zeros(len(flat), self.d_sae)
            latents[row, latent] = value
            return latents
        centred = self._centred(flat)
        if self.architecture == "matching_pursuit":
            return pursue(centred, part["W_dec"], self.config)
        if self.architecture == "gated":
            projected = centred @ part["W_enc"]
            magnitude = projected * part["r_mag"].exp() + part["b_mag"]
            return magnitude.relu_() * (projected + part["b_gate"] > 0)
        before = torch.addmm(part["b_enc"], centred, part["W_enc"])
        if "threshold" in part:
            return before.relu() * (before > part["threshold"])
        return before.relu_()


def _as_tensor(rows: Tensor | np.ndarray[Any, Any], device: torch.device) -> Tensor:
    tensor = rows if isinstance(rows, Tensor) else torch.from_numpy(np.asarray(rows, np.float32))
    return tensor.to(device=device, dtype=torch.float32)


def _as_given(rows: Rows, result: Tensor) -> Rows:
    return result if isinstance(rows, Tensor) else result.cpu().numpy()


def read_sae(path: str) -> TrainedSAE:
    """Read an SAE from a folder, or from ``REPOSITORY:FOLDER`` of the hub.

    Raises
    ------
    DictionaryMismatch
        There is none, or it is one that cannot be computed here.
    """
    folder = folder_of(path)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(readable(folder / WEIGHTS))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DictionaryMismatch(
            f"There is no SAE in {path}: it needs {CONFIG} and {WEIGHTS}\n"
            "hint: SAELens writes both with save_inference_model; of the hub write "
            "REPOSITORY:FOLDER"
        ) from error
    except (ValueError, SafetensorError) as error:
        raise DictionaryMismatch(f"The SAE in {path} cannot be read: {error}") from error
    config = understood_fields(path, config)
    tensors = in_rows(config, understood_tensors(path, config, tensors))
    if config.get("rescale_acts_by_decoder_norm"):
        config["rescale_acts_by_decoder_norm"] = False
        _fold_norms(tensors)
    return TrainedSAE(config, tensors)


def _fold_norms(tensors: dict[str, Tensor]) -> None:
    """Latents times the decoder's norms: what is compared, and what SAELens' encode gives."""
    norms = tensors["W_dec"].norm(dim=1).clamp(min=1e-8)  # a row of zeros stays one
    tensors["W_dec"] = tensors["W_dec"] / norms[:, None]
    tensors["W_enc"] = tensors["W_enc"] * norms
    tensors["b_enc"] = tensors["b_enc"] * norms


def folder_of(path: str) -> Path:
    """Where the files of an SAE are: the folder given, or what was fetched from the hub."""
    folder = Path(path).expanduser()
    if not folder.is_dir() and ":" in path:
        return _fetch(*path.split(":", 1))
    return folder


def in_rows(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as they are computed with: float32, the sites of a crosscoder side by side."""
    flat: dict[str, Tensor] = {name: part.float().contiguous() for name, part in tensors.items()}
    if str(config.get("architecture")).endswith("crosscoder"):
        reshape: Mapping[str, Callable[[Tensor], Tensor]] = {
            "W_enc": lambda part: part.flatten(0, 1),
            "W_dec": lambda part: part.flatten(1),
            "b_dec": lambda part: part.flatten(),
        }
        for name, change in reshape.items():
            flat[name] = change(flat[name])
    return flat


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
