"""What the product asks of `os` and `pathlib`, answered by a disk in memory.

Whatever else it asks for is an `AttributeError`: nothing reaches the real file system unseen.
"""

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from simulation.disk import FOLDER, Disk, File, parent


class SimulatedPath:
    """As much of `pathlib.Path` as the product uses."""

    def __init__(self, disk: Disk, name: str) -> None:
        self.disk = disk
        self._name = name

    def __str__(self) -> str:
        return self._name

    def __repr__(self) -> str:
        return f"SimulatedPath({self._name!r})"

    def __lt__(self, other: "SimulatedPath") -> bool:
        return self._name < other._name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SimulatedPath) and self._name == other._name

    def __hash__(self) -> int:
        return hash(self._name)

    def __truediv__(self, key: str) -> "SimulatedPath":
        return SimulatedPath(self.disk, f"{self._name}/{key}".rstrip("/") if key else self._name)

    @property
    def name(self) -> str:
        return self._name.rpartition("/")[2]

    @property
    def parent(self) -> "SimulatedPath":
        return SimulatedPath(self.disk, parent(self._name))

    def with_name(self, name: str) -> "SimulatedPath":
        return self.parent / name

    def expanduser(self) -> "SimulatedPath":
        return self

    def absolute(self) -> "SimulatedPath":
        return self

    def read_bytes(self) -> bytes:
        return self.disk.open(self._name).data

    def stat(self) -> SimpleNamespace:
        file = self.disk.find(self._name)
        return SimpleNamespace(st_size=len(file.data), st_nlink=self.disk.num_names(file))

    def is_dir(self) -> bool:
        return self._leads_to(lambda file: file is FOLDER)

    def is_file(self) -> bool:
        return self._leads_to(lambda file: file is not FOLDER)

    def exists(self) -> bool:
        return self._leads_to(lambda file: True)

    def is_symlink(self) -> bool:
        return False

    def iterdir(self) -> Iterator["SimulatedPath"]:
        return iter([self / name for name, _ in self.disk.names(self._name)])

    def mkdir(self, *, exist_ok: bool = False) -> None:
        self.disk.make_folder(self._name, exist_ok=exist_ok)

    def rmdir(self) -> None:
        self.disk.remove_folder(self._name)

    def replace(self, other: "SimulatedPath") -> None:
        self.disk.rename(self._name, str(other))

    rename = replace

    def unlink(self, *, missing_ok: bool = False) -> None:
        self.disk.unlink(self._name, missing_ok=missing_ok)

    @contextmanager
    def open(self, mode: str, *, buffering: int = -1) -> Iterator[Any]:
        if mode == "rb":
            file = self.disk.open(self._name)
        else:
            assert (mode, buffering) == ("xb", 0), "new files are opened, unbuffered"
            file = self.disk.make(self._name)
        handle = _opened(self.disk, self._name, file)
        # No file changes once it has its name, so that its bytes may be read at once.
        content = io.BytesIO(file.data)
        try:
            yield SimpleNamespace(fileno=lambda: handle, read=content.read, seek=content.seek)
        finally:
            del _OPENED[handle]

    def _leads_to(self, what: Callable[[File], bool]) -> bool:
        try:
            return what(self.disk.find(self._name))
        except OSError:
            return False


_OPENED: dict[int, tuple[Disk, str, File]] = {}


def _opened(disk: Disk, name: str, file: File) -> int:
    handle = max(_OPENED, default=0) + 1
    _OPENED[handle] = disk, name, file
    return handle


def is_folder(handle: int) -> bool:
    """Whether an opened file is a folder."""
    return _OPENED[handle][2] is FOLDER


class SimulatedOs:
    """As much of `os` as `actlake.storage.location` uses; whatever else it asks for is an error."""

    O_RDONLY = os.O_RDONLY
    O_DIRECTORY = os.O_DIRECTORY
    PathLike = os.PathLike
    fspath = staticmethod(os.fspath)
    strerror = staticmethod(os.strerror)

    @staticmethod
    def open(path: SimulatedPath, flags: int) -> int:
        assert flags & os.O_DIRECTORY, "only folders are opened like this"
        path.disk.check_folder(str(path))
        return _opened(path.disk, str(path), FOLDER)

    @staticmethod
    def close(handle: int) -> None:
        del _OPENED[handle]

    @staticmethod
    def write(handle: int, data: Any) -> int:
        disk, name, file = _OPENED[handle]
        return disk.append(name, file, bytes(data))

    @staticmethod
    def fsync(handle: int) -> None:
        disk, name, file = _OPENED[handle]
        disk.sync(name, file)

    @staticmethod
    def fstat(handle: int) -> SimpleNamespace:
        return SimpleNamespace(st_size=len(_OPENED[handle][2].data))

    @staticmethod
    def link(path: SimulatedPath, other: SimulatedPath) -> None:
        path.disk.link(str(path), str(other))

    @staticmethod
    @contextmanager
    def scandir(path: SimulatedPath) -> Iterator[Iterator[SimpleNamespace]]:
        yield iter(
            [
                SimpleNamespace(name=name, is_file=lambda is_file=is_file: is_file)
                for name, is_file in path.disk.names(str(path))
            ]
        )


class SimulatedFileComparison:
    """As much of `filecmp` as `actlake.storage.durable` uses."""

    @staticmethod
    def cmp(one: SimulatedPath, other: SimulatedPath, *, shallow: bool) -> bool:
        assert not shallow, "of equal size and time is not equal"
        return one.read_bytes() == other.read_bytes()
