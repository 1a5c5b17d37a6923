"""Quantised checkpoints: loaded by the loader they were made for, or refused by name.

A weight in eight bits means nothing without its scale. Where transformers does not know the method
it leaves the scales out, and the numbers are wrong by orders of magnitude, without an error.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from actlake.platform.models.errors import ModelNotSupported, WeightsMismatch
from actlake.platform.models.foreign import foreign_errors

_NEED_SCALES = ("F8_", "F6_", "F4", "I8", "U8")
_SCALE = re.compile(r"scale[^.]*$")
# Masks that old checkpoints carry are bytes too.
_MASK = re.compile(r"(?:attn|attention)\.(?:masked_)?bias$")
_UNQUANTISED = "use the unquantised weights, or a checkpoint that was dequantised"


def method_of(config: Any) -> str | None:
    """How the checkpoint is quantised, such as ``fp8``; None where it is not.

    Parameters
    ----------
    config
        Of the whole model; it may be written into its decoder's part instead.
    """
    settings = _settings(config)
    if settings is None:
        return None
    if settings.get("load_in_4bit") or settings.get("load_in_8bit"):
        return "bitsandbytes"
    method = settings.get("quant_method")
    return str(getattr(method, "value", method))


def _settings(whole: Any) -> Mapping[str, Any] | None:
    parts = (whole, whole.get_text_config(decoder=True))
    found = (getattr(part, "quantization_config", None) for part in parts)
    return next((settings for settings in found if settings is not None), None)


def check_method(config: Any, *, of: str, device: str, here: bool) -> None:
    """Refuse a quantisation that is not loaded, before anything is read.

    Parameters
    ----------
    config
        Of the whole model.
    of
        The model, for the words of the error.
    device
        Where it is to run.
    here
        Whether it runs on this machine; packages and devices of others are not looked for.

    Raises
    ------
    ModelNotSupported
        transformers does not know the method, or lacks a package or a device that it needs.
    """
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AutoHfQuantizer

    method = method_of(config)
    if method is None:
        return
    known = {
        name.removesuffix("_4bit").removesuffix("_8bit"): name
        for name in AUTO_QUANTIZATION_CONFIG_MAPPING
    }
    if method not in known:
        raise ModelNotSupported(
            f"{of} is quantised with {method!r}, which transformers does not load: its scales "
            f"would be left out\n"
            f"It loads {', '.join(sorted(known))}\n"
            f"hint: {_UNQUANTISED}"
        )
    if not here:
        return
    with foreign_errors(
        f"load {of}, which is quantised with {method!r}",
        hint=f"install the package or use the device that it names; else {_UNQUANTISED}",
    ):
        quantizer = AutoHfQuantizer.from_config(
            dict(config.quantization_config), pre_quantized=True
        )
        quantizer.validate_environment(
            device_map=None if device == "cpu" else {"": torch.device(device)}, weights_only=True
        )


def check_scales(files: Iterable[Path], method: str | None, *, of: str) -> None:
    """Refuse weights in eight bits or fewer that have no scale.

    Parameters
    ----------
    files
        All safetensors that are loaded; only their headers are read.
    method
        From `method_of`. One that has a loader reads integers by rules of its own.

    Raises
    ------
    ModelNotSupported
        A tensor is in such a type, and its scale is not there or nothing says where it is.
    """
    types: dict[str, str] = {}
    for file in files:
        types |= stored_types(file)
    scaled = {name.rpartition(".")[0] for name in types if _SCALE.search(name)}
    for name, dtype in types.items():
        if not dtype.startswith(_NEED_SCALES) or _SCALE.search(name) or _MASK.search(name):
            continue
        if method is None:
            raise ModelNotSupported(
                f"{name} of {of} is stored as {dtype}, which needs a scale, and config.json has no "
                f"quantization_config that says where it is\nhint: {_UNQUANTISED}"
            )
        if dtype.startswith("F8_") and name.rpartition(".")[0] not in scaled:
            raise ModelNotSupported(
                f"{name} of {of} is stored as {dtype}, and its scale is not beside it\n"
                f"hint: copy or download the weights again; else {_UNQUANTISED}"
            )


def stored_types(file: Path) -> dict[str, str]:
    """The type of each tensor of a safetensors file as it is written there, such as ``F8_E4M3``.

    Raises
    ------
    WeightsMismatch
        It is no such file.
    """
    try:
        with file.open("rb") as stream:
            num_bytes = int.from_bytes(stream.read(8), "little")
            # A file of another kind may say any number here.
            header = json.loads(stream.read(min(num_bytes, file.stat().st_size)))
        return {name: entry["dtype"] for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise WeightsMismatch(
            f"{file.name} is no safetensors file: {error}\nhint: copy or download it again"
        ) from error
