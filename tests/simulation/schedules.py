"""What a schedule decides, and how it is written down: ``12>B 40!crash``.

A decision is taken before a step of the run: another process gets its turn, a process or the
whole machine dies, a call fails. A schedule's text replays the run.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Act(StrEnum):
    """What can happen before a step."""

    SUSPEND = ">"
    """The process stops, as under Ctrl-Z, past its lease if need be; another one runs."""
    YIELD = "~"
    """Another process runs, and this one lives on and keeps its lease."""
    TIME = "!time"
    """The clock jumps to where the next waiting process, or heartbeat, is due."""
    CRASH = "!crash"
    """The process dies; the system lives on, with all that was written."""
    POWER_LOSS = "!power"
    """All processes die, and what was not synced is lost."""
    POWER_LOSS_SOME = "!some"
    """As above; of what was not synced a part is lost, as the number after it draws."""
    FAIL = "!fail"
    """The call fails, and nothing was done."""
    LOSE_ANSWER = "!lost"
    """The call fails, although it was done."""


@dataclass(frozen=True, slots=True)
class Decision:
    """One thing that happens, before step number `step` of the run."""

    step: int
    act: Act
    who: str = ""
    """The process that runs next, or the seed of what is lost."""

    def __str__(self) -> str:
        return f"{self.step}{self.act}{self.who}"


_WRITTEN = re.compile(r"(\d+)([>~]|![a-z]+)(\w*)")


def as_text(decisions: Iterable[Decision]) -> str:
    """A schedule in one line."""
    return " ".join(map(str, decisions)) or "undisturbed"


def from_text(text: str) -> tuple[Decision, ...]:
    """Read what `as_text` wrote."""
    if text == "undisturbed":
        return ()
    found = []
    for word in text.split():
        written = _WRITTEN.fullmatch(word)
        assert written, f"{word!r} is no decision, such as 12>B or 40!crash"
        found.append(Decision(int(written[1]), Act(written[2]), written[3]))
    return tuple(found)
