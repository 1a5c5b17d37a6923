"""How the rows that a run reads are rounded, which the fingerprint of a store does not say.

Two stores of the same tokens and model have one fingerprint, whether their rows are float16 or
int8; what is computed from them differs. So a run's record says the element type of each site.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from actlake.platform.runs import Input
from actlake.storage import ActivationStore, Site, open_store
from actlake.storage.errors import SiteNotStored

_SUFFIX = "_dtypes"


def dtypes_of(store: ActivationStore, sites: Iterable[str | Site]) -> str:
    """``resid_post.9 float16, …``: each site once, in order, with its element type.

    Raises
    ------
    SiteNotStored
        The store has no such site.
    """
    stored = sorted({store.site(site) for site in sites})
    return ", ".join(f"{site} {store.schema_of(site).dtype}" for site in stored)


def inputs_of_store(
    url: str, store: ActivationStore, sites: Iterable[str | Site], *, name: str = "store"
) -> dict[str, Input]:
    """What a run's record says of a store that it reads."""
    return {
        name: Input(url, store.fingerprint),
        f"{name}{_SUFFIX}": Input(url, dtypes_of(store, sites)),
    }


def dtypes_as_recorded(
    inputs: Mapping[str, Input], config: Mapping[str, Any]
) -> dict[str, str | None]:
    """Of the stores of a config as they are now, the element types of the sites that were read.

    Parameters
    ----------
    inputs
        Of a run's record.
    config
        As it is asked for; its stores may lie elsewhere than the run's.
    """
    found: dict[str, str | None] = {}
    for name, given in inputs.items():
        if not name.endswith(_SUFFIX):
            continue
        sites = [part.partition(" ")[0] for part in (given.fingerprint or "").split(", ")]
        try:
            found[name] = dtypes_of(open_store(config[name.removesuffix(_SUFFIX)]), sites)
        except SiteNotStored:
            found[name] = None
    return found
