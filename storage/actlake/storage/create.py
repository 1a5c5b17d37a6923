"""Make a store: lay the corpus down, then make it visible by one entry of the ledger.

Until that entry is there, nothing is: a builder that dies leaves files that the next one moves
aside. When it is there, the rows are fixed for good, and nothing of them is ever cleared.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

import numpy as np

from actlake.storage.corpus import Context, Document
from actlake.storage.corpus_record import DOCUMENTS, TOKENIZER, CorpusRecord, FileRecord
from actlake.storage.document_spool import DocumentSpool
from actlake.storage.durable import refusal
from actlake.storage.errors import (
    InvalidSchema,
    KeyTaken,
    StoreDamaged,
    StoreError,
    StoreExists,
)
from actlake.storage.extents import Extent
from actlake.storage.fence import STAGING
from actlake.storage.index_columns import COLUMNS, IndexColumn
from actlake.storage.layout import MANIFEST, ROWS
from actlake.storage.lease import Lease
from actlake.storage.metadata import write_metadata
from actlake.storage.provenance import Provenance, fingerprint
from actlake.storage.schema import Geometry, Layout, StoreSchema
from actlake.storage.sealed import crc32c, seal

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StoreRequest:
    """What a store should be, as far as that is known before its text is read."""

    layout: Layout
    context_length: int
    splits: tuple[str, ...]
    special_ids: tuple[int, ...] = ()
    nonfinite: Any = "refuse"


def request_of(schema: StoreSchema) -> StoreRequest:
    """What was asked for, of a store that is there."""
    return StoreRequest(
        layout=schema.layout,
        context_length=schema.context_length,
        splits=schema.splits,
        special_ids=schema.special_ids,
        nonfinite=schema.nonfinite,
    )


class StoreBuilder:
    """Takes documents and contexts, one after the other, and makes a store of them.

    A context manager; `finish` makes the store visible. Memory does not grow with the corpus.
    """

    def __init__(
        self,
        lease: Lease,
        request: StoreRequest,
        provenance: Provenance,
        *,
        tokenizer_files: Mapping[str, bytes] | None = None,
        token_chunk_rows: int = 2**16,
        token_shard_rows: int = 2**22,
    ) -> None:
        _set_leftovers_aside(lease)
        self._lease = lease
        self._request = request
        self._provenance = provenance
        self._split_codes = {name: code for code, name in enumerate(request.splits)}
        self._files: dict[str, FileRecord] = {}
        self._rows = 0
        self._contexts = 0
        self._token_cut = (token_chunk_rows, token_shard_rows)
        self._columns = {name: IndexColumn(self._write, name, self._token_cut) for name in COLUMNS}
        for name, data in sorted((tokenizer_files or {}).items()):
            self._write(f"{TOKENIZER}/{name}", [data])
        self._scratch = ExitStack()  # last: what is refused before leaves no folder
        self._documents = DocumentSpool(scratch_of(lease, self._scratch))

    def add_document(self, document: Document) -> int:
        """Add a document; its ordinal, by which contexts name it, is returned."""
        self._code(document.split)
        with spooling(self._lease):
            return self._documents.add(document)

    def add_context(self, context: Context) -> None:
        """Add a context: its tokens become the next rows. Its arrays may be used again at once."""
        n = len(context)
        if not n == len(context.documents) == len(context.chars):
            raise InvalidSchema(
                f"A context of {n} tokens has {len(context.documents)} documents and "
                f"{len(context.chars)} characters; each token needs one of each"
            )
        if not 1 <= n <= self._request.context_length:
            raise InvalidSchema(
                f"A context of {n} tokens does not fit the store's context length, "
                f"{self._request.context_length}"
            )
        self._columns["tokens/id"].append(context.ids)
        self._columns["tokens/document"].append(context.documents)
        self._columns["tokens/position"].append(np.arange(n, dtype=np.int32))
        self._columns["tokens/char"].append(context.chars)
        self._columns["contexts/start"].append(np.array([self._rows]))
        self._columns["contexts/split"].append(np.array([self._code(context.split)]))
        self._rows += n
        self._contexts += 1

    @property
    def rows(self) -> int:
        """Tokens added so far."""
        return self._rows

    def finish(self, geometry: Callable[[int], Geometry]) -> StoreSchema:
        """Make the store visible; nothing can be added afterwards.

        Parameters
        ----------
        geometry
            From the number of rows, how to cut them; mostly `plan_geometry`.

        Raises
        ------
        InvalidSchema
            No context was added.
        """
        if self._rows == 0:
            raise InvalidSchema(
                "A store needs at least one token, and the corpus gave none\n"
                "hint: look at the corpus report; were all documents empty?"
            )
        self._columns["contexts/start"].append(np.array([self._rows]))
        request = self._request
        cut = geometry(self._rows)
        chunk, shard = self._token_cut
        schema = StoreSchema(
            rows=self._rows,
            contexts=self._contexts,
            documents=len(self._documents),
            layout=request.layout,
            context_length=request.context_length,
            splits=request.splits,
            special_ids=request.special_ids,
            nonfinite=request.nonfinite,
            geometry=replace(cut, token_chunk_rows=chunk, token_shard_rows=shard),
        )
        for spec in (*schema.tokens().values(), *schema.context_arrays().values()):
            self._columns[spec.name].finish(spec)
        for key, data in schema.common_metadata().items():
            self._ensure(key, [data])
        with spooling(self._lease):
            documents = self._documents.as_parquet()
        self._write(DOCUMENTS, [documents])
        self._refuse_strays(schema)
        contents = {name: column.sha256 for name, column in self._columns.items()}
        contents["documents"] = self._documents.sha256
        corpus = CorpusRecord(
            schema=schema,
            provenance=self._provenance,
            fingerprint=fingerprint(self._provenance, contents=contents),
            rows=Extent(0, schema.rows),
            contexts=Extent(0, schema.contexts),
            documents=Extent(0, schema.documents),
            sha256=contents,
            files=self._files,
        )
        self._lease.ledger.append(corpus.as_json())
        write_metadata(self._lease, {MANIFEST: seal(corpus.manifest())})
        return schema

    def _write(self, key: str, parts: list[Any]) -> None:
        self._ensure(key, parts)
        self._files[key] = FileRecord(
            bytes=sum(memoryview(p).nbytes for p in parts), crc32c=crc32c(*parts)
        )

    def _ensure(self, key: str, parts: list[Any]) -> None:
        try:
            self._lease.writer.ensure(key, parts)
        except KeyTaken as error:
            raise _another_corpus(self._lease, key) from error

    def _refuse_strays(self, schema: StoreSchema) -> None:
        """Whatever lies among the corpus's files is of this corpus: nothing could be set aside."""
        specs = [*schema.tokens().values(), *schema.context_arrays().values()]
        ours = {*self._files, *schema.common_metadata()}
        for folder in (TOKENIZER, *(spec.folder for spec in specs)):
            for key in self._lease.location.list(folder):
                if key not in ours:
                    raise _another_corpus(self._lease, key)

    def _code(self, split: str) -> int:
        try:
            return self._split_codes[split]
        except KeyError:
            raise InvalidSchema(
                f"There is no split {split!r}; the store has "
                f"{', '.join(map(repr, self._split_codes))}"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._documents.close()
        self._scratch.close()


@contextmanager
def spooling(lease: Lease) -> Iterator[None]:
    """Errors of the file system, while documents are spooled, in our words."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        lease.token.check(lease.location)  # a later driver clears up
        raise refusal(error, "spool the documents", lease.location.url) from error


def scratch_of(lease: Lease, stack: ExitStack) -> Path:
    """A folder for what is in the making: the driver's own, which the next one removes.

    Beside a bucket it is a temporary one of this machine, where ``TMPDIR`` says.
    """
    beside = lease.location.local_path(STAGING)
    if beside is not None:
        return beside / lease.token.name
    return Path(stack.enter_context(TemporaryDirectory(prefix="actlake-documents-")))


def _set_leftovers_aside(lease: Lease) -> None:
    """Make room for a corpus; refused where there is more than an unfinished one.

    Raises
    ------
    StoreExists
        A corpus is laid down.
    StoreDamaged
        A store is there whose ledger does not know its corpus.
    """
    location, state = lease.location, lease.ledger.state
    if state.corpora:
        raise StoreExists(f"There is a store at {location.url} already")
    if state.covered or location.size(MANIFEST) is not None:
        lease.token.check(location)  # a later driver may have made it
        raise StoreDamaged(
            f"There is a store at {location.url}, and its ledger does not know its corpus\n"
            "hint: restore the folder `ledger` from a copy; or move the store's files away, and "
            "make it anew"
        )
    folder = lease.writer.set_aside([ROWS, DOCUMENTS, TOKENIZER])
    if folder is not None:
        logger.warning(
            "%s holds an unfinished corpus, of which nothing is committed: it is kept in %s, "
            "which may be removed", location.url, folder,
        )  # fmt: skip


def _another_corpus(lease: Lease, key: str) -> StoreExists:
    return StoreExists(
        f"{key} in {lease.location.url} is of another corpus, which was not finished; in a bucket "
        "it cannot be moved aside\nhint: give another prefix, or remove this one when nobody "
        "writes to it"
    )
