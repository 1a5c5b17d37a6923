"""Where the product meets the world: what a simulation puts in the places of system and server."""

import functools
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from simulation.bucket import Bucket, Client, SimulatedObstore
from simulation.disk import Disk
from simulation.processes import Process
from simulation.system import SimulatedFileComparison, SimulatedOs, SimulatedPath
from simulation.world import World

from actlake.storage import (
    attempts,
    durable,
    fence,
    lease,
    location,
    object_store,
    object_writer,
    ranged,
)
from actlake.storage.ledger import LedgerWriter
from actlake.storage.location import LocalFolder, Location
from actlake.storage.object_store import S3Folder
from actlake.storage.s3_access import S3Place

# Two entries of one size are merged, so that a store of two units has merges and merges of merges.
FAN_OUT = 2


class SimulatedFolder(LocalFolder):
    """The product's folder, whose files cannot be memory-mapped."""

    def local_path(self, key: str) -> Any:
        """See `Location.local_path`: there is none."""
        return

    def file(self, key: str) -> Any:
        """See `Location.file`."""
        return pa.BufferReader(self.read(key))


class Seams:
    """What modules of the product are given in place of the system; `world` is the present one."""

    def __init__(self) -> None:
        self.world = World()
        self.storage: Disk | Bucket = Disk()
        self._drawn = 0

    def enter(self, world: World, storage: Disk | Bucket) -> None:
        """Let everything happen in another world."""
        self.world, self.storage, self._drawn = world, storage, 0
        storage.world = world

    def enter_world(self, world: World) -> None:
        """Let processes of another world go on at the present storage."""
        self.world = self.storage.world = world

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put the simulation in its places."""
        # Backwards, so that the first digits differ, which some names consist of.
        names = SimpleNamespace(uuid4=lambda: SimpleNamespace(hex=self._draw(32)[::-1]))
        monkeypatch.setattr(durable, "os", SimulatedOs)
        monkeypatch.setattr(durable, "filecmp", SimulatedFileComparison)
        monkeypatch.setattr(location, "os", SimulatedOs)
        for module in (durable, fence, object_store):
            monkeypatch.setattr(module, "uuid", names)
        monkeypatch.setattr(
            lease, "secrets", SimpleNamespace(token_hex=lambda n: self._draw(2 * n))
        )
        monkeypatch.setattr(lease, "this_process", self._this_process)
        monkeypatch.setattr(lease, "is_gone", self._is_gone)
        monkeypatch.setattr(lease, "LedgerWriter", functools.partial(LedgerWriter, fan_out=FAN_OUT))
        monkeypatch.setattr(object_store, "obstore", SimulatedObstore)
        monkeypatch.setattr(object_store, "open_client", self._open_client)
        monkeypatch.setattr(object_store, "file_threads", _OneAfterAnother)
        monkeypatch.setattr(object_writer, "file_threads", _OneAfterAnother)
        monkeypatch.setattr(object_store, "request_threads", _OneAfterAnother)
        monkeypatch.setattr(ranged, "request_threads", _OneAfterAnother)
        clock = SimpleNamespace(
            monotonic=lambda: self.world.now, sleep=lambda seconds: self.world.sleep(seconds)
        )
        monkeypatch.setattr(attempts, "time", clock)
        monkeypatch.setattr(attempts, "random", SimpleNamespace(uniform=lambda low, high: high))

    def location(self, name: str, process: Process | None) -> Location:
        """A place of the present storage, as a process opens it; without one, for a look."""
        found: Any
        if isinstance(self.storage, Disk):
            found = SimulatedFolder(SimulatedPath(self.storage, f"/{name}"))  # type: ignore[arg-type]
        else:
            found = S3Folder(S3Place("simulated", name))
            found._keeps_conditions = True  # what is asked of a server once
            found.parallel = 1
        if process is not None:
            found.clock = process.clock
        return found

    def root(self, name: str) -> str:
        """What `Disk.contents` and `Bucket.contents` call that place."""
        return f"/{name}" if isinstance(self.storage, Disk) else name

    def _open_client(self, place: S3Place, *, timeout_s: float) -> Client:
        assert isinstance(self.storage, Bucket)
        return Client(self.storage, place.prefix)

    def _draw(self, digits: int) -> str:
        self._drawn += 1
        return f"{self._drawn:0{digits}x}"

    def _this_process(self) -> dict[str, Any]:
        process = self.world.running
        assert process is not None
        return {"host": "simulated", "world": self.world.name, "pid": process.number}

    def _is_gone(self, owner: dict[str, Any]) -> bool:
        return owner.get("world") == self.world.name and any(
            process.is_over for process in self.world.processes if process.number == owner["pid"]
        )


class _OneAfterAnother:
    """As much of `concurrent.futures.ThreadPoolExecutor` as is asked for, in one thread."""

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        return iter([function(item) for item in items])
