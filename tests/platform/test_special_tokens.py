"""Special tokens that are written in a text are ordinary text, unless it is asked otherwise.

The oracle of each kind of tokenizer is the same one without any special token: what it makes of a
text is what ordinary text is.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from actlake.platform.corpus import (
    CorpusConfig,
    CorpusReport,
    Documents,
    Files,
    Packed,
    SpecialTokens,
    SplitByHash,
    corpus_provenance,
    lay_out,
    resolve_beginning,
)
from actlake.platform.corpus.errors import SpecialTokenInText
from actlake.platform.corpus.special_tokens import TextEncoder
from actlake.storage.corpus import Context, Document

TEXT = "the <s> cat</s> sat<mark>on a mat"
NAMES = ["<s>", "</s>", "<mark>"]
LETTERS = sorted(set("the cat sat on mat <unk></s>mark".replace(" ", "")))


def byte_level(specials: list[str]) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(["the cat sat on a mat <s> mark"] * 9, trainer)
    made.add_special_tokens(specials)
    return made


def sentencepiece_bpe(specials: list[str]) -> Tokenizer:
    """As Llama 2's: special tokens are in the model's own vocabulary, unknown bytes too."""
    pieces = ["<unk>", *specials, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *LETTERS]
    pieces += ["▁c", "▁ca", "▁cat"]
    merges = [("▁", "c"), ("▁c", "a"), ("▁ca", "t")]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    made = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    made.normalizer = normalizers.Replace(" ", "▁")
    made.add_special_tokens(["<unk>", *specials])
    return made


def unigram(specials: list[str]) -> Tokenizer:
    """Special tokens are pieces with score 0, the best there is."""
    pieces = [("<unk>", 0.0), *((name, 0.0) for name in specials)]
    pieces += [("▁", -3.0), *((letter, -6.0) for letter in LETTERS), ("▁cat", -5.0), ("at", -4.0)]
    made = Tokenizer(models.Unigram(pieces, 0, False))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    return made


def whole_words(specials: list[str]) -> Tokenizer:
    words = ["<unk>", *specials, "the", "cat", "sat", "on", "a", "mat"]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made


def word_pieces(specials: list[str]) -> Tokenizer:
    words = ["<unk>", *specials, "the", "cat", "sat", "on", "a", "mat", *LETTERS]
    words += [f"##{letter}" for letter in LETTERS]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made


KINDS: list[Callable[[list[str]], Tokenizer]] = [
    byte_level,
    sentencepiece_bpe,
    unigram,
    whole_words,
    word_pieces,
]


def fast(made: Tokenizer, **named: Any) -> PreTrainedTokenizerFast:
    named = {"bos_token": "<s>", "eos_token": "</s>"} | named
    if made.token_to_id("<unk>") is not None:
        named = {"unk_token": "<unk>"} | named
    return PreTrainedTokenizerFast(tokenizer_object=made, extra_special_tokens=["<mark>"], **named)


class Sink:
    def __init__(self) -> None:
        self.ids: list[int] = []
        self.chars: list[int] = []

    def add_document(self, document: Document) -> int:
        return 0

    def add_context(self, context: Context) -> None:
        self.ids += context.ids.tolist()
        self.chars += context.chars.tolist()


def laid_out(
    tokenizer: Any, folder: Path, in_text: str | None = "ordinary", text: str = TEXT, **how: Any
) -> tuple[Sink, CorpusReport]:
    (folder / "t.txt").write_bytes(text.encode())
    chosen = {} if in_text is None else {"special_tokens": SpecialTokens(in_text=in_text)}
    given_ = {
        "source": Files(path=str(folder / "t.txt")),
        "splits": SplitByHash(fractions={"train": 1.0}),
        "layout": Documents(),
        "context_length": 5,
    }
    sink = Sink()
    return sink, lay_out(CorpusConfig(**given_ | chosen | how), tokenizer, sink)


@pytest.mark.parametrize("kind", KINDS)
def test_written_special_tokens_are_the_ordinary_text_that_they_are_without_special_tokens(
    kind, tmp_path
):
    tokenizer, plain = fast(kind(NAMES)), kind([])

    sink, report = laid_out(tokenizer, tmp_path)

    expected = plain.encode(TEXT, add_special_tokens=False)
    assert tokenizer.convert_ids_to_tokens(sink.ids) == expected.tokens
    assert sink.chars == [start for start, _ in expected.offsets]
    assert not {tokenizer.bos_token_id, tokenizer.eos_token_id} & set(sink.ids)
    assert report.special_tokens == dict.fromkeys(NAMES, 1)


@pytest.mark.parametrize("kind", [sentencepiece_bpe, unigram])
def test_the_name_of_the_unknown_token_is_known_text(kind, tmp_path):
    tokenizer = fast(kind(NAMES))

    sink, report = laid_out(tokenizer, tmp_path, text="a <unk> mat")

    spelled = [token.strip("▁") for token in tokenizer.convert_ids_to_tokens(sink.ids)]
    assert "".join(spelled) == "a<unk>mat"
    assert tokenizer.unk_token_id not in sink.ids
    assert report.special_tokens == {"<unk>": 1}


@pytest.mark.parametrize("kind", KINDS)
def test_meant_special_tokens_are_the_tokens_themselves(kind, tmp_path):
    tokenizer = fast(kind(NAMES))
    text = "the <s> cat </s> sat"

    sink, report = laid_out(tokenizer, tmp_path, "special", text)

    start, end = tokenizer.convert_tokens_to_ids(["<s>", "</s>"])
    assert [token for token in sink.ids if token in (start, end)] == [start, end]
    assert report.special_tokens == {"<s>": 1, "</s>": 1}
    assert "2 special tokens written in the text, taken for the tokens themselves" in str(report)


def test_by_default_they_are_ordinary_and_counted(tmp_path):
    text = "the <s> cat <s><mark>"

    sink, report = laid_out(fast(byte_level(NAMES)), tmp_path, None, text)

    assert sink.ids == laid_out(fast(byte_level(NAMES)), tmp_path, "ordinary", text)[0].ids
    assert "3 special tokens written in the text, taken for ordinary text (<s> 2, <mark> 1)" in str(
        report
    )
    assert "special token" not in str(laid_out(fast(byte_level(NAMES)), tmp_path, text="cat")[1])


@pytest.mark.parametrize("kind", KINDS)
def test_where_they_are_refused_the_place_is_named(kind, tmp_path):
    with pytest.raises(
        SpecialTokenInText,
        match=r"t\.txt has the special token '<s>' .* at character 4 \(\d in all\)\nhint: take it",
    ):
        laid_out(fast(kind(NAMES)), tmp_path, "refuse")
    assert laid_out(fast(kind(NAMES)), tmp_path, "refuse", "the cat")[1].special_tokens == {}


def test_the_end_of_a_document_is_still_the_token_and_a_context_begins_with_one_only(tmp_path):
    tokenizer = fast(byte_level(NAMES))
    layout = {"layout": Packed(), "bos": "context"}

    sink, report = laid_out(tokenizer, tmp_path, **layout)

    bos, eos = tokenizer.convert_tokens_to_ids(["<s>", "</s>"])
    assert [i for i, token in enumerate(sink.ids) if token == bos] == list(
        range(0, len(sink.ids), 5)
    )
    assert [i for i, token in enumerate(sink.ids) if token == eos] == [len(sink.ids) - 1]
    assert report.bos_tokens == sink.ids.count(bos)


def test_added_tokens_that_are_not_special_stay_tokens(tmp_path):
    made = byte_level(NAMES)
    made.add_tokens([AddedToken("[NEW]"), AddedToken("  ", normalized=False)])
    tokenizer = fast(made)

    sink, report = laid_out(tokenizer, tmp_path, text="the [NEW]  cat")

    assert made.token_to_id("[NEW]") in sink.ids
    assert made.token_to_id("  ") in sink.ids
    assert report.special_tokens == {}


def test_a_tokenizer_that_says_itself_how_it_reads_them_is_asked_the_same(tmp_path):
    tokenizer = fast(byte_level(NAMES), split_special_tokens=True)

    sink, _ = laid_out(tokenizer, tmp_path, "special", "the <mark>")

    assert tokenizer.convert_tokens_to_ids("<mark>") in sink.ids


def test_a_name_that_the_normalizer_makes_is_counted(tmp_path):
    made = byte_level([])
    made.normalizer = normalizers.Lowercase()
    made.add_special_tokens([AddedToken("[mask]", normalized=True)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, mask_token="[mask]")

    _, report = laid_out(tokenizer, tmp_path, "special", "a [MASK] cat")

    assert sum(report.special_tokens.values()) == 1


def test_a_special_token_that_is_spelled_by_merges_or_not_marked_as_special_is_text_too(tmp_path):
    letters = ["<", "s", ">", "<s", "<s>", "a"]
    vocabulary = {piece: i for i, piece in enumerate(letters)}
    made = Tokenizer(models.BPE(vocabulary, [("<", "s"), ("<s", ">")]))
    made.add_tokens([AddedToken("<s>", normalized=False)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made)
    tokenizer._special_tokens_map["bos_token"] = "<s>"
    assert tokenizer.all_special_tokens == ["<s>"]

    sink, report = laid_out(tokenizer, tmp_path, text="a<s>a")

    assert tokenizer.convert_ids_to_tokens(sink.ids) == ["a", "<s", ">", "a"]
    assert report.special_tokens == {"<s>": 1}


def test_a_name_that_a_vocabulary_cannot_spell_is_unknown_as_any_other_word_is(tmp_path):
    made = Tokenizer(models.WordLevel({"<s>": 0, "cat": 1}, unk_token="<s>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["</s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")

    sink, report = laid_out(tokenizer, tmp_path, text="cat </s> cat")

    assert sink.ids == [1, 0, 1]  # unknown, as any word that is in no vocabulary
    assert report.special_tokens == {"</s>": 1}


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    parts=st.lists(st.sampled_from([*NAMES, "the", " cat", "<", "s>", "</", " ", "é"]), min_size=1),
    batch=st.integers(1, 3),
)
def test_whatever_is_written_no_special_token_comes_of_it(parts, batch, tmp_path):
    text = "".join(parts)
    tokenizer = fast(byte_level(NAMES))

    sink, report = laid_out(tokenizer, tmp_path, text=f"a{text}")

    assert not set(sink.ids) & set(tokenizer.all_special_ids)
    assert sink.ids == byte_level([]).encode(f"a{text}", add_special_tokens=False).ids
    assert sum(report.special_tokens.values()) == sum(f"a{text}".count(name) for name in NAMES)


def test_what_they_are_is_kept_in_the_provenance():
    config = CorpusConfig(special_tokens=SpecialTokens(in_text="special"))
    never = resolve_beginning("never", fast(byte_level(NAMES)))

    assert corpus_provenance(config, never)["special_tokens"] == {"in_text": "special"}
    assert corpus_provenance(CorpusConfig(), never)["special_tokens"] == {"in_text": "ordinary"}


@pytest.mark.parametrize("whole", [True, False])
def test_a_token_starts_at_its_own_space_also_where_the_tokenizer_trims_it(whole: bool) -> None:
    """As RoBERTa's and OPT's do; the oracle is the same tokenizer that trims nothing."""
    text = "the cat\n sat  on\n\n  a mat "
    oracle = byte_level([])
    trimming = byte_level([])
    trim: Any = processors.ByteLevel(trim_offsets=True)
    trimming.post_processor = trim if whole else processors.Sequence([trim])
    encoder = TextEncoder(PreTrainedTokenizerFast(tokenizer_object=trimming), "ordinary")

    [(ids, chars)] = encoder.encode([text])

    expected = oracle.encode(text, add_special_tokens=False)
    assert ids.tolist() == expected.ids
    assert chars.tolist() == [start for start, _ in expected.offsets]
    assert [s for s, _ in trimming.encode(text).offsets] != chars.tolist()
