"""Writing to a store in a bucket for one driver.

Nothing can be renamed there, so there is no folder by whose removal an earlier driver's right
could end (`actlake.storage.fence`). Instead no request of a driver, however late it arrives, can
change what a later one has written: files are created where nothing is, and what is there already
is compared; what is replaced is replaced as the object it was seen to be. That suffices since the
files of a corpus and of a unit are what they are whoever writes them.
"""

import uuid
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from actlake.storage.ahead import file_threads
from actlake.storage.errors import KeyTaken, StoreNotFound, StoreNotWritable
from actlake.storage.fence import Token, holds_others

if TYPE_CHECKING:  # which makes writers
    from actlake.storage.object_store import S3Folder

# What one PUT takes; a multipart upload, which takes more, cannot be put under conditions.
_LARGEST_PUT = 5 * 2**30
# An object that says of its key that nothing is there: a number of its own makes its tag unlike
# that of any other object, so that a condition on it holds for this one alone.
_FREE = b"actlake: free "


class BucketWriter:
    """A `Writer` to a bucket."""

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
            if (tag := self._tag_if_free(key)) is not None:
                with suppress(KeyTaken):  # another has used it: is it with these bytes?
                    self._location.exchange(key, body, tag)
                    return
            if not self._holds(key, body):
                raise holds_others(key, self._location.url) from error

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

    def remove(self, keys: Iterable[str]) -> None:
        """See `Writer.remove`."""
        self._location.delete(keys)

    def free(self, keys: Iterable[str]) -> None:
        """See `Writer.free`: each is replaced by an object that says so.

        A deletion could not be put under a condition, and might come when the key is in use.
        """
        for _ in file_threads().map(self._free, keys):
            pass

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

    def _free(self, key: str) -> None:
        tag = self._location.tag(key)
        if tag is not None and self._tag_if_free(key) is None:
            self._location.exchange(key, _FREE + uuid.uuid4().hex.encode(), tag)

    def _tag_if_free(self, key: str) -> str | None:
        """The tag of an object that says that its key is free; None of any other."""
        tag = self._location.tag(key)
        if tag is None or self._location.size(key) != len(_FREE) + 32:
            return None
        return tag if self._location.read(key).startswith(_FREE) else None


def joined(parts: Iterable[Any]) -> Any:
    """One buffer of bytes; a single part is not copied."""
    views = [np.frombuffer(part, np.uint8) for part in parts if memoryview(part).nbytes]
    if len(views) == 1:
        return views[0]
    return b"".join(view.data for view in views)
