"""Which pairs of sites a fit is about: all, to the last, a grid of layers, or a list (pure)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from actlake.jobs.transport.errors import InvalidPair, InvalidTransport
from actlake.platform.models.points import Point
from actlake.storage.errors import nearest
from actlake.storage.sites import Site

# The order in which a block computes its points.
_ORDER: tuple[str, ...] = (
    "resid_pre", "attn_out", "resid_mid", "mlp_in", "mlp_out", "resid_post",
)  # fmt: skip


@dataclass(frozen=True, slots=True, order=True)
class Pair:
    """A map from one site to another: from row i to row i + offset."""

    source: Site
    target: Site
    offset: int = 0
    """Tokens from source to target; 0 is the same token."""

    @property
    def distance(self) -> int:
        """Layers from source to target: k."""
        return depth(self.target)[0] - depth(self.source)[0]

    def __str__(self) -> str:
        offset = f"@{self.offset:+d}" if self.offset else ""
        return f"{self.source}->{self.target}{offset}"

    @property
    def folder(self) -> str:
        """The same, as the name of a folder, a picture or a metric."""
        ahead = f"-ahead.{self.offset}" if self.offset > 0 else ""
        behind = f"-behind.{-self.offset}" if self.offset < 0 else ""
        return f"{self.source}--{self.target}{ahead}{behind}"

    @classmethod
    def parse(cls, written: str) -> "Pair":
        """Read ``resid_post.3->resid_post.7`` or ``resid_post.3->resid_post.7@+1``.

        Raises
        ------
        InvalidPair
            It has another form.
        InvalidSite
            One of the two is no site.
        """
        source, arrow, rest = written.partition("->")
        target, at, offset = rest.partition("@")
        if not arrow or (at and not offset.lstrip("+-").isdecimal()):
            raise InvalidPair(
                f"Cannot read the pair {written!r}\n"
                "hint: write SOURCE->TARGET, such as resid_post.3->resid_post.7; with an offset "
                "in tokens resid_post.3->resid_post.7@+1"
            )
        return cls(Site.parse(source), Site.parse(target), int(offset or 0))


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Every layer of `layers` to the layer `k` further on, at one point of the blocks."""

    layers: tuple[int, ...]
    """Source layers, L."""

    k: tuple[int, ...]
    """Distances in layers."""

    point: Point = "resid_post"
    """Where in the block, on both sides."""

    beyond: Literal["refuse", "skip"] = "refuse"
    """What happens where L + k is above the last layer that is stored."""

    def __post_init__(self) -> None:
        if not self.layers or not self.k:
            raise InvalidTransport(
                "A grid of pairs needs layers and distances\n"
                "hint: such as pairs: {layers: [2, 4, 8], k: [1, 2, 4]}"
            )


@dataclass(frozen=True, kw_only=True)
class Listed:
    """Pairs one by one."""

    listed: tuple[str, ...]
    """Such as ``resid_post.3->resid_post.7``."""


Pairs = Literal["all", "to_last"] | Grid | Listed


def depth(site: Site) -> tuple[int, int]:
    """Where a site comes in the forward pass; ``resid_pre.l`` is ``resid_post.(l-1)``.

    A point that is not among the known ones counts as the end of its block.
    """
    stored = site.stored
    if stored.point == "resid_pre":  # only layer 0's is stored under this name
        return (-1, len(_ORDER))
    known = stored.point in _ORDER
    return (stored.layer, _ORDER.index(stored.point) if known else len(_ORDER))


def resolve_pairs(
    asked: Pairs,
    sources: Sequence[Site],
    targets: Sequence[Site],
    *,
    offsets: Iterable[int] = (0,),
    one_store: bool = True,
) -> tuple[Pair, ...]:
    """The pairs that were asked for, sorted.

    Parameters
    ----------
    sources, targets
        What is stored on either side; the same sites for one store.
    offsets
        Tokens from source to target; every pair is fitted at each.
    one_store
        Whether both sides are one model. ``all`` then means every site to every deeper one;
        with two models, every site to every site.

    Raises
    ------
    InvalidPair
        A site is not stored on its side, or the target does not exist. The nearest is named.
    InvalidTransport
        No pair is left.
    """
    if asked == "all":
        plain = [
            Pair(source, target)
            for source in sources
            for target in targets
            if not one_store or depth(source) < depth(target)
        ]
    elif asked == "to_last":
        last = max(targets, key=depth)
        plain = [Pair(source, last) for source in sources if source != last or not one_store]
    elif isinstance(asked, Grid):
        plain = _grid(asked, targets)
    else:
        plain = [Pair.parse(written) for written in asked.listed]
    for pair in plain:
        _check(pair, sources, targets)
    pairs = {
        Pair(pair.source.stored, pair.target.stored, pair.offset or offset)
        for pair in plain
        for offset in offsets
    }
    if not pairs:
        raise InvalidTransport(
            f"There is no pair to fit among {', '.join(map(str, sources))}\n"
            "hint: a map goes from a site to a deeper one, so at least two must be stored"
        )
    return tuple(sorted(pairs, key=lambda p: (depth(p.source), depth(p.target), p.offset)))


def _grid(asked: Grid, targets: Sequence[Site]) -> list[Pair]:
    last = max(site.layer for site in targets)
    pairs = []
    for layer in asked.layers:
        for k in asked.k:
            if layer + k > last or layer + k < 0:
                if asked.beyond == "skip":
                    continue
                raise InvalidPair(
                    f"Layer {layer} + {k} is above the last layer that is stored, {last}\n"
                    "hint: leave that distance out, or set pairs.beyond: skip"
                )
            pairs.append(Pair(Site(layer, asked.point), Site(layer + k, asked.point)))
    return pairs


def _check(pair: Pair, sources: Sequence[Site], targets: Sequence[Site]) -> None:
    for side, site, stored in (
        ("source", pair.source, sources),
        ("target", pair.target, targets),
    ):
        if site.stored in stored:
            continue
        last = max(s.layer for s in stored)
        above = f"; the last stored layer is {last}" if site.stored.layer > last else ""
        raise InvalidPair(
            f"The {side} of {pair} is not stored{above}\n"
            f"{nearest(str(site), map(str, stored))}; `actlake harvest` adds sites to a finished "
            "store"
        )
