"""The same few texts as a model may be given them, to see how it was trained to be given them.

As they are laid out; with the tokenizer's beginning of text, and without; in the user's turn of its
chat template. In all of them the same tokens are predicted, so the losses can be compared.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actlake.platform.corpus import Beginning, resolve_beginning
from actlake.platform.corpus.chat_template import apply_template
from actlake.platform.corpus.errors import TokenizerUnfit

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]

TOKENS_AT_MOST = 128
"""Of each context; more would only cost time."""

AS_LAID_OUT, BEGUN, BARE, IN_TEMPLATE = (
    "as laid out", "with a beginning of text", "without one", "in the chat template",
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """Some texts in one form."""

    contexts: tuple[Array, ...]
    """Token ids, (tokens,) int64 each."""
    num_before: tuple[int, ...]
    """How many of them stand before each text, and are not predicted."""

    @property
    def num_predicted(self) -> int:
        """Tokens after the first of each text."""
        return sum(
            len(ids) - num - 1 for ids, num in zip(self.contexts, self.num_before, strict=True)
        )


def readings_of(
    sample: Sequence[Array],
    beginning: Beginning,
    tokenizer: Any,
    *,
    max_positions: int | None,
    in_template: bool = False,
) -> dict[str, Reading]:
    """The forms of a few contexts that differ from each other; first the one they are laid out in.

    Empty where no context has two tokens of text.

    Parameters
    ----------
    sample
        Contexts as they are laid out, (tokens,) int32 each.
    max_positions
        Longest context of the model.
    in_template
        They are conversations in the chat template already, and not put into it once more.
    """
    befores = dict(_befores(beginning, tokenizer))
    if in_template:
        befores.pop(IN_TEMPLATE, None)
    room = TOKENS_AT_MOST
    if max_positions is not None:
        room = min(room, max_positions - max(map(len, befores.values()), default=0))
    own = [len(beginning.ids) if _begins(ids, beginning.ids) else 0 for ids in sample]
    texts = [
        (ids[:num], ids[num : num + room])
        for ids, num in zip(sample, own, strict=True)
        if len(ids[num : num + room]) >= 2
    ]
    if not texts:
        return {}
    forms = {AS_LAID_OUT: _reading(texts)}
    forms |= {name: _reading([(ids, text) for _, text in texts]) for name, ids in befores.items()}
    laid_out = forms[AS_LAID_OUT]
    return {
        name: form
        for name, form in forms.items()
        if form is laid_out or not all(map(np.array_equal, form.contexts, laid_out.contexts))
    }


def _befores(beginning: Beginning, tokenizer: Any) -> Iterator[tuple[str, Array]]:
    """What may stand before a text."""
    yield BARE, np.zeros(0, np.int64)
    try:
        begun = resolve_beginning("context", tokenizer)
    except TokenizerUnfit:
        pass  # there is no such token, so no such form
    else:
        yield BEGUN, np.array(begun.ids, np.int64)
    if (ids := _template_ids(tokenizer)) is not None:
        yield IN_TEMPLATE, ids


_PLACE = "HERE STANDS THE TEXT"


def _template_ids(tokenizer: Any) -> Array | None:
    """The ids that a chat template puts before what a user says; None without a template."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    from jinja2 import TemplateError

    said = [{"role": "user", "content": _PLACE}]
    try:
        whole = apply_template(tokenizer, said)
    except (TemplateError, TypeError, ValueError, ImportError) as error:
        logger.info("The chat template does not take a text by itself: %s", error)
        return None
    before, found, _ = whole.partition(_PLACE)
    if not found:
        return None
    encoded = tokenizer(before, add_special_tokens=False, split_special_tokens=False)
    return np.array(encoded["input_ids"], np.int64)


def _begins(ids: Array, with_ids: Sequence[int]) -> bool:
    return bool(with_ids) and ids[: len(with_ids)].tolist() == list(with_ids)


def _reading(texts: Sequence[tuple[Array, Array]]) -> Reading:
    return Reading(
        tuple(np.concatenate(parts).astype(np.int64) for parts in texts),
        tuple(len(before) for before, _ in texts),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """A model's own next-token loss on a few texts, nats a token."""

    by_reading: Mapping[str, float]
    """First as they are laid out, then in other forms."""
    num_tokens: int
    """Predicted in each form."""
    uniform: float
    """The loss of a guess that takes every token of the vocabulary for equally likely."""

    MUCH = 0.25
    """Nats a token by which another form must be better to be spoken of."""
    NEAR = 0.9
    """Share of the uniform loss from which a model has learned nothing of such texts."""

    @property
    def laid_out(self) -> float:
        """Of the texts as they are laid out."""
        return self.by_reading[AS_LAID_OUT]

    def __str__(self) -> str:
        """For a person: all losses in a line."""
        others = "".join(
            f"; {name} {loss:.2f}" for name, loss in self.by_reading.items() if name != AS_LAID_OUT
        )
        return (
            f"{self.laid_out:.2f} nats a token {AS_LAID_OUT}{others} ({self.num_tokens:,} tokens; "
            f"a uniform guess has {self.uniform:.2f})"
        )

    def warnings(self) -> list[str]:
        """What is not as it should be, with what to do."""
        found = []
        if self.laid_out > self.NEAR * self.uniform:
            found.append(
                f"The model predicts these texts hardly better than a uniform guess "
                f"({self.laid_out:.2f} of {self.uniform:.2f} nats a token)\n"
                "hint: see that weights, tokenizer and texts belong together"
            )
        best = min(self.by_reading, key=lambda name: self.by_reading[name])
        if self.by_reading[best] < self.laid_out - self.MUCH:
            found.append(
                f"The model predicts these texts much better {best}: {self.by_reading[best]:.2f} "
                f"nats a token, and {self.laid_out:.2f} as they are laid out\nhint: {_ADVICE[best]}"
            )
        return found

    def as_metrics(self) -> dict[str, float]:
        """By name, for a tracker."""
        names = {name: name.replace(" ", "_") for name in self.by_reading}
        return {f"trial/loss_{names[name]}": loss for name, loss in self.by_reading.items()} | {
            "trial/loss_of_a_uniform_guess": self.uniform
        }


_ADVICE = {
    BEGUN: "corpus.bos: context, if it was trained so",
    BARE: "corpus.bos: never, if it was trained so",
    IN_TEMPLATE: "corpus.source.messages_column, if it was trained on conversations only",
}
