"""Going on with a store: whether it is the one that was asked for, computed the same way.

The same path, request and provenance: the harvest goes on, or finds that it is done. Anything
else is an error that shows the difference, before a byte is written.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

from actlake.storage.create import StoreRequest
from actlake.storage.errors import StoreMismatch
from actlake.storage.lease import Lease
from actlake.storage.provenance import Provenance, differences, shortened
from actlake.storage.store import ActivationStore


def check_same(
    store: ActivationStore,
    request: StoreRequest,
    provenance: Provenance,
    *,
    may_differ: Collection[str] = (),
) -> None:
    """Refuse to go on with a store that holds other rows than are asked for.

    Compared are the request (layout, splits, …) and what decides of the provenance
    (`Provenance.decisive`: hashes, not names); not the sites, which may be added (`check_sites`),
    and not how the rows are cut into files, which was settled when the store was made. Of a store
    that was appended to, one of its corpora is to be the one that is asked for.

    Parameters
    ----------
    may_differ
        Fields of the corpus that are not compared.

    Raises
    ------
    StoreMismatch
        They differ; the message has a line for each difference.
    """
    schema = store.schema.as_json()
    stored = {name: schema[name] for name in asdict(request)}
    asked = _compared(provenance, may_differ)
    of_each = [
        (differences(_compared(corpus.provenance, may_differ), asked), corpus.provenance)
        for corpus in store.ledger.corpora
    ]
    fewest, nearest = min(of_each, key=lambda found: len(found[0]))
    lines = [*differences(stored, asdict(request)), *fewest]
    if lines:
        lines += differences(nearest.shown(), provenance.shown())
        raise StoreMismatch(
            f"The store at {store.url} (fingerprint {shortened(store.fingerprint)}) is another "
            "than was asked for:\n"
            + "\n".join(lines)
            + "\nhint: give another path for the new store, or the settings of this one to go on "
            "with it"
        )


def _compared(provenance: Provenance, may_differ: Collection[str]) -> dict[str, Any]:
    decisive = provenance.decisive()
    corpus = {name: value for name, value in decisive["corpus"].items() if name not in may_differ}
    return decisive | {"corpus": corpus}


def use_numerics(lease: Lease, numerics: Mapping[str, Any], *, allow_other: bool = False) -> int:
    """Announce what the bits of the next units depend on; its number, for `write_unit`.

    Numerics that the ledger already has keep their number.

    Parameters
    ----------
    numerics
        JSON: versions, device, element type of the computation, threads, batch size.
    allow_other
        Whether units may be computed with other numerics than the store's earlier ones. The
        store is then no longer byte for byte that of an undisturbed run; which unit has which
        numerics stays in the ledger.

    Raises
    ------
    StoreMismatch
        Others were used before, and `allow_other` is not set; the message has a line for each
        difference to the latest.
    LeaseLost
        Another driver has taken over.
    """
    asked = json.loads(json.dumps(numerics))
    known = lease.ledger.state.numerics
    if asked in known:
        return known.index(asked)
    if known and not allow_other:
        raise StoreMismatch(
            f"The store at {lease.location.url} was computed with other numerics:\n"
            + "\n".join(differences(known[-1], asked))
            + "\nhint: go on where and how it was begun, or allow other numerics; then the units "
            "to come may differ in their last bits, and the ledger says which"
        )
    lease.ledger.append({"kind": "numerics", "numerics": asked})
    return len(lease.ledger.state.numerics) - 1
