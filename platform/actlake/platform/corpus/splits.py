"""Which split a document belongs to: a pure function of the document, never of its neighbours."""

import hashlib
from collections.abc import Mapping

from actlake.platform.corpus.config import SplitByColumn, SplitByHash
from actlake.platform.corpus.errors import ColumnMissing, InvalidColumn
from actlake.storage.corpus import Scalar
from actlake.storage.errors import nearest


def split_of(key: str, fractions: Mapping[str, float], seed: int = 0) -> str:
    """The split of the document called `key`, by hash.

    The hash of seed and key is a point in [0, 1); the splits share that interval by their
    fractions, in order of name. A split without a share gets nothing.
    """
    point = point_of("split", seed, key)
    names = sorted(name for name, share in fractions.items() if share > 0)
    reached = 0.0
    for name in names[:-1]:
        reached += fractions[name]
        if point < reached:
            return name
    return names[-1]


def point_of(purpose: str, seed: int, key: str) -> float:
    """A point in [0, 1) that is a document's own, by hash; another for each purpose and seed."""
    digest = hashlib.sha256(f"actlake {purpose} 1\n{seed}\n{key}".encode()).digest()
    # 53 bits, so that the point is exact in float64 and below 1.
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def split_of_document(
    splits: SplitByHash | SplitByColumn, key: str, columns: Mapping[str, Scalar], place: str
) -> str:
    """The split of a document, as the config says.

    Raises
    ------
    ColumnMissing
        The split is in a column or follows from one, and the document has none of that name.
    InvalidColumn
        The column names no split that there is, or has no value that a split could follow from.
    """
    if isinstance(splits, SplitByHash):
        if splits.by is not None:
            value = _value(columns, splits.by, "corpus.splits.by", place)
            key = _group(value, splits.by, place)
        return split_of(key, splits.fractions, splits.seed)
    value = _value(columns, splits.column, "corpus.splits.column", place)
    if not isinstance(value, str) or value not in splits.names:
        raise InvalidColumn(
            f"{place}: the split column {splits.column!r} holds {value!r}\n"
            + nearest(str(value), splits.names)
        )
    return value


def _value(columns: Mapping[str, Scalar], column: str, setting: str, place: str) -> Scalar:
    if column not in columns:
        raise ColumnMissing(
            f"{place} has no column {column!r}, which {setting} names\n"
            f"It has: {', '.join(map(repr, columns)) or 'none'}\n"
            "hint: text files and the demo text have no columns; divide them by fractions alone"
        )
    return columns[column]


def _group(value: Scalar, column: str, place: str) -> str:
    """What a split follows from. Rounding would move a number with a fraction to another group."""
    if value is None or isinstance(value, float):
        raise InvalidColumn(
            f"{place}: the column {column!r}, from which the split follows, holds {value!r}\n"
            "hint: give it text or a whole number in each document, or leave corpus.splits.by out "
            "to divide the documents one by one"
        )
    return str(value)
