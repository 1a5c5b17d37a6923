"""SIGTERM and Ctrl-C as a flag, so that a run can finish what it has begun."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeAlias

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

Handlers: TypeAlias = dict[signal.Signals, Callable[[int, FrameType | None], Any] | int | None]


def current_handlers() -> Handlers:
    """Who is told about SIGTERM and SIGINT now."""
    return {number: signal.getsignal(number) for number in _SIGNALS}


@contextmanager
def stop_flag(stop: threading.Event, *, restore: Handlers) -> Iterator[None]:
    """Set `stop` at SIGTERM or SIGINT; a SIGINT after that raises `KeyboardInterrupt`.

    Enter this *after* ``ray.init``: its handler starts a three-second alarm at SIGTERM that
    ends the process however busy it is. `restore` is put back at the end. Signals reach only
    the main thread; in any other nothing is installed, and `stop` is the caller's to set.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and stop.is_set():
            raise KeyboardInterrupt
        logger.warning(
            "%s: finishing what is in flight; Ctrl-C once more ends at once",
            signal.Signals(number).name,
        )
        stop.set()

    for number in _SIGNALS:
        signal.signal(number, on_signal)
    try:
        yield
    finally:
        for number, handler in restore.items():
            # None is a handler that was not installed from Python; it cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
