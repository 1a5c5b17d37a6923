"""Texts to tokens, many at once; what comes out does not depend on how many.

The Rust tokenizer uses all cores on a batch (`TOKENIZERS_PARALLELISM=false` forbids it).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from actlake.platform.corpus.chosen import LeftOut
from actlake.platform.corpus.config import CorpusConfig, Packed
from actlake.platform.corpus.errors import CorpusError, TokenizerUnfit
from actlake.platform.corpus.passages import Passage, Unreadable

Int32s = np.ndarray[tuple[int], np.dtype[np.int32]]

UNKNOWN_CHARACTER = -1
"""Of a token whose place in its document's text is not known."""

# A million characters are about 250,000 tokens; as encodings with offsets they take some 50 MB.
_CHARACTERS_AT_ONCE = 1_000_000


class Tokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    @property
    def is_fast(self) -> bool:
        """Whether it is the Rust one."""
        ...

    @property
    def bos_token_id(self) -> int | None:
        """Beginning of text."""
        ...

    @property
    def eos_token_id(self) -> int | None:
        """End of text."""
        ...

    def get_vocab(self) -> dict[str, int]:
        """Token to id, special ones included."""
        ...

    @property
    def unk_token_id(self) -> int | None:
        """What is in no vocabulary."""
        ...

    @property
    def all_special_tokens(self) -> list[str]:
        """Tokens with a role, such as end of text."""
        ...

    @property
    def backend_tokenizer(self) -> Any:
        """The Rust one itself."""
        ...

    def __call__(self, text: list[str], **options: bool) -> Any:
        """Encode a batch; ``input_ids`` and ``offset_mapping``, a list a text."""
        ...


class Encoder(Protocol):
    """What tokenises; `actlake.platform.corpus.special_tokens.TextEncoder` is one."""

    def encode(self, texts: list[str]) -> list[tuple[Int32s, Int32s]]:
        """Of each text (n,) token ids and (n,) start characters."""
        ...

    def written(self, texts: list[str]) -> list[tuple[tuple[str, int], ...]]:
        """Of each text the special tokens that are written in it, each with its character."""
        ...

    def special_among(self, ids: Int32s) -> tuple[tuple[str, int], ...]:
        """The special tokens among given ids, each with its place."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Tokenised:
    """A passage and its tokens."""

    passage: Passage
    ids: Int32s
    """(n,) token ids."""
    chars: Int32s
    """(n,) start character of each in the text; -1 where it is not known."""
    special: tuple[tuple[str, int], ...]
    """The special tokens that are written in the text, and at which character; or are among given
    ids, and at which place."""

    @property
    def has_places(self) -> bool:
        """Whether it is known where in the text the tokens stand."""
        return bool(self.chars[0] != UNKNOWN_CHARACTER)


def check_fast(tokenizer: Tokenizer) -> None:
    """Refuse a slow tokenizer, which does not know where in the text a token begins.

    Raises
    ------
    TokenizerUnfit
        It is one.
    """
    if not tokenizer.is_fast:
        raise TokenizerUnfit(
            f"{type(tokenizer).__name__} is a slow tokenizer and does not say where in the text a "
            "token begins\nhint: load the model's fast one (tokenizer.json)"
        )


def separator_id(config: CorpusConfig, tokenizer: Tokenizer) -> int | None:
    """The token that ends each document; None where the layout wants none.

    Raises
    ------
    TokenizerUnfit
        The tokenizer has no such token.
    """
    wanted = config.layout.separator if isinstance(config.layout, Packed) else "none"
    return _separator(wanted, tokenizer)


def tokenise(
    items: Iterable[Passage | Unreadable | LeftOut],
    encoder: Encoder,
    *,
    batch_documents: int = 256,
) -> Iterator[Tokenised | Unreadable | LeftOut]:
    """Tokenise in batches, in order; what is unreadable or left out passes through in its place.

    No special tokens are added. An error of `items` is raised only after all that came before
    it, as if there were no batches.
    """
    for batch, error in _batches(items, batch_documents):
        texts = [item.text for item in batch if isinstance(item, Passage)]
        tokens = zip(encoder.encode(texts), encoder.written(texts), strict=True)
        for item in batch:
            if not isinstance(item, Passage):
                yield item
                continue
            (ids, chars), special = next(tokens)
            if item.ids is not None:
                special = encoder.special_among(item.ids)
                if not np.array_equal(ids, item.ids):
                    chars = np.full(len(item.ids), UNKNOWN_CHARACTER, np.int32)
                ids = item.ids
            yield Tokenised(item, ids, chars, special)
        if error is not None:
            raise error


def _batches(
    items: Iterable[Passage | Unreadable | LeftOut], documents: int
) -> Iterator[tuple[list[Passage | Unreadable | LeftOut], CorpusError | None]]:
    batch: list[Passage | Unreadable | LeftOut] = []
    characters = 0
    try:
        for item in items:
            batch.append(item)
            characters += len(item.text) if isinstance(item, Passage) else 0
            if len(batch) >= documents or characters >= _CHARACTERS_AT_ONCE:
                yield batch, None
                batch, characters = [], 0
    except CorpusError as error:
        yield batch, error
        return
    yield batch, None


def _separator(wanted: str, tokenizer: Tokenizer) -> int | None:
    if wanted == "none":
        return None
    if wanted == "eos":
        if tokenizer.eos_token_id is None:
            raise TokenizerUnfit(
                "The tokenizer has no end-of-text token, which separates packed documents\n"
                "hint: set corpus.layout.separator to a token of its vocabulary or to none, or "
                "corpus.layout.kind to documents"
            )
        return tokenizer.eos_token_id
    vocabulary = tokenizer.get_vocab()
    if wanted not in vocabulary:
        raise TokenizerUnfit(
            f"The separator {wanted!r} is no token of the tokenizer's {len(vocabulary)}\n"
            "hint: write a token as it stands in the vocabulary, eos or none"
        )
    return vocabulary[wanted]
