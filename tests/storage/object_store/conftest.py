"""A proxy before the S3 server that does what networks and servers do."""

import base64
import hashlib
import http.client
import shutil
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from actlake.storage import attempts
from actlake.storage.location import Location, locate


@dataclass
class Fault:
    """What happens to the next `times` requests that fit."""

    kind: str
    method: str = ""
    key: str = ""
    """A part of the path."""
    times: int = 1
    status: int = 500
    code: str = "InternalError"
    step_s: float = 0.1
    """Between a twentieth of a slow body and the next, and before a late answer."""


@dataclass
class Seen:
    """A request that came."""

    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Weather:
    """The faults to come, and all requests that came."""

    faults: list[Fault] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    decide: Callable[[Seen], Fault | None] | None = None
    """Asked where no fault fits."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    fault = Fault

    def add(self, kind: str, method: str = "", key: str = "", **how: object) -> None:
        self.faults.append(Fault(kind, method, key, **how))  # type: ignore[arg-type]

    def count(self, method: str, key: str = "") -> int:
        return sum(s.method == method and key in s.path for s in self.seen)

    def next(self, seen: Seen) -> Fault | None:
        with self._lock:
            self.seen.append(seen)
            for fault in self.faults:
                if fault.method in ("", seen.method) and fault.key in seen.path and fault.times:
                    fault.times -= 1
                    return fault
        return self.decide(seen) if self.decide is not None else None


class Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "ProxyServer"

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        seen = Seen(self.command, self.path, {k.lower(): v for k, v in self.headers.items()})
        fault = self.server.weather.next(seen)
        kind = fault.kind if fault else ""
        if kind == "reset":
            return self._reset()
        if kind == "silence":
            self.server.thaw.wait(30)
            return self._reset()
        if fault and kind == "answer":
            return self._answer(fault)
        if fault and kind == "late":
            time.sleep(fault.step_s)
        headers = dict(self.headers.items())
        if kind == "spoil":
            body = _flipped(body)
            if not _fits_its_checksum(body, seen.headers):
                return self._answer(Fault(kind, status=400, code="BadDigest"))
        if kind == "no conditions":
            headers = {k: v for k, v in headers.items() if not k.lower().startswith("if-")}
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=30)
        upstream.request(self.command, self.path, body, headers)
        response = upstream.getresponse()
        data = response.read()
        upstream.close()
        if kind == "reset after":
            return self._reset()
        if fault and kind == "answer after":
            return self._answer(fault)
        return self._pass_on(response, data, fault)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any

    def _pass_on(
        self, response: http.client.HTTPResponse, data: bytes, fault: Fault | None
    ) -> None:
        kind = fault.kind if fault else ""
        if kind == "flip" and data:
            data = _flipped(data)
        if kind == "short":
            data = data[: len(data) // 2]
        self.send_response_only(response.status)
        for name, value in response.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        length = response.getheader("Content-Length") or "0"
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if kind == "truncate":
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        elif kind == "stall":
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.server.thaw.wait(30)
            self.close_connection = True
        elif fault and kind == "slow":
            step = max(1, len(data) // 20)
            for start in range(0, len(data), step):
                self.wfile.write(data[start : start + step])
                self.wfile.flush()
                time.sleep(fault.step_s)
        else:
            self.wfile.write(data)

    def _answer(self, fault: Fault) -> None:
        xml = (
            f"<Error><Code>{fault.code}</Code><Message>key-of-the-tests</Message></Error>".encode()
        )
        self.send_response_only(fault.status)
        self.send_header("Content-Length", str(len(xml)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(xml)

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def finish(self) -> None:
        if self.connection.fileno() >= 0:
            super().finish()

    def log_message(self, *_: object) -> None:
        pass


def _flipped(data: bytes) -> bytes:
    """The data with one bit of its middle changed."""
    spoilt = bytearray(data)
    spoilt[len(data) // 2] ^= 1
    return bytes(spoilt)


def _fits_its_checksum(body: bytes, headers: dict[str, str]) -> bool:
    """What Amazon looks at before it stores a body; without a checksum, nothing."""
    told = headers.get("x-amz-checksum-sha256")
    return told is None or base64.b64decode(told) == hashlib.sha256(body).digest()


class ProxyServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), Proxy)
        self.upstream = urlsplit(upstream).netloc
        self.weather = Weather()
        self.thaw = threading.Event()

    def handle_error(self, *_: object) -> None:
        """A client that went away is no news."""


@pytest.fixture
def weather(bucket, monkeypatch) -> Iterator[Weather]:
    """Faults between this process and the bucket; attempts follow each other quickly."""
    server = ProxyServer(bucket.server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(attempts, "SHORTEST_PAUSE_S", 0.001)
    monkeypatch.setattr(attempts, "LONGEST_PAUSE_S", 0.02)
    yield server.weather
    server.thaw.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def url(bucket) -> str:
    """Where a store may be made, at a prefix that needs care in URLs."""
    return f"{bucket.url}/team a/lr=1e-3+b/store"


@pytest.fixture
def upload() -> Callable[[Path, str], Location]:
    """Copy a folder to a URL."""

    def copy(folder: Path, url: str) -> Location:
        location = locate(url)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                location.write(str(path.relative_to(folder)), [path.read_bytes()])
        return location

    return copy


@pytest.fixture
def download(tmp_path) -> Callable[[str], Path]:
    """Copy what lies at a URL to a folder."""
    import obstore

    def copy(url: str) -> Path:
        folder = tmp_path / "downloaded"
        shutil.rmtree(folder, ignore_errors=True)
        location = locate(url)
        keys = [meta["path"] for page in obstore.list(location._reads) for meta in page]
        for key, data in zip(keys, location.read_all(keys), strict=True):
            (folder / key).parent.mkdir(parents=True, exist_ok=True)
            (folder / key).write_bytes(data)
        return folder

    return copy
