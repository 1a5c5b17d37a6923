"""Indexes: named arrays in one file, memory-mapped, made again when they do not fit the store.

    {"format": 1, "corpus": "…", "arrays": {"offsets": [0, "<i8", 49153], …}}
    padding to 64 bytes, then the arrays, each beginning at a multiple of 64

An index holds nothing that the store does not: it may be deleted at any time. It lies in the
store's folder ``index/``, or, where that cannot be written or mapped, in the user's cache. It
names the corpus it was made from, and one of another corpus is not read.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from actlake.storage.errors import StoreNotWritable
from actlake.storage.location import LocalFolder

if TYPE_CHECKING:  # store.py opens indexes
    from actlake.storage.store import ActivationStore

Array = np.ndarray[Any, Any]
FOLDER = "index"
_FORMAT = 1
_ALIGN = 64
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class IndexPlan:
    """An index about to be made: the arrays' types and lengths, and their values piecewise."""

    arrays: Mapping[str, tuple[str, int]]
    """NumPy type and length of each array, in the order of `pieces`."""
    pieces: Iterable[Array]
    """The values of all arrays, one after the other, in as many pieces as there is memory for."""


def open_index(
    store: "ActivationStore", name: str, plan: Callable[[], IndexPlan]
) -> dict[str, Array]:
    """The arrays of an index, read-only and memory-mapped; made first if need be.

    Raises
    ------
    StoreNotWritable
        Neither the store nor the user's cache can be written.
    """
    corpus = corpus_key(store)
    file = f"{name}.index"
    homes = _homes(store, corpus)
    for home in homes:
        arrays = _read(home.local_path(file), corpus)
        if arrays is not None:
            return arrays
    refused: StoreNotWritable | None = None
    for home in homes:
        try:
            _write(home, file, corpus, plan())
        except StoreNotWritable as error:
            refused = error
            continue
        arrays = _read(home.local_path(file), corpus)
        assert arrays is not None, (home, file)
        return arrays
    raise StoreNotWritable(
        f"There is no place for the index of {name} of {store.url}: {refused}\n"
        "hint: set ACTLAKE_CACHE to a folder that can be written"
    ) from refused


def corpus_key(store: "ActivationStore") -> str:
    """Names the tokens, documents and their order; changes when any of them does."""
    return store.fingerprint


def cache_folder() -> Path:
    """The user's cache: ``$ACTLAKE_CACHE``, else ``actlake`` in the system's cache folder."""
    if chosen := os.environ.get("ACTLAKE_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "actlake"


def _homes(store: "ActivationStore", corpus: str) -> list[LocalFolder]:
    """Where an index may lie, the best place first."""
    cached = LocalFolder(cache_folder() / FOLDER / corpus)
    beside = store.location.local_path(FOLDER)
    return [cached] if beside is None else [LocalFolder(beside), cached]


def _write(home: LocalFolder, file: str, corpus: str, plan: IndexPlan) -> None:
    began = time.perf_counter()
    home.write(file, _parts(corpus, plan))
    logger.info(
        "Made the index %s in %.1f s (%s bytes)",
        home.local_path(file),
        time.perf_counter() - began,
        f"{home.size(file):,}",
    )


def _parts(corpus: str, plan: IndexPlan) -> Iterator[Any]:
    """The bytes of the file, without ever holding them all."""
    offset, table = 0, {}
    for name, (dtype, length) in plan.arrays.items():
        table[name] = (offset, dtype, length)
        offset = _aligned(offset + np.dtype(dtype).itemsize * length)
    header = json.dumps({"format": _FORMAT, "corpus": corpus, "arrays": table}).encode() + b"\n"
    yield header.ljust(_aligned(len(header)), b" ")
    pieces = iter(plan.pieces)
    for dtype, length in plan.arrays.values():
        left = length
        while left:
            piece = np.ascontiguousarray(next(pieces), dtype)
            left -= len(piece)
            assert left >= 0, (dtype, length)
            yield piece.view(np.uint8)
        num_bytes = np.dtype(dtype).itemsize * length
        yield bytes(_aligned(num_bytes) - num_bytes)


def _read(path: Path, corpus: str) -> dict[str, Array] | None:
    """The arrays of a file; None where there is none, or one of another corpus or format."""
    try:
        raw = np.memmap(path, np.uint8, "r")
    except (OSError, ValueError):  # a file of no bytes is a ValueError
        return None
    head = raw[:65536].tobytes().split(b"\n", 1)[0]
    try:
        header = json.loads(head)
        if (header["format"], header["corpus"]) != (_FORMAT, corpus):
            return None
        start = _aligned(len(head) + 1)
        arrays = {}
        for name, (offset, dtype, length) in header["arrays"].items():
            stop = start + offset + np.dtype(dtype).itemsize * length
            arrays[name] = raw[start + offset : stop].view(dtype)
            if len(arrays[name]) != length:
                return None
    except (ValueError, KeyError, TypeError):
        return None
    return arrays


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGN) * _ALIGN
