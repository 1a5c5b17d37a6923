"""Writing to a store in a bucket for one driver.

Nothing can be renamed there, so there is no folder by whose removal an earlier driver's right
could end (`actlake.storage.fence`). Instead no request of a driver, however late it arrives, can
change what a later one has written: files are created where nothing is, and what is there already
is compared. That suffices since the files of a corpus and of a unit are what they are whoever
writes them.

Nothing is taken away to make room, not even under the condition that it is still what it was seen
to be: the condition is a hash of its bytes, and a later driver may have written the same bytes,
and committed them. So what holds other bytes stays, and whoever meets it is refused.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from actlake.storage.ahead import file_threads
from actlake.storage.errors import KeyTaken, StoreNotFound, StoreNotWritable
from actlake.storage.fence import Token

if TYPE_CHECKING:  # which makes writers
    from actlake.storage.object_store import S3Folder

# What one PUT takes; a multipart upload, which takes more, cannot be put under conditions.
_LARGEST_PUT = 5 * 2**30


class BucketWriter:
    """A `Writer` to a bucket."""

    takes_away = False

    def __init__(self, location: "S3Folder", token: Token) -> None:
        self._location = location
        self._token = token

    def begin(self) -> None:
        """See `Writer.begin`."""
        self._location.require_conditions()

    def fence(self) -> None:
        """See `Writer.fence`: there is nothing to do."""

    def end(self) -> None:
        """See `Writer.end`: there is nothing to do."""

    def create(self, key: str, parts: Iterable[Any]) -> str:
        """See `Writer.create`."""
        return self._location.create(key, self._body(key, parts))

    def ensure(self, key: str, parts: Iterable[Any]) -> None:
        """See `Writer.ensure`."""
        body = self._body(key, parts)
        try:
            self._location.create(key, body)
        except KeyTaken as error:
            if not self._holds(key, body):
                raise KeyTaken(
                    f"{key} in {self._location.url} is there already and holds other bytes: it was "
                    "computed otherwise (other numerics) and not committed\n"
                    "hint: compute as it was computed then; or, when nobody writes to this place, "
                    "delete this object, and run the same command again"
                ) from error

    def ensure_all(self, files: Iterable[tuple[str, Iterable[Any]]]) -> None:
        """See `Writer.ensure_all`; several at once."""
        for _ in file_threads().map(lambda file: self.ensure(*file), files):
            pass

    def replace(self, key: str, parts: Iterable[Any], *, seen: str | None = None) -> str:
        """See `Writer.replace`."""
        body = self._body(key, parts)
        tag = self._location.tag(key) if seen is None else seen
        if tag is None:
            return self._location.create(key, body)
        return self._location.exchange(key, body, tag)

    def seen(self, key: str) -> str | None:
        """See `Writer.seen`."""
        return self._location.tag(key)

    def remove(self, keys: Iterable[str]) -> None:
        """See `Writer.remove`."""
        self._location.delete(keys)

    def free(self, keys: Iterable[str]) -> None:
        """See `Writer.free`: nothing can be taken away."""

    def set_aside(self, keys: Iterable[str]) -> str | None:
        """See `Writer.set_aside`: nothing can be moved."""
        return None

    def _body(self, key: str, parts: Iterable[Any]) -> Any:
        body = joined(parts)
        if len(body) > _LARGEST_PUT:
            raise StoreNotWritable(
                f"{key} has {len(body):,} bytes, and {self._location.url} takes "
                f"{_LARGEST_PUT:,} in one piece\nhint: make the store in a folder, and copy it to "
                "the bucket when it is finished"
            )
        return body

    def _holds(self, key: str, body: Any) -> bool:
        """Whether an object has just these bytes."""
        try:
            if self._location.size(key) != len(body):
                return False
            return memoryview(self._location.read(key)) == memoryview(body)
        except StoreNotFound:
            return False


def joined(parts: Iterable[Any]) -> Any:
    """One buffer of bytes; a single part is not copied."""
    views = [np.frombuffer(part, np.uint8) for part in parts if memoryview(part).nbytes]
    if len(views) == 1:
        return views[0]
    return b"".join(view.data for view in views)
