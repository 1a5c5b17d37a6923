"""Files that only repeat the ledger, to the byte: ``store.json`` and every ``zarr.json``.

They are for other tools; we read the ledger. So what is appended to a store is there with its
entry in the ledger, and these files follow it: until they are written, they are those of the store
as it was before. Whoever takes the lease next writes them, where that was not done.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from actlake.storage.ahead import map_ahead
from actlake.storage.corpus_record import CorpusRecord
from actlake.storage.errors import KeyTaken, StoreNotFound
from actlake.storage.layout import MANIFEST
from actlake.storage.ledger_state import LedgerState
from actlake.storage.location import Location
from actlake.storage.sealed import seal
from actlake.storage.site_schema import SiteSchema
from actlake.storage.sites import Site

if TYPE_CHECKING:  # which writes them
    from actlake.storage.lease import Lease

_RETRIES = 20


def metadata_of(corpus: CorpusRecord, sites: Mapping[Site, SiteSchema]) -> dict[str, bytes]:
    """Key and bytes of each of these files; ``store.json`` comes last."""
    files = corpus.schema.common_metadata()
    for site, rows in sites.items():
        files |= corpus.schema.site_metadata(site, rows)
    return files | {MANIFEST: seal(corpus.manifest())}


def earlier_bytes(state: LedgerState, key: str) -> Iterator[bytes]:
    """What a file was, or would have been, before each time that the store was appended to."""
    for corpus in state.corpora[:-1]:
        yield metadata_of(corpus, state.schemas)[key]


def write_metadata(lease: "Lease", files: Mapping[str, bytes]) -> int:
    """Make these files hold these bytes, whatever they hold now; how many held others.

    In a bucket nothing but the condition on a request keeps a driver that was suspended from
    writing what its ledger said over what a later one's says. So each file's state is looked at
    first, then that nobody has come after us, and only what is still in that state is replaced.

    Raises
    ------
    LeaseLost
        Another driver has taken over.
    """
    location, writer = lease.location, lease.writer
    threads = location.parallel // 4
    done: set[str] = set()
    for _ in range(_RETRIES):
        seen = dict(zip(files, map_ahead(writer.seen, files, threads=threads), strict=True))
        are_right = map_ahead(lambda f: holds(location, *f), files.items(), threads=threads)
        wrong = [key for key, is_right in zip(files, are_right, strict=True) if not is_right]
        if not wrong:
            return len(done)
        lease.ledger.refuse_if_overtaken()
        try:
            for key in wrong:
                state = seen[key]
                if state is None:
                    writer.create(key, [files[key]])
                else:
                    writer.replace(key, [files[key]], seen=state)
                done.add(key)
        except KeyTaken:  # an earlier driver's last request came between: it is that driver's last
            continue
    raise KeyTaken(
        f"{wrong[0]} in {location.url} is written again and again by somebody else\n"
        "hint: one driver works on a store at a time; stop the others, and try again"
    )


def holds(location: Location, key: str, data: bytes) -> bool:
    """Whether a file holds exactly these bytes."""
    try:
        return location.read(key) == data
    except StoreNotFound:
        return False
