"""One driver a store: a lease with an epoch, which a later driver can take over safely.

A driver opens a store by appending an ``open`` entry with the next epoch to the ledger; that
entry takes the number a stale driver's next commit would need, so a stale driver can never
commit (`LeaseLost`). The heartbeat file only decides how *soon* a dead driver is given up: at
once where its process is known to be gone, else when its beat has not changed for a while.

The worst that a wrong guess does is to end the earlier driver with an error.
"""

import logging
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from actlake.storage.errors import (
    LeaseLost,
    StoreDamaged,
    StoreError,
    StoreExists,
    StoreLocked,
    StoreNotFound,
    StoreNotWritable,
)
from actlake.storage.layout import MANIFEST
from actlake.storage.ledger import FOLDER, LedgerState, LedgerWriter, read_state
from actlake.storage.location import STAGING, KeyTaken, Location
from actlake.storage.processes import is_gone, this_process
from actlake.storage.sealed import seal, unseal

logger = logging.getLogger(__name__)

BEAT_S = 5.0
GIVE_UP_S = 30.0
_OURS = frozenset({FOLDER, STAGING, "log"})


@dataclass(frozen=True, slots=True)
class Token:
    """What a worker needs to know that it writes where its driver reads.

    Sent to every worker; `check` reads the file back at the worker's own idea of the location.
    """

    epoch: int
    nonce: str

    def is_over(self, location: Location) -> bool:
        """Whether a later driver has begun to work."""
        return max(_epochs(location), default=0) > self.epoch

    def check(self, location: Location) -> None:
        """Refuse to work at a place where the driver's lease is not seen.

        Raises
        ------
        LeaseLost
            The heartbeat file of this epoch is not there, or is another driver's: the path is
            local to another machine, or the lease was taken over.
        """
        if self.is_over(location):
            raise LeaseLost(f"The lease (epoch {self.epoch}) of {location.url} was taken over")
        try:
            beat = unseal(location.read(_beat_key(self.epoch)), name=_beat_key(self.epoch))
        except StoreNotFound as error:
            raise LeaseLost(
                f"The driver's lease (epoch {self.epoch}) cannot be seen at {location.url}\n"
                "hint: the store must lie where all workers and the driver see the same files"
            ) from error
        if beat["nonce"] != self.nonce or beat["released"]:
            raise LeaseLost(f"The lease (epoch {self.epoch}) of {location.url} is over")


class Lease:
    """The right to commit to one store, held by this process. A context manager.

    Attributes
    ----------
    ledger
        Appends to the log; raises `LeaseLost` once another driver has taken over.
    token
        For workers, see `Token`.
    """

    def __init__(self, location: Location, ledger: LedgerWriter, token: Token) -> None:
        self.location = location
        self.ledger = ledger
        self.token = token
        self._beat = 0
        self._beaten: str | None = None
        self._is_released = False
        self._write_beat()
        self._end_beating = location.clock.repeat(self._renew, every_s=BEAT_S)

    @classmethod
    def acquire(cls, location: Location, *, give_up_s: float = GIVE_UP_S) -> Self:
        """Take the lease, waiting at most `give_up_s` for a silent holder to be given up.

        Raises
        ------
        StoreLocked
            Another driver is alive.
        StoreExists
            The place holds other things, and no store.
        StoreNotWritable
            The place cannot be written.
        """
        state = read_state(location)
        if not state.last and location.size(MANIFEST) is None and location.is_foreign(_OURS):
            raise StoreExists(
                f"{location.url} holds other files, and no activation store\n"
                "hint: give an empty folder, or one that does not exist yet"
            )
        was_released = not state.epoch or _wait_until_over(location, state, give_up_s=give_up_s)
        waited_for, state = state.epoch, read_state(location)  # it may have committed meanwhile
        if state.epoch != waited_for:
            raise _locked(location, state)
        writer = LedgerWriter(location, state)
        token = Token(state.epoch + 1, secrets.token_hex(8))
        try:
            writer.append({"kind": "open", "epoch": token.epoch, "owner": this_process()})
        except LeaseLost as error:  # whoever took the number is alive
            raise _locked(location, read_state(location)) from error
        except StoreNotWritable as error:
            now = read_state(location)
            if now.epoch == state.epoch:
                raise
            raise _locked(location, now) from error  # the winner has swept our file
        lease = cls(location, writer, token)
        lease._clear_up(after_kill=not was_released)
        return lease

    def release(self) -> None:
        """Give the lease back; the next driver need not wait."""
        if not self._is_released:
            self._is_released = True
            self._end_beating()
            # Where the disk is full this cannot be said, and the next driver finds out by itself.
            with suppress(StoreError, OSError):
                self._write_beat(released=True)
                if not self.token.is_over(self.location):
                    self.location.sweep()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def _clear_up(self, *, after_kill: bool) -> None:
        """Remove what drivers before this one and their writers have left behind."""
        earlier = [epoch for epoch in _epochs(self.location) if epoch < self.token.epoch]
        self.location.delete_files(map(_beat_key, earlier))
        self.location.sweep()
        if after_kill:
            self.ledger.clean()

    def _renew(self) -> bool:
        """Beat once; whether to go on beating."""
        try:
            self._write_beat()
        except KeyTaken:  # a later driver has cleared it away; the next commit says so
            return False
        except (StoreError, OSError) as error:  # made up for by the next, or by the takeover
            logger.warning("The lease of %s could not be renewed: %s", self.location.url, error)
        return True

    def _write_beat(self, *, released: bool = False) -> None:
        self._beat += 1
        content = {"nonce": self.token.nonce, "beat": self._beat, "released": released}
        key = _beat_key(self.token.epoch)
        self._beaten = self.location.replace(key, seal(content), seen=self._beaten)


_BEAT = f"{FOLDER}/lease-"


def _beat_key(epoch: int) -> str:
    return f"{_BEAT}{epoch:06d}"


def _epochs(location: Location) -> list[int]:
    """Epochs whose heartbeat file is there."""
    return [int(key.removeprefix(_BEAT)) for key in location.list(FOLDER) if key.startswith(_BEAT)]


def _wait_until_over(location: Location, state: LedgerState, *, give_up_s: float) -> bool:
    """Return when the last driver has released its lease (True), or is given up (False).

    It is given up at once when its process is known to be gone, else when it has been silent
    for long enough.
    """
    before = _read_beat(location, state.epoch)
    clock = location.clock
    deadline = clock.now() + give_up_s
    while not before.get("released", False):
        if is_gone(state.owner) or clock.now() >= deadline:
            return False
        clock.sleep(min(BEAT_S, give_up_s) / 4)
        now = _read_beat(location, state.epoch)
        if now.get("beat") != before.get("beat") and not now.get("released", False):
            raise _locked(location, state)
        before = now
    return True


def _read_beat(location: Location, epoch: int) -> Mapping[str, Any]:
    key = _beat_key(epoch)
    try:
        content: Mapping[str, Any] = unseal(location.read(key), name=key)
    except (StoreNotFound, StoreDamaged):
        return {}  # the driver died before its first beat
    return content


def _locked(location: Location, state: LedgerState) -> StoreLocked:
    owner = state.owner
    return StoreLocked(
        f"Another driver is writing to {location.url}: process {owner.get('pid')} on "
        f"{owner.get('host')} (epoch {state.epoch})\n"
        "hint: wait for it to end, or stop it; its store goes on from where it stopped"
    )
