"""A store of activations that are there already: arrays, or blocks of rows one after the other.

    contexts = [tokenizer.encode(text).ids for text in texts]
    write_store("acts", contexts, {"resid_post.6": rows}, provenance="gpt2")

What comes out is a store like any other: each job reads it and each query takes it.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from actlake.storage.add_sites import add_sites
from actlake.storage.corpus import Context, Document
from actlake.storage.create import StoreBuilder, StoreRequest
from actlake.storage.dtypes import ACTIVATION_DTYPES, FLOAT_DTYPES, ActivationDtype
from actlake.storage.errors import InvalidSchema
from actlake.storage.extents import Extent
from actlake.storage.layout import Compression
from actlake.storage.lease import Lease
from actlake.storage.location import Location, locate
from actlake.storage.provenance import Provenance
from actlake.storage.schema import Geometry, Layout, plan_geometry
from actlake.storage.site_schema import SiteSchema
from actlake.storage.sites import Site
from actlake.storage.store import ActivationStore, open_store
from actlake.storage.stored_moments import sum_up
from actlake.storage.writer import write_unit

Array = np.ndarray[Any, Any]


def write_store(
    url: "str | os.PathLike[str] | Location",
    corpus: Iterable[Any],
    rows: Mapping[Any, Any],
    *,
    provenance: str | Provenance,
    splits: Sequence[str] = ("train",),
    layout: Layout = "documents",
    context_length: int | None = None,
    special_ids: Sequence[int] = (),
    tokenizer: str | None = None,
    dtype: ActivationDtype | None = None,
    compression: Compression = "none",
    nonfinite: Literal["refuse", "count"] = "refuse",
    geometry: Geometry | None = None,
    request: Mapping[str, Any] | None = None,
) -> ActivationStore:
    """Make a store of activations from elsewhere; the finished store is returned.

    Memory holds one unit of each site, and of the corpus what `context_length` says.

    Parameters
    ----------
    url
        A path or URL where no store is yet.
    corpus
        What the model saw at once, one after the other, in the order of the rows: the token ids
        of a context, (n,), each then a document of its own, without text, of the first split.
        Or `Document` and `Context`, each document before the first context that names it by its
        place, from 0: so text, characters, packed contexts and splits are told.
    rows
        Of each site, by name or as `Site`, its activations: an array of shape (tokens, dim)
        (NumPy, a memory map, Zarr, an array of another store), or blocks of such rows one after
        the other, of any lengths.
    provenance
        What the rows come from, the model's name at least: stores of the same tokens and the same
        provenance are taken for one.
    splits
        Names of the splits.
    context_length
        The longest context, in tokens. By default it is looked for, and the corpus held in
        memory meanwhile.
    special_ids
        Token ids that statistics and training leave out, beside position 0 of each context.
    tokenizer
        The text of its ``tokenizer.json``; without it tokens are known by their ids only.
    dtype
        Element type on disk; by default as the rows are, float64 as float32. ``int8`` stores
        codes with a scale for each 64 columns, half as large as float16.
    nonfinite
        ``refuse`` infinities and NaNs, or ``count`` them.
    geometry
        How rows are cut into files; by default `plan_geometry`.
    request
        Kept beside the sites: how these rows were made.

    Raises
    ------
    InvalidSchema
        There are not as many rows as tokens, rows are no (n, dim) array, or a context is too long
        or names what there is not. Of blocks, which are counted as they come, the store then
        holds the units before, which are complete.
    NonFiniteActivations
        Rows hold infinities or NaNs; the store holds the units before.
    StoreExists
        There is a store already.
    """
    sources = {Site.parse(name).stored: _Source(str(name), given) for name, given in rows.items()}
    if len(sources) < max(1, len(rows)):
        raise InvalidSchema(
            f"Each site has rows once; given are {', '.join(map(str, rows)) or 'none'}\n"
            "hint: such as {'resid_post.6': array}"
        )
    schemas = {
        site: SiteSchema(dim=source.dim, dtype=dtype or source.dtype, compression=compression)
        for site, source in sources.items()
    }
    if context_length is None:
        corpus = list(corpus)
        context_length = max(map(_num_tokens, corpus), default=0)
    wanted = StoreRequest(
        layout=layout,
        context_length=context_length,
        splits=tuple(splits),
        special_ids=tuple(special_ids),
        nonfinite=nonfinite,
    )
    if isinstance(provenance, str):
        provenance = Provenance(model={"name": provenance})
    location = locate(url)
    with Lease.acquire(location) as lease:
        with StoreBuilder(
            lease,
            wanted,
            provenance,
            tokenizer_files=None if tokenizer is None else {"tokenizer.json": tokenizer.encode()},
            **_token_cut(geometry),
        ) as builder:
            _lay_down(builder, corpus, split=wanted.splits[0])
            for source in sources.values():
                source.check_length(builder.rows)
            widest = max(schema.row_bytes for schema in schemas.values())
            builder.finish(
                lambda total: (
                    geometry
                    or plan_geometry(
                        total,
                        row_bytes=widest,
                        context_length=context_length,
                        num_sites=len(schemas),
                    )
                )
            )
        store = open_store(location)
        add_sites(lease, store, schemas, request or {})
        for unit in store.schema.units:
            extent = store.schema.unit_extent(unit)
            part = {site: source.take(extent) for site, source in sources.items()}
            lease.ledger.commit(write_unit(store, unit, part, token=lease.token))
        sum_up(lease, schemas)
        for source in sources.values():
            source.check_end(len(store))
    return store.refresh()


def _token_cut(geometry: Geometry | None) -> dict[str, int]:
    if geometry is None:
        return {}
    return {
        "token_chunk_rows": geometry.token_chunk_rows,
        "token_shard_rows": geometry.token_shard_rows,
    }


def _num_tokens(item: Any) -> int:
    if isinstance(item, Document):
        return 0
    return len(item) if isinstance(item, Context) else int(np.size(item))


def _lay_down(builder: StoreBuilder, corpus: Iterable[Any], *, split: str) -> None:
    """Add documents and contexts; token ids alone are a document of their own, of `split`."""
    num_documents = 0
    for place, item in enumerate(corpus):
        if isinstance(item, Document):
            num_documents = builder.add_document(item) + 1
        elif isinstance(item, Context):
            _check_documents(item, num_documents)
            builder.add_context(item)
        else:
            ids = _as_ids(item)
            number = builder.add_document(Document(str(place), "given", split))
            num_documents = number + 1
            unknown = np.full(len(ids), -1, np.int32)
            builder.add_context(Context(ids, np.full(len(ids), number), unknown, split))


def _check_documents(context: Context, num_documents: int) -> None:
    """Refuse a context that names a document which did not come before it."""
    named = np.asarray(context.documents)
    wrong = named[(named < 0) | (named >= num_documents)]
    if len(wrong):
        raise InvalidSchema(
            f"A context names document {wrong[0]}, and {num_documents} came before it\n"
            "hint: documents are counted from 0, and each stands before its first context"
        )


def _as_ids(item: Any) -> Array:
    ids = np.asarray(item)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise InvalidSchema(
            f"A context is given as {ids.dtype} of shape {ids.shape}\n"
            "hint: give its token ids, (n,) integers, or a `Context`"
        )
    return ids


class _Source:
    """The rows of a site, from front to back."""

    def __init__(self, name: str, given: Any) -> None:
        self._name = name
        self._array = given if hasattr(given, "shape") else None
        self._blocks = iter(()) if self._array is not None else self._read(given)
        self._waiting: list[Array] = []
        first: Array | None
        if self._array is not None:
            self._check_axes(self._array.shape)
            first = self._as_rows(self._array[:1])
        else:
            first = next(self._blocks, None)
            if first is None:
                raise InvalidSchema(f"There are no rows of {name}\nhint: give (tokens, dim)")
            self._waiting.append(first)
        self.dim = int(first.shape[1])
        self._given_dtype = first.dtype.name

    @property
    def dtype(self) -> ActivationDtype:
        """Element type of the rows, as a store can have it."""
        wanted = "float32" if self._given_dtype == "float64" else self._given_dtype
        for known in FLOAT_DTYPES:
            if wanted == known:
                return known
        raise InvalidSchema(
            f"The rows of {self._name} are {self._given_dtype}\n"
            f"hint: say how they are to be stored: dtype is {', '.join(ACTIVATION_DTYPES)}"
        )

    def check_length(self, num_tokens: int) -> None:
        """Refuse an array of another length than the corpus."""
        if self._array is not None and len(self._array) != num_tokens:
            raise self._not_as_many(f"{len(self._array):,}", f"{num_tokens:,} tokens")

    def check_end(self, num_tokens: int) -> None:
        """Refuse blocks that go on after the corpus."""
        if any(map(len, self._waiting)) or any(map(len, self._blocks)):
            raise self._not_as_many("more", f"{num_tokens:,} tokens")

    def take(self, rows: Extent) -> Array:
        """(n, dim): the next rows."""
        if self._array is not None:
            return self._as_rows(self._array[rows.slice()])
        while (there := sum(map(len, self._waiting))) < len(rows):
            block = next(self._blocks, None)
            if block is None:
                raise self._not_as_many(f"{rows.start + there:,}", f"at least {rows.stop:,}")
            self._waiting.append(block)
        joined = np.concatenate(self._waiting) if len(self._waiting) > 1 else self._waiting[0]
        self._waiting = [joined[len(rows) :]]
        return joined[: len(rows)]

    def _read(self, blocks: Iterable[Any]) -> Iterator[Array]:
        dim = None
        for block in blocks:
            rows = self._as_rows(block)
            if dim not in (None, rows.shape[1]):
                raise InvalidSchema(
                    f"A block of {self._name} has rows of {rows.shape[1]}, those before of {dim}\n"
                    "hint: every row of a site is of one length"
                )
            dim = rows.shape[1]
            yield rows

    def _as_rows(self, given: Any) -> Array:
        try:
            rows = np.asarray(given)
        except TypeError as error:
            raise InvalidSchema(
                f"The rows of {self._name} are no array: {error}\n"
                "hint: give NumPy arrays; of torch tensors tensor.float().numpy(force=True)"
            ) from error
        self._check_axes(rows.shape)
        return rows

    def _check_axes(self, shape: Sequence[int]) -> None:
        if len(shape) != 2:
            raise InvalidSchema(
                f"The rows of {self._name} are of shape {tuple(shape)}\n"
                "hint: give (tokens, dim), contexts one after the other: acts.reshape(-1, dim)"
            )

    def _not_as_many(self, there: str, corpus: str) -> InvalidSchema:
        return InvalidSchema(
            f"{self._name} has {there} rows, and the corpus {corpus}\n"
            "hint: a row for each token of each context, in their order"
        )
