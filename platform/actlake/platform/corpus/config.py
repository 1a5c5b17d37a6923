"""What a corpus is made of: where its text is, how it is laid out, how it is divided.

    corpus:
      source: {path: "texts/**/*.txt"}             # or {dataset: ...}, or {builtin: demo}
      layout: {kind: packed}                       # or {kind: documents, long_documents: split}
      context_length: 256
      splits: {fractions: {train: 0.9, test: 0.1}} # also by: author; or {column: …, names: […]}

Configs are inert: nothing is opened or resolved here.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from actlake.platform.corpus.errors import InvalidCorpusConfig
from actlake.platform.corpus.sources import Builtin, Files, HubDataset

Bos = Literal["auto", "never", "context", "document"]
LongDocuments = Literal["split", "truncate", "refuse"]
InText = Literal["ordinary", "special", "refuse"]

_SPLIT_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, kw_only=True)
class Packed:
    """Documents follow each other, joined by a separator, and are cut into full contexts.

    A context holds one split only; each split's last one may be short. A separator belongs to
    the document it ends.
    """

    kind: Literal["packed"] = "packed"
    """Which layout this is."""

    separator: str = "eos"
    """`eos`: the tokenizer's end of text; `none`; or a token as written in the vocabulary, such
    as ``<|endoftext|>``."""

    def __post_init__(self) -> None:
        if not self.separator:
            raise InvalidCorpusConfig("The separator is empty\nhint: for no separator write none")


@dataclass(frozen=True, kw_only=True)
class Documents:
    """Each document begins a context of its own."""

    kind: Literal["documents"] = "documents"
    """Which layout this is."""

    long_documents: LongDocuments = "split"
    """A document longer than a context is continued in further ones (`split`), loses its end,
    counted (`truncate`), or stops the run (`refuse`)."""


@dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """What becomes of special tokens that are written in the text."""

    in_text: InText = "ordinary"
    """What ``<|endoftext|>`` in a document is: `ordinary` text like any other words; the
    `special` token, as in conversations that were written down with their marks; or a reason to
    `refuse` the corpus. Counted in any case."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A random share of the documents, which depends on seed and document alone.

    A document is in it or not, whatever else is in the source; equal texts without ids go together.
    """

    fraction: float
    """Expected share of the documents, above 0 and at most 1."""

    seed: int = 0
    """Another seed draws other documents. A split's seed is another matter."""

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise InvalidCorpusConfig(
                f"A sample of {self.fraction} of the documents cannot be drawn\n"
                "hint: set corpus.sample.fraction above 0 and at most 1, such as 0.1"
            )


@dataclass(frozen=True, kw_only=True)
class SplitByHash:
    """A document's split follows from its id, or from a column, and the seed, and nothing else."""

    fractions: Mapping[str, float] = field(default_factory=lambda: {"train": 0.9, "test": 0.1})
    """Share of the documents, and so of the rows that are to be expected, by name of the split;
    they sum to 1. Their order plays no part. A few long documents, each in one split, may take the
    share of the rows far from it, which is said; `cut_documents` divides them."""

    by: str | None = None
    """Column whose value decides in the place of the id: documents of one author, or the members of
    a pair, are in one split. The shares are then of its values. Null: each document by itself."""

    seed: int = 0
    """Another seed divides the documents another way."""

    allow_empty: tuple[str, ...] = ()
    """Splits that may end without rows; any other empty one is an error."""

    def __post_init__(self) -> None:
        _check_names(self.fractions)
        if any(not 0 <= share <= 1 for share in self.fractions.values()) or not math.isclose(
            math.fsum(self.fractions.values()), 1.0, abs_tol=1e-9
        ):
            raise InvalidCorpusConfig(
                f"Fractions of splits are between 0 and 1 and sum to 1, not {dict(self.fractions)}"
                "\nhint: set corpus.splits.fractions, such as {train: 0.9, test: 0.1}"
            )
        _check_allowed(self.allow_empty, self.fractions)

    @property
    def names(self) -> tuple[str, ...]:
        """Splits with a share, in order of name."""
        return tuple(sorted(name for name, share in self.fractions.items() if share > 0))

    @property
    def needed_column(self) -> str | None:
        """The column that has to be read to divide the documents."""
        return self.by


@dataclass(frozen=True, kw_only=True)
class SplitByColumn:
    """A document's split is written in one of its columns."""

    column: str
    """Name of that column; it is not kept a second time beside the text."""

    names: tuple[str, ...]
    """All splits there are; a document with another one is refused."""

    allow_empty: tuple[str, ...] = ()
    """Splits that may end without rows; any other empty one is an error."""

    def __post_init__(self) -> None:
        _check_names(self.names)
        if len(set(self.names)) != len(self.names):
            raise InvalidCorpusConfig(f"A split is named twice in {', '.join(self.names)}")
        _check_allowed(self.allow_empty, self.names)

    @property
    def needed_column(self) -> str:
        """The column that has to be read to divide the documents."""
        return self.column


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Which text, in which contexts, divided how. Equal configs on equal text give equal rows."""

    source: Files | HubDataset | Builtin = field(default_factory=Builtin)
    """Where the text is."""

    layout: Packed | Documents = field(default_factory=Packed)
    """How documents become contexts."""

    context_length: int = 256
    """Most tokens the model sees at once, the beginning-of-text token included; at least 2."""

    bos: Bos = "auto"
    """Where a beginning-of-text token is put: nowhere (`never`), at the start of every `context`,
    or of every `document`. `auto`: at the start of every context where the model's tokenizer
    begins a text with it by itself, as Gemma's and Llama 3's do, else nowhere."""

    special_tokens: SpecialTokens = field(default_factory=SpecialTokens)
    """What special tokens that are written in the text are."""

    splits: SplitByHash | SplitByColumn = field(default_factory=SplitByHash)
    """How documents are divided into splits; decided before they are laid out."""

    cut_documents: int | None = None
    """Make several documents of each that is longer than about so many characters, at the ends of
    paragraphs, lines, sentences or words, so that a few long texts have parts in every split.
    Null: a document stays whole, and in one split."""

    sample: Sample | None = None
    """Read a random share of the documents, counted after they are cut. Null: all of them."""

    deduplicate: bool = False
    """Leave out documents whose text, letter by letter, is that of an earlier one, counted."""

    max_documents: int | None = None
    """Most documents with rows there may be; reading stops with the last. Null: all of them."""

    max_tokens: int | None = None
    """Most rows there may be; the document that exceeds them is cut and reading stops. Null: all
    of the text."""

    keep_text: bool = True
    """Keep each document's text beside its tokens, whole also where its tokens are cut."""

    @property
    def special_tokens_are(self) -> InText:
        """What special tokens in a text are; in a chat template and given ids always themselves."""
        has_messages = not isinstance(self.source, Builtin) and self.source.messages_column
        are_meant = has_messages or self.is_given_as_ids
        return "special" if are_meant else self.special_tokens.in_text

    @property
    def is_given_as_ids(self) -> bool:
        """Whether documents are token ids, and nothing is tokenised."""
        return not isinstance(self.source, Builtin) and self.source.ids_column is not None

    def __post_init__(self) -> None:
        if self.context_length < 2:
            raise InvalidCorpusConfig(
                f"A context of {self.context_length} tokens is too short: the first token of a "
                "context is left out of statistics\nhint: set corpus.context_length to 2 or more"
            )
        if self.cut_documents is not None and self.cut_documents < 2:
            raise InvalidCorpusConfig(
                f"cut_documents is {self.cut_documents}; a part has at least 2 characters\n"
                "hint: such as corpus.cut_documents: 2000; to leave documents whole leave it out"
            )
        source = self.source
        if self.cut_documents is not None and not isinstance(source, Builtin):
            for name in ("messages_column", "ids_column", "segments_column"):
                if getattr(source, name) is not None:
                    raise InvalidCorpusConfig(
                        f"Documents that are more than a text (corpus.source.{name}) are not cut\n"
                        "hint: leave corpus.cut_documents out"
                    )
        for name in ("max_documents", "max_tokens"):
            most = getattr(self, name)
            if most is not None and most < 1:
                raise InvalidCorpusConfig(
                    f"{name} is {most}; a corpus has at least one\n"
                    f"hint: for all of the text leave corpus.{name} out"
                )


def _check_names(names: Mapping[str, float] | tuple[str, ...]) -> None:
    if not names:
        raise InvalidCorpusConfig("There is no split\nhint: for one split: {fractions: {train: 1}}")
    for name in names:
        if not _SPLIT_NAME.fullmatch(name):
            raise InvalidCorpusConfig(
                f"A split cannot be called {name!r}\nhint: use letters, digits, _ and -"
            )


def _check_allowed(allowed: tuple[str, ...], names: Mapping[str, float] | tuple[str, ...]) -> None:
    for name in allowed:
        if name not in names:
            raise InvalidCorpusConfig(
                f"allow_empty names the split {name!r}\nhint: there is {', '.join(names)}"
            )
