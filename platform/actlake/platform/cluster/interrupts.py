"""SIGTERM and Ctrl-C as a flag, so that a run can finish what it has begun; and how long it may."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeAlias

from actlake.platform.cluster.errors import WorkStopped

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

Handlers: TypeAlias = dict[signal.Signals, Callable[[int, FrameType | None], Any] | int | None]


STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
"""Ray's variable: seconds between the SIGTERM and the SIGKILL of a submitted job."""

DRAIN_S = 60.0
"""How long a run that nobody will kill finishes what is in flight."""

_LAST_WORDS_S = 15.0  # to end actors, finish the tracker, give the lease back and leave Ray


def drain_s() -> float:
    """How long a stop may wait for what is in flight, so that an orderly end comes before a kill.

    In a submitted job this is what ``--drain`` gives less 15 s, or half of it where it is short.
    """
    given = os.environ.get(STOP_WAIT, "")
    if not given.isdecimal():
        return DRAIN_S
    return max(int(given) - _LAST_WORDS_S, int(given) / 2)


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


@contextmanager
def no_ctrl_c_is_lost() -> Iterator[None]:
    """Raise `KeyboardInterrupt` after the block where one within it was swallowed.

    Python prints and forgets what is raised in a hook of ``os.fork`` or in a finaliser, and a Ray
    that starts forks many times. Where SIGINT has another handler than Python's own, or in any
    other thread than the main one, nothing is changed.
    """
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not usual or threading.current_thread() is not threading.main_thread():
        yield
        return
    was_met = False

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal was_met
        was_met = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if was_met:
        raise KeyboardInterrupt


@contextmanager
def stops_at_once() -> Iterator[None]:
    """Raise `WorkStopped` at SIGTERM wherever the main thread is, as Ctrl-C raises its own.

    For work without pieces of which the last should be finished: what it writes appears whole or
    not at all. A session within takes the signals until it ends.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        raise WorkStopped(
            "Stopped by SIGTERM; what is complete is kept\n"
            "hint: the same command goes on from there"
        )

    before = current_handlers()[signal.SIGTERM]
    signal.signal(signal.SIGTERM, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
