"""Where a store lies: a folder, or a place in a bucket. Only `locate` knows which.

Keys are relative and use ``/``. A location is for reading. What a store is made of is written by
a driver's `Writer`, which a later driver can end; `Location.write` is for what lies beside it and
decides nothing: labels, logs, indexes.

To make another kind of location, or one of a test: `Location`, and `Writer` in
`actlake.storage.fence`, say all that the rest of the package relies on.
"""

import os
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import zarr
from zarr.storage import LocalStore

from actlake.storage.clock import SYSTEM_CLOCK, Clock
from actlake.storage.durable import (
    PARTIAL,
    make_folder,
    refusal,
    refusal_to_read,
    sync_folder,
    written_beside,
)
from actlake.storage.errors import StoreDamaged, StoreError, StoreNotFound, missing_extra
from actlake.storage.fence import FolderWriter, Token, Writer
from actlake.storage.s3_access import S3Place


class Location(Protocol):
    """Named bytes under one root. Files are whole or absent: a reader meets all or nothing."""

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
        """Make `key` hold exactly the bytes of `parts`, replacing what was there; durable.

        Anybody may, at any time, so nothing that a driver's ledger speaks of is written by it.
        """
        ...

    def writer(self, token: Token) -> Writer:
        """What writes here for a driver, in its own process or in a worker's."""
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
    """A folder of a POSIX file system."""

    parallel = 1
    clock: Clock = SYSTEM_CLOCK

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()
        self.url = str(self.root)

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
        except StoreError:
            raise
        except OSError as error:
            raise refusal_to_read(error, key, self.url) from error

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
        """See `Location.write`; the file lies beside the one to be until it is whole."""
        path = self.root / key
        try:
            make_folder(path.parent)
            with written_beside(path, parts) as partial:
                partial.replace(path)
            sync_folder(path.parent)
        except OSError as error:
            if isinstance(error, StoreError):  # of whoever makes the parts
                raise
            raise refusal(error, f"write {key}", self.url) from error

    def writer(self, token: Token) -> Writer:
        """See `Location.writer`."""
        return FolderWriter(self.root, token)

    def size(self, key: str) -> int | None:
        """See `Location.size`."""
        try:
            return (self.root / key).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise refusal_to_read(error, key, self.url) from error

    def list(self, folder: str) -> Iterator[str]:
        """See `Location.list`; files that are still being written are left out."""
        for name in self._names(folder):
            if not name.endswith(PARTIAL):
                yield f"{folder}/{name}" if folder else name

    def sizes(self, folder: str) -> Iterator[tuple[str, int]]:
        """See `Location.sizes`."""
        for key in self.list(folder):
            if (size := self.size(key)) is not None:
                yield key, size

    def is_foreign(self, ours: Container[str]) -> bool:
        """See `Location.is_foreign`; hidden files do not count."""
        try:
            names = [path.name for path in self.root.iterdir()] if self.root.is_dir() else []
        except OSError as error:
            raise refusal_to_read(error, "", self.url) from error
        return any(name not in ours and name[0] != "." for name in names)

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
        except OSError as error:
            raise refusal_to_read(error, folder, self.url) from error


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
        return LocalFolder(Path(text))
    if scheme == "file":
        return LocalFolder(Path(rest))
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
