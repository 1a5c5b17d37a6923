"""What a tracker is; every job is written against this and nothing else."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from actlake.storage.errors import ActlakeError

Value = float | int | bool | str | None
"""What a summary may hold."""

RESERVED = ("step", "time")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*(/[A-Za-z0-9][A-Za-z0-9_.\-]*)*")


class TrackingError(ActlakeError, RuntimeError):
    """A run cannot be tracked as asked."""


class Tracker(Protocol):
    """Where a run's numbers go: W&B, a JSONL file, a list in a test, or all of them.

    Names are words joined by ``/``, such as ``train/loss``. Steps never decrease; several
    calls for one step add to one another.
    """

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Record numbers at a step. NaN and infinities are kept."""
        ...

    def summary(self, values: Mapping[str, Value]) -> None:
        """Record values of the run as a whole; later ones replace earlier ones."""
        ...

    def image(self, name: str, png: bytes | Path, *, step: int) -> None:
        """Record a picture: the bytes of a PNG, or the file that holds them."""
        ...

    def html(self, name: str, page: str | Path, *, step: int) -> None:
        """Record a page: its text, or the file that holds it."""
        ...

    def artifact(self, path: Path, *, kind: str) -> None:
        """Record a finished file or folder of the run, such as a model's weights."""
        ...

    def finish(self, *, failed: bool = False) -> None:
        """Write out what is left; a second call does nothing."""
        ...


def check_name(name: str) -> str:
    """`name`, when it can name a metric or a picture.

    Raises
    ------
    TrackingError
        It is empty, has characters other than letters, digits and ``_ . - /``, begins a word
        with something else than a letter or digit, or is ``step`` or ``time``, which every
        line has.
    """
    if name in RESERVED:
        raise TrackingError(
            f"{name!r} cannot name a metric: every line already has one\n"
            f"hint: put a word before it, such as train/{name}"
        )
    if not _NAME.fullmatch(name):
        raise TrackingError(
            f"{name!r} cannot name a metric\n"
            "hint: use letters, digits, and _ . - between them, with / between the words"
        )
    return name


def check_names(metrics: Mapping[str, float]) -> None:
    """`check_name` for all of `metrics`."""
    for name in metrics:
        check_name(name)


def png_bytes(png: bytes | Path) -> bytes:
    """The bytes of a picture given either way.

    Raises
    ------
    TrackingError
        They are not those of a PNG.
    """
    content = png if isinstance(png, bytes) else png.read_bytes()
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        where = "These bytes are" if isinstance(png, bytes) else f"{png} is"
        raise TrackingError(f"{where} not a PNG\nhint: save the picture with format='png'")
    return content


def page_text(page: str | Path) -> str:
    """The text of a page given either way."""
    return page if isinstance(page, str) else page.read_text(encoding="utf-8")
