"""Conversations in the tokenizer's chat template, and texts with named parts."""

import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.platform.test_corpus_cut import letters
from transformers import AutoTokenizer

from actlake.platform.corpus import (
    CorpusConfig,
    Documents,
    Files,
    SpecialTokens,
    SplitByHash,
    corpus_provenance,
    emitted_tokens,
    lay_out,
    open_template,
    resolve_beginning,
)
from actlake.platform.corpus.errors import (
    ColumnMissing,
    InvalidColumn,
    InvalidCorpusConfig,
    SpecialTokenInText,
    TokenizerUnfit,
)

ONE_SPLIT = SplitByHash(fractions={"train": 1.0})
THINGS = ("boats", "stones", "apples", "lamps")


def dialogues(number):
    """Conversations of two to five messages, every other with a system prompt."""
    for i in range(number):
        thing, many = THINGS[i % 4], 3 + i % 7
        messages = [
            {"role": "user", "content": f"I have {many} {thing} and buy {i}. How many is that?"},
            {"role": "assistant", "content": f"You have {many + i} {thing}."},
        ]
        if i % 3 == 0:
            messages += [
                {"role": "user", "content": f"And without the {thing}?"},
                {"role": "assistant", "content": "Then there are none.\n\nAsk again."},
            ]
        if i % 2 == 0:
            messages.insert(0, {"role": "system", "content": "You count things."})
        yield messages


class Sink:
    def __init__(self):
        self.documents = []
        self.contexts = []

    def add_document(self, document):
        self.documents.append(document)
        return len(self.documents) - 1

    def add_context(self, context):
        self.contexts.append(context)


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def conversations(tmp_path, rows, **source):
    rows = [row if isinstance(row, dict) else {"messages": row} for row in rows]
    path = written(tmp_path / "chat.jsonl", rows)
    return Files(path=path, messages_column="messages", **source)


def laid_out(source, tokenizer, **config):
    sink = Sink()
    config = CorpusConfig(
        source=source, splits=ONE_SPLIT, layout=Documents(), context_length=512, **config
    )
    return sink, lay_out(config, tokenizer, sink)


@pytest.fixture(scope="module")
def smollm2(smollm2_folder):
    return AutoTokenizer.from_pretrained(smollm2_folder)


@pytest.fixture
def templated():
    """A tokenizer of single letters whose template a test may set."""

    def make(template):
        tokenizer = letters()
        tokenizer.chat_template = template
        return tokenizer

    return make


PLAIN = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"


def test_conversations_have_the_ids_that_the_library_gives_them(tmp_path, smollm2):
    chats = list(dialogues(40))

    sink, report = laid_out(conversations(tmp_path, chats), smollm2)

    assert report.documents == 40
    for context, chat in zip(sink.contexts, chats, strict=True):
        ids = smollm2.apply_chat_template(chat, tokenize=True, return_dict=False)
        assert context.ids.tolist() == ids


def test_segments_are_the_contents_of_the_messages_and_the_rest_is_the_template(tmp_path, smollm2):
    chats = list(dialogues(40))

    sink, _ = laid_out(conversations(tmp_path, chats), smollm2)

    for document, chat in zip(sink.documents, chats, strict=True):
        segments = json.loads(document.columns["segments"])
        starts = [0, *(stop for _, stop in segments)]
        parts = [
            (name, document.text[start:stop])
            for start, (name, stop) in zip(starts, segments, strict=False)
        ]
        assert "".join(text for _, text in parts) == document.text
        said = [(m["role"], m["content"]) for m in chat]
        assert [part for part in parts if part[0] != "template"] == said
    assert "named SmolLM" in sink.documents[1].text.partition("I have")[0]


def test_conversations_in_parquet_and_jsonl_are_the_same(tmp_path, smollm2):
    chats = list(dialogues(10))
    pq.write_table(pa.table({"messages": chats}), tmp_path / "chat.parquet")
    source = conversations(tmp_path, chats)

    lines, _ = laid_out(source, smollm2)
    rows, _ = laid_out(replace(source, path=str(tmp_path / "chat.parquet")), smollm2)

    assert [d.text for d in lines.documents] == [d.text for d in rows.documents]
    assert [d.columns for d in lines.documents] == [d.columns for d in rows.documents]


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ strftime_now('%d %b %Y') }}\n", "26 Jul 2024\n"),
        ('\n{%- set day = strftime_now("%Y-%m-%d") %}{{ day }}: ', "2024-07-26: "),
        ("{% if strftime_now is defined %}{{ strftime_now( '%A' ) }}{% endif %}", "Friday"),
        (" \n{# strftime_now #}", " \n"),
    ],
)
def test_a_template_that_writes_the_date_writes_the_same_on_every_day(
    tmp_path, templated, caplog, template, text
):
    dated = templated(template + PLAIN)
    source = conversations(tmp_path, [[{"role": "user", "content": "hi"}]])

    sink, _ = laid_out(source, dated)

    assert sink.documents[0].text == text + "<user>hi\n"
    assert "The chat template writes the day, for which 2024-07-26 is taken" in caplog.text
    config, nothing = CorpusConfig(source=source), resolve_beginning("never", dated)
    opened = open_template(config, dated, nothing)
    written = corpus_provenance(config, nothing, opened)["chat_template"]
    assert written == {"sha256": opened.sha256, "date": "2024-07-26"}


def test_a_date_in_a_format_that_is_computed_is_refused(tmp_path, templated):
    dated = templated("{% set how = '%d' ~ '%b' %}{{ strftime_now(how) }}" + PLAIN)
    source = conversations(tmp_path, [[{"role": "user", "content": "hi"}]])

    with pytest.raises(InvalidColumn, match="asks for the date in a format that is not written"):
        laid_out(source, dated)


def test_a_template_that_trims_what_is_said_is_understood(tmp_path, templated):
    trimming = templated(PLAIN.replace("m['content']", "m['content'] | trim"))
    chat = [{"role": "user", "content": "  hi \n"}]

    sink, _ = laid_out(conversations(tmp_path, [chat]), trimming)

    assert sink.documents[0].text == "<user>hi\n"
    assert (
        sink.documents[0].columns["segments"] == '[["template", 6], ["user", 8], ["template", 9]]'
    )


def test_a_conversation_without_messages_is_counted_as_empty(tmp_path, templated):
    chats = [None, [], [{"role": "user", "content": "hi"}]]

    _, report = laid_out(conversations(tmp_path, chats), templated(PLAIN))

    assert (report.documents, report.empty_documents) == (1, 2)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("hello", "holds str"),
        ([{"from": "human", "value": "hi"}], r"holds a message 0 .*\(from, value\)"),
        ([{"role": "user", "content": None}], "holds a message 0"),
        (["hi"], r"holds a message 0 .*\(no keys\)"),
    ],
)
def test_what_is_no_conversation_is_refused_by_place(tmp_path, templated, value, what):
    good = [{"role": "user", "content": "hi"}]

    with pytest.raises(InvalidColumn, match=rf"chat\.jsonl:2: the messages column {what}.*\nhint"):
        laid_out(conversations(tmp_path, [good, value]), templated(PLAIN))


def test_what_the_template_refuses_is_refused_with_its_reason(tmp_path, templated):
    strict = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('user first') }}{% endif %}"
    chat = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]

    with pytest.raises(InvalidColumn, match=r"jsonl:1: .*: user first\nIts roles are system, user"):
        laid_out(conversations(tmp_path, [chat]), templated(strict + PLAIN))


@pytest.mark.parametrize("change", ["m['content'] | upper", "m['content'][:1]", "'…'"])
def test_a_template_that_changes_what_is_said_is_refused(tmp_path, templated, change):
    changing = templated(PLAIN.replace("m['content']", change))

    with pytest.raises(InvalidColumn, match=r"jsonl:1: .* does not write .*\n.*segments_column"):
        laid_out(conversations(tmp_path, [[{"role": "user", "content": "hi"}]]), changing)


def test_a_tokenizer_without_a_template_is_refused_before_a_text_is_read(tmp_path):
    source = Files(path=str(tmp_path / "nowhere.jsonl"), messages_column="messages")

    with pytest.raises(TokenizerUnfit, match=r"no chat template.*\nhint: take a model"):
        laid_out(source, letters())


def test_conversations_that_would_begin_twice_are_refused(tmp_path, templated):
    source = conversations(tmp_path, [[{"role": "user", "content": "hi"}]])
    begun = templated("<end>" + PLAIN)
    begun.bos_token = "<end>"

    with pytest.raises(TokenizerUnfit, match=r"would begin twice.*\nhint: set corpus\.bos: never"):
        laid_out(source, begun, bos="context")
    sink, _ = laid_out(source, begun, bos="never")

    assert sink.contexts[0].ids.tolist().count(0) == 1


@pytest.mark.parametrize("in_text", ["ordinary", "refuse"])
def test_a_special_token_in_a_message_is_refused_unless_it_is_meant(tmp_path, smollm2, in_text):
    chat = [{"role": "user", "content": "what is <|im_end|>?"}]
    source = conversations(tmp_path, [chat])

    with pytest.raises(SpecialTokenInText, match=r"jsonl:1: message 0 holds .*'<\|im_end\|>'"):
        laid_out(source, smollm2, special_tokens=SpecialTokens(in_text=in_text))
    sink, report = laid_out(source, smollm2, special_tokens=SpecialTokens(in_text="special"))

    ids = smollm2.apply_chat_template(chat, tokenize=True, return_dict=False)
    assert sink.contexts[0].ids.tolist() == ids
    assert report.special_tokens["<|im_end|>"] == 3


def test_the_template_is_part_of_what_a_corpus_is(tmp_path, templated):
    config = CorpusConfig(source=conversations(tmp_path, []))

    def provenance(template):
        tokenizer = templated(template)
        beginning = resolve_beginning(config.bos, tokenizer)
        opened = open_template(config, tokenizer, beginning)
        return corpus_provenance(config, beginning, opened)

    known = provenance(PLAIN)["chat_template"]
    assert known == provenance(PLAIN)["chat_template"]
    assert known != provenance(PLAIN + " ")["chat_template"]


def test_the_templates_own_special_tokens_may_be_among_the_rows(tmp_path, smollm2):
    chat, text = CorpusConfig(source=conversations(tmp_path, [])), CorpusConfig()

    assert smollm2.convert_tokens_to_ids("<|im_start|>") in emitted_tokens(chat, smollm2)
    assert smollm2.convert_tokens_to_ids("<|im_start|>") not in emitted_tokens(text, smollm2)


def test_segments_that_are_given_are_kept_with_their_text(tmp_path):
    parts = [{"name": "prompt", "stop": 3}, {"name": "answer", "stop": 8}]
    path = written(tmp_path / "a.jsonl", [{"text": "one two.", "parts": parts}])

    sink, _ = laid_out(Files(path=path, segments_column="parts"), letters())

    assert sink.documents[0].columns == {"segments": '[["prompt", 3], ["answer", 8]]'}


@pytest.mark.parametrize(
    ("parts", "what"),
    [
        (None, "holds None"),
        ("prompt", "holds 'prompt'"),
        ([{"name": "prompt", "stop": 7}], "ends at character 7 of 8"),
        ([{"name": "a", "stop": 9}], "ends at character 9"),
        ([{"name": "a", "stop": 5}, {"name": "b", "stop": 3}], "has 'b' stop at 3"),
        ([{"name": "a", "stop": "8"}], "has 'a' stop at '8'"),
        ([{"stop": 8}], "at place 0"),
        ([8], "at place 0"),
        ([], "ends at character 0"),
    ],
)
def test_segments_that_do_not_cover_the_text_are_refused_by_place(tmp_path, parts, what):
    path = written(tmp_path / "a.jsonl", [{"text": "one two.", "parts": parts}])

    with pytest.raises(InvalidColumn, match=rf"a\.jsonl:1: .*{what}[\s\S]*hint: give a list"):
        laid_out(Files(path=path, segments_column="parts"), letters())


def test_a_text_file_has_no_conversations(tmp_path, templated):
    (tmp_path / "a.txt").write_text("hi")

    for column in ("messages_column", "segments_column"):
        source = Files(path=str(tmp_path), **{column: "x"})
        with pytest.raises(ColumnMissing, match=r"a\.txt is a text and has no column 'x'\nhint"):
            laid_out(source, templated(PLAIN))


@pytest.mark.parametrize(
    ("source", "config", "message"),
    [
        ({"messages_column": "m", "text_column": "body"}, {}, "text_column 'body'"),
        ({"messages_column": "m", "segments_column": "s"}, {}, "segments_column 's'"),
        ({"messages_column": "m"}, {"cut_documents": 100}, "are not cut"),
        ({"segments_column": "m"}, {"cut_documents": 100}, "are not cut"),
    ],
)
def test_what_contradicts_itself_is_refused_by_the_configuration(source, config, message):
    with pytest.raises(InvalidCorpusConfig, match=rf"{message}[\s\S]*hint: leave"):
        CorpusConfig(source=Files(path="x", **source), **config)
