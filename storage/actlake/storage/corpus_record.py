"""What was laid down, as the ledger keeps it: rows of a corpus, and the files that hold them."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from actlake.storage.errors import FormatTooNew, StoreDamaged
from actlake.storage.extents import Extent
from actlake.storage.layout import ROWS
from actlake.storage.provenance import Provenance
from actlake.storage.schema import FORMAT, StoreSchema

DOCUMENTS = "documents.parquet"
TOKENIZER = "tokenizer"
# Of whatever a ledger says, only these are ever opened: nothing above the store, nothing beside.
_KEY = re.compile(
    r"documents(-\d{6,})?\.parquet|"
    rf"{TOKENIZER}/[^/\\]+|{re.escape(ROWS)}/(tokens|contexts)/\w+/c\.\d+"
)


def documents_key(place: int) -> str:
    """The file of the documents of a record, by its place in the chain, from 0."""
    return f"documents-{place + 1:06d}.parquet" if place else DOCUMENTS


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What a file was when it was laid down."""

    bytes: int
    crc32c: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusRecord:
    """Rows that were laid down together: an entry of the ledger, behind its fence.

    The records of a store are a chain: the first begins at row 0, each later one after a gap, of
    which `schema` tells. `schema` and `fingerprint` are of the whole chain up to this one,
    `provenance` of its own rows: model and tokenizer are the chain's, the corpus is its own.
    """

    schema: StoreSchema
    provenance: Provenance
    fingerprint: str
    rows: Extent
    contexts: Extent
    documents: Extent
    sha256: Mapping[str, str]
    """Of the values of each index array and of the documents, however they are cut into files.

    Documents and rows are counted from those that the record begins with, so the same corpus has
    the same hashes wherever it lies.
    """
    files: Mapping[str, FileRecord]

    def as_json(self) -> dict[str, Any]:
        """The entry, but for its number; `from_json` reads it back."""
        return {
            "kind": "corpus",
            **self.manifest(),
            "rows": _pair(self.rows),
            "contexts": _pair(self.contexts),
            "documents": _pair(self.documents),
            "sha256": dict(self.sha256),
            "files": {key: asdict(file) for key, file in sorted(self.files.items())},
        }

    def manifest(self) -> dict[str, Any]:
        """What ``store.json`` repeats of the last record, for people and other tools."""
        return {
            "format": FORMAT,
            "schema": self.schema.as_json(),
            "provenance": self.provenance.as_json(),
            "fingerprint": self.fingerprint,
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "CorpusRecord":
        """Read what `as_json` wrote.

        Raises
        ------
        FormatTooNew
            A newer actlake wrote it.
        StoreDamaged
            It names a file that is no part of a corpus.
        """
        check_format(entry["format"], "The corpus in the ledger")
        for key in entry["files"]:
            if not _KEY.fullmatch(key) or key.endswith("/.."):
                raise StoreDamaged(
                    f"The ledger's corpus names a file that is no part of one: {key!r}\n"
                    "hint: the store was tampered with; do not use it"
                )
        return cls(
            schema=StoreSchema.from_json(entry["schema"]),
            provenance=Provenance.from_json(entry["provenance"]),
            fingerprint=entry["fingerprint"],
            rows=Extent(*entry["rows"]),
            contexts=Extent(*entry["contexts"]),
            documents=Extent(*entry["documents"]),
            sha256=entry["sha256"],
            files={key: FileRecord(**file) for key, file in entry["files"].items()},
        )


def check_format(number: int, what: str) -> None:
    """Refuse a store of another format.

    Raises
    ------
    FormatTooNew
        It is not `FORMAT`; `what` begins the message.
    """
    if number == FORMAT:
        return
    hint = "pip install --upgrade actlake" if number > FORMAT else "make the store again"
    raise FormatTooNew(
        f"{what} is of format {number}; this actlake reads format {FORMAT}\nhint: {hint}"
    )


def _pair(extent: Extent) -> list[int]:
    return [extent.start, extent.stop]
