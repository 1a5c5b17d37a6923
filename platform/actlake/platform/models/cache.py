"""Where converted and fetched models are kept between runs, and how they get there whole.

The place is the user's cache, where stores keep indexes too; see `cache_folder`.
Everything in it can be deleted at any time and is made again when it is needed.
"""

import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from actlake.platform.safetensors_files import plain_mode
from actlake.storage.querying.index_file import cache_folder


def cached_folder(name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` of the cache, made by `make` if it is not there.

    `make` fills an empty folder beside it, which takes the name only when it is complete:
    a reader meets all of it or none. One process makes it while others wait for it.

    Parameters
    ----------
    name
        Path below `cache_folder`, such as ``gguf/9f2c…``. It has to say everything that the
        contents depend on, since what is there is never made again.
    make
        Called with the empty folder, at most once.
    """
    folder = cache_folder() / name
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(folder.name + ".lock"), mode=plain_mode(folder.parent)):
        if folder.is_dir():
            return folder
        unfinished = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:12]}")
        unfinished.mkdir()  # not by tempfile, whose folders only their owner may open
        try:
            make(unfinished)
            mode = plain_mode(unfinished)
            for path in unfinished.rglob("*"):
                if path.is_file():
                    path.chmod(mode)
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder
