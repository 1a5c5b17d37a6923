"""What stands before a text: by default what the model's own tokenizer puts there."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from actlake.platform.corpus import (
    CorpusConfig,
    Documents,
    Files,
    SplitByHash,
    corpus_provenance,
    lay_out,
    resolve_beginning,
)
from actlake.platform.corpus.errors import InvalidCorpusConfig, TokenizerUnfit
from actlake.platform.models import ModelConfig, load_tokenizer, resolve_model
from actlake.storage.corpus import Context, Document

WORDS = ["<s>", "</s>", "<sop>", "the", "cat", "sat"]


def word_tokenizer(single: str | None = None, **special: Any) -> PreTrainedTokenizerFast:
    """Whole words, ids as in `WORDS`; `single`: the template that dresses a text."""
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=None))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if single is not None:
        words.post_processor = processors.TemplateProcessing(
            single=single,
            special_tokens=[(word, vocabulary[word]) for word in WORDS[:3]],
        )
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)


class Sink:
    def __init__(self) -> None:
        self.ids: list[list[int]] = []

    def add_document(self, document: Document) -> int:
        return 0

    def add_context(self, context: Context) -> None:
        self.ids.append(context.ids.tolist())


def laid_out(tokenizer: Any, folder: Path, **settings: Any) -> list[list[int]]:
    (folder / "text.txt").write_text("the cat sat the cat")
    config = CorpusConfig(
        **{
            "source": Files(path=str(folder / "text.txt")),
            "splits": SplitByHash(fractions={"train": 1.0}),
            "layout": Documents(),
            "context_length": 4,
            **settings,
        }
    )
    sink = Sink()
    report = lay_out(config, tokenizer, sink)
    assert report.rows == sum(map(len, sink.ids)) == report.text_tokens + report.bos_tokens
    return sink.ids


@pytest.mark.parametrize(
    ("single", "expected"),
    [
        ("<s> $A", [[0, 3, 4, 5], [0, 3, 4]]),
        ("<s> $A </s>", [[0, 3, 4, 5], [0, 3, 4]]),
        ("<s> <sop> $A", [[0, 2, 3, 4], [0, 2, 5, 3], [0, 2, 4]]),
        ("$A </s>", [[3, 4, 5, 3], [4]]),
        ("$A", [[3, 4, 5, 3], [4]]),
        (None, [[3, 4, 5, 3], [4]]),
    ],
)
def test_by_default_contexts_begin_as_the_tokenizer_begins_a_text(
    tmp_path: Path, single: str | None, expected: list[list[int]]
) -> None:
    tokenizer = word_tokenizer(single, bos_token="<s>", eos_token="</s>")

    assert laid_out(tokenizer, tmp_path) == expected


def test_a_beginning_that_is_asked_for_is_the_tokenizers_own_or_its_bos_token(
    tmp_path: Path,
) -> None:
    own = word_tokenizer("<sop> $A", bos_token="<s>")
    plain = word_tokenizer(bos_token="<s>")

    assert laid_out(own, tmp_path, bos="context") == [[2, 3, 4, 5], [2, 3, 4]]
    assert laid_out(plain, tmp_path, bos="context") == [[0, 3, 4, 5], [0, 3, 4]]
    assert laid_out(own, tmp_path, bos="document") == [[2, 3, 4, 5], [3, 4]]
    assert laid_out(own, tmp_path, bos="never") == [[3, 4, 5, 3], [4]]
    with pytest.raises(TokenizerUnfit, match=r"hint: set corpus.bos to auto or never"):
        laid_out(word_tokenizer(), tmp_path, bos="context")


def test_a_context_that_its_beginning_fills_is_refused(tmp_path: Path) -> None:
    tokenizer = word_tokenizer("<s> <sop> $A")

    with pytest.raises(InvalidCorpusConfig, match="2 tokens has no room for text: every context"):
        laid_out(tokenizer, tmp_path, context_length=2)


def test_provenance_has_what_the_contexts_begin_with_however_that_was_asked_for() -> None:
    adds, adds_none = word_tokenizer("<s> $A"), word_tokenizer(bos_token="<s>")

    def kept(policy: str, tokenizer: Any) -> Any:
        config = CorpusConfig(bos=policy)  # type: ignore[arg-type]
        return corpus_provenance(config, resolve_beginning(config.bos, tokenizer))

    assert kept("auto", adds)["bos"] == {"at": "context", "ids": [0]}
    assert kept("auto", adds) == kept("context", adds)
    assert kept("auto", adds_none) == kept("never", adds_none) != kept("context", adds_none)


def test_a_person_is_told_what_auto_came_to() -> None:
    adds, adds_none = word_tokenizer("<s> <sop> $A"), word_tokenizer(bos_token="<s>")

    assert str(resolve_beginning("auto", adds)) == (
        "every context begins with <s> <sop> (the tokenizer begins a text so by itself)"
    )
    assert str(resolve_beginning("auto", adds_none)) == (
        "no beginning-of-text token (the tokenizer adds none by itself)"
    )


@pytest.mark.parametrize("bos", ["never", "auto"])
def test_add_bos_token_counts_where_only_the_settings_have_it(
    tmp_path: Path, tiny_folder: Callable[..., Path], bos: str
) -> None:
    folder = shutil.copytree(tiny_folder("llama"), tmp_path / "model")
    tokenizer = word_tokenizer(bos_token="<s>")
    before = processors.ByteLevel(trim_offsets=True)
    tokenizer.backend_tokenizer.post_processor = before  # type: ignore[attr-defined]
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    model = resolve_model(ModelConfig(name=str(folder), device="cpu"))

    without = load_tokenizer(model)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"add_bos_token": True}))
    begun = load_tokenizer(model)

    assert laid_out(without, tmp_path, bos=bos) == [[3, 4, 5, 3], [4]]
    expected = {"never": [[3, 4, 5, 3], [4]], "auto": [[0, 3, 4, 5], [0, 3, 4]]}
    assert laid_out(begun, tmp_path, bos=bos) == expected[bos]
