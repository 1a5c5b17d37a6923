"""Files of a POSIX file system: whole or absent, on the disk when a call returns, in our words.

What the system refuses is an `OSError` here; `refusal` makes of it what a user is told.
"""

import ctypes
import errno
import fcntl
import filecmp
import glob
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from actlake.storage.errors import StoreNotReadable, StoreNotWritable

PARTIAL = ".partial"
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK)
_NO_SUCH_RENAME = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1


class CannotExclude(OSError):
    """The file system has no operation that creates a whole file and that one caller wins."""


def write_new(path: Path, parts: Iterable[Any]) -> None:
    """Write a file that is not there yet, and see it to the disk."""
    with path.open("xb", buffering=0) as file:
        _write_to(file.fileno(), parts)


@contextmanager
def written_beside(path: Path, parts: Iterable[Any]) -> Iterator[Path]:
    """A new file beside `path`, on the disk, which the body gives its name; gone afterwards.

    What processes that were killed meanwhile have left of such a file is removed. A lock on it
    says whether its process is alive.
    """
    for left in path.parent.glob(f"{glob.escape(path.name)}.*{PARTIAL}"):
        _remove_abandoned(left)
    while True:
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
        with partial.open("xb", buffering=0) as file:
            with suppress(OSError):  # a file system without locks: then nobody removes it, either
                fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_nlink == 0:  # removed before it was locked
                continue
            try:
                _write_to(file.fileno(), parts)
                yield partial
            finally:
                partial.unlink(missing_ok=True)
            return


def _remove_abandoned(partial: Path) -> None:
    with suppress(OSError), partial.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its process is alive
        partial.unlink()


def _write_to(handle: int, parts: Iterable[Any]) -> None:
    for part in parts:
        view = memoryview(part).cast("B")
        while len(view):
            view = view[os.write(handle, view) :]
    os.fsync(handle)


def name_exclusively(written: Path, path: Path) -> None:
    """Give a whole file its name, which is free; exactly one of several callers succeeds.

    By a hard link, so `written` may still be there; where the file system has none (SMB, FAT,
    FUSE), by a rename that replaces nothing. Both are one operation of the file system: nobody
    ever meets a part of the file, and neither succeeds once `written` has been taken away.
    Creating the name with O_EXCL and filling it would promise neither.

    Raises
    ------
    FileExistsError
        The name is taken.
    CannotExclude
        The file system can do neither.
    """
    try:
        os.link(written, path)
    except FileExistsError:
        # NFS may lose the answer of a link that was made, and repeat the question.
        if written.stat().st_nlink < 2:
            raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _rename_exclusively(written, path)


def _rename_exclusively(written: Path, path: Path) -> None:
    if not hasattr(_LIBC, "renameat2"):
        raise CannotExclude(errno.ENOSYS, os.strerror(errno.ENOSYS), path)
    done = _LIBC.renameat2(
        _AT_FDCWD, os.fsencode(written), _AT_FDCWD, os.fsencode(path), _RENAME_NOREPLACE
    )
    if done == 0:
        return
    number = ctypes.get_errno()
    kind = CannotExclude if number in _NO_SUCH_RENAME else OSError
    raise kind(number, os.strerror(number), path)


def same_bytes(one: Path, other: Path) -> bool:
    """Whether two files hold the same bytes; False where the other is not there."""
    try:
        return filecmp.cmp(one, other, shallow=False)
    except FileNotFoundError:
        return False


def make_folder(folder: Path) -> None:
    """Make a folder with all above it, each seen to the disk."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    try:
        folder.mkdir(exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), folder) from error
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """See the names in a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def refusal(error: OSError, deed: str, url: str) -> StoreNotWritable:
    """What a user is told when the system refuses to change something."""
    if isinstance(error, CannotExclude):
        return StoreNotWritable(
            f"The file system of {url} has neither hard links nor renames that replace nothing, "
            "by which drivers are kept apart\n"
            "hint: put the store on a local disk, NFS, SMB, Lustre or GPFS"
        )
    return StoreNotWritable(
        f"Cannot {deed} in {url}: {_reason(error)}\n"
        f"hint: {_WHAT_TO_DO.get(error.errno or 0, _LOOK)}; nothing half-written is visible, and "
        "the same command goes on where it stopped"
    )


def refusal_to_read(error: OSError, key: str, url: str) -> StoreNotReadable:
    """What a user is told when the system refuses to read something that is there."""
    if error.errno in (errno.EACCES, errno.EPERM):
        return StoreNotReadable(
            f"{key or 'The folder'} in {url} may not be read by this user\n"
            "hint: ask its owner for permission to read"
        )
    return StoreNotReadable(
        f"Cannot read {key or 'the folder'} in {url}: {_reason(error)}\n"
        f"hint: {_WHAT_TO_DO.get(error.errno or 0, _LOOK)}; then try again"
    )


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)


_LOOK = "look at the file system and the system's log"
_WHAT_TO_DO = {
    errno.ENOENT: "the folder was removed meanwhile, or another driver has cleared up in it",
    errno.ESTALE: "the file server has another file there now; see that it is mounted and answers",
    errno.EACCES: "check the permissions of the folder",
    errno.EPERM: "check the permissions of the folder",
    errno.EROFS: "the file system is read-only",
    errno.ENOSPC: "make space",
    errno.EDQUOT: "your disk quota is used up",
    errno.EFBIG: "allow larger files (`ulimit -f`), or make smaller shards",
    errno.EIO: "the disk or the network failed; look at the system's log",
    errno.ETIMEDOUT: "the file server does not answer; see that it is mounted",
    errno.ENOTDIR: "a part of the path is a file",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.EMFILE: "allow more open files (`ulimit -n`)",
}

_LIBC = ctypes.CDLL(None, use_errno=True)
