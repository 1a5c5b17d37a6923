"""Where a store lies: a folder, or a place in a bucket. Only `locate` knows which.

Keys are relative and use ``/``. Every write is whole or absent: a reader meets all of a file
or none of it, and what was written is durable when the call returns (in a folder: file and
folder are fsynced). `Location.create` is the one operation that two writers can race for, and
exactly one wins; the ledger is built on it.
"""

import errno
import os
import uuid
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import zarr
from zarr.storage import LocalStore

from actlake.storage.clock import SYSTEM_CLOCK, Clock
from actlake.storage.errors import (
    StoreDamaged,
    StoreError,
    StoreNotFound,
    StoreNotReadable,
    StoreNotWritable,
    missing_extra,
)
from actlake.storage.s3_access import S3Place

STAGING = "partial"
_PARTIAL = ".partial"


class KeyTaken(StoreError):
    """`Location.create` lost the race: the key is already there."""


class Location(Protocol):
    """Named bytes under one root, with atomic and durable writes."""

    url: str
    parallel: int
    """How many requests at once are worth while: 1 where there is no latency to hide."""
    clock: Clock
    """By which leases beat and are given up."""

    def read(self, key: str) -> bytes:
        """All bytes of `key`; `StoreNotFound` when there are none."""
        ...

    def read_all(self, keys: Iterable[str]) -> list[bytes]:
        """As `read`, of several keys, in their order."""
        ...

    def read_range(self, key: str, start: int, stop: int) -> tuple[memoryview, int]:
        """Bytes ``start <= i < stop``, and how many there are in all; `StoreDamaged` if fewer."""
        ...

    def write(self, key: str, parts: Iterable[Any]) -> None:
        """Make `key` hold exactly the bytes of `parts`, replacing what was there."""
        ...

    def write_all(self, files: Iterable[tuple[str, Iterable[Any]]]) -> None:
        """As `write`, of several keys; where one fails, others may be written."""
        ...

    def create(self, key: str, data: bytes) -> None:
        """As `write`, but `KeyTaken` when the key exists; atomic against other callers."""
        ...

    def replace(self, key: str, data: bytes, *, seen: str | None) -> str:
        """As `write`; what names this state of `key` is returned, for the next call's `seen`.

        Where the key is no longer in the state `seen`: `KeyTaken`. A folder cannot tell, and
        replaces whatever is there.
        """
        ...

    def size(self, key: str) -> int | None:
        """Bytes of `key`, or None when it does not exist."""
        ...

    def list(self, folder: str) -> Iterator[str]:
        """Keys directly in `folder` (files only), in no order."""
        ...

    def sizes(self, folder: str) -> Iterator[tuple[str, int]]:
        """As `list`, each key with its bytes."""
        ...

    def is_foreign(self, ours: Container[str]) -> bool:
        """Whether anything lies at the root that is not called by one of these names."""
        ...

    def delete(self, key: str) -> None:
        """Remove `key`, or everything below it; nothing happens when there is nothing."""
        ...

    def delete_files(self, keys: Iterable[str]) -> None:
        """Remove these files, those that are there."""
        ...

    def sweep(self) -> None:
        """Remove what killed writers have left half-written."""
        ...

    def local_path(self, key: str) -> Path | None:
        """The file of `key` where it can be memory-mapped, else None."""
        ...

    def file(self, key: str) -> Any:
        """What Arrow reads `key` from: a path, or a file that fetches what is asked for."""
        ...

    def zarr_store(self, key: str) -> Any:
        """A read-only Zarr store of what lies below `key`."""
        ...


class LocalFolder:
    """A folder of a POSIX file system.

    Parameters
    ----------
    staging
        Folder, below `root` and on the same file system, where files lie while they are
        written, so that no reader of the others meets them; by default beside the file to be.
    """

    parallel = 1
    clock: Clock = SYSTEM_CLOCK

    def __init__(self, root: Path, *, staging: str | None = None) -> None:
        self.root = root.expanduser().absolute()
        self.url = str(self.root)
        self._staging = staging

    def __repr__(self) -> str:
        return f"LocalFolder({self.url!r})"

    def read(self, key: str) -> bytes:
        """See `Location.read`."""
        with self._opened(key) as file:
            return file.read()

    @contextmanager
    def _opened(self, key: str) -> Iterator[BinaryIO]:
        """A file to read from, with errors in our words."""
        try:
            with (self.root / key).open("rb") as file:
                yield file
        except (FileNotFoundError, NotADirectoryError) as error:
            raise StoreNotFound(f"There is no {key} in {self.url}") from error
        except PermissionError as error:
            raise StoreNotReadable(
                f"{key} in {self.url} may not be read by this user\n"
                "hint: ask its owner for permission to read"
            ) from error

    def read_all(self, keys: Iterable[str]) -> list[bytes]:
        """See `Location.read_all`."""
        return [self.read(key) for key in keys]

    def read_range(self, key: str, start: int, stop: int) -> tuple[memoryview, int]:
        """See `Location.read_range`."""
        with self._opened(key) as file:
            size = os.fstat(file.fileno()).st_size
            if size < stop:
                raise StoreDamaged(f"{key} in {self.url} has {size:,} bytes, not {stop:,}")
            file.seek(start)
            return memoryview(file.read(stop - start)), size

    def write(self, key: str, parts: Iterable[Any]) -> None:
        """See `Location.write`."""
        with self._partial(key, parts) as (partial, path):
            partial.replace(path)

    def write_all(self, files: Iterable[tuple[str, Iterable[Any]]]) -> None:
        """See `Location.write_all`; one after the other."""
        for key, parts in files:
            self.write(key, parts)

    def replace(self, key: str, data: bytes, *, seen: str | None) -> str:
        """See `Location.replace`."""
        self.write(key, [data])
        return ""

    def create(self, key: str, data: bytes) -> None:
        """See `Location.create`; atomic by a hard link, which fails where the name exists."""
        with self._partial(key, [data]) as (partial, path):
            try:
                os.link(partial, path)
            except FileExistsError as error:
                # NFS may lose the answer of a link that was made, and repeat the question.
                if partial.stat().st_nlink < 2:
                    raise KeyTaken(f"{key} already exists in {self.url}") from error
            except OSError as error:
                if error.errno in (errno.EPERM, errno.EOPNOTSUPP):
                    raise StoreNotWritable(
                        f"The file system of {self.url} has no hard links, by which drivers are "
                        "kept apart\nhint: put the store on a local disk, NFS, Lustre or GPFS"
                    ) from error
                raise

    @contextmanager
    def _partial(self, key: str, parts: Iterable[Any]) -> Iterator[tuple[Path, Path]]:
        """A durable file beside the one to be; the body names it, then the folder is synced."""
        path = self.root / key
        folder = path.parent if self._staging is None else self.root / self._staging
        partial = folder / f"{path.name}.{uuid.uuid4().hex}{_PARTIAL}"
        try:
            _make_folder(path.parent)
            folder.mkdir(exist_ok=True)
            with partial.open("xb", buffering=0) as file:
                for part in parts:
                    _write_all(file.fileno(), part)
                os.fsync(file.fileno())
            yield partial, path
            _sync_folder(path.parent)
        except OSError as error:
            if isinstance(error, StoreError) or error.errno not in _NOT_WRITABLE:
                raise
            raise StoreNotWritable(
                f"Cannot write {key} in {self.url}: {os.strerror(error.errno)}\n"
                f"hint: {_NOT_WRITABLE[error.errno]}; nothing of this file is visible, and "
                "the same command goes on where it stopped"
            ) from error
        finally:
            with suppress(OSError):
                partial.unlink()

    def size(self, key: str) -> int | None:
        """See `Location.size`."""
        try:
            return (self.root / key).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def list(self, folder: str) -> Iterator[str]:
        """See `Location.list`; files that are still being written are left out."""
        for name in self._names(folder):
            if not name.endswith(_PARTIAL):
                yield f"{folder}/{name}" if folder else name

    def sizes(self, folder: str) -> Iterator[tuple[str, int]]:
        """See `Location.sizes`."""
        for key in self.list(folder):
            if (size := self.size(key)) is not None:
                yield key, size

    def is_foreign(self, ours: Container[str]) -> bool:
        """See `Location.is_foreign`; hidden files do not count."""
        paths = self.root.iterdir() if self.root.is_dir() else ()
        return any(path.name not in ours and path.name[0] != "." for path in paths)

    def delete(self, key: str) -> None:
        """See `Location.delete`."""
        path = self.root / key
        if path.is_dir() and not path.is_symlink():
            for child in sorted(path.iterdir()):
                self.delete(f"{key}/{child.name}")
            path.rmdir()
        else:
            path.unlink(missing_ok=True)

    def delete_files(self, keys: Iterable[str]) -> None:
        """See `Location.delete_files`."""
        for key in keys:
            (self.root / key).unlink(missing_ok=True)

    def sweep(self) -> None:
        """See `Location.sweep`; only where there is a staging folder."""
        if self._staging is not None:
            folder = self.root / self._staging
            for name in self._names(self._staging):
                (folder / name).unlink(missing_ok=True)
            with suppress(OSError):  # there is none, or somebody is writing
                folder.rmdir()

    def local_path(self, key: str) -> Path:
        """See `Location.local_path`."""
        return self.root / key

    def file(self, key: str) -> Any:
        """See `Location.file`."""
        return str(self.root / key)

    def zarr_store(self, key: str) -> Any:
        """See `Location.zarr_store`."""
        return LocalStore(self.root / key, read_only=True)

    def _names(self, folder: str) -> Iterator[str]:
        try:
            with os.scandir(self.root / folder) as entries:
                for entry in entries:
                    if entry.is_file():
                        yield entry.name
        except (FileNotFoundError, NotADirectoryError):
            return
        except PermissionError as error:
            raise StoreNotReadable(
                f"{folder} in {self.url} may not be read by this user\n"
                "hint: ask its owner for permission to read"
            ) from error


_NOT_WRITABLE = {
    errno.ENOENT: "the folder was removed meanwhile, or another driver has cleared up in it",
    errno.EACCES: "check the permissions of the folder",
    errno.EPERM: "check the permissions of the folder",
    errno.EROFS: "the file system is read-only",
    errno.ENOSPC: "make space",
    errno.EDQUOT: "your disk quota is used up",
    errno.EFBIG: "allow larger files (`ulimit -f`), or make smaller shards",
    errno.EIO: "the disk or the network failed; look at the system's log",
    errno.ENOTDIR: "a part of the path is a file",
}


def locate(url: "str | os.PathLike[str] | Location") -> Location:
    """The location of the store at a path or URL.

    Raises
    ------
    StoreError
        The URL has a scheme that cannot be opened, or is no place in a bucket.
    StoreNotReadable
        There are no credentials for the bucket.
    MissingExtra
        The extra ``s3`` is not installed.
    """
    if not isinstance(url, str | os.PathLike):
        return url
    text = os.fspath(url)
    scheme, colon, rest = text.partition("://")
    if not colon:
        return LocalFolder(Path(text), staging=STAGING)
    if scheme == "file":
        return LocalFolder(Path(rest), staging=STAGING)
    if scheme == "s3":
        return _s3_folder(S3Place.parse(text))
    raise StoreError(
        f"Cannot open {scheme}://…: there is no reader for {scheme}://\n"
        "hint: give s3://bucket/prefix, or a path on a file system that all workers share"
    )


def _s3_folder(place: S3Place) -> Location:
    try:
        from actlake.storage.object_store import S3Folder
    except ModuleNotFoundError as error:
        raise missing_extra(f"Opening {place}", package="obstore", extra="s3") from error
    return S3Folder(place)


def open_zarr_array(location: Location, group: str, name: str) -> Any:
    """A lazy, read-only zarr-python array."""
    return zarr.open_array(location.zarr_store(group), path=name, mode="r", zarr_format=3)


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    try:
        folder.mkdir(exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), folder) from error
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_all(handle: int, part: Any) -> None:
    view = memoryview(part).cast("B")
    while len(view):
        view = view[os.write(handle, view) :]
