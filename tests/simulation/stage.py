"""Where scenes are played: what they begin with, what undisturbed stores hold, how it all ends."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from simulation import programs
from simulation.bucket import Bucket
from simulation.corpora import SITES, UNIT_ROWS, Chain, Corpus, activations
from simulation.disk import Disk
from simulation.seams import Seams
from simulation.world import World

from actlake.storage import ActivationStore, Site, open_store
from actlake.storage.errors import StoreError, StoreExists, StoreMismatch
from actlake.storage.layout import MANIFEST, ROWS
from actlake.storage.ledger import read_shards
from actlake.storage.ledger_records import ShardRecord
from actlake.storage.location import Location
from actlake.storage.moments_file import MOMENTS

Flavour = Literal["folder", "bucket"]
Command = Callable[["Stage", Location], Any]
FLAVOURS: tuple[Flavour, ...] = ("folder", "bucket")
STORE = "store"
# Who did what, when; and what was moved out of the way: not what the store holds.
OF_THE_RUN = ("ledger", "partial", "leftovers", "log")


@dataclass(frozen=True)
class Recipe:
    """How an undisturbed store is made."""

    name: str
    corpus: Corpus | Chain
    """What its rows are of."""
    make: Callable[["Stage"], None]


@dataclass(frozen=True)
class Truth:
    """An undisturbed store."""

    corpus: Corpus | Chain
    fingerprint: str
    length: int
    """How many corpora it has."""
    contents: dict[str, bytes]
    """Of each file that is no part of the run."""
    records: frozenset[ShardRecord]
    """What the ledger says of each unit."""

    def rows(self, site: Site, unit: int) -> bytes:
        """Of a unit."""
        ids = self.corpus.ids[unit * UNIT_ROWS : (unit + 1) * UNIT_ROWS]
        return activations(ids[ids >= 0], site).tobytes()

    def contents_of(self, store: ActivationStore) -> dict[str, bytes]:
        """What concerns the sites of that store."""
        absent = [str(site) for site in SITES if site not in store.sites]
        return {
            key: data
            for key, data in self.contents.items()
            if not any(f"/{site}/" in key for site in absent)
        }

    def records_of(self, store: ActivationStore) -> set[ShardRecord]:
        """What concerns the sites of that store."""
        return {record for record in self.records if record.site in store.sites}


@dataclass(frozen=True)
class End:
    """What became of a store when the same commands were given again."""

    faults: tuple[str, ...]
    fingerprints: tuple[str, ...] = ()
    """Of the store, as it was before each append and as it is at last."""


class Stage:
    """What all scenes have in common; what is expensive is done once."""

    def __init__(self, seams: Seams) -> None:
        self.seams = seams
        self._begun: dict[tuple[str, Flavour], Disk | Bucket] = {}
        self._truths: dict[tuple[str, Flavour], Truth] = {}
        self._ends: dict[Any, End] = {}

    def begun(self, name: str, flavour: Flavour, begin: Callable[["Stage"], None]) -> Any:
        """A storage as the processes of the scenario of that name find it."""
        if (name, flavour) not in self._begun:
            storage = empty(flavour)
            self.seams.enter(World(), storage)
            begin(self)
            self._begun[name, flavour] = storage
        return self._begun[name, flavour]

    def do(self, deed: Callable[[Location], Any], name: str = STORE) -> Any:
        """Let a process do something by itself, to its end, at a place of the present storage."""
        world = World()
        self.seams.enter_world(world)
        process = world.start("alone", lambda process: deed(self.seams.location(name, process)))
        world.run()
        if process.error or process.refusal:
            raise process.error or process.refusal  # type: ignore[misc]
        return process.result

    def truth(self, flavour: Flavour, recipe: Recipe) -> Truth:
        """What an undisturbed store holds."""
        if (recipe.name, flavour) not in self._truths:
            before = self.seams.storage
            self.seams.enter(World(), empty(flavour))
            recipe.make(self)
            store = self._store()
            self._truths[recipe.name, flavour] = Truth(
                recipe.corpus, store.fingerprint, len(store.ledger.corpora), lasting(self.seams),
                frozenset(read_shards(store.location, store.sites)),
            )  # fmt: skip
            self.seams.enter(World(), before)
        return self._truths[recipe.name, flavour]

    def end(
        self, name: str, commands: Sequence[Command], truths: Mapping[str, Truth],
        *, may_be_refused: bool = False,
    ) -> End:  # fmt: skip
        """What comes of the present storage when the commands of a scenario are given again.

        Found out once for each storage: equal ones end equally.

        Parameters
        ----------
        may_be_refused
            Whether all commands may be refused, for what an unfinished store has left.
        """
        key = (name, _digest(self.seams.storage.snapshot()))
        if key not in self._ends:
            self._ends[key] = self._end(commands, truths, may_be_refused=may_be_refused)
        return self._ends[key]

    def _end(
        self, commands: Sequence[Command], truths: Mapping[str, Truth], *, may_be_refused: bool
    ) -> End:
        """Give the commands again; one of them must end in an undisturbed store."""
        faults: list[str] = []
        num_ended = 0
        for command in commands:
            try:
                self.do(lambda location, command=command: command(self, location))  # type: ignore[misc]
                num_ended += 1
            except (StoreMismatch, StoreExists) as refusal:  # of commands with another corpus
                if isinstance(refusal, StoreExists) and not may_be_refused:
                    faults.append(f"the command, given again, is refused: {refusal}")
                if "\nhint: " not in str(refusal):
                    faults.append(f"the command, given again, is refused without a hint: {refusal}")
            except Exception as error:
                faults.append(f"the command, given again, ends with {error!r}")
        if not num_ended and not may_be_refused:
            faults.append("all commands, given again, are refused")
        if faults or not num_ended:
            return End(tuple(faults))
        try:
            store = self._store()
            unlike = self._unlike(store, truths.get(store.fingerprint))
            return End(tuple(unlike), tuple(c.fingerprint for c in store.ledger.corpora))
        except StoreError as error:
            return End((f"the store, finished by the same command, cannot be read: {error}",))

    def _unlike(self, store: ActivationStore, truth: Truth | None) -> Iterator[str]:
        """How the present store differs from an undisturbed one, and whether `verify` knows."""
        if truth is None:
            yield f"the store has no known fingerprint: {store.fingerprint}"
            return
        expected, contents = truth.contents_of(store), lasting(self.seams)
        different = [
            key for key in sorted({*contents, *expected}) if contents.get(key) != expected.get(key)
        ]
        records = set(read_shards(store.location, store.sites))
        if not different and records == truth.records_of(store):
            return
        yield f"the store, finished by the same command, has other files: {different}"
        yield from (f"its ledger says {r}" for r in records - truth.records_of(store))
        for site in store.sites:
            missing = list(store.schema.units.without(store.ledger.covered[site]))
            if missing:
                yield f"units {missing} of {site} are still missing"
        report = programs.verify(store)
        yield "verify calls it whole" if report.is_whole else f"verify finds {report.problems[0]}"

    def _store(self) -> ActivationStore:
        return open_store(self.seams.location(STORE, None))


def _digest(snapshot: frozenset[tuple[str, bytes | None]]) -> bytes:
    """What tells a storage from others. The bytes of a hundred thousand would fill the memory."""
    sha256 = hashlib.sha256()
    for name, data in sorted(snapshot):
        sha256.update(f"{name}\0{'folder' if data is None else len(data)}\0".encode())
        sha256.update(data or b"")
    return sha256.digest()


def empty(flavour: Flavour) -> Disk | Bucket:
    """A storage that holds nothing."""
    return Disk() if flavour == "folder" else Bucket()


def lasting(seams: Seams) -> dict[str, bytes]:
    """The files of the present storage that two equal stores have in common."""
    contents = seams.storage.contents(seams.root(STORE))
    return {
        key: data
        for key, data in contents.items()
        if key.split("/")[0] not in OF_THE_RUN and not key.split("/")[0].startswith(".")
    }


def is_of_a_corpus(key: str) -> bool:
    """Whether a file is of the tokens, contexts or documents, and no metadata."""
    folder = key.rpartition("/")[0]
    of_arrays = folder.startswith((f"{ROWS}/tokens/", f"{ROWS}/contexts/"))
    return (of_arrays or key.startswith("documents")) and not is_metadata(key)


def is_metadata(key: str) -> bool:
    """Whether a file only repeats the ledger, and may be that of the store before an append."""
    return key == MANIFEST or key.endswith("/zarr.json")


def is_of(key: str, covered: dict[Site, list[tuple[int, int]]]) -> bool:
    """Whether a file is of the corpus, or of a unit or a site in `covered`."""
    by_name = {str(site): runs for site, runs in covered.items()}
    if (shard := shard_of(key)) is not None:
        return any(start <= shard[1] < stop for start, stop in by_name.get(shard[0], ()))
    parts = key.split("/")
    if parts[0] == MOMENTS:  # a total, which is as good as its units
        return False
    if len(parts) >= 4 and parts[1] in ("acts", "norms"):  # metadata of a site
        return parts[2] in by_name
    return key != MANIFEST  # of which the ledger takes the place


def shard_of(key: str) -> tuple[str, int] | None:
    """The name of the site and the unit of which a file is; None of any other."""
    parts = key.split("/")
    if parts[0] == MOMENTS and parts[2] == "1":
        return parts[1], int(parts[-1].split(".")[0])
    if parts[0] != ROWS or parts[1] not in ("acts", "norms") or parts[-1] == "zarr.json":
        return None
    return parts[2], int(parts[-1].split(".")[1])
