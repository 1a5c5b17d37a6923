"""A file system in memory, whose every system call is a step of the simulation.

`actlake.storage.location.LocalFolder` runs on it as it is, by the calls in `simulation.system`.
What is written is lost when the power is cut,
but for files that were synced under names whose folder was synced: the least that POSIX promises.
"""

import errno
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from simulation.world import Call, World

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class File:
    """What a name leads to."""

    data: bytes = b""
    synced: bytes = b""
    """What a power loss leaves of it."""


FOLDER = File()
"""What the names of folders lead to."""


class Disk:
    """Names and files, as processes see them and as a power loss leaves them."""

    def __init__(self, world: World | None = None) -> None:
        self.world = world
        self.files: dict[str, File] = {"/": FOLDER}
        self.durable: dict[str, File] = {"/": FOLDER}
        self._children: dict[str, set[str]] = {"/": set()}
        self._unsynced: dict[str, set[str]] = {}  # names of each folder that a sync would settle
        self.on_change: Callable[[str, bytes | None, bytes | None], None] | None = None
        """Told of each name that leads to other bytes than before: name, before, now."""

    def copy(self, world: World | None = None) -> "Disk":
        """Another disk of the same contents, all of them durable."""
        other = Disk(world)
        copies = {id(FOLDER): FOLDER}
        for name, file in self.files.items():
            if id(file) not in copies:
                copies[id(file)] = File(file.data, file.data)
            other.files[name] = copies[id(file)]
        other.durable = dict(other.files)
        other._children = {name: set(children) for name, children in self._children.items()}
        return other

    def contents(self, root: str) -> dict[str, bytes]:
        """All files below a folder, by their names in it."""
        start = f"{root}/"
        return {
            name.removeprefix(start): file.data
            for name, file in self.files.items()
            if name.startswith(start) and file is not FOLDER
        }

    def snapshot(self) -> frozenset[tuple[str, bytes | None]]:
        """All that processes can see, as a key."""
        return frozenset(
            (name, None if file is FOLDER else file.data) for name, file in self.files.items()
        )

    def put(self, name: str, data: bytes | None) -> None:
        """Let a name lead to other bytes, or to none; no step, durable at once."""
        self._lead(name, None if data is None else File(data, data))
        self._settle(name)

    def lose_power(self, keep: random.Random | None = None) -> None:
        """Leave what is durable; with `keep`, also a part, drawn with it, of what is not."""
        names = self.durable
        if keep is not None:
            for name in sorted({*self.files, *self.durable}):
                if self.files.get(name) is not self.durable.get(name) and keep.random() < 0.5:
                    if name in self.files:
                        names[name] = self.files[name]
                    else:
                        del names[name]
        kept = {"/": FOLDER}
        for name in sorted(names, key=lambda name: name.count("/")):
            if name == "/" or parent(name) in kept:
                kept[name] = names[name]
        for file in {id(file): file for file in kept.values()}.values():
            whole = keep is not None and keep.random() < 0.5
            file.synced = file.data = file.data if whole else file.synced
        self.files, self.durable, self._unsynced = dict(kept), kept, {}
        self._children = {name: set() for name, file in kept.items() if file is FOLDER}
        for name in kept.keys() - {"/"}:
            self._children[parent(name)].add(name)

    def is_synced(self, folder: str) -> bool:
        """Whether a power loss would leave the names in a folder as they are."""
        return not self._unsynced.get(folder)

    # Calls.

    def call(self, call: Call, effect: Callable[[], T], *, error: int = errno.EIO) -> T:
        """Do one system call, when it is its turn."""
        fault = None if self.world is None else self.world.step(call)
        if fault is None:
            return effect()
        if fault.is_done:
            effect()
        raise OSError(error, os.strerror(error))

    def open(self, name: str) -> File:
        """A file to read; `FileNotFoundError` where there is none."""
        return self.call(Call(f"read {name}", reads=_one(name)), lambda: self.file(name))

    def find(self, name: str) -> File:
        """What a name leads to, for a look at it."""
        return self.call(Call(f"stat {name}", reads=_one(name)), lambda: self._existing(name))

    def names(self, folder: str) -> list[tuple[str, bool]]:
        """The names in a folder, sorted, and whether they are files."""

        def effect() -> list[tuple[str, bool]]:
            self.check_folder(folder)
            return sorted(
                (name.rpartition("/")[2], self.files[name] is not FOLDER)
                for name in self._children[folder]
            )

        return self.call(Call(f"list {folder}", reads=_one(folder), lists=_one(folder)), effect)

    def make(self, name: str) -> File:
        """A new, empty file; `FileExistsError` where there is one."""

        def effect() -> File:
            self.check_folder(parent(name))
            if name in self.files:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
            self._lead(name, File())
            return self.files[name]

        return self.call(self._change("create", name), effect)

    def append(self, name: str, file: File, data: bytes) -> int:
        """Write to an opened file, whatever its name has come to lead to."""

        def effect() -> int:
            file.data += data
            return len(data)

        return self.call(Call(f"write {name}", writes=_one(name)), effect, error=errno.ENOSPC)

    def sync(self, name: str, file: File) -> None:
        """Make durable what a file holds, or which names a folder has."""

        def effect() -> None:
            if file is not FOLDER:
                file.synced = file.data
                return
            for child in list(self._unsynced.get(name, ())):
                self._settle(child)

        self.call(Call(f"sync {name}", syncs=True), effect)

    def make_folder(self, name: str, *, exist_ok: bool) -> None:
        """A new folder."""

        def effect() -> None:
            self.check_folder(parent(name))
            there = self.files.get(name)
            if there is not None and not (exist_ok and there is FOLDER):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
            self._lead(name, FOLDER)

        self.call(self._change("mkdir", name), effect)

    def link(self, name: str, other: str) -> None:
        """A second name of a file."""

        def effect() -> None:
            file = self._existing(name)
            self.check_folder(parent(other))
            if other in self.files:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), other)
            if file is FOLDER:
                raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), name)
            self._lead(other, file)

        change = self._change("link", other)
        self.call(Call(change.name, _one(name), change.writes, renames=change.renames), effect)

    def rename(self, name: str, other: str) -> None:
        """Another name for a file or folder, in the place of what had it."""

        def effect() -> None:
            self.check_folder(parent(name))
            self.check_folder(parent(other))
            moved = self._existing(name)
            there = self.files.get(other)
            # Two names of one file, or one name of a folder: POSIX does nothing.
            if name == other or (there is moved and moved is not FOLDER):
                return
            if there is not None and (there is FOLDER) is not (moved is FOLDER):
                kind = errno.EISDIR if there is FOLDER else errno.ENOTDIR
                raise OSError(kind, os.strerror(kind), other)
            if there is FOLDER and self._has_children(other):
                raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), other)
            below = [n for n in self.files if n == name or n.startswith(f"{name}/")]
            for old in sorted(below):
                self._lead(other + old[len(name) :], self.files[old])
            for old in sorted(below, reverse=True):
                self._lead(old, None)

        change = self._change("rename", other)
        self.call(
            Call(
                f"rename {name} to {other}",
                writes=change.writes | {name},
                renames=change.renames | {parent(name)},
            ),
            effect,
        )

    def unlink(self, name: str, *, missing_ok: bool = False) -> None:
        """Take a file's name away."""

        def effect() -> None:
            try:
                self.file(name)
            except FileNotFoundError:
                if not missing_ok:
                    raise
            else:
                self._lead(name, None)

        self.call(self._change("unlink", name), effect)

    def remove_folder(self, name: str) -> None:
        """Take an empty folder away."""

        def effect() -> None:
            self.check_folder(name)
            if self._has_children(name):
                raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), name)
            self._lead(name, None)

        change = self._change("rmdir", name)
        self.call(Call(change.name, lists=_one(name), writes=change.writes, renames=change.renames),
                  effect)  # fmt: skip

    # Looks, that are no steps.

    def file(self, name: str) -> File:
        """The file of a name."""
        file = self._existing(name)
        if file is FOLDER:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
        return file

    def check_folder(self, name: str) -> None:
        """Refuse a name that does not lead to a folder."""
        if self._existing(name) is not FOLDER:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), name)

    def num_names(self, file: File) -> int:
        """How many names lead to a file."""
        return sum(other is file for other in self.files.values())

    def _existing(self, name: str) -> File:
        if name not in self.files:
            above = parent(name)
            while above not in self.files:
                above = parent(above)
            kind = errno.ENOENT if self.files[above] is FOLDER else errno.ENOTDIR
            raise OSError(kind, os.strerror(kind), name)
        return self.files[name]

    def _has_children(self, name: str) -> bool:
        return bool(self._children[name])

    def _settle(self, name: str) -> None:
        """Make durable what a name leads to."""
        if name in self.files:
            self.durable[name] = self.files[name]
        else:
            self.durable.pop(name, None)
        self._unsynced.get(parent(name), set()).discard(name)

    def _lead(self, name: str, file: File | None) -> None:
        before = self.files.get(name)
        above = parent(name)
        self._unsynced.setdefault(above, set()).add(name)
        if file is None:
            del self.files[name]
            self._children.pop(name, None)
            self._children[above].remove(name)
        else:
            self.files[name] = file
            self._children[above].add(name)
            if file is FOLDER:
                self._children.setdefault(name, set())
        if self.on_change is not None and FOLDER not in (before, file):
            self.on_change(
                name, None if before is None else before.data, None if file is None else file.data
            )

    def _change(self, verb: str, name: str) -> Call:
        return Call(
            f"{verb} {name}", reads=_one(parent(name)), writes=_one(name),
            renames=_one(parent(name)),
        )  # fmt: skip


def parent(name: str) -> str:
    """The name of the folder that a name is in."""
    return name.rpartition("/")[0] or "/"


def _one(name: str) -> frozenset[str]:
    return frozenset((name,))
