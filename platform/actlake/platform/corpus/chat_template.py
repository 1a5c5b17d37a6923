"""Conversations as the model was trained to read them: messages in the tokenizer's chat template.

    template = ChatTemplate(tokenizer, in_text="ordinary")
    template.written([{"role": "user", "content": "Hi"}], place)     # the text, and its segments

A message's content is a segment named after its role; what the template itself writes around the
contents, a system prompt that it puts before a conversation without one included, is ``template``.
"""

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from actlake.platform.corpus.beginning import Beginning
from actlake.platform.corpus.config import CorpusConfig, InText
from actlake.platform.corpus.errors import InvalidColumn, SpecialTokenInText, TokenizerUnfit
from actlake.platform.corpus.segments import Segment
from actlake.platform.corpus.sources import Builtin
from actlake.platform.corpus.special_tokens import special_tokens
from actlake.platform.corpus.tokenise import Tokenizer

logger = logging.getLogger(__name__)

_ASKS_FOR_DATE = "strftime_now"
_FORMAT = re.compile(rf"{_ASKS_FOR_DATE}\(\s*(['\"])(.+?)\1\s*\)")

BETWEEN = "template"
"""The name of what stands between messages."""

TODAY = datetime(2024, 7, 26)
"""What a template that writes the date takes for today; Llama 3.2's own where it knows of none."""


def apply_template(tokenizer: Any, messages: Sequence[Mapping[str, str]], **options: Any) -> str:
    """Messages in a tokenizer's chat template, the same on every day.

    transformers lets a template ask for the date (``strftime_now``), as those of Llama 3.1 and
    3.2 do; a corpus would be another one tomorrow. For such a template it is always `TODAY`.

    Raises
    ------
    jinja2.TemplateError, TypeError, ValueError
        The template refuses the messages.
    """
    template = tokenizer.get_chat_template()
    if _ASKS_FOR_DATE in template:
        options["chat_template"] = _always_today(template) + template
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    return text


def _always_today(template: str) -> str:
    """A macro in front of a template, which hides the function that knows the day.

    transformers takes no functions for a template. The macro knows the formats that the template
    names, and refuses others.
    """
    formats = dict.fromkeys(found[1] for found in _FORMAT.findall(template))
    known = "".join(f"{{% elif how == {json.dumps(f)} %}}{TODAY.strftime(f)}" for f in formats)
    refusal = "{{ raise_exception('it asks for the date in a format that is not written in it') }}"
    # What stands last keeps a line break at the template's beginning, which a block would take.
    return (
        f"{{% macro {_ASKS_FOR_DATE}(how) %}}{{% if false %}}{known}{{% else %}}{refusal}"
        "{% endif %}{% endmacro %}{{ '' }}"
    )


def open_template(
    config: CorpusConfig, tokenizer: Tokenizer, beginning: Beginning
) -> "ChatTemplate | None":
    """The tokenizer's chat template, where the source has conversations.

    Raises
    ------
    TokenizerUnfit
        It has none, or would begin what `beginning` begins already.
    """
    if isinstance(config.source, Builtin) or config.source.messages_column is None:
        return None
    template = ChatTemplate(tokenizer, config.special_tokens.in_text)
    template.check_beginning(beginning)
    return template


@dataclass(frozen=True, slots=True)
class _Message:
    role: str
    content: str


class ChatTemplate:
    """Writes conversations as a tokenizer's template does, and tells which part is whose."""

    def __init__(self, tokenizer: Any, in_text: InText) -> None:
        """Take the template of a tokenizer that has one.

        Parameters
        ----------
        in_text
            What a special token in a message is. The template's own are always themselves.

        Raises
        ------
        TokenizerUnfit
            It has none.
        """
        if not getattr(tokenizer, "chat_template", None):
            raise TokenizerUnfit(
                "The tokenizer has no chat template, which corpus.source.messages_column needs\n"
                "hint: take a model that was trained on conversations, such as an -Instruct one, "
                "or write them as text and name that column in corpus.source.text_column"
            )
        self._tokenizer = tokenizer
        self._special = () if in_text == "special" else tuple(special_tokens(tokenizer))
        template = tokenizer.get_chat_template()
        self.sha256 = hashlib.sha256(template.encode()).hexdigest()
        """Of the template, in hex."""
        self.date = TODAY.date().isoformat() if _ASKS_FOR_DATE in template else None
        """What it writes as the day, where it asks for one."""
        if self.date is not None:
            logger.warning("The chat template writes the day, for which %s is taken, whatever the "
                           "day is: rows would be others tomorrow", self.date)  # fmt: skip

    def check_beginning(self, beginning: Beginning) -> None:
        """Refuse to begin twice.

        Raises
        ------
        TokenizerUnfit
            The corpus puts tokens before a text that the template writes as well.
        """
        text = self._render([_Message("user", "x")], "The chat template")
        if beginning.ids and text.startswith("".join(beginning.tokens)):
            raise TokenizerUnfit(
                f"Conversations would begin twice: {beginning}, and the chat template writes "
                f"{' '.join(beginning.tokens)} itself\nhint: set corpus.bos: never"
            )

    def written(self, value: object, place: str) -> tuple[str, tuple[Segment, ...]]:
        """A conversation as text, and its segments; without messages both are empty.

        Raises
        ------
        InvalidColumn
            It is no list of messages with a role and a content, or the template refuses it or
            writes more of it anew than white space around a content.
        SpecialTokenInText
            A message holds a special token, and these are not meant as such.
        """
        messages = _messages(value, place)
        if not messages:
            return "", ()
        self._check_contents(messages, place)
        text = self._render(messages, place)
        frame = self._frame(messages, place)
        for contents in ([m.content for m in messages], [m.content.strip() for m in messages]):
            pieces = [part for pair in zip(frame, [*contents, ""], strict=True) for part in pair]
            if "".join(pieces) == text:
                names = [name for m in messages for name in (BETWEEN, m.role)] + [BETWEEN, ""]
                return text, _segments(pieces, names)
        raise InvalidColumn(
            f"{place}: the chat template does not write the messages' contents as they are, so "
            "that no token could be told whose it is\n"
            "hint: write the conversation as text with corpus.source.segments_column"
        )

    def _check_contents(self, messages: Sequence[_Message], place: str) -> None:
        for number, message in enumerate(messages):
            for token in self._special:
                if token in message.content:
                    raise SpecialTokenInText(
                        f"{place}: message {number} holds the special token {token!r}, which in a "
                        "chat template is the token itself\n"
                        "hint: take it out, or set corpus.special_tokens.in_text to special if it "
                        "is meant"
                    )

    def _frame(self, messages: Sequence[_Message], place: str) -> list[str]:
        """What the template writes before each content, and after the last.

        Found by giving it contents that stand nowhere else, from the private use area.
        """
        marks = [f"\ue000{number}\ue001" for number in range(len(messages))]
        marked = [_Message(m.role, mark) for m, mark in zip(messages, marks, strict=True)]
        rest, frame = self._render(marked, place), []
        for mark in marks:
            before, _, rest = rest.partition(mark)
            frame.append(before)
        return [*frame, rest]

    def _render(self, messages: Sequence[_Message], place: str) -> str:
        from jinja2 import TemplateError

        given = [{"role": m.role, "content": m.content} for m in messages]
        try:
            return apply_template(self._tokenizer, given)
        except (TemplateError, TypeError, ValueError) as error:
            raise InvalidColumn(
                f"{place}: the chat template refuses the conversation: {error}\n"
                f"Its roles are {', '.join(m.role for m in messages)}\n"
                "hint: mend the conversation, or leave it out"
            ) from error


def _messages(value: object, place: str) -> list[_Message]:
    if value is None:
        return []
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise _no_messages(place, f"holds {type(value).__name__}")
    messages = []
    for number, given in enumerate(value):
        role = given.get("role") if isinstance(given, Mapping) else None
        content = given.get("content") if isinstance(given, Mapping) else None
        if not isinstance(role, str) or not isinstance(content, str):
            keys = ", ".join(map(str, given)) if isinstance(given, Mapping) else "no keys"
            raise _no_messages(place, f"holds a message {number} without a text in each ({keys})")
        messages.append(_Message(role, content))
    return messages


def _no_messages(place: str, what: str) -> InvalidColumn:
    return InvalidColumn(
        f"{place}: the messages column {what}\n"
        "hint: give a list of {role, content}, such as [{role: user, content: Hello}]"
    )


def _segments(pieces: Sequence[str], names: Sequence[str]) -> tuple[Segment, ...]:
    segments = []
    stop = 0
    for name, piece in zip(names, pieces, strict=True):
        stop += len(piece)
        if piece:
            segments.append(Segment(name, stop))
    return tuple(segments)
