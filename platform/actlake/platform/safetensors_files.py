"""Files of safetensors, with the errors of the system as Python has them.

Of a file that may not be read safetensors says that it is not there, and of a disk that is full it
tells in prose. And what it writes only its owner may read, whatever the umask: `plain_mode` is what
a file has that was made in the usual way.
"""

import os
import re
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


def readable(path: Path) -> Path:
    """The path of a file that can be opened, to be handed to safetensors.

    Raises
    ------
    OSError
        It cannot be; `PermissionError` and `FileNotFoundError` are told apart.
    """
    with path.open("rb"):
        return path


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Let the body write a file with safetensors, as any other is: its mode, and its errors.

    Raises
    ------
    OSError
        There is no space, or no permission.
    """
    try:
        yield path
    except SafetensorError as error:
        if found := re.search(r"os error (\d+)", str(error)):
            number = int(found[1])
            raise OSError(number, os.strerror(number), str(path)) from error
        raise
    path.chmod(plain_mode(path.parent))


def plain_mode(folder: Path) -> int:
    """The mode of a new file in a folder, by the umask and the folder's own rules."""
    new = folder / f".{uuid.uuid4().hex}.mode"
    new.touch()
    try:
        return stat.S_IMODE(new.stat().st_mode)
    finally:
        new.unlink()
