"""Announce sites that will be written, each with what its rows are."""

from collections.abc import Mapping

from actlake.storage.errors import FormatTooNew, KeyTaken, StoreMismatch
from actlake.storage.lease import Lease
from actlake.storage.metadata import write_metadata
from actlake.storage.provenance import JSON, differences
from actlake.storage.site_schema import SiteSchema
from actlake.storage.sites import Site
from actlake.storage.store import ActivationStore


def add_sites(
    lease: Lease,
    store: ActivationStore,
    sites: Mapping[Site, SiteSchema],
    request: Mapping[str, JSON],
) -> None:
    """Announce sites that will be written, with their arrays' metadata; `store` knows them then.

    Sites that the store already has are left as they are; old bytes are never touched.
    `request` is kept, so that a damaged unit can be computed again.

    Raises
    ------
    StoreMismatch
        The store has a site already, and its rows are others; nothing was written.
    FormatTooNew
        It has one of that name that this version cannot read.
    """
    asked = {site.stored: schema for site, schema in sites.items()}
    check_sites(store, asked)
    new = sorted(set(asked) - set(lease.ledger.state.schemas))
    for site in new:
        files = store.schema.site_metadata(site, asked[site])
        try:
            lease.writer.ensure_all((key, [data]) for key, data in files.items())
        except KeyTaken:  # of one that was killed before it had announced a site of this name
            write_metadata(lease, files)
    entries = [{"name": str(site), "schema": asked[site].as_json()} for site in new]
    if new:
        lease.ledger.append({"kind": "sites", "sites": entries, "request": dict(request)})
    store.refresh()


def check_sites(store: ActivationStore, sites: Mapping[Site, SiteSchema]) -> None:
    """Refuse sites that the store has already with other rows; see `add_sites`."""
    known = store.ledger.schemas
    for site in sorted(sites):
        if (why := store.ledger.unknown.get(str(site.stored))) is not None:
            raise FormatTooNew(
                f"{store.url} has a site {site.stored} that this actlake cannot read: {why}\n"
                "hint: pip install --upgrade actlake, or give another path"
            )
        stored = known.get(site.stored)
        if stored is not None and stored != sites[site]:
            lines = differences(stored.as_json(), sites[site].as_json())
            raise StoreMismatch(
                f"{site} is stored in {store.url} already, and not as it is asked for:\n"
                + "\n".join(lines)
                + "\nhint: give another path for the new rows, or the settings of these to go on "
                "with them"
            )
