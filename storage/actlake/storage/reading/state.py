"""Where a reader of batches is, as plain JSON, and whether such a state fits what is asked.

    {"format": 1, "stores": […], "order": {…}, "reason": …, "committed": [[[first, last], …], …],
     "selected": {"rows": …, "crc32c": …}, "epoch": 2, "step": 17}

All but the last two names the function from places to rows; the last two say how far it was read.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from actlake.storage.errors import FormatTooNew, StateMismatch
from actlake.storage.extents import UnitSet
from actlake.storage.provenance import differences
from actlake.storage.reading.many import ManyStores
from actlake.storage.reading.selection import RowSet

logger = logging.getLogger(__name__)
STATE_FORMAT = 1
_KINDS = {
    "format": int,
    "stores": list,
    "order": Mapping,
    "reason": str,
    "committed": list,
    "selected": Mapping,
    "epoch": int,
    "step": int,
}


@dataclass(frozen=True, kw_only=True)
class BatchOrder:
    """All that decides which rows are in which batch, but for the store."""

    sites: tuple[str, ...]
    rows_per_batch: int
    """Over all ranks together."""
    split: str | None
    seed: int
    shuffle: str
    """``exact``, ``pool`` or ``none``: resolved."""
    pool_rows: int | None
    """None where there is no pool."""
    exclude: str | None
    where: str | None
    last: str

    def as_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self) | {"sites": list(self.sites)}


def what_is_read(
    stores: ManyStores, order: BatchOrder, reason: str, committed: Sequence[UnitSet], rows: RowSet
) -> dict[str, Any]:
    """A state without the place."""
    return {
        "format": STATE_FORMAT,
        "stores": _identities(stores, order.sites),
        "order": order.as_json(),
        "reason": reason,
        "committed": [[list(run) for run in units.runs()] for units in committed],
        "selected": _selected(rows),
    }


def check_state(state: Any) -> None:
    """Refuse what is not the state of a reader of batches.

    Raises
    ------
    StateMismatch
        Something is missing or of another kind.
    FormatTooNew
        A later actlake made it.
    """
    given = state if isinstance(state, Mapping) else {}
    if lacking := sorted(set(_KINDS) - set(given)):
        raise StateMismatch(
            f"That is not the state of a batch reader: it lacks {', '.join(lacking)}\n{_HINT}"
        )
    wrong = [name for name, kind in _KINDS.items() if not isinstance(given[name], kind)]
    wrong += [name for name in ("epoch", "step") if name not in wrong and given[name] < 0]
    if not wrong and "shuffle" not in given["order"]:
        wrong = ["order"]
    if wrong:
        raise StateMismatch(
            f"That is not the state of a batch reader: {wrong[0]} is {given[wrong[0]]!r}\n{_HINT}"
        )
    if given["format"] > STATE_FORMAT:
        raise FormatTooNew(
            f"The state is of format {given['format']}; this actlake reads up to format "
            f"{STATE_FORMAT}\nhint: pip install --upgrade actlake"
        )


def as_they_were(state: Mapping[str, Any], stores: ManyStores) -> ManyStores:
    """The stores as the state saw them: without what was appended to them since, which is said."""
    saved = state["stores"]
    if len(saved) != len(stores.stores):
        return stores
    seen = []
    for store, identity in zip(stores.stores, saved, strict=True):
        fingerprint = identity.get("fingerprint") if isinstance(identity, Mapping) else None
        before = store.as_of(str(fingerprint)) or store  # another store: `check_order` says so
        if before is not store:
            logger.warning(
                "%s\nhint: begin without a state to read all of them",
                store.grown_since(before, "the reader of this state began"),
            )
        seen.append(before)
    return ManyStores(seen)


def check_order(
    state: Mapping[str, Any], stores: ManyStores, order: BatchOrder, committed: Sequence[UnitSet]
) -> list[UnitSet]:
    """The committed units that the state saw, of each store.

    Raises
    ------
    StateMismatch
        It is of other stores or settings, which are named, or has seen units that are gone.
    """
    asked = {"stores": _numbered(_identities(stores, order.sites)), "order": order.as_json()}
    saved = {"stores": _numbered(state["stores"]), "order": state["order"]}
    lines = differences(saved, asked)
    if lines:
        raise StateMismatch(
            "The state is of other batches (stored is the state, asked is now):\n"
            + "\n".join(lines)
            + "\nhint: resume with the same store and settings, or begin anew without a state"
        )
    seen = _units_of(state, stores)
    for store, before, now in zip(stores.stores, seen, committed, strict=True):
        if gone := len(before) - len(before.intersection(now)):
            raise StateMismatch(
                f"{gone} units of {store.url} that the state has seen are not committed any "
                "more\nhint: go on with the harvest, which writes them again"
            )
    return seen


def check_rows(state: Mapping[str, Any], rows: RowSet) -> None:
    """Refuse to go on with other rows than the state's.

    Raises
    ------
    StateMismatch
        A predicate answers otherwise than before.
    """
    if lines := differences(state["selected"], _selected(rows), path="selected"):
        raise StateMismatch(
            "Other rows are selected now than when the state was made:\n"
            + "\n".join(lines)
            + "\nhint: the predicate must give the same answers as then"
        )


_HINT = "hint: give what state_dict() returned"


def _identities(stores: ManyStores, sites: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "fingerprint": store.fingerprint,
            "rows": store.schema.rows,
            "sites": {site: str(store.schema_of(site)) for site in sites},
            "chunk_rows": store.chunk_rows(sites),
            "unit_rows": store.schema.geometry.unit_rows,
        }
        for store in stores.stores
    ]


def _selected(rows: RowSet) -> dict[str, Any]:
    return {"rows": len(rows), "crc32c": f"{rows.checksum():08x}"}


def _units_of(state: Mapping[str, Any], stores: ManyStores) -> list[UnitSet]:
    try:
        seen = [UnitSet((int(a), int(b)) for a, b in runs) for runs in state["committed"]]
    except (TypeError, ValueError) as error:
        raise StateMismatch(
            f"That is not the state of a batch reader: committed is {state['committed']!r}\n{_HINT}"
        ) from error
    if len(seen) != len(stores.stores):
        raise StateMismatch(
            f"The state names the committed units of {len(seen)} stores; there are "
            f"{len(stores.stores)}\n{_HINT}"
        )
    return seen


def _numbered(identities: Sequence[Any]) -> dict[str, Any]:
    return {str(number): identity for number, identity in enumerate(identities)}
