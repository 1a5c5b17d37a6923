"""What stands before a text: the tokens with which the model was trained to begin one.

    beginning = resolve_beginning(config.bos, tokenizer)
    beginning.ids, beginning.at                     # (2,), "context"

A model that was trained with a beginning-of-text token is another model without it: Gemma 3 270M
predicts English prose at 5.3 nats a token without and at 3.2 with it.
"""

from dataclasses import dataclass
from typing import Literal

from actlake.platform.corpus.config import Bos
from actlake.platform.corpus.errors import TokenizerUnfit
from actlake.platform.corpus.tokenise import Tokenizer


@dataclass(frozen=True, slots=True)
class Beginning:
    """The tokens before a text, and before which texts."""

    at: Literal["never", "context", "document"]
    """Nowhere, at the start of every context, or of every document."""

    ids: tuple[int, ...]
    """Mostly one token; GLM has two. None where `at` is ``never``."""

    tokens: tuple[str, ...]
    """The same as they are written."""

    reason: str
    """Why so; a matter of the config, so not for records that are compared."""

    def __str__(self) -> str:
        """For a person: ``every context begins with <bos> (…)``."""
        if self.at == "never":
            return f"no beginning-of-text token ({self.reason})"
        return f"every {self.at} begins with {' '.join(self.tokens)} ({self.reason})"


def resolve_beginning(policy: Bos, tokenizer: Tokenizer) -> Beginning:
    """Decide what ``auto`` is for a tokenizer, and which tokens a text begins with.

    Where the tokenizer puts tokens before a text by itself, these are meant, else its
    beginning-of-text token.

    Raises
    ------
    TokenizerUnfit
        A beginning is asked for, and the tokenizer neither adds one nor has such a token.
    """
    if policy == "never":
        return Beginning("never", (), (), "asked for")
    own = own_beginning(tokenizer)
    if policy == "auto":
        if not own:
            return Beginning("never", (), (), "the tokenizer adds none by itself")
        reason = "the tokenizer begins a text so by itself"
        return Beginning("context", own, _written(own, tokenizer), reason)
    if not own and tokenizer.bos_token_id is None:
        raise TokenizerUnfit(
            f"The tokenizer has no beginning-of-text token, which corpus.bos: {policy} needs\n"
            "hint: set corpus.bos to auto or never; the model was trained without one"
        )
    ids = own or (int(tokenizer.bos_token_id or 0),)
    return Beginning(policy, ids, _written(ids, tokenizer), "asked for")


def own_beginning(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids that the tokenizer puts before a text by itself; mostly none or one.

    Found by tokenising, so that it does not matter where it is written down: in the template of
    tokenizer.json, in a setting, or in a GGUF file's metadata.
    """
    # A word of its own vocabulary: some tokenizers know no other.
    for word in tokenizer.get_vocab():
        encoded = tokenizer([word], return_special_tokens_mask=True, verbose=False)
        ids, is_added = encoded["input_ids"][0], encoded["special_tokens_mask"][0]
        if not all(is_added):
            return tuple(ids[: is_added.index(0)])
    return ()


def _written(ids: tuple[int, ...], tokenizer: Tokenizer) -> tuple[str, ...]:
    words = {token: word for word, token in tokenizer.get_vocab().items() if token in ids}
    return tuple(words[token] for token in ids)
