"""Writing to a store for one driver, in a way that a later driver can end.

A driver may be suspended between looking whether it still holds the lease and writing, and wake
up after another has taken over. So no write rests on having looked: the operation itself fails.

In a folder each driver has one of its own, ``partial/<epoch>-<nonce>``, made once. Whatever it
or its workers write is written there and then named (a link, a rename); whatever they take away
is renamed into it. A later driver removes the folder (`Writer.fence`), and with it the right:
every one of those operations then lacks its source or its target. In a bucket nothing can be
renamed; there files are only ever created, and replaced only as what they were seen to be
(`actlake.storage.object_writer`).

What goes wrong without: docs/design/008-fencing-every-write.md.
"""

import errno
import re
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from actlake.storage.durable import (
    make_folder,
    name_exclusively,
    refusal,
    same_bytes,
    sync_folder,
    write_new,
)
from actlake.storage.errors import KeyTaken, LeaseLost, StoreError, StoreNotFound
from actlake.storage.sealed import unseal

if TYPE_CHECKING:  # whose locations make writers
    from actlake.storage.location import Location

STAGING = "partial"
LEFTOVERS = "leftovers"
LEDGER = "ledger"
_LEASE = f"{LEDGER}/lease-"
_OVER = ".over"
_STAGING_NAME = re.compile(rf"(?P<epoch>\d{{6,}})-[0-9a-f]+({re.escape(_OVER)})?")
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
_RETRIES = 100
MEANWHILE = (
    "\nhint: another process has written it meanwhile; once that has ended, run the same command "
    "again"
)
_MAY_STOP = "\nhint: one harvest runs on a store at a time; this one may stop"


@dataclass(frozen=True, slots=True)
class Token:
    """Which driver something is written for; sent to every worker."""

    epoch: int
    nonce: str

    @property
    def name(self) -> str:
        """Of the driver's own folder while it writes."""
        return f"{self.epoch:06d}-{self.nonce}"

    @property
    def lease_key(self) -> str:
        """The heartbeat file."""
        return lease_key(self.epoch)

    def is_over(self, location: "Location") -> bool:
        """Whether a later driver has begun to work."""
        return max(epochs_with_lease(location), default=0) > self.epoch

    def check(self, location: "Location") -> None:
        """Refuse to work at a place where the driver's lease is not seen.

        A courtesy, which saves a worker the work: what keeps a stale one from writing is the
        fence.

        Raises
        ------
        LeaseLost
            The heartbeat file of this epoch is not there, or is another driver's: the path is
            local to another machine, or the lease was taken over.
        """
        if self.is_over(location):
            raise LeaseLost(
                f"The lease (epoch {self.epoch}) of {location.url} was taken over{_MAY_STOP}"
            )
        try:
            beat = unseal(location.read(self.lease_key), name=self.lease_key)
        except StoreNotFound as error:
            raise LeaseLost(
                f"The driver's lease (epoch {self.epoch}) cannot be seen at {location.url}\n"
                "hint: the store must lie where all workers and the driver see the same files"
            ) from error
        if beat["nonce"] != self.nonce or beat["released"]:
            raise LeaseLost(f"The lease (epoch {self.epoch}) of {location.url} is over{_MAY_STOP}")


def lease_key(epoch: int) -> str:
    """The heartbeat file of a driver."""
    return f"{_LEASE}{epoch:06d}"


def epochs_with_lease(location: "Location") -> list[int]:
    """Epochs whose heartbeat file is there."""
    numbers = [k.removeprefix(_LEASE) for k in location.list(LEDGER) if k.startswith(_LEASE)]
    return [int(number) for number in numbers if number.isdecimal()]  # others are not ours


class Writer(Protocol):
    """Writes to one location for one driver; `Location.writer` makes one from a `Token`.

    The driver calls `begin` before its first entry in the ledger, `fence` right after it, `end`
    when it is done. Workers call none of the three. All others are refused with `LeaseLost` once
    a later driver has fenced this one; in a bucket they are not refused, but change nothing that
    a later driver has written. Files are whole or absent and durable when a call returns.
    """

    takes_away: bool
    """Whether `free` and `set_aside` do anything: not in a bucket."""

    def begin(self) -> None:
        """Make ready to write; `StoreNotWritable` where drivers cannot be kept apart."""
        ...

    def fence(self) -> None:
        """End all writing for drivers before this one, also what is under way.

        When it returns, none of their files can appear, change or vanish any more.
        """
        ...

    def end(self) -> None:
        """End all writing for this driver, also by its workers."""
        ...

    def create(self, key: str, parts: Iterable[Any]) -> str:
        """Make `key` hold the bytes of `parts`; of several callers exactly one succeeds.

        What names this state of the key is returned, for `replace`.

        Raises
        ------
        KeyTaken
            There is something already, be it the same bytes.
        """
        ...

    def ensure(self, key: str, parts: Iterable[Any]) -> None:
        """Make `key` hold the bytes of `parts`, unless it does already.

        Raises
        ------
        KeyTaken
            It holds others.
        """
        ...

    def ensure_all(self, files: Iterable[tuple[str, Iterable[Any]]]) -> None:
        """As `ensure`, of several keys; where one fails, others may be written."""
        ...

    def replace(self, key: str, parts: Iterable[Any], *, seen: str | None = None) -> str:
        """Make `key` hold the bytes of `parts`, whatever was there.

        Parameters
        ----------
        seen
            What named the state that is replaced, from an earlier call; by default as it is now.

        Raises
        ------
        KeyTaken
            Somebody has replaced it meanwhile. A folder cannot tell; there the fence is enough.
        """
        ...

    def seen(self, key: str) -> str | None:
        """What names the state of a key as it is now, for `replace`; None where nothing is."""
        ...

    def remove(self, keys: Iterable[str]) -> None:
        """Remove these files, those that are there.

        Only for names that are never used again, such as those of ledger entries: in a bucket a
        suspended call of an earlier driver would remove what a later one has put there.
        """
        ...

    def free(self, keys: Iterable[str]) -> None:
        """Take away these files, those that are there, so that the keys can be created again.

        Only for what no reader is served, such as the files of a unit that is not committed. In a
        bucket they stay: no condition on a request could say that nobody has committed them since.
        """
        ...

    def set_aside(self, keys: Iterable[str]) -> str | None:
        """Move these files and folders to a new folder below ``leftovers``, which is returned.

        None: none of them is there, or this is a bucket, where nothing can be moved.
        """
        ...


def holds_others(key: str, url: str) -> KeyTaken:
    """The error of ensuring a file that is there with other bytes."""
    return KeyTaken(f"{key} in {url} is there already and holds other bytes{MEANWHILE}")


class FolderWriter:
    """A `Writer` to a folder of a POSIX file system."""

    takes_away = True

    def __init__(self, root: Path, token: Token) -> None:
        self._root = root
        self._token = token
        self._staging = root / STAGING / token.name
        self._on_disk: set[Path] = set()
        """Folders whose names this process has seen to the disk."""

    def begin(self) -> None:
        """See `Writer.begin`."""
        try:
            for _ in range(_RETRIES):
                make_folder(self._staging.parent)
                with suppress(FileNotFoundError):  # a driver that ends has removed the one above
                    self._staging.mkdir()
                    return
        except OSError as error:
            raise refusal(error, f"write {STAGING}/{self._token.name}", str(self._root)) from error

    def fence(self) -> None:
        """See `Writer.fence`."""
        with self._in_our_words("end the writing of earlier drivers"):
            for path in list(self._staging.parent.iterdir()):
                name = _STAGING_NAME.fullmatch(path.name)
                if name and int(name["epoch"]) <= self._token.epoch and path != self._staging:
                    self._end(path)

    def end(self) -> None:
        """See `Writer.end`."""
        with self._in_our_words("end writing"):
            self._end(self._staging)

    def create(self, key: str, parts: Iterable[Any]) -> str:
        """See `Writer.create`."""
        with self._staged(key, parts) as (staged, path):
            try:
                name_exclusively(staged, path)
            except FileExistsError as error:
                raise KeyTaken(f"{key} already exists in {self._root}{MEANWHILE}") from error
        return ""

    def ensure(self, key: str, parts: Iterable[Any]) -> None:
        """See `Writer.ensure`."""
        with self._staged(key, parts) as (staged, path):
            try:
                name_exclusively(staged, path)
            except FileExistsError as error:
                if not same_bytes(staged, path):
                    raise holds_others(key, str(self._root)) from error

    def ensure_all(self, files: Iterable[tuple[str, Iterable[Any]]]) -> None:
        """See `Writer.ensure_all`; one after the other."""
        for key, parts in files:
            self.ensure(key, parts)

    def replace(self, key: str, parts: Iterable[Any], *, seen: str | None = None) -> str:
        """See `Writer.replace`."""
        with self._staged(key, parts) as (staged, path):
            staged.replace(path)
        return ""

    def seen(self, key: str) -> str | None:
        """See `Writer.seen`."""
        return "" if (self._root / key).exists() else None

    def remove(self, keys: Iterable[str]) -> None:
        """See `Writer.remove`."""
        for key in keys:
            with self._in_our_words(f"remove {key}"):
                taken = self._staging / uuid.uuid4().hex
                if self._take(key, taken):
                    taken.unlink(missing_ok=True)

    def free(self, keys: Iterable[str]) -> None:
        """See `Writer.free`."""
        self.remove(keys)

    def set_aside(self, keys: Iterable[str]) -> str | None:
        """See `Writer.set_aside`."""
        with self._in_our_words("set leftovers aside"):
            self._on_disk.clear()
            gathered = self._staging / LEFTOVERS
            gathered.mkdir()
            moved = [key for key in keys if self._take(key, gathered / key)]
            if not moved:
                gathered.rmdir()
                return None
            kept = self._new_leftovers()
            gathered.replace(kept)  # over the empty folder of that name
            sync_folder(kept.parent)
            sync_folder(self._root)
            return f"{LEFTOVERS}/{kept.name}"

    def _take(self, key: str, to: Path) -> bool:
        """Move something into the driver's own folder; False where it is not there."""
        try:
            (self._root / key).rename(to)
        except FileNotFoundError:
            if not self._staging.is_dir():
                raise
            return False
        return True

    def _new_leftovers(self) -> Path:
        above = self._root / LEFTOVERS
        make_folder(above)
        while True:
            folder = above / f"{self._token.epoch:06d}-{uuid.uuid4().hex[:8]}"
            with suppress(FileExistsError):  # one that holds something cannot be replaced
                folder.mkdir()
                return folder

    def _end(self, staging: Path) -> None:
        """Remove a driver's folder. Others may be doing the same, and the driver be writing."""
        over = staging.with_name(staging.name.removesuffix(_OVER) + _OVER)
        with suppress(FileNotFoundError):
            staging.rename(over)  # from here on hardly anything is begun, …
        for _ in range(_RETRIES):
            names: list[Path] = []
            try:
                self._keep_leftovers(over / LEFTOVERS)
                names = [path for path in over.iterdir() if not path.name.startswith(".nfs")]
                for path in names:
                    path.unlink(missing_ok=True)
                over.rmdir()  # … and from here on nothing: a removed folder takes no new names
            except FileNotFoundError:
                break
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                if not names:  # only what NFS keeps for a process of this machine that reads it
                    return
            else:
                break
        with suppress(OSError):  # another driver is writing
            over.parent.rmdir()

    def _keep_leftovers(self, gathered: Path) -> None:
        """What a driver had taken away, and not yet put where it is kept."""
        if not gathered.is_dir():
            return
        with suppress(FileNotFoundError):
            if names := list(gathered.iterdir()):
                kept = self._new_leftovers()
                for path in names:
                    path.rename(kept / path.name)
            gathered.rmdir()

    def _make_folder(self, folder: Path) -> None:
        """Make a folder with all above it, and see their names to the disk, whoever made them.

        One that is there may have been made by a driver that was suspended, or ended, before it
        had seen the name to the disk: after a power loss it would be gone with all that is in it.
        """
        if folder in self._on_disk and folder.is_dir():
            return
        make_folder(folder)
        while folder != self._root and folder not in self._on_disk:
            sync_folder(folder.parent)
            self._on_disk.add(folder)
            folder = folder.parent

    @contextmanager
    def _staged(self, key: str, parts: Iterable[Any]) -> Iterator[tuple[Path, Path]]:
        """A durable file that is to be named; the body names it, then the name is made durable."""
        path = self._root / key
        staged = self._staging / f"{path.name}.{uuid.uuid4().hex}"
        with self._in_our_words(f"write {key}"):
            try:
                self._make_folder(path.parent)
                write_new(staged, parts)
                yield staged, path
                sync_folder(path.parent)
            finally:
                with suppress(OSError):
                    staged.unlink()

    @contextmanager
    def _in_our_words(self, deed: str) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except OSError as error:
            if error.errno in _GONE and not self._staging.is_dir():
                raise LeaseLost(
                    f"The lease (epoch {self._token.epoch}) of {self._root} is over: another "
                    "driver has taken it over, or this one has given it back; it cannot "
                    f"{deed}{_MAY_STOP}"
                ) from error
            raise refusal(error, deed, str(self._root)) from error
