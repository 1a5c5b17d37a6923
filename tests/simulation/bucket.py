"""A bucket in memory, whose every request is a step of the simulation.

`actlake.storage.object_store.S3Folder` runs on it as it is, retries included: `SimulatedObstore`
takes the place of the package obstore there. Like S3 it is strongly consistent and keeps
conditions on PUT; nothing is lost when the power is cut at its clients'.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, TypeVar

from obstore.exceptions import AlreadyExistsError, GenericError, PreconditionError
from simulation.world import Call, World

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Object:
    """What a key leads to."""

    data: bytes
    tag: str
    attributes: dict[str, str] = field(default_factory=dict)


class Bucket:
    """Keys and objects."""

    def __init__(self, world: World | None = None) -> None:
        self.world = world
        self.objects: dict[str, Object] = {}
        self.on_change: Callable[[str, bytes | None, bytes | None], None] | None = None
        """Told of each key that leads to other bytes than before: key, before, now."""
        self._num_written = 0

    def copy(self, world: World | None = None) -> "Bucket":
        """Another bucket of the same contents."""
        other = Bucket(world)
        other.objects = dict(self.objects)
        return other

    def contents(self, root: str) -> dict[str, bytes]:
        """All objects below a prefix, by the rest of their keys."""
        start = f"{root}/"
        return {
            key.removeprefix(start): found.data
            for key, found in self.objects.items()
            if key.startswith(start)
        }

    def snapshot(self) -> frozenset[Any]:
        """All that processes can see, as a key."""
        return frozenset((key, found.data) for key, found in self.objects.items())

    def put(self, key: str, data: bytes | None) -> None:
        """Let a key lead to other bytes, or to none; no step."""
        if data is None:
            del self.objects[key]
        else:
            self.objects[key] = Object(data, self._tag(data))

    # Requests.

    def request(self, call: Call, effect: Callable[[], T]) -> T:
        """Do one request, when it is its turn."""
        fault = None if self.world is None else self.world.step(call)
        if fault is None:
            return effect()
        if fault.is_done:
            effect()
        raise GenericError("error sending request")

    def write(self, key: str, data: bytes, condition: Any, attributes: dict[str, str]) -> str:
        """PUT; its tag is returned. `condition`: ``overwrite``, ``create`` or an ``e_tag``."""

        def effect() -> str:
            there = self.objects.get(key)
            if condition == "create" and there is not None:
                raise AlreadyExistsError(f"{key} exists")
            if isinstance(condition, dict) and (there is None or there.tag != condition["e_tag"]):
                raise PreconditionError(f"{key} is another")
            self._lead(key, Object(data, self._tag(data), attributes))
            return self.objects[key].tag

        how = "put" if condition == "overwrite" else "create" if condition == "create" else "swap"
        reads = frozenset() if how == "put" else _one(key)
        return self.request(
            Call(f"{how} {key}", reads=reads, writes=_one(key), renames=_folders(key)), effect
        )

    def read(self, key: str, if_match: str | None) -> Object:
        """GET; `FileNotFoundError` where there is nothing."""

        def effect() -> Object:
            if key not in self.objects:
                raise FileNotFoundError(key)
            if if_match is not None and self.objects[key].tag != if_match:
                raise PreconditionError(f"{key} is another")
            return self.objects[key]

        return self.request(Call(f"get {key}", reads=_one(key)), effect)

    def keys(self, folder: str) -> list[str]:
        """LIST of all that lies below a folder, sorted."""

        def effect() -> list[str]:
            return sorted(key for key in self.objects if key.startswith(f"{folder}/"))

        return self.request(Call(f"list {folder}", lists=_one(folder)), effect)

    def delete(self, key: str) -> None:
        """DELETE of one key, be it there or not."""

        def effect() -> None:
            if key in self.objects:
                self._lead(key, None)

        self.request(Call(f"delete {key}", writes=_one(key), renames=_folders(key)), effect)

    def _lead(self, key: str, found: Object | None) -> None:
        before = self.objects.pop(key, None)
        if found is not None:
            self.objects[key] = found
        if self.on_change is not None:
            self.on_change(key, before and before.data, found and found.data)

    def _tag(self, data: bytes) -> str:
        # S3's tag is a hash of the bytes: equal bytes, equal tags.
        return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


@dataclass(frozen=True)
class Client:
    """The keys of a bucket below a prefix, as `open_client` gives them."""

    bucket: Bucket
    prefix: str

    def key(self, key: str) -> str:
        """The key in the bucket."""
        return f"{self.prefix}/{key}".rstrip("/")


class SimulatedObstore:
    """As much of the package obstore as `S3Folder` uses."""

    @staticmethod
    def put(
        client: Client,
        key: str,
        data: Any,
        *,
        mode: Any = "overwrite",
        attributes: dict[str, str] | None = None,
        use_multipart: bool = False,
        **how: int,
    ) -> dict[str, str]:
        assert not use_multipart, "the objects of a simulation are small"
        tag = client.bucket.write(client.key(key), bytes(data), mode, attributes or {})
        return {"e_tag": tag}

    @staticmethod
    def get(client: Client, key: str, *, options: dict[str, Any] | None = None) -> SimpleNamespace:
        options = options or {}
        found = client.bucket.read(client.key(key), options.get("if_match"))
        start, stop = options.get("range", (0, len(found.data)))
        if start and start >= len(found.data):
            raise GenericError("status code: 416 <Code>InvalidRange</Code>")
        return SimpleNamespace(
            bytes=lambda: found.data[start:stop],
            stream=lambda min_chunk_size: iter([found.data[start:stop]]),
            meta={"size": len(found.data), "e_tag": found.tag},
            attributes=found.attributes,
        )

    @staticmethod
    def head(client: Client, key: str) -> dict[str, Any]:
        found = client.bucket.read(client.key(key), None)
        return {"size": len(found.data), "e_tag": found.tag}

    @staticmethod
    def list(
        client: Client, folder: str, *, offset: str | None = None, chunk_size: int
    ) -> Iterator[list[dict[str, Any]]]:
        below = client.key("") + "/"
        page = [
            {"path": key.removeprefix(below), "size": len(client.bucket.objects[key].data)}
            for key in client.bucket.keys(client.key(folder))
        ]
        after = [meta for meta in page if offset is None or meta["path"] > offset]
        if after:
            yield after[:chunk_size]

    @staticmethod
    def list_with_delimiter(client: Client) -> dict[str, Any]:
        below = client.key("") + "/"
        keys = [key.removeprefix(below) for key in client.bucket.keys(client.key(""))]
        return {
            "common_prefixes": sorted({key.partition("/")[0] for key in keys if "/" in key}),
            "objects": [{"path": key} for key in keys if "/" not in key],
        }

    @staticmethod
    def delete(client: Client, keys: Sequence[str]) -> None:
        for key in keys:  # one request, whose deletions are not one operation
            client.bucket.delete(client.key(key))


def _one(key: str) -> frozenset[str]:
    return frozenset((key,))


def _folders(key: str) -> frozenset[str]:
    parts = key.split("/")[:-1]
    return frozenset("/".join(parts[: n + 1]) for n in range(len(parts)))
