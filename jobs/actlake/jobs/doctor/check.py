"""What one check found, in words, and how checks are run."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from actlake.storage import ActlakeError

logger = logging.getLogger(__name__)

Status: TypeAlias = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    name: str
    status: Status
    says: str
    hint: str = ""
    """What to do; empty when all is well."""
    expected: str = ""
    """What should have been seen, where a check compares; empty elsewhere."""
    seen: str = ""
    """What was seen instead, or the same."""

    def as_json(self) -> dict[str, Any]:
        """Plain JSON."""
        told = {"name": self.name, "status": self.status, "says": self.says, "hint": self.hint}
        return told | ({"expected": self.expected, "seen": self.seen} if self.expected else {})


Check: TypeAlias = Callable[[], Iterable[Finding]]


def compared(
    name: str, what: str, *, expected: object, seen: object, right: bool, hint: str
) -> Finding:
    """A finding of something that is known beforehand, with what was seen.

    Parameters
    ----------
    what
        What is compared, in words.
    right
        Whether what was seen is as it should be.
    hint
        What to do where it is not.
    """
    says = f"{what}: {seen}" if right else f"{what}: expected {expected}, seen {seen}"
    status: Status = "ok" if right else "fail"
    return Finding(name, status, says, "" if right else hint, str(expected), str(seen))


def refused(name: str, error: ActlakeError) -> Finding:
    """An error of ours as a finding, its hint apart."""
    says, _, hint = str(error).partition("\nhint: ")
    return Finding(name, "fail", " ".join(says.split()), hint)


def run_checks(checks: Iterable[tuple[str, Check]]) -> Iterator[Finding]:
    """Run checks one after the other; one that breaks is a finding, not the end."""
    for name, check in checks:
        try:
            yield from check()
        except ActlakeError as error:
            yield refused(name, error)
        except Exception as error:  # whatever breaks in a sick environment is what is looked for
            logger.debug("%s broke", name, exc_info=True)
            yield Finding(name, "fail", f"{type(error).__name__}: {error}")
