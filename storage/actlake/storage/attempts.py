"""Requests to an object store: made again while that can help, their errors in our words.

Made again: answers 5xx, 408, 425 and 429, connections refused or lost, time-outs, bodies cut
short, and what S3 means so but gives another number: 400 RequestTimeout and BadDigest, 409
OperationAborted. After ExpiredToken the credentials are looked for anew, once. Between attempts is
a pause drawn from 0 to 0.1, 0.2, 0.4, … 10 s (full jitter; Brooker 2015, "Exponential backoff and
jitter"), for two minutes from the first failure or the last progress; for ten seconds where the
server has never answered, since a wrong address does not become right. Any status of HTTP is an
answer, also a plea for patience at first contact.

Never shown: what the server wrote but for its error code, since it may repeat what we sent.
"""

import logging
import os
import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

from obstore.exceptions import (
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)

from actlake.storage.errors import (
    StoreError,
    StoreNotFound,
    StoreNotReadable,
    StoreNotWritable,
    StoreUnreachable,
)

T = TypeVar("T")
logger = logging.getLogger(__name__)

GIVE_UP_S = 120.0
GIVE_UP_FIRST_S = 10.0
SHORTEST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 10.0
_AGAIN = frozenset({408, 425, 429})
_AGAIN_CODES = frozenset(
    {"RequestTimeout", "OperationAborted", "ConditionalRequestConflict", "SlowDown"}
    # What we sent has come as something else.
    | {"BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"}
)
_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"})
_NOT_IMPLEMENTED = 501
_STATUS = re.compile(r"status code: (\d{3})")
_IN_BODY = "response body"  # of what fails after the head of an answer
_CODE = re.compile(r"<Code>(\w{1,64})</Code>")
_IS_SILENT = ("does not answer", "look at AWS_ENDPOINT_URL, AWS_REGION and the network")
_SPEAKS = ("answers with errors", "the server has too much to do or is ill: try again later")
# The process that first used obstore: its threads are not there after a fork.
_users: list[int] = []


class TryAgain(Exception):
    """Raised by a request whose answer cannot be right; the message says why."""


class Refused(StoreError):
    """The server understands and will not, whatever we repeat.

    Attributes
    ----------
    status
        Of HTTP.
    code
        The server's word, such as ``InvalidRange``; empty where it gave none.
    """

    def __init__(self, message: str, status: int, code: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Attempts:
    """Makes the requests of one location.

    Parameters
    ----------
    url
        Of the location, for messages.
    server
        Whom it talks to, in words.
    renew
        Opens the location's clients again, with credentials that are looked for anew.
    """

    def __init__(self, url: str, server: str, *, renew: Callable[[], None]) -> None:
        self._url = url
        self._server = server
        self._renew = renew
        self._has_answered = False

    def __call__(
        self,
        deed: str,
        request: Callable[[], T],
        *,
        writes: bool = False,
        progress: Callable[[], int] = lambda: 0,
    ) -> T:
        """The answer of `request`, which may be called more than once.

        Obstore's `PreconditionError` and errors of our own pass through.

        Parameters
        ----------
        deed
            What is done, for messages: ``GET store.json``.
        writes
            Whether a refusal is about writing.
        progress
            What has come so far; while it grows, patience does not end.

        Raises
        ------
        StoreNotFound
            There is no such key.
        StoreNotReadable, StoreNotWritable
            No permission, no such bucket.
        Refused
            Any other answer 4xx.
        StoreUnreachable
            No useful answer, however often we asked.
        """
        _refuse_in_a_fork(self._url)
        failing_since: float | None = None
        number = reached = 0
        renewed = False
        while True:
            number += 1
            try:
                answer = request()
            except (TryAgain, BaseError, FileNotFoundError) as error:
                is_answer = _is_answer(error)
                self._has_answered |= is_answer
                if not renewed and _status_and_code(error)[1] in _EXPIRED:
                    self._renew()
                    renewed, reason = True, "the credentials had expired"
                else:
                    reason = self._reason(deed, error, writes=writes)
                if failing_since is None or progress() > reached:
                    failing_since, number, reached = time.monotonic(), 1, progress()
            else:
                self._has_answered = True
                return answer
            pause = random.uniform(0, min(LONGEST_PAUSE_S, SHORTEST_PAUSE_S * 2**number))
            patience = GIVE_UP_S if self._has_answered else GIVE_UP_FIRST_S
            failing_s = time.monotonic() - failing_since
            if failing_s + pause > patience:
                what, look_at = _SPEAKS if is_answer else _IS_SILENT
                raise StoreUnreachable(
                    f"{self._server} {what}: {deed} of {self._url} failed {number} times "
                    f"in {failing_s:.0f} s, the last time: {reason}\n"
                    f"hint: {look_at}; the same command goes on where it stopped"
                ) from None
            level = logging.WARNING if number > 3 else logging.INFO
            logger.log(
                level, "%s of %s: %s; attempt %d in %.1f s",
                deed, self._url, reason, number + 1, pause,
            )  # fmt: skip
            time.sleep(pause)

    def _reason(self, deed: str, error: Exception, *, writes: bool) -> str:
        """Why it failed, if another attempt may succeed; else the error is raised."""
        if isinstance(error, TryAgain):
            return str(error)
        if isinstance(error, StoreError | PreconditionError):  # answers, not failures
            raise error
        status, code = _status_and_code(error)
        refusal = StoreNotWritable if writes else StoreNotReadable
        if code == "NoSuchBucket":
            raise refusal(
                f"There is no bucket for {self._url} at {self._server}\n"
                "hint: look at its name, AWS_REGION and AWS_ENDPOINT_URL; actlake makes no buckets"
            ) from None
        if isinstance(error, FileNotFoundError):
            raise StoreNotFound(f"{deed}: there is no such key in {self._url}") from None
        if (
            isinstance(error, PermissionDeniedError | UnauthenticatedError)
            or status in (401, 403)
            or code in _EXPIRED
        ):
            raise refusal(
                f"{self._server} refuses {deed} of {self._url}: {code or 'no permission'}\n"
                "hint: look at the credentials (AWS_PROFILE, AWS_ACCESS_KEY_ID, the machine's "
                "role) and their rights: s3:ListBucket, s3:GetObject"
                + (", s3:PutObject, s3:DeleteObject" if writes else "")
            ) from None
        may_pass = status in _AGAIN or code in _AGAIN_CODES
        if (300 <= status < 500 and not may_pass) or status == _NOT_IMPLEMENTED:
            raise Refused(
                f"{self._server} refuses {deed} of {self._url}: {status} {code}\n"
                "hint: look at AWS_REGION and AWS_ENDPOINT_URL"
                if status != _NOT_IMPLEMENTED
                else f"{self._server} cannot do {deed}: {status} {code}",
                status,
                code,
            ) from None
        return f"{status} {code}".strip() if status else _in_words(str(error))


def _is_answer(error: Exception) -> bool:
    """Whether a server has said anything, be it an error or a part of an answer."""
    return (
        isinstance(error, TryAgain | FileNotFoundError | PreconditionError)
        or _status_and_code(error)[0] != 0
        or _IN_BODY in str(error)
    )


def _status_and_code(error: Exception) -> tuple[int, str]:
    """HTTP's number of an answer, 0 where there was none, and the server's word for it."""
    text = str(error)
    found, named = _STATUS.search(text), _CODE.search(text)
    return int(found[1]) if found else 0, named[1] if named else ""


def _in_words(text: str) -> str:
    """What became of a request without an answer."""
    head = text.partition("Debug source")[0]
    if re.search(r"kind: Timeout|timed out|TimedOut", text):
        return "timed out"
    if re.search(r"kind: Connect\b|error sending request", text):
        return "no connection"
    if re.search(rf"{_IN_BODY}|kind: (Decode|Interrupted)", text):
        return "the answer was cut short"
    return head.strip().rpartition(" - ")[2][:100]


def _refuse_in_a_fork(url: str) -> None:
    if not _users:
        _users.append(os.getpid())
    elif _users[0] != os.getpid():
        raise StoreUnreachable(
            f"{url} cannot be read in a forked process: the threads that do it stayed behind\n"
            "hint: start workers by spawning, such as "
            'DataLoader(…, multiprocessing_context="spawn")'
        )
