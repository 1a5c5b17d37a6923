"""What the rows of a store are, whatever the site; fixed when the store is made.

The *geometry* (rows of a unit, bytes of a chunk) is part of the schema: it decides which file a row
is in, not what the row says, so the fingerprint leaves it out.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from typing import Any, Literal, Self

from actlake.storage.block_scales import BLOCK_COLUMNS, num_column_blocks
from actlake.storage.dtypes import numpy_dtype
from actlake.storage.errors import FormatTooNew, InvalidSchema
from actlake.storage.extents import Extent, UnitSet, block_extent, num_blocks
from actlake.storage.layout import (
    ArraySpec,
    group_key,
    group_metadata,
    metadata_json,
)
from actlake.storage.site_schema import SCALE_DTYPE, SiteSchema
from actlake.storage.sites import Site

FORMAT = 2
Layout = Literal["packed", "documents"]
MIB = 2**20

# Large enough that a read of one chunk is bound by bandwidth, small enough that a chunk is a
# fine-grained piece of a shuffle and of what is in memory.
CHUNK_BYTES = 4 * MIB
# Files that object storage and parallel file systems like; a unit's buffers of a few sites fit in
# memory beside the model.
UNIT_BYTES = 128 * MIB
# Of a large store units grow, up to this, so that no folder gets too many files: a site of 1 TB has
# 1,000 of them, not 8,000.
LARGEST_UNIT_BYTES = 1024 * MIB
UNITS_BEFORE_THEY_GROW = 1024
# Of all sites together, in which a unit may lie in memory.
MOST_BYTES_OF_A_LARGE_UNIT = 4096 * MIB
# A small store has still enough units to show progress and to lose little in a crash.
LEAST_UNITS = 16


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How rows are cut into files; see `plan_geometry`."""

    unit_rows: int
    """Rows of a unit of work, which is one shard file of every site."""
    chunk_bytes: int = CHUNK_BYTES
    """Most bytes of a chunk of rows, the piece that has its own checksum; see `chunk_rows`."""
    token_chunk_rows: int = 2**16
    """Rows of a chunk of the token and context arrays."""
    token_shard_rows: int = 2**22
    """Rows of a shard of the token and context arrays."""

    def chunk_rows(self, row_bytes: int) -> int:
        """THE rule of how many rows of so many bytes are a chunk: sites differ in it.

        The largest divisor of `unit_rows` of which so many rows are at most `chunk_bytes`; a row
        that is larger is a chunk.
        """
        return largest_divisor(self.unit_rows, at_most=max(1, self.chunk_bytes // row_bytes))


@dataclass(frozen=True, slots=True)
class Stretch:
    """Rows that were laid down together, and their contexts."""

    rows: Extent
    contexts: Extent


@dataclass(frozen=True, slots=True)
class Gap:
    """Numbers between two stretches, of rows and of contexts that there are not."""

    rows: Extent
    contexts: Extent


@dataclass(frozen=True, kw_only=True)
class StoreSchema:
    """What the rows are and how they are cut, the same for every site.

    What differs between sites (width, element type) is a `SiteSchema`'s.
    """

    rows: int
    """Length of the arrays of rows: a row's number is below it. `num_rows` counts the rows."""
    contexts: int
    """The same of contexts; `num_contexts` counts them."""
    documents: int
    """How many there are."""
    layout: Layout
    """``packed``: documents joined into full windows; ``documents``: a window per document."""
    context_length: int
    """The longest context, in tokens."""
    splits: tuple[str, ...]
    """Names of the splits; a context belongs to one of them."""
    special_ids: tuple[int, ...]
    """Token ids that statistics and training leave out by default, beside position 0."""
    geometry: Geometry
    nonfinite: Literal["refuse", "count"] = "refuse"
    """What happens to a unit that holds infinities or NaNs: an error, or a number."""
    gaps: tuple[Gap, ...] = ()
    """Before each appended stretch (`actlake.storage.append`), the numbers that it skips."""

    def __post_init__(self) -> None:
        sizes = {
            "rows": self.rows,
            "contexts": self.contexts,
            "documents": self.documents,
            "context_length": self.context_length,
            **{f"geometry.{name}": size for name, size in asdict(self.geometry).items()},
        }
        _check_positive(sizes)
        if not self.splits or len(set(self.splits)) != len(self.splits):
            raise InvalidSchema(f"Splits must be named, each once; there is {self.splits!r}")
        if len(self.splits) > 127:
            raise InvalidSchema(f"A store has at most 127 splits, not {len(self.splits)}")
        shard_rows, chunk_rows = self.geometry.token_shard_rows, self.geometry.token_chunk_rows
        if shard_rows % chunk_rows:
            raise InvalidSchema(
                f"token_shard_rows must be a multiple of token_chunk_rows; {shard_rows} is not one "
                f"of {chunk_rows}"
            )

    @property
    def stretches(self) -> tuple[Stretch, ...]:
        """Rows and contexts that were laid down together, in order; one, unless it was appended to.

        A unit is of one stretch, and so is a context.
        """
        rows = [0, *(edge for gap in self.gaps for edge in _edges(gap.rows)), self.rows]
        contexts = [0, *(edge for gap in self.gaps for edge in _edges(gap.contexts)), self.contexts]
        edges = zip(rows[::2], rows[1::2], contexts[::2], contexts[1::2], strict=True)
        return tuple(Stretch(Extent(a, b), Extent(c, d)) for a, b, c, d in edges)

    @property
    def num_rows(self) -> int:
        """Tokens in the store."""
        return self.rows - sum(len(gap.rows) for gap in self.gaps)

    @property
    def num_contexts(self) -> int:
        """Contexts in the store."""
        return self.contexts - sum(len(gap.contexts) for gap in self.gaps)

    @property
    def units(self) -> UnitSet:
        """Units of work: all numbers from 0, but for those of which every row is in a gap."""
        length = self.geometry.unit_rows
        rows = (stretch.rows for stretch in self.stretches)
        return UnitSet((e.start // length, num_blocks(block=length, total=e.stop)) for e in rows)

    @property
    def num_units(self) -> int:
        """How many units of work there are."""
        return len(self.units)

    @property
    def unit_numbers(self) -> int:
        """Length of the arrays that have a step a unit: a unit's number is below it."""
        return num_blocks(block=self.geometry.unit_rows, total=self.rows)

    def unit_extent(self, unit: int) -> Extent:
        """The rows of a unit; those of the last one of a stretch may be fewer."""
        block = block_extent(unit, block=self.geometry.unit_rows, total=self.rows)
        return next(iter(self.held(block)), Extent(block.start, block.start))

    def held(self, rows: Extent) -> list[Extent]:
        """The rows of a range that there are: without gaps, a piece for each stretch."""
        parts = (rows.intersect(stretch.rows) for stretch in self.stretches)
        return [part for part in parts if len(part)]

    def rows_of(self, units: UnitSet) -> list[Extent]:
        """The rows of some units, as runs, each within a stretch."""
        length = self.geometry.unit_rows
        runs = (Extent(start * length, stop * length) for start, stop in units.runs())
        return [rows for run in runs for rows in self.held(run)]

    def blocks(self, length: int) -> Iterator[Extent]:
        """All rows in order, in pieces of at most `length`, each within a stretch."""
        for stretch in self.stretches:
            yield from stretch.rows.pieces(length)

    def context_blocks(self, length: int) -> Iterator[Extent]:
        """The same of all contexts."""
        for stretch in self.stretches:
            yield from stretch.contexts.pieces(length)

    @property
    def num_groups(self) -> int:
        """Groups of rows that statistics keep apart: each split, kept and excluded."""
        return 2 * len(self.splits)

    # The arrays, one after the other.

    def row_arrays(self, site: Site, rows: SiteSchema) -> tuple[ArraySpec, ...]:
        """All that a site's rows are read from: the activations, and their scales where int8."""
        activations = self.activations(site, rows)
        return (activations, self.scales(site, rows)) if rows.has_scales else (activations,)

    def activations(self, site: Site, rows: SiteSchema) -> ArraySpec:
        """``acts/<site>``: (row, dim), the site's activations, or their codes."""
        scaled = {"scales": f"scales/{site}", "columns_per_scale": BLOCK_COLUMNS}
        return ArraySpec(
            name=f"acts/{site}",
            shape=(self.rows, rows.dim),
            dtype=rows.dtype,
            shard_length=self.geometry.unit_rows,
            chunk_length=self.geometry.chunk_rows(rows.row_bytes),
            dimension_names=("row", "dim"),
            fill_value=0 if rows.has_scales else "NaN",
            compression=rows.compression,
            attributes=scaled if rows.has_scales else {},
            held=self._held_rows,
        )

    def scales(self, site: Site, rows: SiteSchema) -> ArraySpec:
        """``scales/<site>``: (row, block), what the codes of 64 columns are multiplied with."""
        return ArraySpec(
            name=f"scales/{site}",
            shape=(self.rows, num_column_blocks(rows.dim)),
            dtype=SCALE_DTYPE,
            shard_length=self.geometry.unit_rows,
            chunk_length=self.activations(site, rows).chunk_length,  # a chunk of each are read
            dimension_names=("row", "block"),
            fill_value="NaN",
            compression=rows.compression,
            held=self._held_rows,
        )

    def tokens(self) -> dict[str, ArraySpec]:
        """``tokens/*``: one number a row."""
        types = {"id": "int32", "document": "int64", "position": "int32", "char": "int32"}
        return {
            name: self._index_array(f"tokens/{name}", dtype, self.rows, "row", self._held_rows)
            for name, dtype in types.items()
        }

    def context_arrays(self) -> dict[str, ArraySpec]:
        """``contexts/*``: where each context starts (and the last ends), and its split."""
        numbers = [stretch.contexts for stretch in self.stretches]
        boundaries = [Extent(extent.start, extent.stop + 1) for extent in numbers]
        return {
            "start": self._index_array(
                "contexts/start",
                "int64",
                self.contexts + 1,
                "context_boundary",
                tuple(boundaries) if self.gaps else None,
            ),
            "split": self._index_array(
                "contexts/split",
                "int8",
                self.contexts,
                "context",
                tuple(numbers) if self.gaps else None,
            ),
        }

    @property
    def _held_rows(self) -> tuple[Extent, ...] | None:
        return tuple(stretch.rows for stretch in self.stretches) if self.gaps else None

    def norms(self, site: Site) -> ArraySpec:
        """``norms/<site>``: (row,), the Euclidean norm of each row."""
        return ArraySpec(
            name=f"norms/{site}",
            shape=(self.rows,),
            dtype="float32",
            shard_length=self.geometry.unit_rows,
            chunk_length=self.geometry.chunk_rows(numpy_dtype("float32").itemsize),
            dimension_names=("row",),
            fill_value="NaN",
            held=self._held_rows,
        )

    def common_metadata(self) -> dict[str, bytes]:
        """Every ``zarr.json`` that does not depend on the sites, by its key."""
        groups = ("", "tokens", "contexts", "acts", "norms")
        specs = [*self.tokens().values(), *self.context_arrays().values()]
        return _metadata(groups, specs)

    def site_metadata(self, site: Site, rows: SiteSchema) -> dict[str, bytes]:
        """Every ``zarr.json`` of one site, by its key."""
        groups = ("scales",) if rows.has_scales else ()
        return _metadata(groups, [*self.row_arrays(site, rows), self.norms(site)])

    def _index_array(
        self,
        name: str,
        dtype: str,
        length: int,
        dimension: str,
        held: tuple[Extent, ...] | None,
    ) -> ArraySpec:
        return ArraySpec(
            name=name,
            shape=(length,),
            dtype=dtype,
            shard_length=self.geometry.token_shard_rows,
            chunk_length=self.geometry.token_chunk_rows,
            dimension_names=(dimension,),
            fill_value=-1,
            held=held,
        )

    # To and from JSON.

    def as_json(self) -> dict[str, Any]:
        """Plain JSON; `from_json` reads it back."""
        return asdict(self) | {
            "splits": list(self.splits),
            "special_ids": list(self.special_ids),
            "gaps": [
                {"rows": list(_edges(gap.rows)), "contexts": list(_edges(gap.contexts))}
                for gap in self.gaps
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `as_json` wrote.

        Raises
        ------
        FormatTooNew
            It has fields that this version does not know.
        """
        unknown = set(data) - {field.name for field in fields(cls)}
        unknown |= set(data["geometry"]) - {field.name for field in fields(Geometry)}
        unknown |= {name for gap in data["gaps"] for name in gap} - {"rows", "contexts"}
        if unknown:
            raise FormatTooNew(
                f"The store's schema has unknown fields: {', '.join(sorted(unknown))}\n"
                "hint: open it with a newer actlake"
            )
        return cls(
            **{
                **data,
                "splits": tuple(data["splits"]),
                "special_ids": tuple(data["special_ids"]),
                "geometry": Geometry(**data["geometry"]),
                "gaps": tuple(
                    Gap(Extent(*gap["rows"]), Extent(*gap["contexts"])) for gap in data["gaps"]
                ),
            }
        )


def plan_geometry(
    rows: int,
    *,
    row_bytes: int,
    context_length: int,
    num_sites: int = 1,
    unit_rows_at_most: int | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    unit_bytes: int = UNIT_BYTES,
) -> Geometry:
    """Cut rows into units that full contexts do not straddle, and that chunks of 4 MiB divide.

    Parameters
    ----------
    row_bytes
        Of a row of one site, of the widest where they differ.
    num_sites
        Sites that are written together.
    unit_rows_at_most
        For slow models.
    unit_bytes
        Most bytes of a unit of one site. Of a store of more than 1,024 such units they are more, up
        to 1 GiB, if all sites together are no more than 4 GiB; of a small store they are less, so
        that it has at least 16 units as far as it has that many contexts.

    Raises
    ------
    InvalidSchema
        A size is not positive.
    """
    sizes = {
        "rows": rows,
        "row_bytes": row_bytes,
        "context_length": context_length,
        "num_sites": num_sites,
        "chunk_bytes": chunk_bytes,
        "unit_bytes": unit_bytes,
        "unit_rows_at_most": 1 if unit_rows_at_most is None else unit_rows_at_most,
    }
    _check_positive(sizes)
    large = min(LARGEST_UNIT_BYTES, MOST_BYTES_OF_A_LARGE_UNIT // num_sites)
    grown = min(rows * row_bytes // UNITS_BEFORE_THEY_GROW, large)
    most = min(
        max(unit_bytes, grown) // row_bytes,
        rows // LEAST_UNITS,
        rows if unit_rows_at_most is None else unit_rows_at_most,
    )
    contexts = _round_down(max(1, most // context_length))
    return Geometry(unit_rows=contexts * context_length, chunk_bytes=chunk_bytes)


def _round_down(number: int) -> int:
    """To four binary digits and zeros: a number that many others divide, and at most 1/8 less."""
    zeros = max(0, number.bit_length() - 4)
    return number >> zeros << zeros


@cache
def largest_divisor(number: int, *, at_most: int) -> int:
    """The largest number up to `at_most` that divides `number`."""
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return max(n for n in (*small, *(number // n for n in small)) if n <= at_most)


def _edges(extent: Extent) -> tuple[int, int]:
    return extent.start, extent.stop


def _metadata(groups: Iterable[str], specs: Iterable[ArraySpec]) -> dict[str, bytes]:
    files = {spec.metadata_key: metadata_json(spec.metadata()) for spec in specs}
    return files | {group_key(name): metadata_json(group_metadata()) for name in groups}


def _check_positive(sizes: Mapping[str, int]) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise InvalidSchema(f"{name} must be at least 1, and is {size}")
