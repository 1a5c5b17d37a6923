"""Moments on disk: an artefact of its own, which later fits use without touching a row.

    <folder>/<key>/
        request.json          which stores, columns, blocks, shares and options; the key is its hash
        shares.safetensors    the share of every document; the origin of every column; the rows
                              that are chosen, a bit each, where not all are
        massive.safetensors   rows that are massive at a column, as they are; see `massive_table`
        fit, validate, test   .safetensors  sums of a share, float64, of rows massive at no column
        test-00, …            .safetensors  sums of a jackknife group, float32, of the same
        running.safetensors   sums of a share that is being computed: what a resume goes on from
        moments.json          written last: with it the artefact is complete

Sums are about fixed origins, so that shares add up and groups can be left out.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from actlake.jobs.transport.block_sums import AlignmentSums, BlockSums, Precision
from actlake.jobs.transport.blocks import Design, columns_of
from actlake.jobs.transport.errors import MomentsMismatch
from actlake.jobs.transport.massive_table import MassiveTable
from actlake.jobs.transport.moments import RELATIVE_NOISE, PairMoments, PairSums, Whitening
from actlake.jobs.transport.pairs import Pair
from actlake.jobs.transport.parts import FIT, TEST, VALIDATE
from actlake.platform.safetensors_files import readable, written
from actlake.storage import ActivationStore
from actlake.storage.provenance import shortened
from actlake.storage.reading.selection import Bitmap

Array = np.ndarray[Any, Any]

FORMAT = 3
REQUEST, COMPLETE, SHARES, RUNNING, MASSIVE = (
    "request.json", "moments.json", "shares.safetensors", "running.safetensors",
    "massive.safetensors",
)  # fmt: skip
_WHITENINGS_BYTES = 2**29
TRAIN = "train"
"""What maps are fitted on in the end: ``fit``, and ``validate`` where it was held out of it."""


@dataclass(frozen=True)
class MomentsRequest:
    """What moments are to be of; two equal requests have equal moments."""

    fingerprints: tuple[str, ...]
    """Of the source's store, and of the target's where that is another one."""
    dims: tuple[int, ...]
    dtypes: tuple[tuple[int, str, str], ...]
    """Of each site that is read, as (store, site, dtype): a fingerprint does not say how rows are
    rounded."""
    design: Design
    fit: str
    validate: str | None
    test: str
    groups: int
    excluded: bool
    chosen: str | None
    """Fingerprint of the rows that are chosen; None: all are."""
    max_norm: float | None
    """Multiple of the median norm above which rows are massive; None: no row is."""
    precision: Precision
    part_rows: int

    @property
    def two_stores(self) -> bool:
        """Whether source and target are of two stores."""
        return len(self.fingerprints) == 2

    @property
    def width(self) -> int:
        """Width of the buffers: the larger one of two stores."""
        return max(self.dims)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON; `from_json` reads it back."""
        return {
            "format": FORMAT,
            "fingerprints": list(self.fingerprints),
            "dims": list(self.dims),
            "dtypes": [list(one) for one in self.dtypes],
            "design": self.design.as_json(),
            "fit": self.fit,
            "validate": self.validate,
            "test": self.test,
            "groups": self.groups,
            "excluded": self.excluded,
            "chosen": self.chosen,
            "max_norm": self.max_norm,
            "precision": self.precision,
            "part_rows": self.part_rows,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `as_json` wrote."""
        given = {name: value for name, value in data.items() if name != "format"}
        given["design"] = Design.from_json(given["design"])
        for name in ("fingerprints", "dims"):
            given[name] = tuple(given[name])
        given["dtypes"] = tuple((store, site, dtype) for store, site, dtype in given["dtypes"])
        return cls(**given)

    @property
    def key(self) -> str:
        """Short hash of the request."""
        payload = json.dumps(self.as_json(), sort_keys=True)
        return hashlib.sha256(payload.encode()).hexdigest()[:12]

    def is_answered_by(self, other: "MomentsRequest") -> bool:
        """Whether moments of `other` hold all that is asked for here."""
        mine, theirs = self.as_json(), other.as_json()
        for name in ("design", "dtypes"):
            del mine[name], theirs[name]
        same_rows = mine == theirs and set(self.dtypes) <= set(other.dtypes)
        return same_rows and other.design.covers(self.design)

    def sums_bytes(self) -> int:
        """Memory of the sums of one share."""
        return self.design.num_blocks * self.width**2 * 8


def find_moments(root: Path, request: MomentsRequest) -> "StoredMoments | None":
    """Complete moments below `root` that answer the request, or None."""
    candidates = [root / request.key, *sorted(root.glob(f"*/{COMPLETE}"))]
    for candidate in candidates:
        folder = candidate.parent if candidate.name == COMPLETE else candidate
        if (folder / COMPLETE).is_file() and request.is_answered_by(_read_request(folder)):
            return StoredMoments(folder)
    return None


def _read_request(folder: Path) -> MomentsRequest:
    try:
        data = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MomentsMismatch(
            f"There are no moments in {folder} (no {REQUEST})\n"
            "hint: give the folder that a fit wrote, or leave it out to compute them"
        ) from error
    except ValueError as error:
        raise MomentsMismatch(f"{folder / REQUEST} is damaged: {error}") from error
    if data.get("format") != FORMAT:
        raise MomentsMismatch(
            f"Moments in {folder} have format {data.get('format')}; this actlake reads {FORMAT}\n"
            "hint: delete the folder; they are computed again"
        )
    return MomentsRequest.from_json(data)


class StoredMoments:
    """Moments of pairs, read from disk a pair at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.request = _read_request(folder)
        try:
            self._complete = json.loads((folder / COMPLETE).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise MomentsMismatch(
                f"The moments in {folder} are not complete\n"
                "hint: run the fit again; it goes on from the last checkpoint"
            ) from error
        self.noise = RELATIVE_NOISE[self.request.precision]

    @property
    def held_out(self) -> bool:
        """Whether rows for validation were taken from the training split."""
        return bool(self._complete["held_out"])

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the jackknife groups."""
        return tuple(self._complete["groups"])

    def count(self, share: str, offset: int = 0) -> int:
        """Rows of a share that are massive at no column."""
        number = self._alignment(offset)
        return int(self._open(share).get_tensor(f"{number}/count")[0])

    def left_out(self, pair: Pair) -> int:
        """Rows of all shares that are massive at the source or the target of a pair."""
        number, x, y = self._places(pair)
        return int(self._massive[number].left_out(x, y).sum())

    def rows_of(self, pair: Pair) -> bytes:
        """Names the rows of a pair: pairs of one offset with equal names have the same rows."""
        number, x, y = self._places(pair)
        return np.packbits(self._massive[number].left_out(x, y)).tobytes()

    @property
    def limits(self) -> Mapping[str, float]:
        """Of each column, by its name, the norm above which a row is massive; empty: none is."""
        return self._shares.limits

    def check(self, stores: Sequence[ActivationStore]) -> None:
        """Refuse stores these moments are not of.

        Raises
        ------
        MomentsMismatch
            Both fingerprints are in the message, or the site and its element types.
        """
        asked = tuple(store.fingerprint for store in stores)
        if asked != self.request.fingerprints:
            raise MomentsMismatch(
                f"The moments in {self.folder} are of the store with fingerprint "
                f"{', '.join(map(shortened, self.request.fingerprints))}\n"
                f"The fit is about {', '.join(map(shortened, asked))}\n"
                "hint: leave the folder out; moments of this store are then computed"
            )
        for number, site, dtype in self.request.dtypes:
            if site in stores[number] and stores[number].schema_of(site).dtype != dtype:
                raise MomentsMismatch(
                    f"The moments in {self.folder} are of {site} as {dtype}; {stores[number].url} "
                    f"holds it as {stores[number].schema_of(site).dtype}\n"
                    "hint: leave the folder out; moments of this store are then computed"
                )

    def sums(self, pair: Pair, share: str) -> PairSums:
        """Sums of a pair over the rows of a share.

        Raises
        ------
        MomentsMismatch
            The pair's blocks were not summed, or a file is damaged.
        """
        if share == TRAIN:
            fit = self.sums(pair, FIT)
            return fit + self.sums(pair, VALIDATE) if self.held_out else fit
        source, target = columns_of(pair, two_stores=self.request.two_stores)
        number, x, y = self._places(pair)
        dim_x, dim_y = self.request.dims[0], self.request.dims[-1]
        file = self._open(share)
        sums = file.get_tensor(f"{number}/sums").astype(np.float64)
        ordinary = PairSums(
            count=int(file.get_tensor(f"{number}/count")[0]),
            origin_x=self._origins[str(source)].astype(np.float64),
            origin_y=self._origins[str(target)].astype(np.float64),
            x=sums[x, :dim_x],
            y=sums[y, :dim_y],
            xx=self._block(file, pair, number, x, x)[:dim_x, :dim_x],
            yx=self._block(file, pair, number, y, x)[:dim_y, :dim_x],
            yy=self._block(file, pair, number, y, y)[:dim_y, :dim_y],
        )
        # Rows that are massive elsewhere count here, each as an exact update in float64.
        acts_x, acts_y = self._massive[number].ordinary_at(x, y, self._number_of_shares(share))
        if not len(acts_x):
            return ordinary
        return ordinary + PairSums.of_rows(
            acts_x[:, :dim_x], acts_y[:, :dim_y], ordinary.origin_x, ordinary.origin_y
        )

    def _number_of_shares(self, share: str) -> tuple[int, ...]:
        """The numbers that documents of a share have; those of all groups of the test rows."""
        names = (FIT, VALIDATE, *self.groups)
        wanted = self.groups if share == TEST else (share,)
        return tuple(names.index(name) for name in wanted)

    def _places(self, pair: Pair) -> tuple[int, int, int]:
        """Number of the alignment, and places of source and target among its columns."""
        source, target = columns_of(pair, two_stores=self.request.two_stores)
        number = self._alignment(pair.offset)
        columns = self.request.design.alignments[number].columns
        if source not in columns or target not in columns:
            raise self._no_such_pair(pair)
        return number, columns.index(source), columns.index(target)

    def moments(self, pair: Pair, share: str, *, whitened: bool = True) -> PairMoments:
        """Means and covariances of a pair over the rows of a share.

        Parameters
        ----------
        whitened
            Compute the whitenings now, once for all pairs with the same site and rows.
        """
        centred = self.sums(pair, share).centred(self.noise)
        if not whitened:
            return centred
        columns = columns_of(pair, two_stores=self.request.two_stores)
        known = [
            self._whitening((share, pair.offset, str(column), self.rows_of(pair)), covariance)
            for column, covariance in zip(columns, (centred.xx, centred.yy), strict=True)
        ]
        return replace(centred, known_x=known[0], known_y=known[1])

    def _whitening(self, key: tuple[str, int, str, bytes], covariance: Array) -> Whitening:
        if key not in self._whitenings:
            most = max(8, _WHITENINGS_BYTES // (3 * covariance.nbytes))
            while len(self._whitenings) >= most:  # the one that was made first goes first
                del self._whitenings[next(iter(self._whitenings))]
            self._whitenings[key] = Whitening.of(covariance, self.noise)
        return self._whitenings[key]

    @cached_property
    def _whitenings(self) -> dict[tuple[str, int, str, bytes], Whitening]:
        return {}

    def _alignment(self, offset: int) -> int:
        for number, alignment in enumerate(self.request.design.alignments):
            if alignment.offset == offset:
                return number
        known = ", ".join(str(a.offset) for a in self.request.design.alignments)
        raise MomentsMismatch(
            f"The moments in {self.folder} are of token offsets {known}, not {offset}\n"
            "hint: fit again with that offset; moments are then computed"
        )

    def _block(self, file: Any, pair: Pair, number: int, left: int, right: int) -> Array:
        needed = self.request.design.alignments[number].needed[left]
        if right not in needed:
            raise self._no_such_pair(pair)
        width = self.request.width
        start = needed.index(right) * width
        block: Array = file.get_slice(f"{number}/products/{left}")[:, start : start + width]
        return block.astype(np.float64)

    def _no_such_pair(self, pair: Pair) -> MomentsMismatch:
        return MomentsMismatch(
            f"The moments in {self.folder} are not of the pair {pair}\n"
            "hint: fit with that pair; moments are then computed"
        )

    def _open(self, share: str) -> Any:
        if share not in self._files:
            path = self.folder / f"{share}.safetensors"
            try:
                self._files[share] = safe_open(readable(path), framework="numpy")
            except (FileNotFoundError, SafetensorError) as error:
                raise MomentsMismatch(
                    f"{path} cannot be read: {error}\n"
                    "hint: delete the folder; the moments are computed again"
                ) from error
        return self._files[share]

    @cached_property
    def _files(self) -> dict[str, Any]:
        return {}

    @property
    def _origins(self) -> Mapping[str, Array]:
        return self._shares.origins

    @cached_property
    def _shares(self) -> "StoredShares":
        return read_shares(self.folder)

    @cached_property
    def _massive(self) -> list[MassiveTable]:
        return read_massive(self.folder, self.request.design)


# Writing.


@dataclass(frozen=True)
class StoredShares:
    """What is decided before a row is summed."""

    of_document: Array
    """(documents,) int16, the share of each."""
    origins: Mapping[str, Array]
    """Of each column, by its name."""
    limits: Mapping[str, float]
    """Of each column the norm above which a row is massive; empty: none is."""
    chosen: Bitmap | None
    """The rows that are chosen; None: all."""


def write_shares(folder: Path, shares: StoredShares) -> None:
    """Keep shares, origins, limits, and the rows that are chosen."""
    tensors = {"of_document": shares.of_document}
    tensors |= {f"origin/{column}": origin for column, origin in shares.origins.items()}
    tensors |= {f"limit/{column}": np.array([limit]) for column, limit in shares.limits.items()}
    if shares.chosen is not None:
        tensors["chosen"] = shares.chosen.words
    _write(folder / SHARES, tensors, {})


def read_shares(folder: Path) -> StoredShares:
    """What `write_shares` wrote."""
    tensors = load_file(folder / SHARES)
    words = tensors.get("chosen")
    return StoredShares(
        tensors["of_document"],
        _below(tensors, "origin/"),
        {column: float(limit[0]) for column, limit in _below(tensors, "limit/").items()},
        None if words is None else Bitmap(words),
    )


def write_massive(folder: Path, tables: Sequence[MassiveTable]) -> None:
    """Keep the massive rows of every alignment."""
    tensors = {
        f"{number}/{name}": part
        for number, table in enumerate(tables)
        for name, part in table.as_tensors().items()
    }
    _write(folder / MASSIVE, tensors, {})


def read_massive(folder: Path, design: Design) -> list[MassiveTable]:
    """What `write_massive` wrote."""
    tensors = load_file(folder / MASSIVE)
    return [
        MassiveTable(**_below(tensors, f"{number}/")) for number in range(len(design.alignments))
    ]


def _below(tensors: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {
        name.removeprefix(prefix): part for name, part in tensors.items() if name.startswith(prefix)
    }


def write_sums(
    path: Path, sums: BlockSums, *, dtype: Any = np.float64, about: Mapping[str, str] | None = None
) -> None:
    """Write sums, whole or not at all."""
    tensors: dict[str, Array] = {}
    for number, part in enumerate(sums.alignments):
        tensors[f"{number}/count"] = np.array([part.count], np.int64)
        tensors[f"{number}/sums"] = part.sums
        for place, product in enumerate(part.products):
            tensors[f"{number}/products/{place}"] = product.astype(dtype, copy=False)
    _write(path, tensors, dict(about or {}))


def read_sums(path: Path, design: Design) -> tuple[BlockSums, dict[str, str]]:
    """What `write_sums` wrote in float64, and what it is about."""
    with safe_open(readable(path), framework="numpy") as file:
        about = file.metadata() or {}
        sums = BlockSums(
            [
                AlignmentSums(
                    int(file.get_tensor(f"{number}/count")[0]),
                    file.get_tensor(f"{number}/sums"),
                    [
                        file.get_tensor(f"{number}/products/{place}")
                        for place in range(len(alignment.columns))
                    ],
                )
                for number, alignment in enumerate(design.alignments)
            ]
        )
    return sums, about


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write JSON, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    _into_place(partial, path)


def _write(path: Path, tensors: Mapping[str, Array], about: Mapping[str, str]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    plain = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    with written(partial):
        save_file(plain, partial, dict(about))
    _into_place(partial, path)


def _into_place(partial: Path, path: Path) -> None:
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def share_file(folder: Path, share: str) -> Path:
    """Where the sums of a share are."""
    return folder / f"{share}.safetensors"


def is_group(share: str) -> bool:
    """Whether a share is a group of test documents."""
    return share.startswith(f"{TEST}-")
