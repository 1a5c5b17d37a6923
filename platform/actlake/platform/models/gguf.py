"""GGUF files, as a folder of safetensors that every other part can read.

transformers takes the file apart and dequantises it; what stands here keeps the result, so
that this (about 25 s for 135 M parameters) happens once per file and machine.
"""

import logging
from pathlib import Path
from typing import Any

import torch

from actlake.platform.models.cache import cached_folder
from actlake.platform.models.digest import file_digest
from actlake.platform.models.errors import ModelNotFound
from actlake.platform.models.foreign import foreign_errors
from actlake.platform.models.quiet import no_progress_bars

logger = logging.getLogger(__name__)

MAGIC = b"GGUF"


def convert_gguf(file: Path) -> tuple[Path, str]:
    """The folder with the model of a GGUF file, and the file's SHA-256.

    The folder holds float32 weights, four bytes for each parameter, the configuration and the
    tokenizer. It lies in the cache under the file's hash and is made if it is not there.

    Raises
    ------
    ModelNotFound
        It is not a GGUF file.
    ModelNotSupported
        transformers cannot read this architecture from GGUF.
    """
    check_gguf(file)
    digest = file_digest(file)
    folder = cached_folder(f"gguf/{digest}", lambda empty: write_model(file, empty))
    return folder, digest


def check_gguf(file: Path) -> None:
    """Refuse a file that does not begin as GGUF files do."""
    with file.open("rb") as stream:
        found = stream.read(len(MAGIC))
    if found != MAGIC:
        raise ModelNotFound(
            f"{str(file)!r} is not a GGUF file: it begins with {found!r}, not {MAGIC!r}\n"
            f"hint: give a folder with a config.json, a .gguf file, or an id of the hub"
        )


def write_model(file: Path, folder: Path) -> None:
    """Write the model and the tokenizer of a GGUF file to an existing folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    logger.info(
        "Converting %s (%.0f MB) to safetensors, once", file.name, file.stat().st_size / 1e6
    )
    source = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    with (
        no_progress_bars(),
        foreign_errors(
            f"read {str(file)!r}", hint="use the model's original weights, from the hub or a folder"
        ),
    ):
        model = AutoModelForCausalLM.from_pretrained(
            **source, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
        )
        tokenizer = AutoTokenizer.from_pretrained(**source)
        plain = _without_quantization(model)
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _without_quantization(model: Any) -> Any:
    """The same weights in a model that does not know it was read from GGUF, so can be saved."""
    settings = model.config.to_dict()
    for key in ("quantization_config", "_model_name_or_path", "_name_or_path"):
        settings.pop(key, None)
    with torch.device("meta"):
        plain = type(model)(type(model.config)(**settings))
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    return plain
