"""Points: where in a decoder's blocks the sites are that this platform can read and edit.

A block ``l`` of a pre-norm transformer computes, on the residual stream ``h``,

    resid_pre.l ─► attention ─► (+ attn_out.l) ─► resid_mid.l ─► norm ─► mlp_in.l ─► MLP
                                                       └─► (+ mlp_out.l) ─► resid_post.l

so ``resid_pre + attn_out = resid_mid`` and ``resid_mid + mlp_out = resid_post``: the two
``…_out`` sites are what is *added to the stream*, after any norm or scale a family applies
to a sublayer's output first. Parallel blocks add both to ``resid_pre`` and have no
``resid_mid``.
"""

from collections.abc import Iterable
from typing import Literal, get_args

from actlake.storage.errors import InvalidSite, nearest
from actlake.storage.sites import Site

Point = Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_in", "mlp_out"]
POINTS: tuple[Point, ...] = get_args(Point)

_SAE_LENS_HOOKS = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_in": "ln2.hook_normalized",
    "mlp_out": "hook_mlp_out",
}


def point_of(site: Site) -> Point:
    """The point of a block that a site is at.

    Raises
    ------
    InvalidSite
        It is at none that a model can be read at; the nearest is named.
    """
    if site.point not in POINTS:
        raise InvalidSite(
            f"There is no point {site.point!r} in a block (site {str(site)!r})\n"
            + nearest(site.point, POINTS)
        )
    return site.point


def check_points(sites: Iterable[Site]) -> None:
    """Refuse sites that are in no model's blocks, whatever the model.

    Raises
    ------
    InvalidSite
        A point is not known, or a site is of no block.
    """
    for site in sites:
        point_of(site)
        _ = site.layer


def sae_lens_hook(site: Site) -> str:
    """The name SAELens and TransformerLens give to this place; one they do not know keeps its own.

    >>> sae_lens_hook(Site(6))
    'blocks.6.hook_resid_post'
    """
    if site.point not in POINTS:
        return str(site)
    return f"blocks.{site.layer}.{_SAE_LENS_HOOKS[site.point]}"
