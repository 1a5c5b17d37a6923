"""Rows of an exported store, read from the store that it was exported from.

An export names its parent by fingerprint. Which context of the parent each of its own is, is
found again by what contexts say (tokens, characters, documents), since labels, predicates and
functions that once chose them may be gone. Two contexts that say the same have the same rows, or
the checksums of the export tell.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from actlake.storage.errors import RowsNotCommitted, StoreMismatch, StoreNotFound
from actlake.storage.extents import Extent
from actlake.storage.ledger_records import ShardRecord
from actlake.storage.store import ActivationStore, open_store

Array = np.ndarray[Any, Any]
_CONTEXTS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class Origin:
    """The store that an export was made from, as the export's ledger tells it."""

    fingerprint: str
    url: str
    """Where it was at the time."""

    def as_json(self) -> dict[str, str]:
        """For the ledger; `of` reads it back."""
        return {"fingerprint": self.fingerprint, "url": self.url}

    @classmethod
    def of(cls, request: Mapping[str, Any]) -> Self | None:
        """From what was asked of a group of sites; None where they were not exported."""
        written = request.get("exported_from")
        return None if written is None else cls(**written)

    def open(self, url: str | None = None) -> ActivationStore:
        """Open the parent, where it was or at another `url`.

        Raises
        ------
        StoreNotFound
            It is not there any more.
        StoreMismatch
            Another store is.
        """
        hint = (
            "hint: say where it is now, `actlake verify EXPORT --repair --parent STORE`; what was "
            "exported can also be exported again to another path"
        )
        try:
            parent = open_store(url or self.url)
        except StoreNotFound as error:
            raise StoreNotFound(
                f"The rows were exported from {self.url} (fingerprint {self.fingerprint}), and "
                f"there is no store at {url or self.url}\n{hint}"
            ) from error
        as_it_was = parent.as_of(self.fingerprint)
        if as_it_was is None:
            raise StoreMismatch(
                f"The rows were exported from a store of fingerprint {self.fingerprint}, and that "
                f"at {parent.url} has {parent.fingerprint}\n{hint}"
            )
        return as_it_was


@dataclass(frozen=True, slots=True)
class ParentRows:
    """Where in its parent the rows of some units of an export lie; called, it reads them."""

    copy: ActivationStore
    parent: ActivationStore
    starts: Mapping[int, int]
    """The parent's first row of each context of those units."""

    @classmethod
    def find(
        cls, copy: ActivationStore, parent: ActivationStore, records: Iterable[ShardRecord]
    ) -> Self:
        """Find the contexts of damaged shards in the parent; reads tokens of both, no rows.

        Raises
        ------
        StoreMismatch
            A context is not in the parent.
        SiteNotStored, RowsNotCommitted
            The parent has not the site, or not all of the rows, any more.
        """
        records = list(records)
        wanted: dict[int, bytes] = {}
        for unit in sorted({record.unit for record in records}):
            contexts = copy.contexts_of(copy.schema.unit_extent(unit))
            wanted |= {number: said for number, _, said in _contexts(copy, contexts)}
        found = cls(copy, parent, _starts_in(parent, copy, wanted))
        if lacking := wanted.keys() - found.starts.keys():
            raise StoreMismatch(
                f"{len(lacking):,} of {len(wanted):,} contexts of {copy.url} that are damaged are "
                f"not in {parent.url}\nhint: export again to another path"
            )
        for record in records:
            found._check_committed(record)
        return found

    def __call__(self, record: ShardRecord) -> Array:
        """(n, dim): the rows of a shard, every checksum of the parent's checked."""
        return self.parent[record.site].take(self._rows(record), check=True)

    def _rows(self, record: ShardRecord) -> Array:
        """(n,) int64: the parent's row of each row of the unit."""
        extent = self.copy.schema.unit_extent(record.unit)
        contexts = self.copy.contexts_of(extent)
        edges = self.copy.contexts["start"].read(contexts.start, contexts.stop + 1)
        rows = [
            self.starts[contexts.start + i] - int(edge) + np.arange(edge, edges[i + 1])
            for i, edge in enumerate(edges[:-1])
        ]
        first = int(edges[0])
        return np.concatenate(rows)[extent.start - first : extent.stop - first]

    def _check_committed(self, record: ShardRecord) -> None:
        readable = self.parent.readable([record.site])
        units = np.unique(self._rows(record) // self.parent.schema.geometry.unit_rows)
        if absent := [unit for unit in units.tolist() if unit not in readable]:
            raise RowsNotCommitted(
                f"Unit {absent[0]} of {record.site} is not committed in {self.parent.url}, or was "
                "released\nhint: go on with its harvest first, or export again to another path"
            )


def _starts_in(
    parent: ActivationStore, copy: ActivationStore, wanted: Mapping[int, bytes]
) -> dict[int, int]:
    """The parent's first row of each context; of those that say the same, the n-th is the n-th."""
    said = set(wanted.values())
    in_copy, in_parent = _places(copy, said), _places(parent, said)
    return {
        number: start
        for hashed, places in in_copy.items()
        for (number, _), (_, start) in zip(places, in_parent.get(hashed, ()), strict=False)
        if number in wanted
    }


def _places(store: ActivationStore, said: Set[bytes]) -> dict[bytes, list[tuple[int, int]]]:
    """The contexts that say one of these: number and first row of each, in order."""
    places: dict[bytes, list[tuple[int, int]]] = {}
    for stretch in store.schema.stretches:
        for number, start, hashed in _contexts(store, stretch.contexts):
            if hashed in said:
                places.setdefault(hashed, []).append((number, start))
    return places


def _contexts(store: ActivationStore, numbers: Extent) -> Iterator[tuple[int, int, bytes]]:
    """Each context's number, first row, and a hash of what it says."""
    names = store.lookup.document_ids
    for block in numbers.pieces(_CONTEXTS_AT_ONCE):
        edges = store.contexts["start"].read(block.start, block.stop + 1)
        tokens = [
            np.split(store.tokens[name].read(int(edges[0]), int(edges[-1])), edges[1:-1] - edges[0])
            for name in ("id", "char", "document")
        ]
        for i, (ids, chars, documents) in enumerate(zip(*tokens, strict=True)):
            borders = np.flatnonzero(np.diff(documents, prepend=-1))
            said = hashlib.sha256(ids.tobytes() + chars.tobytes() + borders.tobytes())
            said.update(json.dumps(names[documents[borders]].tolist()).encode())
            yield block.start + i, int(edges[i]), said.digest()
