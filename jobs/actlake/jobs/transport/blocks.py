"""Which products of which columns the moments of some pairs consist of (pure).

A *column* is one site's rows: of the first or second store, at row i or at i + offset. A
*block* is the sum over rows of the products of two columns. Pairs share blocks: each site's
own block is computed once for all pairs it is part of, and each cross block once.

Rows that are at an offset are another set of rows (the last tokens of a context have no
i + 1), so every offset has its own columns and blocks, of the rows that both sides have.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from actlake.jobs.transport.pairs import Pair, depth
from actlake.storage.sites import Site


@dataclass(frozen=True, slots=True)
class Column:
    """Rows of a site, aligned with those of others."""

    store: int
    """0: the source's store; 1: the target's, where that is another one."""
    site: Site
    ahead: int
    """Rows ahead of row i: 0, or the offset."""

    def __str__(self) -> str:
        ahead = f"@{self.ahead:+d}" if self.ahead else ""
        return f"{'ab'[self.store]}:{self.site}{ahead}"

    @classmethod
    def parse(cls, written: str) -> Self:
        """Read what ``str`` wrote."""
        store, _, rest = written.partition(":")
        site, _, ahead = rest.partition("@")
        return cls("ab".index(store), Site.parse(site), int(ahead or 0))


@dataclass(frozen=True)
class Alignment:
    """The columns that share their rows, and which of their blocks are needed."""

    offset: int
    columns: tuple[Column, ...]
    needed: tuple[tuple[int, ...], ...]
    """Of each column as the left factor, the columns it is multiplied with, ascending. Its own
    number is always among them."""

    @property
    def num_blocks(self) -> int:
        """How many blocks there are."""
        return sum(map(len, self.needed))

    def runs(self, column: int) -> list[tuple[int, int]]:
        """`needed[column]` as runs of neighbours: each run is one matrix product."""
        runs: list[tuple[int, int]] = []
        for other in self.needed[column]:
            if runs and runs[-1][1] == other:
                runs[-1] = (runs[-1][0], other + 1)
            else:
                runs.append((other, other + 1))
        return runs


@dataclass(frozen=True)
class Design:
    """All that is to be summed for some pairs."""

    alignments: tuple[Alignment, ...]

    @classmethod
    def of(cls, pairs: Iterable[Pair], *, two_stores: bool) -> Self:
        """The columns and blocks these pairs need, each once."""
        by_offset: dict[int, list[tuple[Column, Column]]] = {}
        for pair in pairs:
            by_offset.setdefault(pair.offset, []).append(columns_of(pair, two_stores=two_stores))
        return cls(tuple(_alignment(offset, both) for offset, both in sorted(by_offset.items())))

    @cached_property
    def num_blocks(self) -> int:
        """Blocks of all alignments."""
        return sum(alignment.num_blocks for alignment in self.alignments)

    def covers(self, other: "Design") -> bool:
        """Whether every block of `other` is among ours."""
        return other.blocks <= self.blocks

    @cached_property
    def blocks(self) -> frozenset[tuple[int, str, str]]:
        """Every block as (offset, left column, right column)."""
        return frozenset(
            (alignment.offset, str(alignment.columns[left]), str(alignment.columns[right]))
            for alignment in self.alignments
            for left, rights in enumerate(alignment.needed)
            for right in rights
        )

    def as_json(self) -> list[Any]:
        """Plain JSON; `from_json` reads it back."""
        return [
            {
                "offset": alignment.offset,
                "columns": list(map(str, alignment.columns)),
                "needed": list(map(list, alignment.needed)),
            }
            for alignment in self.alignments
        ]

    @classmethod
    def from_json(cls, data: list[Any]) -> Self:
        """Read what `as_json` wrote."""
        return cls(
            tuple(
                Alignment(
                    part["offset"],
                    tuple(map(Column.parse, part["columns"])),
                    tuple(map(tuple, part["needed"])),
                )
                for part in data
            )
        )


def columns_of(pair: Pair, *, two_stores: bool) -> tuple[Column, Column]:
    """The source's and the target's column."""
    return Column(0, pair.source, 0), Column(int(two_stores), pair.target, pair.offset)


def _alignment(offset: int, both: list[tuple[Column, Column]]) -> Alignment:
    columns = sorted({column for pair in both for column in pair}, key=_order)
    number = {column: place for place, column in enumerate(columns)}
    needed: list[set[int]] = [{place} for place in range(len(columns))]
    for source, target in both:
        needed[number[target]].add(number[source])
    return Alignment(offset, tuple(columns), tuple(tuple(sorted(some)) for some in needed))


def _order(column: Column) -> tuple[int, int, tuple[int, int]]:
    return column.store, column.ahead, depth(column.site)
