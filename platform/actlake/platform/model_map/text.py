"""What a model's tokenizer does: how texts begin, whether they come back, how a chat is written."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from actlake.platform.corpus.beginning import own_beginning, resolve_beginning
from actlake.platform.corpus.chat_template import apply_template

PROSE = (
    "The harbour was quiet when the last of the boats came in. Two men tied it to the wall, "
    "counted the boxes on its deck and wrote the number in a small book. It had rained since "
    "noon, and the lamps along the street were lit before anybody had thought of supper."
)
TEXTS = {
    "English": PROSE,
    "accents": "Où sont passés les élèves de la Straße? Čtyři žluťoučcí koně, señor.",
    "Chinese": "今天天气很好，我们去公园散步。",
    "Arabic": "ذهب الولد إلى المدرسة صباحا.",
    "code": "def f(x):\n    return {\n\t'a': x ** 2,\n    }\n",
    "emoji": "Well done 👍🏽, says the family 👨‍👩‍👧.",
    "white space": "one  two   three\n\n\nfour\t\tfive ",
}
"""Short texts of several kinds, by what they are."""


@dataclass(frozen=True, slots=True)
class TextFound:
    """What a tokenizer was seen to do."""

    beginning: str
    """What stands before a text by default, for a person."""

    altered: tuple[str, ...]
    """Kinds of text that decode to another text than was encoded."""

    uncovered: tuple[str, ...]
    """Kinds of text with characters that belong to no token, white space aside."""

    chat: str | None
    """A question as its chat template writes it; None where there is none."""

    doubled: bool
    """Whether tokenising what the template wrote, as a text, begins it twice."""


def examine_text(tokenizer: Any) -> TextFound:
    """Look at what a tokenizer makes of `TEXTS` and of a question in its chat template."""
    altered, uncovered = [], []
    for kind, text in TEXTS.items():
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        back = tokenizer.decode(encoded["input_ids"], clean_up_tokenization_spaces=False)
        if back != text:
            altered.append(kind)
        covered = {i for start, stop in encoded["offset_mapping"] for i in range(start, stop)}
        if not covered >= {i for i, character in enumerate(text) if not character.isspace()}:
            uncovered.append(kind)
    chat = _chat(tokenizer)
    begins = list(own_beginning(tokenizer))
    chat_ids = [] if chat is None else tokenizer(chat)["input_ids"]
    return TextFound(
        beginning=str(resolve_beginning("auto", tokenizer)),
        altered=tuple(altered),
        uncovered=tuple(uncovered),
        chat=chat,
        doubled=begins != [] and chat_ids[: 2 * len(begins)] == begins * 2,
    )


def _chat(tokenizer: Any) -> str | None:
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    return apply_template(tokenizer, turns, add_generation_prompt=True)


def text_ids(tokenizer: Any, *, contexts: int = 2, length: int = 8) -> Tensor:
    """Token ids of English prose, (B, L), int64; contexts begin as the tokenizer begins texts."""
    begins = list(own_beginning(tokenizer))
    prose = list(tokenizer(PROSE, add_special_tokens=False)["input_ids"])
    room = length - len(begins)
    rows = [begins + prose[i * room : (i + 1) * room] for i in range(contexts)]
    return torch.tensor(rows, dtype=torch.int64)
