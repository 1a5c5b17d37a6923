"""A tokenizer and a model that do not belong together are refused before a text is read."""

import json

import pytest
import torch

from actlake.jobs.harvest import HarvestConfig, plan
from actlake.platform.corpus import CorpusConfig, Files, SpecialTokens, emitted_tokens
from actlake.platform.corpus.errors import CorpusNotFound
from actlake.platform.models import ModelConfig, load_tokenizer, resolve_model, token_cross_entropy
from actlake.platform.models.errors import VocabularyTooSmall, WeightsMismatch
from actlake.storage import Site


def planned(folder, tmp_path, **corpus):
    """The plan on a text that is not there: what is refused before is refused without it."""
    source = Files(path=str(tmp_path / "nowhere.txt"))
    config = HarvestConfig(
        store=str(tmp_path / "store"),
        model=ModelConfig(name=str(folder), device="cpu"),
        sites=(Site(1),),
        corpus=CorpusConfig(source=source, **corpus),
        threads=1,
    )
    return plan(config)


def add_special(folder, *names):
    """Give the tokenizer in a model's folder special tokens more."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": list(names)})
    tokenizer.save_pretrained(folder)


def test_tokens_beyond_the_embedding_are_refused_and_named(tiny_model, tmp_path):
    folder = tiny_model(added=["[NEW]", "[MORE]"], vocab_size=320)

    with pytest.raises(
        VocabularyTooSmall,
        match=r"has 320 rows, and its tokenizer 2 tokens beyond them: '\[NEW\]' \(320\), "
        r"'\[MORE\]' \(321\)\nhint: give the model the tokenizer",
    ):
        planned(folder, tmp_path)


def test_an_embedding_with_more_rows_than_there_are_tokens_is_fine(tiny_model, tmp_path):
    with pytest.raises(CorpusNotFound):
        planned(tiny_model(vocab_size=384), tmp_path)


def test_special_tokens_that_no_text_becomes_need_no_row(tiny_model, tmp_path):
    folder = tiny_model()
    add_special(folder, "<pad>", "<end>")

    with pytest.raises(CorpusNotFound):
        planned(folder, tmp_path)
    with pytest.raises(VocabularyTooSmall, match=r"2 tokens beyond them: '<pad>' \(320\)"):
        planned(folder, tmp_path, special_tokens=SpecialTokens(in_text="special"))


def test_a_separator_or_beginning_without_a_row_is_refused(tiny_model, tmp_path):
    folder = tiny_model()
    add_special(folder, "<end>")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": "<end>"}))

    with pytest.raises(VocabularyTooSmall, match=r"1 tokens beyond them: '<end>' \(320\)"):
        planned(folder, tmp_path)


def test_what_a_corpus_may_hold_is_every_token_but_special_ones_that_nobody_puts(tiny_model):
    tokenizer = load_tokenizer(resolve_model(ModelConfig(name=str(tiny_model()))))
    add = ["<pad>"]
    tokenizer.add_special_tokens({"additional_special_tokens": add})
    every = set(tokenizer.get_vocab().values())

    put, meant = (
        emitted_tokens(CorpusConfig(special_tokens=SpecialTokens(in_text=in_text)), tokenizer)
        for in_text in ("ordinary", "special")
    )

    assert set(meant) == every
    assert set(put) == every - {tokenizer.convert_tokens_to_ids("<pad>")}
    assert tokenizer.eos_token_id in put


def test_a_vocabulary_is_looked_through_once_however_many_special_tokens_there_are(
    tiny_model, monkeypatch
):
    """Gemma has six thousand, and a vocabulary that takes a tenth of a second to list."""
    tokenizer = load_tokenizer(resolve_model(ModelConfig(name=str(tiny_model()))))

    def times(num_special: int) -> int:
        tokenizer.add_tokens([f"<{number}>" for number in range(num_special)], special_tokens=True)
        listed = []
        plain = type(tokenizer).get_vocab
        with monkeypatch.context() as patch:
            patch.setattr(
                type(tokenizer), "get_vocab", lambda self: listed.append(1) or plain(self)
            )
            emitted_tokens(CorpusConfig(), tokenizer)
        return len(listed)

    assert times(2) == times(200)


def test_an_embedding_of_other_rows_than_its_configuration_says_is_refused(tiny_model, tmp_path):
    folder = tiny_model()
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"vocab_size": 400}))

    with pytest.raises(
        WeightsMismatch, match=r"embed_tokens\.weight has 320 rows, and config\.json says 400"
    ):
        planned(folder, tmp_path)


def test_a_token_that_the_head_has_no_row_for_is_named_and_not_an_index():
    logits = torch.zeros(1, 3, 5)

    with pytest.raises(VocabularyTooSmall, match=r"predicts 5 tokens, .* holds token 7"):
        token_cross_entropy(logits, torch.tensor([[0, 7, 1]]))
    assert token_cross_entropy(logits, torch.tensor([[0, 4, 1]])).shape == (1, 2)
