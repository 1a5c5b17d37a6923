"""Whether results can be written where somebody wants them, asked before anything is computed."""

import os
import tempfile
from pathlib import Path

from actlake.platform.runs import FILE


def check_writable(place: str | os.PathLike[str]) -> None:
    """Refuse a folder of results that cannot be made, or written to.

    A file is made and removed in the folder, or in the nearest one above it that exists: only the
    system itself knows of read-only mounts, quotas and what a server makes of a user. A complete
    result, one with a ``run.json``, is not written again and may be read-only; of a URL nothing is
    asked.

    Raises
    ------
    OSError
        What the system said, about `place`.
    """
    if "://" in os.fspath(place):
        return
    folder = Path(place).expanduser()
    if (folder / FILE).is_file():
        return
    there = folder.absolute()
    while not os.path.lexists(there):
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there, prefix=".actlake-"):
            return
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), os.fspath(folder)) from error
