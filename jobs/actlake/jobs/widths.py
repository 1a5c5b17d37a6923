"""The width of rows, for jobs that need it to be the same at several sites."""

from collections.abc import Iterable

from actlake.storage import ActivationStore, Site
from actlake.storage.errors import ActlakeError


class WidthsDiffer(ActlakeError, ValueError):
    """Sites are to be read together whose rows have different lengths."""


def one_width(store: ActivationStore, sites: Iterable[Site]) -> int:
    """The length of a row of these sites.

    Raises
    ------
    WidthsDiffer
        It is not the same at all of them.
    SiteNotStored
        One of them is not stored.
    """
    widths = {site: store.schema_of(site).dim for site in sites}
    if len(set(widths.values())) != 1:
        listed = ", ".join(f"{site} {width}" for site, width in widths.items())
        raise WidthsDiffer(
            f"Sites of one width are needed, and those of {store.url} have: {listed}\n"
            "hint: give sites whose rows are equally long, such as all of the residual stream"
        )
    return next(iter(widths.values()))
