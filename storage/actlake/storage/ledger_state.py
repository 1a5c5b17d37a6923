"""What the ledger says when all its entries are replayed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from actlake.storage.corpus_record import CorpusRecord, documents_key
from actlake.storage.errors import FormatTooNew, InvalidSite
from actlake.storage.extents import UnitSet
from actlake.storage.provenance import JSON
from actlake.storage.site_schema import SiteSchema
from actlake.storage.sites import Site

Runs = dict[str, UnitSet]
"""Units by the written name of their site, which this version need not know."""


@dataclass(frozen=True, slots=True)
class SiteGroup:
    """Sites that were asked for together: one harvest, or a later one that added sites."""

    sites: tuple[Site, ...]
    request: Mapping[str, JSON]
    """What the harvest was asked to do, in its own words (JSON); `repair` runs it again."""


@dataclass(slots=True)
class LedgerState:
    """All that the log says, replayed; small, however many units there are."""

    last: int = 0
    """Number of the last entry."""
    epoch: int = 0
    """Epoch of the last driver that opened the store."""
    owner: Mapping[str, Any] = field(default_factory=dict)
    corpora: list[CorpusRecord] = field(default_factory=list)
    groups: list[SiteGroup] = field(default_factory=list)
    numerics: list[Mapping[str, Any]] = field(default_factory=list)
    schemas: dict[Site, SiteSchema] = field(default_factory=dict)
    """Of every site that was ever asked for, but for the unknown ones."""
    covered: dict[Site, UnitSet] = field(default_factory=dict)
    """The units that are committed, of the same sites."""
    released: dict[Site, UnitSet] = field(default_factory=dict)
    """Those of them whose rows were given up on purpose."""
    unknown: dict[str, str] = field(default_factory=dict)
    """Sites that this version cannot read, by their written names: why not."""

    def apply(self, entry: Mapping[str, Any]) -> None:
        """Replay one entry, in place."""
        kind = entry["kind"]
        if kind == "open":
            self.epoch, self.owner = entry["epoch"], entry["owner"]
        elif kind == "sites":
            known = tuple(site for written in entry["sites"] for site in self._announce(written))
            self.groups.append(SiteGroup(known, entry["request"]))
        elif kind == "corpus":
            self.corpora.append(CorpusRecord.from_json(entry))
        elif kind == "numerics":
            self.numerics.append(entry["numerics"])
        elif kind in ("units", "released", "merged"):
            for other in other_entries(entry):
                self.apply(other)
            self._add(self.covered, covered_by(entry))
            self._add(self.released, released_by(entry))
        else:
            raise FormatTooNew(
                f"The ledger has an entry of an unknown kind, {kind!r}\n"
                "hint: open the store with a newer actlake"
            )

    @property
    def corpus(self) -> CorpusRecord | None:
        """The last of the chain, whose schema is the store's; None before one is laid down."""
        return self.corpora[-1] if self.corpora else None

    @property
    def document_files(self) -> tuple[str, ...]:
        """Keys of the files of documents, in the order of their documents."""
        return tuple(documents_key(place) for place in range(len(self.corpora)))

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every site that was ever asked for and that this version can read, sorted."""
        return tuple(sorted(self.schemas))

    def place_of(self, fingerprint: str) -> int | None:
        """How many records of the corpus a store of this fingerprint had; None if it never did."""
        known = [corpus.fingerprint for corpus in self.corpora]
        return known.index(fingerprint) + 1 if fingerprint in known else None

    def as_of(self, num_corpora: int) -> "LedgerState":
        """What it says of the first records of the corpus alone, and of their units."""
        if num_corpora == len(self.corpora):
            return self
        units = self.corpora[num_corpora - 1].schema.units

        def own(of_sites: Mapping[Site, UnitSet]) -> dict[Site, UnitSet]:
            return {site: there.intersection(units) for site, there in of_sites.items()}

        return replace(
            self,
            corpora=self.corpora[:num_corpora],
            covered=own(self.covered),
            released=own(self.released),
        )

    def readable(self, site: Site) -> UnitSet:
        """The units of a site whose rows are there: committed and not released."""
        if not self.released[site]:
            return self.covered[site]
        units = UnitSet(self.covered[site].runs())
        units.difference_update(self.released[site])
        return units

    def _announce(self, written: Mapping[str, Any]) -> list[Site]:
        """The site, or nothing where this version does not know what it needs."""
        name = str(written["name"])
        try:
            site = Site.parse(name)
            self.schemas[site] = SiteSchema.from_json(written["schema"])
        except InvalidSite:
            self.unknown[name] = "a name of an unknown form"
            return []
        except FormatTooNew as reason:
            self.unknown[name] = str(reason)
            return []
        self.covered.setdefault(site, UnitSet())
        self.released.setdefault(site, UnitSet())
        return [site]

    def _add(self, to: dict[Site, UnitSet], runs: Runs) -> None:
        for name, units in runs.items():
            if name not in self.unknown:
                to[Site.parse(name)].update(units)


def other_entries(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The entries that are not about units, which a merged one keeps as they are."""
    if entry["kind"] == "merged":
        return list(entry["others"])
    return [] if entry["kind"] in ("units", "released") else [entry]


def covered_by(entry: Mapping[str, Any]) -> Runs:
    """The units that an entry says are committed."""
    if entry["kind"] == "units":
        return _units_of(entry["shards"])
    return _from_runs(entry["covered"]) if entry["kind"] == "merged" else {}


def released_by(entry: Mapping[str, Any]) -> Runs:
    """The units of which an entry says that their rows were given up."""
    return _from_runs(entry["released"]) if entry["kind"] in ("released", "merged") else {}


def united(parts: Iterable[Runs]) -> Runs:
    """The units of all of them."""
    union: Runs = {}
    for runs in parts:
        for name, units in runs.items():
            union.setdefault(name, UnitSet()).update(units)
    return union


def runs_as_json(runs: Runs) -> dict[str, list[tuple[int, int]]]:
    """As `LedgerState.apply` reads them."""
    return {name: runs[name].runs() for name in sorted(runs)}


def without_old_drivers(others: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of the drivers, only the last says anything about the state."""
    last = max((i for i, other in enumerate(others) if other["kind"] == "open"), default=-1)
    return [o for i, o in enumerate(others) if o["kind"] != "open" or i == last]


def _units_of(shards: Iterable[Mapping[str, Any]]) -> Runs:
    units: Runs = {}
    for row in shards:
        units.setdefault(row["site"], UnitSet()).add(row["unit"])
    return units


def _from_runs(runs: Mapping[str, Any]) -> Runs:
    return {name: UnitSet(map(tuple, pairs)) for name, pairs in runs.items()}
