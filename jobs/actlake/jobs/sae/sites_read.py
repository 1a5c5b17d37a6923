"""Which sites of a store an SAE reads, from what it says itself."""

from collections.abc import Sequence

from actlake.jobs.sae.errors import DictionaryMismatch
from actlake.jobs.sae.trained import TrainedSAE
from actlake.jobs.widths import one_width
from actlake.platform.models.points import sae_lens_hook
from actlake.storage import ActivationStore, Site
from actlake.storage.errors import RowsNotCommitted


def sites_read(
    sae: TrainedSAE,
    store: ActivationStore,
    asked: Sequence[str | Site] | None = None,
    *,
    any_hook: bool = False,
) -> list[Site]:
    """The sites of a store that an SAE reads, whole and of its width.

    Parameters
    ----------
    asked
        Sites to read; by default those that the SAE names.
    any_hook
        Take `asked` although the SAE names others.

    Raises
    ------
    DictionaryMismatch
        The SAE names no site that is stored, or others than are asked for, or has another width.
    SiteNotStored, RowsNotCommitted
        As their names say.
    """
    named = _sites_named(sae, store)
    if asked is None and len(named) != sae.num_sites:
        hooks = ", ".join(_hooks(sae)) or "no hook at all"
        raise DictionaryMismatch(
            f"The SAE names {hooks}; {store.url} holds {', '.join(map(str, store.sites))}\n"
            f"hint: give the site(s) that it reads as sites ({sae.num_sites} of them)"
        )
    chosen = [store.site(site) for site in asked] if asked is not None else named
    if len(chosen) != sae.num_sites:
        raise DictionaryMismatch(
            f"The SAE reads {sae.num_sites} site(s), and {len(chosen)} are given: "
            f"{', '.join(map(str, chosen))}\nhint: give as many sites as it reads, in its order"
        )
    if sae.d_in != (width := one_width(store, chosen)):
        raise DictionaryMismatch(
            f"The SAE reads rows of width {sae.d_in}; those of {store.url} have "
            f"{width}\nhint: give an SAE of this model"
        )
    if not any_hook and _hooks(sae) and chosen != named:
        raise DictionaryMismatch(
            f"The SAE was trained on {', '.join(_hooks(sae))}, and not on "
            f"{', '.join(map(str, chosen))}\nhint: leave the sites out, or allow any hook"
        )
    for site in chosen:
        if not (coverage := store.coverage(site)).is_readable:
            raise RowsNotCommitted(
                f"{site} of {store.url} is not whole: {coverage}\n"
                "hint: go on with the harvest first"
            )
    return chosen


def _hooks(sae: TrainedSAE) -> list[str]:
    """The places that an SAE says it reads, in its own words."""
    names = sae.metadata.get("sites") or sae.metadata.get("hook_names") or [sae.hook]
    return [str(name) for name in names if name is not None]


def _sites_named(sae: TrainedSAE, store: ActivationStore) -> list[Site]:
    if sae.num_sites == 1:
        return [site for site in store.sites if sae.hook is not None and sae.reads(site)]
    by_name = {name: site for site in store.sites for name in (str(site), sae_lens_hook(site))}
    return [by_name[name] for name in _hooks(sae) if name in by_name]
