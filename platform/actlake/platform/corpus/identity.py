"""What a document is called, and that no two are called the same.

A given id must be unique. A document without one is named after its content; the second and
later documents of equal content are told apart by ``-2``, ``-3``, … in the order of the corpus.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from actlake.platform.corpus.errors import DuplicateDocument
from actlake.platform.corpus.passages import Passage

_WAITING_AT_MOST = 65_536


def content_id(text: str) -> str:
    """The first 16 hexadecimal digits of the text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Identity:
    """A document's name."""

    id: str
    """Unique in the corpus."""
    key: str
    """What decides the split: equal for equal content, so that no copy leaks into another split."""
    repeated: bool
    """Whether a document of equal content came before (only of those named after it)."""


class Identities:
    """Names documents one after the other; remembers 8 bytes for each."""

    def __init__(self) -> None:
        self._seen = SeenNames()
        self._copies: dict[str, int] = {}

    def name(self, passage: Passage) -> Identity:
        """The passage's id.

        Raises
        ------
        DuplicateDocument
            Its given id was given before.
        """
        if passage.id is None:
            return self._after_content(content_id(passage.content))
        if not self._seen.add(f"given {passage.id}"):
            raise DuplicateDocument(
                f"{passage.place}: the id {passage.id!r} was given to an earlier document\n"
                "hint: name a column with unique ids in corpus.source.id_column, or leave it out "
                "to name documents after their content"
            )
        return Identity(passage.id, passage.id, repeated=False)

    def _after_content(self, content: str) -> Identity:
        if self._seen.add(f"content {content}"):
            return Identity(content, content, repeated=False)
        copy = self._copies.get(content, 1) + 1
        self._copies[content] = copy
        return Identity(f"{content}-{copy}", content, repeated=True)


class SeenNames:
    """A set of names as 64-bit hashes in sorted runs: 8 bytes a name, where Python's set takes 70.

    Two of 10 million names have one hash with a chance of 3 in a million.
    """

    def __init__(self) -> None:
        self._waiting: set[int] = set()
        self._runs: list[np.ndarray[tuple[int], np.dtype[np.uint64]]] = []

    def add(self, name: str) -> bool:
        """Whether the name is new."""
        number = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
        if number in self._waiting or any(_holds(run, number) for run in self._runs):
            return False
        self._waiting.add(number)
        if len(self._waiting) >= _WAITING_AT_MOST:
            self._settle()
        return True

    def _settle(self) -> None:
        # Runs double in length, so there are few of them and each name is merged O(log n) times.
        run = np.fromiter(self._waiting, np.uint64, len(self._waiting))
        self._waiting = set()
        while self._runs and len(self._runs[-1]) <= len(run):
            run = np.concatenate([self._runs.pop(), run])
        run.sort()
        self._runs.append(run)


def _holds(run: np.ndarray[tuple[int], np.dtype[np.uint64]], number: int) -> bool:
    at = int(np.searchsorted(run, np.uint64(number)))
    return at < len(run) and int(run[at]) == number
