"""Special tokens that are written in a text: ``<|endoftext|>`` in a document about tokenizers.

A tokenizer takes such words for the tokens themselves unless it is told not to. A text then ends
where it does not, and words of it are left out of statistics. So they are ordinary text here,
unless it is asked otherwise (`actlake.platform.corpus.config.SpecialTokens`), and counted.
"""

import copy
import json
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from actlake.platform.corpus.config import InText
from actlake.platform.corpus.tokenise import Int32s, Tokenizer

Written = tuple[str, int]
"""A special token as it is written, and the character of the text where it begins."""


class TextEncoder:
    """Turns texts into tokens, and tells which special tokens are written in them."""

    def __init__(self, tokenizer: Tokenizer, in_text: InText) -> None:
        """Prepare a fast tokenizer, which stays as it is."""
        specials = special_tokens(tokenizer)
        ids = tokenizer.get_vocab()
        self._names = {ids[name]: name for name in specials if name in ids}
        self._scanner = _scanner(tokenizer, specials)
        self._as_ordinary_text = in_text == "ordinary"
        self._tokenizer = _counting_spaces(
            _without_special_names(tokenizer, specials) if self._as_ordinary_text else tokenizer
        )

    def encode(self, texts: list[str]) -> list[tuple[Int32s, Int32s]]:
        """Of each text (n,) token ids and (n,) start characters; no special tokens are added.

        A token starts with the space that it is read with, also where the tokenizer itself counts
        from the word.
        """
        if not texts:
            return []
        # verbose=False: a document may be longer than the model's limit; the layout cuts it.
        encoded = self._tokenizer(
            texts,
            add_special_tokens=False,
            split_special_tokens=self._as_ordinary_text,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return [
            (
                np.array(ids, np.int32),
                np.fromiter((start for start, _ in offsets), np.int32, len(offsets)),
            )
            for ids, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        ]

    def written(self, texts: list[str]) -> list[tuple[Written, ...]]:
        """Of each text the special tokens that are written in it, in order."""
        return [
            tuple(
                (token, start)
                for token, id, (start, _) in zip(
                    found.tokens, found.ids, found.offsets, strict=True
                )
                if id > 0
            )
            for found in self._scanner.encode_batch(texts, add_special_tokens=False)
        ]

    def special_among(self, ids: Int32s) -> tuple[Written, ...]:
        """The special tokens among given ids, each with its place."""
        places = np.flatnonzero(np.isin(ids, list(self._names)))
        return tuple((self._names[int(ids[place])], int(place)) for place in places)


def special_tokens(tokenizer: Tokenizer) -> dict[str, Any]:
    """By its text each special token: those marked so, and those with a role, as end of text."""
    from tokenizers import AddedToken

    added = tokenizer.backend_tokenizer.get_added_tokens_decoder().values()
    named = {
        text: AddedToken(text, normalized=False, special=True)
        for text in tokenizer.all_special_tokens
    }
    return named | {
        token.content: token for token in added if token.special or token.content in named
    }


def _scanner(tokenizer: Tokenizer, specials: dict[str, Any]) -> Any:
    """A tokenizer that finds special tokens as the given one does, and nothing else (id 0)."""
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import WordLevel

    scanner = Backend(WordLevel({"": 0}, unk_token=""))
    if any(token.normalized for token in specials.values()):
        scanner.normalizer = tokenizer.backend_tokenizer.normalizer
    scanner.add_special_tokens(list(specials.values()))
    return scanner


def _without_special_names(tokenizer: Tokenizer, specials: dict[str, Any]) -> Tokenizer:
    """A tokenizer that makes ordinary tokens of special tokens' names, as the given one should.

    Most need to be told only (``split_special_tokens``). Those whose model knows a special token
    by its name, as Unigram models and models of whole words do, find it there none the less, where
    sentencepiece itself would not; in them it is called by a name that no text has.
    """
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    unmarked = [
        t for t in settings["added_tokens"] if t["content"] in specials and not t["special"]
    ]
    if not (unmarked or _knows_by_name(settings["model"], specials)):
        return tokenizer
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerFast

    for token in unmarked:
        token["special"] = True
    backend = Backend.from_str(json.dumps(settings))
    model = _with_names_hidden(settings["model"], specials)
    backend.model = Backend.from_str(json.dumps({"added_tokens": [], "model": model})).model
    changed: Tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    return changed


def _counting_spaces(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer for which a token that stands for a space and a word starts at the space.

    Some (RoBERTa, OPT, BART) trim the space off the offsets, in the step that adds special tokens.
    The space would belong to no token, or to the line break before it.
    """
    step = json.loads(tokenizer.backend_tokenizer.to_str()).get("post_processor")
    if '"trim_offsets": true' not in json.dumps(step):
        return tokenizer
    from tokenizers.processors import ByteLevel

    counting = copy.deepcopy(tokenizer)
    counting.backend_tokenizer.post_processor = ByteLevel(trim_offsets=False)
    return counting


def _knows_by_name(model: dict[str, Any], names: Collection[str]) -> bool:
    """Whether the model of a tokenizer.json can make a special token of its name in a text."""
    vocabulary = model["vocab"]
    pieces = vocabulary if isinstance(vocabulary, dict) else {piece for piece, _ in vocabulary}
    known = {name for name in names if name in pieces}
    if model["type"] != "BPE" or model.get("ignore_merges"):
        return bool(known)
    # Pieces grow from single characters by merges; most special tokens are out of their reach.
    made = {"".join(pair) for pair in _merges(model)} if known else set()
    return any(len(name) == 1 or name in made for name in known)


def _merges(model: dict[str, Any]) -> list[Sequence[str]]:
    return [m.split(" ", 1) if isinstance(m, str) else m for m in model.get("merges") or ()]


def _with_names_hidden(model: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    """The model of a tokenizer.json with other names for these tokens; their ids stay."""

    def hidden(token: str) -> str:
        return f"\0{token}" if token in names else token

    vocabulary = model["vocab"]
    changed = dict(model)
    changed["vocab"] = (
        {hidden(token): id for token, id in vocabulary.items()}
        if isinstance(vocabulary, dict)
        else [[hidden(token), score] for token, score in vocabulary]
    )
    if model.get("unk_token") is not None:
        changed["unk_token"] = hidden(model["unk_token"])
    if model.get("merges"):
        changed["merges"] = [
            pair for pair in _merges(model) if not {*pair, "".join(pair)}.intersection(names)
        ]
    return changed
