"""One driver a store: a lease with an epoch, which a later driver can take over safely.

A driver opens a store by appending an ``open`` entry with the next epoch to the ledger; that
entry takes the number a stale driver's next commit would need, so a stale driver can never
commit (`LeaseLost`). Then it ends whatever earlier drivers and their workers may still write
(`Writer.fence`). The heartbeat file only decides how *soon* a dead driver is given up: at once
where its process is known to be gone, else when its beat has not changed for a while.

The worst that a wrong guess does is to end the earlier driver with an error.
"""

import logging
import secrets
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from actlake.storage.errors import (
    KeyTaken,
    LeaseLost,
    StoreDamaged,
    StoreError,
    StoreExists,
    StoreLocked,
    StoreNotFound,
)
from actlake.storage.fence import (
    LEDGER,
    LEFTOVERS,
    STAGING,
    Token,
    Writer,
    epochs_with_lease,
    lease_key,
)
from actlake.storage.layout import MANIFEST
from actlake.storage.ledger import LedgerWriter, read_state
from actlake.storage.ledger_state import LedgerState
from actlake.storage.location import Location
from actlake.storage.metadata import earlier_bytes, metadata_of, write_metadata
from actlake.storage.processes import is_gone, this_process
from actlake.storage.sealed import seal, unseal

logger = logging.getLogger(__name__)

BEAT_S = 5.0
GIVE_UP_S = 30.0
_OURS = frozenset({LEDGER, STAGING, LEFTOVERS, "log"})


class Lease:
    """The right to commit to one store, held by this process. A context manager.

    Attributes
    ----------
    ledger
        Appends to the log; raises `LeaseLost` once another driver has taken over.
    token
        For workers, see `Token`.
    writer
        Writes what the store is made of.
    """

    def __init__(
        self, location: Location, writer: Writer, ledger: LedgerWriter, token: Token
    ) -> None:
        self.location = location
        self.writer = writer
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
        if not state.last and (refusal := _refusal_to_begin(location)) is not None:
            state = read_state(location)
            if not state.last:  # else another driver has begun, and made what we have seen
                raise refusal
        was_released = not state.epoch or _wait_until_over(location, state, give_up_s=give_up_s)
        waited_for, state = state.epoch, read_state(location)  # it may have committed meanwhile
        if state.epoch != waited_for:
            raise _locked(location, state)
        token = Token(state.epoch + 1, secrets.token_hex(8))
        writer = location.writer(token)
        ledger = LedgerWriter(location, writer, state)
        writer.begin()
        try:
            ledger.append({"kind": "open", "epoch": token.epoch, "owner": this_process()})
        except LeaseLost as error:  # whoever took the number is alive
            writer.end()
            raise _locked(location, read_state(location)) from error
        except StoreError:
            writer.end()
            raise
        # Since the state was read nothing has been committed: the next number was ours. Files may
        # have come, of earlier drivers; from here on none do.
        writer.fence()
        lease = cls(location, writer, ledger, token)
        try:
            lease._clear_up(after_kill=not was_released)
        except BaseException:
            lease.release()
            raise
        return lease

    def write_metadata(self) -> None:
        """Make every file that repeats the ledger say what it says (`actlake.storage.metadata`)."""
        state = self.ledger.state
        assert state.corpus is not None, self.location.url
        write_metadata(self, metadata_of(state.corpus, state.schemas))

    def release(self) -> None:
        """Give the lease back; the next driver need not wait."""
        if not self._is_released:
            self._is_released = True
            self._end_beating()
            try:
                self._write_beat(released=True)
            except (KeyTaken, LeaseLost):  # it was taken over, which ended all else
                return
            except Exception as error:  # the next driver finds out by itself
                logger.warning("The end of the lease of %s could not be said: %s",
                               self.location.url, error)  # fmt: skip
            try:
                self.writer.end()
            except StoreError as error:  # the next driver does it
                logger.warning("%s", error)

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
        """Remove what drivers before this one have left behind, and make again what is lost."""
        earlier = [e for e in epochs_with_lease(self.location) if e < self.token.epoch]
        self.writer.remove(map(lease_key, earlier))
        if after_kill:
            self.ledger.clean()
        state = self.ledger.state
        if not state.corpora:
            return
        if self.location.size(MANIFEST) is None:
            logger.warning("%s of %s was missing and is made again from the ledger, whose units "
                           "are as they were", MANIFEST, self.location.url)  # fmt: skip
            self.write_metadata()
        elif len(state.corpora) > 1 and (
            self.location.read(MANIFEST) in earlier_bytes(state, MANIFEST)
        ):
            logger.info("%s was appended to by a driver that ended before it could say so in "
                        "%s and the arrays' metadata; they are written now",
                        self.location.url, MANIFEST)  # fmt: skip
            self.write_metadata()

    def _renew(self) -> bool:
        """Beat once; whether to go on beating. Whatever goes wrong is said, and tried again."""
        try:
            self._write_beat()
        except (KeyTaken, LeaseLost):  # a later driver has ended it; the next commit says so
            logger.warning("The lease of %s was taken over", self.location.url)
            return False
        except Exception as error:  # made up for by the next beat, or by the takeover
            logger.warning("The lease of %s could not be renewed: %s", self.location.url, error)
        return True

    def _write_beat(self, *, released: bool = False) -> None:
        self._beat += 1
        content = {"nonce": self.token.nonce, "beat": self._beat, "released": released}
        beat = [seal(content)]
        if self._beaten is None:
            self._beaten = self.writer.create(self.token.lease_key, beat)
        else:
            self._beaten = self.writer.replace(self.token.lease_key, beat, seen=self._beaten)


def _refusal_to_begin(location: Location) -> StoreError | None:
    """Why no store is begun here, where there is no ledger: things that are none of ours."""
    if location.size(MANIFEST) is not None:
        return ledger_is_gone(location)
    if location.is_foreign(_OURS):
        return StoreExists(
            f"{location.url} holds other files, and no activation store\n"
            "hint: give an empty folder, or one that does not exist yet"
        )
    return None


def ledger_is_gone(location: Location) -> StoreDamaged:
    """The error of a place with a ``store.json`` whose corpus no ledger knows."""
    return StoreDamaged(
        f"The ledger of {location.url} is gone: nobody knows which units are whole\n"
        "hint: restore the folder `ledger` from a copy; or move the store's files away, and "
        "harvest anew"
    )


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
    key = lease_key(epoch)
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
