"""Where converted and fetched models are kept between runs, and how they get there whole.

The place is ``$ACTLAKE_CACHE``, else ``actlake`` under ``$XDG_CACHE_HOME`` or ``~/.cache``.
Everything in it can be deleted at any time and is made again when it is needed.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock


def cache_root() -> Path:
    """The folder of the cache; it need not exist yet."""
    if chosen := os.environ.get("ACTLAKE_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "actlake"


def cached_folder(name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` of the cache, made by `make` if it is not there.

    `make` fills an empty folder beside it, which takes the name only when it is complete:
    a reader meets all of it or none. One process makes it while others wait for it.

    Parameters
    ----------
    name
        Path below `cache_root`, such as ``gguf/9f2c…``. It has to say everything that the
        contents depend on, since what is there is never made again.
    make
        Called with the empty folder, at most once.
    """
    folder = cache_root() / name
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(folder.name + ".lock")):
        if folder.is_dir():
            return folder
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            make(unfinished)
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder
