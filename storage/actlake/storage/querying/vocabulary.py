"""The tokens of a store's tokenizer, as the text each stands for.

What a token reads as depends on the tokenizer's family: ``Ġdog``, ``▁dog`` and ``dog`` (beside
``##dog``) are all the text " dog" within a sentence. So each is decoded behind another token,
whose own text is then taken off.
"""

import difflib
from functools import cached_property
from typing import Any

import numpy as np

from actlake.storage.errors import NotInStore

Array = np.ndarray[Any, Any]
INCOMPLETE = "\ufffd"
"""What part of a character decodes to."""


class Vocabulary:
    """The tokens of a ``tokenizers.Tokenizer``; of a store without one, none: ids alone."""

    def __init__(self, tokenizer: Any | None) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def texts(self) -> dict[int, str]:
        """Of each id, the text it adds where it follows other text.

        A part of a character reads as U+FFFD. About 0.1 s for 50,000 tokens, once.
        """
        ids = sorted(self._pieces.values())
        if self._tokenizer is None:
            return {}
        front = self._tokenizer.encode("a", add_special_tokens=False).ids[-1:]
        skip = len(self._tokenizer.decode(front, skip_special_tokens=False))
        decoded = self._tokenizer.decode_batch(
            [[*front, token] for token in ids], skip_special_tokens=False
        )
        return {token: text[skip:] for token, text in zip(ids, decoded, strict=True)}

    @cached_property
    def ending_within(self) -> Array:
        """(n,) int64, sorted: the tokens of some characters and the first part of one more.

        A token that is nothing but a part of a character is none of them.
        """
        return np.array(
            [
                token
                for token, text in self.texts.items()
                if text.endswith(INCOMPLETE) and text.strip(INCOMPLETE)
            ],
            np.int64,
        )

    @cached_property
    def pieces(self) -> dict[int, str]:
        """Of each id, its name in the tokenizer's file, such as ``ĠParis``."""
        return {token: piece for piece, token in self._pieces.items()}

    @cached_property
    def _pieces(self) -> dict[str, int]:
        if self._tokenizer is None:
            return {}
        return dict(self._tokenizer.get_vocab(with_added_tokens=True))

    @cached_property
    def _by_text(self) -> dict[str, list[int]]:
        ids: dict[str, list[int]] = {}
        for token, text in self.texts.items():
            ids.setdefault(text, []).append(token)
        return ids

    def text(self, token: int) -> str:
        """The text of a token; ids that the tokenizer does not know, as ``<id 50000>``."""
        return self.texts.get(token, f"<id {token}>")

    def ids(self, text: str) -> list[int]:
        """All tokens that stand for `text`, or the one that has it as its name.

        Raises
        ------
        NotInStore
            There is none; how the text is tokenised and the nearest tokens are in the message.
        """
        if text in self._by_text and INCOMPLETE not in text:
            return self._by_text[text]
        if text in self._pieces:
            return [self._pieces[text]]
        raise NotInStore(self._no_such_token(text))

    def _no_such_token(self, text: str) -> str:
        if self._tokenizer is None:
            return f"{text!r} is no token: the store has no tokenizer\nhint: give a token's id"
        parts = self._tokenizer.encode(text, add_special_tokens=False).ids
        names = [repr(self.text(token)) for token in parts]
        similar = [known for known in self._by_text if abs(len(known) - len(text)) <= 2]
        close = difflib.get_close_matches(text, similar, n=3)
        said = f"{text!r} is not a token of the store's tokenizer"
        if len(names) > 1:
            said += f"; it is the {len(names)} tokens {' '.join(names)}"
        hints = [f"did you mean {' or '.join(map(repr, close))}"] if close else []
        if text:
            hints.append(f"find(text={text!r}) finds text of several tokens")
        return f"{said}\nhint: {'; '.join(hints) or 'a token has at least one character'}"
