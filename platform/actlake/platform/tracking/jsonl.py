"""Numbers of a run in plain files: ``metrics.jsonl`` and ``summary.json``.

A line of ``metrics.jsonl`` is one call of `JsonLinesTracker.log`:

    {"step": 100, "time": 1767225600.123, "train/loss": 0.31, "train/norm": "NaN"}

``time`` is in seconds since 1970 (UTC). Numbers that are not finite are the strings "NaN",
"Infinity" and "-Infinity", so that every line is standard JSON; `read_metrics` gives floats.

A line is handed to the operating system before `log` returns, so a killed process loses at
most the line it was writing, and the next one to open the file cuts that torn line off. Lines
are synced to disk when the run finishes, and not before: a power failure may cost the last
seconds.
"""

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from actlake.platform.plain_json import json_text, number
from actlake.platform.redact import without_secrets
from actlake.platform.tracking.tracker import (
    TrackingError,
    Value,
    check_name,
    check_names,
    page_text,
    png_bytes,
)
from actlake.storage.location import LocalFolder

METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
MEDIA = "media"
_BYTES_AT_ONCE = 65_536

logger = logging.getLogger(__name__)


class JsonLinesTracker:
    """The tracker that is always on.

    Parameters
    ----------
    folder
        Folder of the run; made when it is missing.
    resume_step
        Step of the checkpoint from which the run goes on. Lines of later steps were logged by
        a process that was killed after it; they are cut off, because their steps are about to
        be logged again. None keeps every line, and is right for a new run.

    Raises
    ------
    TrackingError
        One of the lines that are looked at, from the end to where the run goes on, is damaged and
        not the last; `read_metrics` looks at all.
    """

    def __init__(self, folder: Path, *, resume_step: int | None = None) -> None:
        self._files = LocalFolder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / METRICS
        _repair(self.path, resume_step)
        self._handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        self._summary = _read_summary(folder / SUMMARY)
        self._open = True

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """See `Tracker.log`."""
        check_names(metrics)
        line = {
            "step": int(step),
            "time": round(time.time(), 3),
            **{name: float(value) for name, value in metrics.items()},
        }
        content = memoryview(f"{json_text(line)}\n".encode())
        while len(content):
            content = content[os.write(self._handle, content) :]

    def summary(self, values: Mapping[str, Value]) -> None:
        """See `Tracker.summary`."""
        self._summary |= without_secrets(values)
        text = f"{json_text(self._summary, indent=2)}\n"
        self._files.write(SUMMARY, [text.encode()])

    def image(self, name: str, png: bytes | Path, *, step: int) -> None:
        """See `Tracker.image`; kept as ``media/<name>-<step>.png``."""
        self._files.write(f"{MEDIA}/{check_name(name)}-{step}.png", [png_bytes(png)])

    def html(self, name: str, page: str | Path, *, step: int) -> None:
        """See `Tracker.html`; kept as ``media/<name>-<step>.html``."""
        content = page_text(page).encode()
        self._files.write(f"{MEDIA}/{check_name(name)}-{step}.html", [content])

    def artifact(self, path: Path, *, kind: str) -> None:
        """See `Tracker.artifact`; the file is where it is, and the log says so."""
        logger.info("Wrote %s %s", kind, path)

    def finish(self, *, failed: bool = False) -> None:
        """See `Tracker.finish`."""
        if self._open:
            self._open = False
            os.fsync(self._handle)
            os.close(self._handle)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a ``metrics.jsonl`` (or of the run's folder), with floats as floats.

    A last line that was torn by a kill is left out; the file is not changed, so a run may be
    read while it goes on.

    Raises
    ------
    TrackingError
        There is no such file, or a line that is not the last one is damaged.
    """
    path = path / METRICS if path.is_dir() else path
    if not path.exists():
        raise TrackingError(f"There are no metrics at {path}\nhint: give the folder of a run")
    return [{name: number(value) for name, value in content.items()} for _, content in _lines(path)]


def _repair(path: Path, resume_step: int | None) -> None:
    """Cut off a torn last line, and whatever was logged after `resume_step`.

    Steps never go back, so both are at the end: read are the lines that are cut off, and one more.
    """
    if not path.exists():
        return
    stop = size = path.stat().st_size
    dropped = 0
    for start, line in _lines_from_the_end(path):
        content = _read_line(line)
        if content is None and start + len(line) < size:
            raise _damaged(f"The line at byte {start:,}", path, line)
        if content is not None and (resume_step is None or content["step"] <= resume_step):
            break
        stop = start
        dropped += 1
    if stop < size:
        os.truncate(path, stop)
        logger.info(
            "%s: going on from step %s, %d lines cut off",
            path, "(last)" if resume_step is None else resume_step, dropped,
        )  # fmt: skip


def _lines_from_the_end(path: Path) -> Iterator[tuple[int, bytes]]:
    """Each line, the last first, with the byte at which it starts; a part of the file is read."""
    with path.open("rb") as file:
        start = file.seek(0, os.SEEK_END)
        begun = b""  # of a line whose start is not read yet
        while start > 0:
            length = min(_BYTES_AT_ONCE, start)
            start -= length
            file.seek(start)
            first, *whole = (file.read(length) + begun).splitlines(keepends=True)
            at = start + len(first) + sum(map(len, whole))
            for line in reversed(whole):
                at -= len(line)
                yield at, line
            begun = first
        if begun:
            yield 0, begun


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The whole lines of the file, each as it stands and as it reads."""
    lines = path.read_bytes().splitlines(keepends=True)
    for place, line in enumerate(lines, start=1):
        content = _read_line(line)
        if content is not None:
            yield line, content
        elif place < len(lines):
            raise _damaged(f"Line {place}", path, line)


def _damaged(which: str, path: Path, line: bytes) -> TrackingError:
    return TrackingError(
        f"{which} of {path} is not a line of metrics: {line[:60]!r}\n"
        "hint: only a last line can be torn by a kill, so this file was changed by something "
        "else; move it away or repair it by hand"
    )


def _read_line(line: bytes) -> dict[str, Any] | None:
    try:
        content = json.loads(line)
    except ValueError:
        return None
    whole = line.endswith(b"\n") and isinstance(content, dict)
    return content if whole and isinstance(content.get("step"), int) else None


def _read_summary(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise TrackingError(f"{path} is not JSON: {error}\nhint: move it away") from error
    if not isinstance(content, dict):
        raise TrackingError(f"{path} is not a summary\nhint: move it away")
    return content
