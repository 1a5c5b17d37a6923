"""Waiting for a place on a cluster, not in silence, and not for what can never come.

Ray says nothing of work that waits, be it because others use the cluster or because the only node
that could hold it is gone.
"""

import logging
import time

from actlake.platform.cluster.resources import Resources, check_demand, replicas_that_fit
from actlake.platform.cluster.session import Session

logger = logging.getLogger(__name__)

SPEAK_EVERY_S = 30.0
_LOOK_EVERY_S = 2.0  # asking for nodes takes 1 to 2 ms

WITHOUT_ROOM_S = 1800.0
"""How long nodes that are gone are waited for."""


class Patience:
    """Somebody who waits until `count` processes of `each` have a place.

    Parameters
    ----------
    what
        What waits and for what: ``The sum waits for its next part``.
    without_room_s
        How long the living nodes may be too few or too small, even if nothing else ran on them.
    """

    def __init__(
        self, session: Session, each: Resources, *, count: int, what: str, without_room_s: float
    ) -> None:
        self._session, self._each, self._count, self._what = session, each, count, what
        self._without_room_s = without_room_s
        self._began = self._spoke = self._looked = time.monotonic()
        self._had_room = self._began

    def look(self) -> None:
        """Speak if it is time to; to be called again and again while it waits.

        Raises
        ------
        NotEnoughResources
            There has been no room for it for `without_room_s`, whoever is on the cluster.
        """
        now = time.monotonic()
        if now - self._looked >= min(_LOOK_EVERY_S, self._without_room_s):
            self._looked = now
            self._look_at_nodes(now)
        if now - self._spoke >= SPEAK_EVERY_S:
            self._spoke = now
            logger.warning(
                "%s, %.0f s so far; asked: %d x (%s), free: %s",
                self._what, now - self._began, self._count, self._each, self._session.free(),
            )  # fmt: skip

    def _look_at_nodes(self, now: float) -> None:
        nodes = self._session.nodes()
        fitting = replicas_that_fit(nodes, [self._each], placement="pack", wanted=self._count)
        if fitting == self._count:
            self._had_room = now
        elif now - self._had_room >= self._without_room_s:
            check_demand(nodes, [self._each], placement="pack", replicas=self._count)
