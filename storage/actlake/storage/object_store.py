"""A location in an S3 bucket, or at a server that speaks S3.

An object is put whole or not at all, so nothing is staged, renamed or synced: when a PUT returns,
the object is durable and every reader sees it (S3 is strongly consistent). What a store is made of
is put by `actlake.storage.object_writer`: created with ``If-None-Match: *``, exchanged with
``If-Match``. Before the first of them, a server is asked whether it keeps these conditions, and
refused where it does not, since drivers could not be kept apart there.

A request whose answer was lost is made again, and then meets its own first success: `create`
marks each object with a number of its own and looks, `exchange` compares the bytes.

Why obstore, and what was tried: docs/design/005-object-storage.md.
"""

import io
import uuid
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pyarrow as pa
from obstore.exceptions import AlreadyExistsError, PreconditionError

from actlake.storage.ahead import REQUESTS_AT_ONCE, file_threads, request_threads
from actlake.storage.attempts import Attempts, Refused, TryAgain
from actlake.storage.clock import SYSTEM_CLOCK, Clock
from actlake.storage.errors import KeyTaken, StoreDamaged, StoreNotFound, StoreNotWritable
from actlake.storage.fence import LEDGER, MEANWHILE, Token, Writer
from actlake.storage.object_writer import BucketWriter, joined
from actlake.storage.s3_access import S3Place, forget_credentials, open_client, server

READ_TIMEOUT_S = 30.0
WRITE_TIMEOUT_S = 30.0  # and the sending of the body
_SLOWEST = 2**18  # bytes a second that a line may take to the server
_PIECE = 8 * 2**20  # what one GET asks for
_STEP = 64 * 2**10  # what may come twice when an answer is interrupted
# Up to here one PUT: a multipart upload that dies leaves parts that nobody sees and all pay for.
_LARGEST_PUT = 64 * 2**20
_PART = 16 * 2**20
_KEYS_AT_ONCE = 1000  # what one LIST or DELETE takes
_OF_ZARR = 10  # attempts at what zarr-python asks for
_MARK = "actlake-attempt"
Page = list[tuple[str, int]]


class S3Folder:
    """The keys below a prefix of a bucket; see `Location`.

    Raises
    ------
    StoreError, StoreNotReadable, MissingExtra
        As `open_client`.
    """

    parallel = REQUESTS_AT_ONCE
    clock: Clock = SYSTEM_CLOCK

    def __init__(self, place: S3Place) -> None:
        self.url = str(place)
        self._place = place
        self._open_clients()
        self._attempt = Attempts(self.url, server(), renew=self._renew_clients)
        self._keeps_conditions = False

    def __repr__(self) -> str:
        return f"S3Folder({self.url!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens clients of its own; no credentials are sent to it."""
        return type(self), (self._place,)

    def _open_clients(self) -> None:
        self._reads = open_client(self._place, timeout_s=READ_TIMEOUT_S)
        self._writers: dict[int, Any] = {}

    def _renew_clients(self) -> None:
        forget_credentials()
        self._open_clients()

    def _writes(self, num_bytes: int) -> Any:
        """A client to send so many bytes with: the server says nothing until it has them all."""
        size = num_bytes.bit_length()
        if size not in self._writers:
            timeout_s = WRITE_TIMEOUT_S + 2**size / _SLOWEST
            self._writers[size] = open_client(self._place, timeout_s=timeout_s)
        return self._writers[size]

    # Reading.

    def read(self, key: str) -> bytes:
        """See `Location.read`; large objects in pieces, in parallel."""
        pieces, _ = self._pieces(key, 0, None, request_threads().map)
        return b"".join(pieces)

    def read_all(self, keys: Iterable[str]) -> list[bytes]:
        """See `Location.read_all`."""
        return list(file_threads().map(self.read, keys))

    def read_range(self, key: str, start: int, stop: int) -> tuple[memoryview, int]:
        """See `Location.read_range`; piece after piece, since many ranges are read at once."""
        pieces, size = self._pieces(key, start, stop, map)
        data = pieces[0] if len(pieces) == 1 else memoryview(b"".join(pieces))
        if len(data) < stop - start:
            raise StoreDamaged(f"{key} in {self.url} has {size:,} bytes, and none at {stop - 1:,}")
        return data, size

    def size(self, key: str) -> int | None:
        """See `Location.size`."""
        try:
            return self._attempt(f"HEAD {key}", lambda: obstore.head(self._reads, key)["size"])
        except StoreNotFound:
            return None

    def list(self, folder: str) -> Iterator[str]:
        """See `Location.list`."""
        for key, _ in self.sizes(folder):
            yield key

    def sizes(self, folder: str) -> Iterator[tuple[str, int]]:
        """See `Location.sizes`."""
        assert folder, "only of folders, whose keys all lie directly in them"
        after: str | None = None
        while True:
            page = self._page(folder, after)
            for key, size in page:
                if "/" not in key.removeprefix(f"{folder}/"):
                    yield key, size
            if len(page) < _KEYS_AT_ONCE:
                return
            after = page[-1][0]

    def is_foreign(self, ours: Container[str]) -> bool:
        """See `Location.is_foreign`; hidden names do not count."""
        found = self._attempt("LIST", lambda: obstore.list_with_delimiter(self._reads))
        names = [*found["common_prefixes"], *(meta["path"] for meta in found["objects"])]
        return any(name and name not in ours and name[0] != "." for name in names)

    def file(self, key: str) -> Any:
        """See `Location.file`; only what is asked for is fetched."""
        return pa.PythonFile(_RangedFile(self, key), mode="r")

    def local_path(self, key: str) -> Path | None:
        """See `Location.local_path`: there is none."""
        return None

    def zarr_store(self, key: str) -> Any:
        """See `Location.zarr_store`."""
        from zarr.storage import ObjectStore

        below = S3Place(self._place.bucket, f"{self._place.prefix}/{key}".strip("/"))
        client = open_client(below, timeout_s=READ_TIMEOUT_S, attempts=_OF_ZARR)
        return ObjectStore(client, read_only=True)

    # Writing.

    def write(self, key: str, parts: Iterable[Any]) -> None:
        """See `Location.write`."""
        body = joined(parts)
        large = len(body) > _LARGEST_PUT
        self._attempt(
            f"PUT {key}",
            lambda: obstore.put(
                self._writes(len(body)),
                key,
                body,
                use_multipart=large,
                chunk_size=_PART,
                max_concurrency=8,
            ),
            writes=True,
        )

    def writer(self, token: Token) -> Writer:
        """See `Location.writer`."""
        return BucketWriter(self, token)

    # What writers are made of.

    def create(self, key: str, data: Any) -> str:
        """Put an object where none is; `KeyTaken` where one is. Its tag is returned."""
        mark = uuid.uuid4().hex

        def request() -> str:
            try:
                put = obstore.put(
                    self._writes(len(data)), key, data, mode="create", attributes={_MARK: mark},
                    use_multipart=False,
                )  # fmt: skip
            except AlreadyExistsError as error:
                try:
                    there = obstore.get(self._reads, key)
                except FileNotFoundError:  # 409: two at once, and perhaps neither has won
                    raise TryAgain("409 ConditionalRequestConflict") from error
                if there.attributes.get(_MARK) != mark:
                    raise KeyTaken(f"{key} already exists in {self.url}{MEANWHILE}") from None
                return there.meta["e_tag"] or ""
            return put["e_tag"] or ""

        return self._attempt(f"PUT {key}", request, writes=True)

    def exchange(self, key: str, data: Any, seen: str) -> str:
        """Put an object in the place of the one with this tag; `KeyTaken` where it is another."""

        def request() -> str:
            try:
                client = self._writes(len(data))
                put = obstore.put(client, key, data, mode={"e_tag": seen}, use_multipart=False)
            except PreconditionError:
                return self._tag_if(key, data)
            return put["e_tag"] or ""

        return self._attempt(f"PUT {key}", request, writes=True)

    def tag(self, key: str) -> str | None:
        """What names the state of an object; None where there is none."""
        try:
            found = self._attempt(f"HEAD {key}", lambda: obstore.head(self._reads, key)["e_tag"])
        except StoreNotFound:
            return None
        return found or ""

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects, whatever they are by now."""
        doomed = list(keys)
        for start in range(0, len(doomed), _KEYS_AT_ONCE):
            some = doomed[start : start + _KEYS_AT_ONCE]
            self._attempt(f"DELETE {some[0]}", partial(self._delete, some), writes=True)

    def require_conditions(self) -> None:
        """Find out, once, whether the server keeps conditions on PUT.

        Raises
        ------
        StoreNotWritable
            It does not.
        """
        if self._keeps_conditions:
            return
        key = f"{LEDGER}/probe-{uuid.uuid4().hex}"  # where no other driver clears up
        try:
            self.create(key, b"1")
            kept = _is_refused(lambda: self.create(key, b"2")) and _is_refused(
                lambda: self.exchange(key, b"3", '"another"')
            )
        except Refused as error:
            if error.code not in _CANNOT_DO:
                raise
            kept = False
        self.delete([key])
        if not kept:
            raise StoreNotWritable(
                f"{server()} does not keep conditions on PUT (If-None-Match, If-Match), by which "
                "drivers are kept apart\nhint: write to Amazon S3 or a server that keeps them, or "
                "to a shared file system; reading needs no conditions"
            )
        self._keeps_conditions = True

    # One request.

    def _pieces(
        self, key: str, start: int, stop: int | None, run: Callable[..., Iterable[memoryview]]
    ) -> tuple[Sequence[memoryview], int]:
        """A range, or all from `start` on, as far as there is any, of one version; the size."""
        while True:
            end = start + _PIECE if stop is None else min(start + _PIECE, stop)
            try:
                first, size, tag = self._get(key, start, end)
                end = size if stop is None else min(stop, size)
                rest = range(start + len(first), end, _PIECE)
                return [first, *run(partial(self._piece, key, tag, end), rest)], size
            except PreconditionError:  # replaced meanwhile: once more, all of one version
                continue

    def _piece(self, key: str, tag: str | None, end: int, start: int) -> memoryview:
        return self._get(key, start, min(start + _PIECE, end), tag)[0]

    def _get(
        self, key: str, start: int, stop: int, tag: str | None = None
    ) -> tuple[memoryview, int, str | None]:
        """Bytes of a range, as many as there are; the object's size and its tag.

        An attempt goes on where the one before it was interrupted.
        """
        body, came, size = memoryview(b""), 0, 0

        def request() -> None:
            nonlocal body, came, size, tag
            if tag is None:
                came = 0  # what came might be of another version
            elif came and came == len(body):
                return  # only the end of the answer was lost
            options: Any = {"range": (start + came, stop)} | ({"if_match": tag} if tag else {})
            answer = obstore.get(self._reads, key, options=options)
            size, tag = answer.meta["size"], answer.meta["e_tag"]
            if not came:
                body = np.empty(min(stop, size) - start, np.uint8).data
            for some in answer.stream(min_chunk_size=_STEP):
                end = came + len(some)
                if end > len(body):
                    raise TryAgain("the answer was longer than it said")
                body[came:end] = some
                came = end
            # A body may be short of what its own header says, without any error.
            if came < len(body):
                raise TryAgain(f"the answer was cut short: {came:,} of {len(body):,} bytes")

        try:
            self._attempt(f"GET {key}", request, progress=lambda: came)
        except Refused as error:
            if error.status != _RANGE_NOT_SATISFIABLE:
                raise
            return memoryview(b""), self.size(key) or 0, None
        return body, size, tag

    def _delete(self, keys: Sequence[str]) -> None:
        obstore.delete(self._writes(0), keys)

    def _page(self, folder: str, after: str | None) -> Page:
        """What lies below a folder, up to `_KEYS_AT_ONCE`, in the order of keys."""

        def request() -> Page:
            listed = obstore.list(self._reads, folder, offset=after, chunk_size=_KEYS_AT_ONCE)
            return [(meta["path"], meta["size"]) for meta in next(iter(listed), ())]

        return self._attempt(f"LIST {folder}", request)

    def _tag_if(self, key: str, data: Any) -> str:
        """The tag of a key that holds these bytes: an attempt that succeeded without answer."""
        try:
            there = obstore.get(self._reads, key)
            is_ours = memoryview(there.bytes()) == memoryview(data)
        except FileNotFoundError:
            is_ours = False
        if not is_ours:
            raise KeyTaken(f"{key} in {self.url} is not what it was{MEANWHILE}") from None
        return there.meta["e_tag"] or ""


_RANGE_NOT_SATISFIABLE = 416
_CANNOT_DO = frozenset({"NotImplemented", "InvalidArgument", "InvalidRequest"})


class _RangedFile(io.RawIOBase):
    """An object as a seekable file."""

    def __init__(self, location: S3Folder, key: str) -> None:
        size = location.size(key)
        if size is None:
            raise StoreNotFound(f"There is no {key} in {location.url}")
        self._location = location
        self._key = key
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        into = memoryview(buffer).cast("B")
        n = max(0, min(len(into), self._size - self._at))
        pieces = range(self._at, self._at + n, _PIECE)
        stop = self._at + n

        def fetch(start: int) -> None:
            end = min(start + _PIECE, stop)
            data, _ = self._location.read_range(self._key, start, end)
            into[start - pieces.start : end - pieces.start] = data

        for _ in request_threads().map(fetch, pieces):
            pass
        self._at += n
        return n


def _is_refused(put: Callable[[], object]) -> bool:
    try:
        put()
    except KeyTaken:
        return True
    return False
