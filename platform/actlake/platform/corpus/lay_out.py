"""Lay a corpus out: documents and contexts, in their final order, into a sink.

    read ─► tokenise ─► name, divide, dress with BOS and separator ─► windows ─► sink

Memory holds one batch of documents, one open context a split and 8 bytes a document; the
largest single document counts whole.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

from actlake.platform.corpus.beginning import Beginning, resolve_beginning
from actlake.platform.corpus.chat_template import open_template
from actlake.platform.corpus.chosen import LeftOut
from actlake.platform.corpus.columns import KeptColumns
from actlake.platform.corpus.config import (
    CorpusConfig,
    Documents,
    Packed,
    SplitByColumn,
    SplitByHash,
)
from actlake.platform.corpus.errors import (
    CorpusEmpty,
    DocumentTooLong,
    InvalidColumn,
    InvalidCorpusConfig,
    SpecialTokenInText,
    SplitEmpty,
)
from actlake.platform.corpus.given_ids import GivenIds
from actlake.platform.corpus.identity import Identities
from actlake.platform.corpus.passages import Unreadable
from actlake.platform.corpus.read import read_corpus
from actlake.platform.corpus.report import EXAMPLES_AT_MOST, CorpusReport
from actlake.platform.corpus.special_tokens import TextEncoder
from actlake.platform.corpus.splits import split_of_document
from actlake.platform.corpus.tokenise import (
    UNKNOWN_CHARACTER,
    Int32s,
    Tokenised,
    Tokenizer,
    check_fast,
    separator_id,
    tokenise,
)
from actlake.platform.corpus.windows import Strand, Windows, fitting
from actlake.storage.corpus import Context, Document

logger = logging.getLogger(__name__)


class CorpusSink(Protocol):
    """Takes what is laid out; `actlake.storage.create.StoreBuilder` is one."""

    def add_document(self, document: Document) -> int:
        """Add a document; its ordinal is returned."""
        ...

    def add_context(self, context: Context) -> None:
        """Add a context: its tokens become the next rows."""
        ...


class Progress(Protocol):
    """Told after every document how far the layout is."""

    def __call__(self, *, documents: int, rows: int) -> None:
        """Documents with rows, and rows, so far."""
        ...


def lay_out(
    config: CorpusConfig,
    tokenizer: Tokenizer,
    sink: CorpusSink,
    progress: Progress | None = None,
    *,
    batch_documents: int = 256,
    known: Iterable[str] = (),
) -> CorpusReport:
    """Read, tokenise and lay out the whole corpus.

    What reaches the sink depends on config, text and tokenizer only: not on the batch size, the
    number of threads or the machine.

    Parameters
    ----------
    tokenizer
        A fast transformers tokenizer.
    sink
        Gets each document before the first context that names it.
    batch_documents
        Documents tokenised at once.
    known
        Texts of the documents that this corpus is appended to, for `CorpusConfig.deduplicate`.

    Raises
    ------
    CorpusError
        A source, document or split that is refused (`actlake.platform.corpus.errors`). The sink
        may hold part of the corpus then and is to be thrown away.
    """
    check_fast(tokenizer)
    beginning = resolve_beginning(config.bos, tokenizer)
    layout = _Layout(config, beginning, separator_id(config, tokenizer), sink)
    template = open_template(config, tokenizer, beginning)
    encoder = TextEncoder(tokenizer, config.special_tokens_are)
    documents = read_corpus(config, template, GivenIds(tokenizer), known=known)
    for item in tokenise(documents, encoder, batch_documents=batch_documents):
        layout.add(item)
        if progress is not None:
            progress(documents=layout.documents, rows=layout.rows)
        if layout.budget_reached:
            break
    report = layout.finish()
    logger.info("Laid out the corpus: %s", report)
    if report.shares_are_far_off:
        logger.warning("%s", report.shares_said)
    return report


class _Layout:
    """Takes tokenised documents in order, and counts."""

    def __init__(
        self,
        config: CorpusConfig,
        beginning: Beginning,
        separator: int | None,
        sink: CorpusSink,
    ) -> None:
        self._config = config
        self._beginning = beginning
        self._separator = separator
        self._sink = sink
        # A context begins with one beginning at most, whoever asks for it.
        self._capacity = config.context_length - len(beginning.ids)
        if self._capacity < 1:
            raise InvalidCorpusConfig(
                f"A context of {config.context_length} tokens has no room for text: {beginning}\n"
                "hint: raise corpus.context_length"
            )
        self._document_bos = beginning.ids if beginning.at == "document" else ()
        self._context_bos = beginning.ids if beginning.at == "context" else ()
        self._windows = Windows(config.context_length, bos=self._context_bos)
        self._identities = Identities()
        self._columns = KeptColumns(
            leave_out=config.splits.column if isinstance(config.splits, SplitByColumn) else None
        )
        self._tally: Counter[str] = Counter()
        self._special: Counter[str] = Counter()
        self._rows_per_split = dict.fromkeys(config.splits.names, 0)
        self._documents_per_split = dict.fromkeys(config.splits.names, 0)
        self._empty: list[str] = []
        self._skipped: list[str] = []
        self.budget_reached = False

    @property
    def rows(self) -> int:
        """Rows made so far, those in open contexts included."""
        return self._windows.rows

    @property
    def documents(self) -> int:
        """Documents with rows so far."""
        return self._tally["documents"]

    def add(self, item: Tokenised | Unreadable | LeftOut) -> None:
        """Lay out one document, or count it as left out, skipped or empty."""
        if isinstance(item, LeftOut):
            self._tally[f"left out: {item.why}"] += 1
        elif isinstance(item, Unreadable):
            self._tally["skipped"] += 1
            _note(self._skipped, f"{item.place} ({item.reason})")
        elif len(item.ids) == 0:
            self._tally["empty"] += 1
            _note(self._empty, item.passage.place)
        else:
            self._add_tokens(item)

    def _add_tokens(self, item: Tokenised) -> None:
        passage = item.passage
        if item.special and self._config.special_tokens_are == "refuse":
            raise _special_token_in_text(item)
        if passage.ids is not None:
            _refuse_two_beginnings(item, self._beginning)
        identity = self._identities.name(passage)
        split = split_of_document(self._config.splits, identity.key, passage.columns, passage.place)
        num_kept = self._within_its_context(item)
        ids, chars = self._dressed(item, num_kept)
        num_rows = self._within_the_budget(len(ids), split)
        num_text = min(num_kept, num_rows - len(self._document_bos))
        self.budget_reached = num_rows < len(ids)
        if num_text < 1:
            return
        has_text = passage.ids is None or passage.text != ""
        ordinal = self._sink.add_document(
            Document(
                id=identity.id,
                source=passage.source,
                split=split,
                text=passage.text if self._config.keep_text and has_text else None,
                columns=self._columns.of(passage),
            )
        )
        self._place(Strand(split, ordinal, ids[:num_rows], chars[:num_rows]))
        self.budget_reached |= self.rows == self._config.max_tokens
        self._documents_per_split[split] += 1
        self._tally["documents"] += 1
        self.budget_reached |= self.documents == self._config.max_documents
        self._tally["repeated"] += identity.repeated
        self._special.update(token for token, _ in item.special)
        self._tally["characters"] += len(passage.text)
        self._tally["without places"] += not item.has_places
        self._tally["text"] += num_text
        self._tally["separators"] += num_rows - len(self._document_bos) - num_text
        self._tally["cut"] += num_kept - num_text
        self._tally["truncated"] += len(item.ids) - num_kept
        self._tally["truncated documents"] += num_kept < len(item.ids)
        if isinstance(self._config.layout, Documents):
            self._tally["continued"] += num_text > self._capacity

    def _within_its_context(self, item: Tokenised) -> int:
        """How many tokens the layout keeps of a document."""
        layout, num_tokens = self._config.layout, len(item.ids)
        if isinstance(layout, Packed) or num_tokens <= self._capacity:
            return num_tokens
        if layout.long_documents == "refuse":
            raise DocumentTooLong(
                f"{item.passage.place} has {num_tokens:,} tokens; a context holds "
                f"{self._capacity:,} of them\n"
                "hint: raise corpus.context_length, or set corpus.layout.long_documents to split "
                "or truncate"
            )
        return self._capacity if layout.long_documents == "truncate" else num_tokens

    def _dressed(self, item: Tokenised, num_kept: int) -> tuple[Int32s, Int32s]:
        """The document's tokens between what joins them."""
        before = list(self._document_bos)
        after = [] if self._separator is None else [self._separator]
        begin, end = (0, len(item.passage.text)) if item.has_places else (UNKNOWN_CHARACTER,) * 2
        return (
            _joined(before, item.ids[:num_kept], after),
            _joined([begin] * len(before), item.chars[:num_kept], [end] * len(after)),
        )

    def _within_the_budget(self, num_rows: int, split: str) -> int:
        """How many rows of a strand may stay."""
        if self._config.max_tokens is None:
            return num_rows
        return fitting(
            num_rows,
            self._config.max_tokens - self.rows,
            room=self._windows.room(split),
            context_length=self._config.context_length,
            bos_rows=len(self._context_bos),
        )

    def _place(self, strand: Strand) -> None:
        rows_before = self.rows
        self._give(self._windows.fill(strand))
        self._rows_per_split[strand.split] += self.rows - rows_before
        if isinstance(self._config.layout, Documents):
            self._give(self._windows.close(strand.split))

    def _give(self, contexts: Iterator[Context]) -> None:
        for context in contexts:
            self._tally["contexts"] += 1
            self._sink.add_context(context)

    def finish(self) -> CorpusReport:
        """Hand out the open contexts and check that nothing needed is empty."""
        self._give(self._windows.close_all())
        tally = self._tally
        report = CorpusReport(
            documents=tally["documents"],
            empty_documents=tally["empty"],
            skipped_documents=tally["skipped"],
            repeated_documents=tally["repeated"],
            unsampled_documents=tally["left out: sample"],
            duplicate_documents=tally["left out: duplicate"],
            rows=self.rows,
            contexts=tally["contexts"],
            text_tokens=tally["text"],
            separators=tally["separators"],
            bos_tokens=self._windows.bos_rows + tally["documents"] * len(self._document_bos),
            truncated_tokens=tally["truncated"],
            cut_tokens=tally["cut"],
            special_tokens=dict(self._special.most_common()),
            special_tokens_are=self._config.special_tokens_are,
            rows_per_split=self._rows_per_split,
            documents_per_split=self._documents_per_split,
            expected_shares=_expected_shares(self._config),
            truncated_documents=tally["truncated documents"],
            continued_documents=tally["continued"],
            documents_without_places=tally["without places"],
            budget_reached=self.budget_reached,
            empty_examples=tuple(self._empty),
            skipped_examples=tuple(self._skipped),
        )
        _refuse_emptiness(report, self._config, characters=tally["characters"])
        return report


def _expected_shares(config: CorpusConfig) -> dict[str, float]:
    splits = config.splits
    if isinstance(splits, SplitByColumn):
        return {}
    return {name: splits.fractions[name] for name in splits.names}


def _refuse_two_beginnings(item: Tokenised, beginning: Beginning) -> None:
    begins = tuple(item.ids[: len(beginning.ids)].tolist())
    if beginning.ids and begins == beginning.ids:
        raise InvalidColumn(
            f"{item.passage.place} would begin twice: its ids begin with "
            f"{' '.join(beginning.tokens)}, and {beginning}\n"
            "hint: set corpus.bos: never, or leave the beginning out of the ids"
        )


def _special_token_in_text(item: Tokenised) -> SpecialTokenInText:
    token, start = item.special[0]
    return SpecialTokenInText(
        f"{item.passage.place} has the special token {token!r} written in its text, at character "
        f"{start:,} ({len(item.special):,} in all)\n"
        "hint: take it out, or set corpus.special_tokens.in_text to ordinary (words like any "
        "other) or special (the token itself is meant)"
    )


def _refuse_emptiness(report: CorpusReport, config: CorpusConfig, *, characters: int) -> None:
    if report.rows == 0:
        raise CorpusEmpty(
            f"The corpus gave no token: {report.documents_seen:,} documents seen, "
            f"{report.empty_documents:,} empty, {report.skipped_documents:,} skipped, "
            f"{report.unsampled_documents:,} not in the sample\n"
            f"{report}\nhint: check corpus.source, and that its text column is the right one"
        )
    empty = [
        name
        for name, rows in report.rows_per_split.items()
        if rows == 0 and name not in config.splits.allow_empty
    ]
    if empty:
        there = ", ".join(f"{name} {rows:,}" for name, rows in report.rows_per_split.items())
        raise SplitEmpty(
            f"The split {empty[0]!r} has no rows ({report.documents:,} documents; rows: {there})\n"
            f"hint: {_how_to_fill(config, characters)}, or give more "
            "documents, another corpus.splits.seed, no share for it, or "
            f"corpus.splits.allow_empty: [{', '.join(empty)}]"
        )


# Of so many parts, a split with a tenth of them is empty once in two hundred times.
_PARTS_TO_DIVIDE = 50


def _how_to_fill(config: CorpusConfig, characters: int) -> str:
    """What to know, and one flag that makes enough documents of the text, where there is one."""
    if isinstance(config.splits, SplitByHash) and config.splits.by is not None:
        column = config.splits.by
        return f"documents of one {column!r} are in one split; name a column of more values"
    if config.is_given_as_ids:
        return "a document is in one split; divide long ones yourself"
    before = config.cut_documents
    wanted = characters // _PARTS_TO_DIVIDE if before is None else before // 2
    flag = f"--corpus.cut_documents {max(2, wanted)}"
    return f"a document is in one split; to divide parts of documents set {flag}"


def _note(examples: list[str], example: str) -> None:
    if len(examples) < EXAMPLES_AT_MOST:
        examples.append(example)


def _joined(before: list[int], tokens: Int32s, after: list[int]) -> Int32s:
    return np.concatenate([np.array(before, np.int32), tokens, np.array(after, np.int32)])
