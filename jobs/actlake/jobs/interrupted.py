"""Ctrl-C while modules are being imported. Imports next to nothing itself, to be there early."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STATUS = 130
"""Exit status of what Ctrl-C ended, as shells give it."""


@contextmanager
def ends_at_once() -> Iterator[None]:
    """Let Ctrl-C end the process at once, for as long as modules are being imported.

    Nothing has begun that could be lost. A `KeyboardInterrupt` would show the inside of some
    module that the user never heard of, and extension modules turn it into an `ImportError`.
    A handler that is not Python's own stays: whoever ignores SIGINT, as ``nohup`` does, means it.
    """
    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if ours:
        signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"actlake: interrupted before anything was begun\n")
    os._exit(STATUS)
