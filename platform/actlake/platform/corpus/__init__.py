"""Corpora: documents in, tokenised contexts out.

    report = lay_out(CorpusConfig(source=Files(path="texts/**/*.txt")), tokenizer, builder)

`lay_out` reads a source, tokenises it in batches and gives documents and contexts to a sink, in
an order that depends on nothing but config, text and tokenizer. A document's split is decided
before it is laid out, and a context holds one split.
"""

from actlake.platform.corpus.beginning import Beginning, resolve_beginning
from actlake.platform.corpus.chat_template import open_template
from actlake.platform.corpus.config import (
    CorpusConfig,
    Documents,
    Packed,
    Sample,
    SpecialTokens,
    SplitByColumn,
    SplitByHash,
)
from actlake.platform.corpus.emitted_tokens import emitted_tokens
from actlake.platform.corpus.errors import CorpusError
from actlake.platform.corpus.lay_out import CorpusSink, Progress, lay_out
from actlake.platform.corpus.provenance import corpus_provenance
from actlake.platform.corpus.report import CorpusReport, special_tokens_said
from actlake.platform.corpus.sources import Builtin, Files, HubDataset
from actlake.platform.corpus.splits import split_of
from actlake.platform.corpus.tokenise import Tokenizer

__all__ = [
    "CorpusConfig",
    "Files",
    "HubDataset",
    "Builtin",
    "Sample",
    "Beginning",
    "Packed",
    "Documents",
    "SpecialTokens",
    "SplitByHash",
    "SplitByColumn",
    "lay_out",
    "open_template",
    "CorpusReport",
    "CorpusSink",
    "Progress",
    "Tokenizer",
    "corpus_provenance",
    "emitted_tokens",
    "resolve_beginning",
    "special_tokens_said",
    "split_of",
    "CorpusError",
]
