"""Sites: places in a model whose activations can be stored, known by their names.

A name is a point, and mostly the block that it is in, counted from 0: ``resid_post.6``,
``router_logits.3``, ``sae.topk_32.6``, ``embedding``. Storage takes any name of this form; which
points a model has, and what is there, is `actlake.platform.models`' matter.

One rule of names is the format's own: ``resid_pre.l`` of every block but the first is
``resid_post.(l-1)``, the same tensor. It is stored once, under the latter name (`Site.stored`),
and both names open it.
"""

import re
from dataclasses import dataclass

from actlake.storage.errors import InvalidSite

# Lower case only: a name is a folder, and some file systems take A and a for the same letter.
_POINT = r"[a-z][a-z0-9_]*(?:\.[a-z][a-z0-9_]*)*"
_WRITTEN = re.compile(rf"(?P<point>{_POINT})(?:\.(?P<block>0|[1-9][0-9]*))?")
_MOST_CHARACTERS = 200
_FORM = (
    "hint: a site is written POINT.LAYER, such as resid_post.6, or POINT alone: lower-case "
    "letters, digits and _, the parts of a point joined by dots"
)


@dataclass(frozen=True, slots=True)
class Site:
    """A place in the model: a block, counted from 0, and a point in it.

    ``Site(6, "resid_post")``, written ``resid_post.6``, is the residual stream as it leaves
    block 6; ``Site(None, "embedding")`` is of no block. Sites sort by layer, then by point; those
    of no block come last.
    """

    block: int | None
    point: str = "resid_post"

    def __post_init__(self) -> None:
        if self.block is not None and self.block < 0:
            raise InvalidSite(f"Blocks are counted from 0; {self.block} is not one\n{_FORM}")
        if not re.fullmatch(_POINT, str(self.point)) or len(str(self)) > _MOST_CHARACTERS:
            raise InvalidSite(f"A site cannot be called {str(self)!r}\n{_FORM}")

    def __str__(self) -> str:
        return self.point if self.block is None else f"{self.point}.{self.block}"

    def __lt__(self, other: "Site") -> bool:
        return self._place < other._place

    @property
    def _place(self) -> tuple[bool, int, str]:
        return self.block is None, self.block or 0, self.point

    @classmethod
    def parse(cls, written: "str | Site") -> "Site":
        """Read ``resid_post.6``; a `Site` comes back as it is.

        Raises
        ------
        InvalidSite
            The name has another form.
        """
        if isinstance(written, Site):
            return written
        match = _WRITTEN.fullmatch(str(written).strip()) if isinstance(written, str) else None
        if match is None:
            raise InvalidSite(f"Cannot read the site {written!r}\n{_FORM}")
        return cls(None if match["block"] is None else int(match["block"]), match["point"])

    @property
    def layer(self) -> int:
        """The block it is in.

        Raises
        ------
        InvalidSite
            It is of no block.
        """
        if self.block is None:
            raise InvalidSite(
                f"{self} is of no block, and a layer is asked for\nhint: give a site of a block, "
                "written POINT.LAYER, such as resid_post.6"
            )
        return self.block

    @property
    def stored(self) -> "Site":
        """The name under which this tensor is stored: ``resid_pre.l`` is ``resid_post.(l-1)``."""
        if self.point == "resid_pre" and self.block:
            return Site(self.block - 1, "resid_post")
        return self
