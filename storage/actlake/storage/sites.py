"""Sites: places in a decoder whose activations can be stored.

A block ``l`` of a pre-norm transformer computes, on the residual stream ``h``,

    resid_pre.l ─► attention ─► (+ attn_out.l) ─► resid_mid.l ─► norm ─► mlp_in.l ─► MLP
                                                       └─► (+ mlp_out.l) ─► resid_post.l

so ``resid_pre + attn_out = resid_mid`` and ``resid_mid + mlp_out = resid_post``: the two
``…_out`` sites are what is *added to the stream*, after any norm or scale a family applies
to a sublayer's output first. Parallel blocks add both to ``resid_pre`` and have no
``resid_mid``.

``resid_pre.l`` of every block but the first is ``resid_post.(l-1)``, the same tensor. It is
stored once, under the latter name (`Site.stored`), and both names open it.
"""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from actlake.storage.errors import InvalidSite, nearest

Point = Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_in", "mlp_out"]
POINTS: tuple[Point, ...] = get_args(Point)

_WRITTEN = re.compile(r"(?P<point>[a-z_]+)\.(?P<layer>\d+)")
_SAE_LENS_HOOKS = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_in": "ln2.hook_normalized",
    "mlp_out": "hook_mlp_out",
}


@dataclass(frozen=True, order=True, slots=True)
class Site:
    """A place in the model: a block, counted from 0, and a point in it.

    ``Site(6, "resid_post")``, written ``resid_post.6``, is the residual stream as it leaves
    block 6. Sites sort by layer, then by point.
    """

    layer: int
    point: Point = "resid_post"

    def __post_init__(self) -> None:
        if self.point not in POINTS:
            raise InvalidSite(
                f"There is no point {self.point!r} in a block\n" + nearest(self.point, POINTS)
            )
        if self.layer < 0:
            raise InvalidSite(f"Blocks are counted from 0; {self.layer} is not one")

    def __str__(self) -> str:
        return f"{self.point}.{self.layer}"

    @classmethod
    def parse(cls, written: "str | Site") -> "Site":
        """Read ``resid_post.6``; a `Site` comes back as it is.

        Raises
        ------
        InvalidSite
            The name has another form, or an unknown point; the nearest known one is named.
        """
        if isinstance(written, Site):
            return written
        match = _WRITTEN.fullmatch(str(written).strip())
        if match is None:
            raise InvalidSite(
                f"Cannot read the site {written!r}\n"
                f"hint: a site is written POINT.LAYER, such as resid_post.6; "
                f"points are {', '.join(POINTS)}"
            )
        point = match["point"]
        if point not in POINTS:
            raise InvalidSite(
                f"There is no point {point!r} in a block (site {written!r})\n"
                + nearest(point, POINTS)
            )
        return cls(int(match["layer"]), point)

    @property
    def stored(self) -> "Site":
        """The name under which this tensor is stored: ``resid_pre.l`` is ``resid_post.(l-1)``."""
        if self.point == "resid_pre" and self.layer > 0:
            return Site(self.layer - 1, "resid_post")
        return self

    @property
    def sae_lens_hook(self) -> str:
        """The name SAELens and TransformerLens give to this place."""
        return f"blocks.{self.layer}.{_SAE_LENS_HOOKS[self.point]}"
