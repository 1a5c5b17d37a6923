"""What is said of a tokenizer, of tokenizers made to be right and wrong on purpose."""

from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from actlake.platform.model_map import examine_text, text_ids

CHAT = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


def bytes_tokenizer(*, begins: bool = False, **settings: Any) -> PreTrainedTokenizerFast:
    """A token for each byte: whatever goes in comes out."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0} | {letter: i + 1 for i, letter in enumerate(alphabet)}
    letters = Tokenizer(models.BPE(vocabulary, []))
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters.decoder = decoders.ByteLevel()
    if begins:
        letters.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=letters, bos_token="<s>", **settings)


def test_texts_that_come_back_as_they_were_are_said_to() -> None:
    found = examine_text(bytes_tokenizer())

    assert (found.altered, found.uncovered) == ((), ())
    assert found.chat is None
    assert found.beginning == "no beginning-of-text token (the tokenizer adds none by itself)"


def test_kinds_of_text_that_are_altered_are_named() -> None:
    lowering = bytes_tokenizer()
    lowering.backend_tokenizer.normalizer = normalizers.Lowercase()  # type: ignore[attr-defined]

    assert examine_text(lowering).altered == ("English", "accents", "emoji")


def test_characters_that_belong_to_no_token_are_noticed() -> None:
    deaf = bytes_tokenizer()
    deaf.backend_tokenizer.normalizer = normalizers.Replace("天", "")  # type: ignore[attr-defined]

    found = examine_text(deaf)

    assert found.uncovered == ("Chinese",)


def test_a_chat_that_would_begin_twice_is_noticed() -> None:
    begun = examine_text(bytes_tokenizer(begins=True, chat_template=CHAT))
    bare = examine_text(bytes_tokenizer(chat_template=CHAT))

    assert begun.chat == bare.chat == "<s><user>What is the capital of France?"
    assert (begun.doubled, bare.doubled) == (True, False)
    assert "every context begins with <s>" in begun.beginning


def test_contexts_of_prose_begin_as_the_tokenizer_begins_texts() -> None:
    begun, bare = text_ids(bytes_tokenizer(begins=True)), text_ids(bytes_tokenizer())

    assert begun.shape == bare.shape == (2, 8)
    assert begun[:, 0].tolist() == [0, 0]
    prose = [*begun[0, 1:].tolist(), *begun[1, 1:].tolist()]
    assert prose == bare.flatten().tolist()[:14]
