"""How far something is, how fast and how long still: a bar on a terminal, lines in a log."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

logger = logging.getLogger(__name__)

_LINE_EVERY_S = 10.0
_LATELY = 6
"""Lines over which the speed in a log is taken."""


class _Rate(ProgressColumn):
    """So many a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else _rate(speed), style="dim")


@contextmanager
def progress(
    console: Console,
    what: str,
    total: int,
    *,
    done: int = 0,
    words: Callable[[], str] = lambda: "",
) -> Iterator[Callable[[int], None]]:
    """Show progress for the length of a ``with`` block; the function moves it on.

    Parameters
    ----------
    done
        What an earlier run has done; it does not count for the speed.
    words
        More to say, asked for when it is shown.
    """
    if not console.is_terminal:
        yield _Lines(what, total, done, words).advance
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), _Rate(), TimeRemainingColumn(),
        TextColumn("{task.fields[words]}", style="dim", markup=False),
    )  # fmt: skip
    with Progress(*columns, console=console) as shown:
        task = shown.add_task(what, total=total, completed=done, words="")
        yield lambda number: shown.update(task, advance=number, words=words())


class _Lines:
    """The same in a log, a line every ten seconds."""

    def __init__(self, what: str, total: int, done: int, words: Callable[[], str]) -> None:
        self._what, self._total, self._done, self._words = what, total, done, words
        self._marks = deque([(time.monotonic(), done)], maxlen=_LATELY)

    def advance(self, number: int) -> None:
        self._done += number
        now = time.monotonic()
        if now - self._marks[-1][0] >= _LINE_EVERY_S:
            logger.info("%s", self.line(now))
            self._marks.append((now, self._done))

    def line(self, now: float) -> str:
        """How far it is, for a person."""
        at, before = self._marks[0]
        speed = (self._done - before) / max(now - at, 1e-9)
        parts = [f"{self._done:,} of {self._total:,} {self._what}", _rate(speed)]
        if words := self._words():
            parts.append(words)
        if speed > 0:
            parts.append(f"{clock((self._total - self._done) / speed)} to go")
        return ", ".join(parts)


def _rate(speed: float) -> str:
    return f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.2g}/s"


def clock(seconds: float) -> str:
    """A duration as m:ss or h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
