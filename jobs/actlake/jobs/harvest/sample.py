"""A few contexts of a corpus, to try a model on before anything is laid out."""

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from actlake.platform.corpus import CorpusConfig, lay_out
from actlake.platform.corpus.tokenise import Tokenizer
from actlake.storage import ActivationStore, Context, Document

Array = np.ndarray[Any, Any]

NUM_CONTEXTS = 4


def sample_of_corpus(config: CorpusConfig, tokenizer: Tokenizer) -> tuple[Array, ...]:
    """The first contexts as they will be laid out, (tokens,) int32 each; at least one.

    Only the first documents are read.

    Raises
    ------
    CorpusError
        The text is refused, as when it is laid out.
    """
    sample = _Sample()
    with suppress(_Enough):
        lay_out(config, tokenizer, sample, batch_documents=NUM_CONTEXTS)
    return tuple(sample.contexts)


def sample_of_store(store: ActivationStore) -> tuple[Array, ...]:
    """The first contexts of a store; its text is not needed."""
    first = store.schema.stretches[0].contexts
    starts = store.contexts["start"].read(0, min(NUM_CONTEXTS, len(first)) + 1)
    ids = store.tokens["id"].read(0, int(starts[-1]))
    return tuple(np.split(ids, starts[1:-1]))


class _Enough(Exception):
    """There are as many contexts as are wanted."""


@dataclass(slots=True)
class _Sample:
    """Takes what is laid out until it has enough."""

    contexts: list[Array] = field(default_factory=list)

    def add_document(self, document: Document) -> int:
        return 0  # whose text it is does not matter here

    def add_context(self, context: Context) -> None:
        self.contexts.append(context.ids)
        if len(self.contexts) == NUM_CONTEXTS:
            raise _Enough
