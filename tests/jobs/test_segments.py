"""The segments of conversations are labels of the store's tokens."""

import json

import pytest
from transformers import AutoTokenizer

from actlake.jobs.harvest.segments import attach_segments
from actlake.platform.corpus import (
    CorpusConfig,
    Files,
    Packed,
    SplitByHash,
    corpus_provenance,
    lay_out,
    resolve_beginning,
)
from actlake.platform.models import tokenizer_file
from actlake.storage import Lease, Provenance, StoreBuilder, StoreRequest, open_store
from actlake.storage.location import LocalFolder
from actlake.storage.schema import Geometry


@pytest.fixture(scope="module")
def tokenizer(smollm2_folder):
    return AutoTokenizer.from_pretrained(smollm2_folder)


def dialogues(number):
    for i in range(number):
        yield [
            {"role": "user", "content": f"How many lamps are {i} lamps and one?"},
            {"role": "assistant", "content": f"There are {i + 1} lamps, of course."},
            {"role": "user", "content": "Thanks."},
            {"role": "assistant", "content": "Ask me again."},
        ]


def laid_down(folder, tokenizer, rows, *, context_length=64, max_tokens=None, bos="auto", **source):
    """A store without activations; contexts are packed, so that they cut conversations."""
    path = folder / "chat.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = CorpusConfig(
        source=Files(path=str(path), **source),
        layout=Packed(separator="<|endoftext|>"),
        context_length=context_length,
        max_tokens=max_tokens,
        bos=bos,
        splits=SplitByHash(fractions={"train": 1.0}),
    )
    beginning = resolve_beginning(bos, tokenizer)
    provenance = Provenance(corpus=corpus_provenance(config, beginning))
    request = StoreRequest(layout="packed", context_length=context_length, splits=("train",))
    files = {"tokenizer.json": tokenizer_file(tokenizer)}
    with Lease.acquire(LocalFolder(folder / "store")) as lease:
        with StoreBuilder(lease, request, provenance, tokenizer_files=files) as builder:
            lay_out(config, tokenizer, builder)
            builder.finish(lambda rows: Geometry(unit_rows=256))
        return open_store(lease.location)


@pytest.fixture(scope="module")
def chat(tmp_path_factory, tokenizer):
    rows = [{"messages": messages} for messages in dialogues(200)]
    folder = tmp_path_factory.mktemp("chat")
    store = laid_down(folder, tokenizer, rows, messages_column="messages")
    attach_segments(store)
    return store


def decoded(store, tokenizer, rows):
    return tokenizer.decode(store.tokens["id"].read(0, len(store))[rows.rows])


def test_the_assistants_tokens_are_found_and_are_what_it_said(chat, tokenizer):
    said = decoded(chat, tokenizer, chat.find(where="segment = 'assistant'"))

    assert said == "".join(
        message["content"]
        for messages in dialogues(200)
        for message in messages
        if message["role"] == "assistant"
    )


def test_every_token_is_in_one_segment_but_the_separators(chat):
    labels = chat.labels("segments")

    assert set(labels.columns) == {"segment", "segment_number"}
    assert labels.alignment.misaligned == 0
    assert len(set(labels.rows.tolist())) == len(labels.rows) == len(chat) - 200


def test_the_last_message_is_found_by_its_number(chat, tokenizer):
    last = chat.find(where="segment_number = 7")

    assert decoded(chat, tokenizer, last) == "Ask me again." * 200


def test_attaching_again_changes_nothing_and_what_was_not_attached_is(chat):
    path = chat.location.local_path("labels/segments.parquet")
    before = path.read_bytes()
    stamp = path.stat().st_mtime_ns

    attach_segments(chat)
    assert path.stat().st_mtime_ns == stamp

    path.unlink()
    attach_segments(open_store(chat.url))
    assert path.read_bytes() == before


def test_what_was_cut_off_has_no_label_and_is_counted(tmp_path, tokenizer):
    rows = [{"messages": messages} for messages in dialogues(3)]
    store = laid_down(tmp_path, tokenizer, rows, messages_column="messages", max_tokens=100)

    attach_segments(store)

    labels = store.labels("segments")
    assert labels.alignment.without_tokens > 0
    assert labels.rows.max() < len(store) == 100


def test_parts_that_were_given_are_labels_and_other_stores_have_none(tmp_path, tokenizer):
    parts = [{"name": "prompt", "stop": 8}, {"name": "answer", "stop": 15}]
    rows = [{"text": "One two, three.", "parts": parts}] * 3
    (tmp_path / "plain").mkdir()

    store = laid_down(tmp_path, tokenizer, rows, segments_column="parts")
    plain = laid_down(tmp_path / "plain", tokenizer, [{"text": "One two."}])
    attach_segments(store)
    attach_segments(plain)

    assert decoded(store, tokenizer, store.find(where="segment = 'answer'")) == " three." * 3
    assert not list(plain.location.list("labels"))


def test_a_column_of_that_name_is_kept_under_another(tmp_path, tokenizer):
    store = laid_down(tmp_path, tokenizer, [{"text": "One two.", "segments": "mine"}])

    attach_segments(store)

    assert store.documents(["original_segments"])["original_segments"].to_pylist() == ["mine"]
    assert not list(store.location.list("labels"))


@pytest.mark.parametrize("bos", ["never", "context", "document"])
def test_segments_of_given_ids_are_labels_of_the_tokens_that_were_given(tmp_path, tokenizer, bos):
    rows = [
        {
            "tokens": [1000 + i, *range(2000, 2000 + i), 3000],
            "parts": [{"name": "prompt", "stop": 1}, {"name": "generated", "stop": i + 2}],
        }
        for i in range(40)
    ]
    store = laid_down(
        tmp_path, tokenizer, rows, context_length=16, bos=bos, ids_column="tokens",
        segments_column="parts", columns=(),
    )  # fmt: skip

    attach_segments(store)

    ids = store.tokens["id"].read(0, len(store))
    prompt, generated = (
        ids[store.find(where=f"segment = '{name}'").rows].tolist()
        for name in ("prompt", "generated")
    )
    assert prompt == [row["tokens"][0] for row in rows]
    assert generated == [token for row in rows for token in row["tokens"][1:]]


def test_a_text_is_not_looked_for_where_nobody_knows_where_it_stands_and_that_is_said(
    tmp_path, tokenizer, caplog
):
    given = tokenizer("Ask me again.", add_special_tokens=False)["input_ids"]
    rows = [{"tokens": given, "text": "Ask me again."}, {"tokens": [*given, 5]}, {"tokens": [7]}]
    store = laid_down(tmp_path, tokenizer, rows, ids_column="tokens")

    found = store.find(text="again")

    assert len(found) == 1
    assert "In 2 documents of" in caplog.text
    assert len(store.find(token=" again")) == 2
