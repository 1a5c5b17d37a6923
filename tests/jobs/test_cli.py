"""The command line: what it refuses, in which words, and what it answers."""

import gzip
import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actlake.jobs.cli import COMMANDS, Command, run
from actlake.storage import open_store


@pytest.fixture
def text(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.txt").write_text(f"This is the text of number {number}. " * 20)
    return folder


@pytest.fixture
def refused(capsys, tmp_path, smollm2_folder, text):
    """Run `actlake harvest` on a small text with some options changed; what it says."""

    def harvest(**options):
        chosen = {
            "store": str(tmp_path / "store"),
            "model.name": str(smollm2_folder),
            "sites": "resid_post.3",
            "corpus.source.path": str(text),
        } | {name.replace("__", "."): value for name, value in options.items()}
        arguments = [part for name, value in chosen.items() for part in (f"--{name}", str(value))]
        status = run(["harvest", *arguments])
        captured = capsys.readouterr()
        assert status == 1, captured
        assert "Traceback" not in captured.err
        return captured.err

    return harvest


def test_help_names_every_command(capsys):
    assert run(["--help"]) == 0

    out = capsys.readouterr().out
    for name in COMMANDS:
        assert name in out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_examples(capsys, name):
    with pytest.raises(SystemExit) as ended:
        run([name, "--help"])

    assert ended.value.code in (0, None)
    assert f"actlake {name} " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "then"),
    [
        ("harvest", "goes on from here"),
        ("sae", "goes on from here"),
        ("verify", "begins anew"),
        ("info", "begins anew"),
        ("doctor", "begins anew"),
    ],
)
def test_what_an_interrupted_command_promises_is_so(name, then, monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, name, Command("", lambda: interrupted))

    assert run([name]) == 130
    assert capsys.readouterr().err == f"actlake {name}: interrupted; the same command {then}\n"


def test_an_unknown_command_names_the_nearest(capsys):
    assert run(["harvets"]) == 2
    assert "did you mean 'harvest'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sites": "resid_post.30"}, "SmolLM2 has 30 layers"),
        ({"sites": "resid_past.3"}, "did you mean 'resid_post'?"),
        ({"sites": "resid_post"}, "give a site of a block, written POINT.LAYER"),
        ({"model__name": "./no-such-folder"}, "no-such-folder"),
        ({"storage__dtype": "float8"}, "float16"),
        ({"replicas": "0"}, "replicas must be more than 0, and is 0"),
        ({"batch_tokens": "-4"}, "batch_tokens must be more than 0, and is -4"),
        ({"corpus__context_length": "9000"}, "9000 tokens are longer than the 8192 positions"),
        ({"stages": "9"}, "4 layers cannot be divided among 9 stages"),
        ({"corpus__source__path": "/nowhere/*.txt"}, "/nowhere/*.txt"),
        ({"corpus__bos": "document", "corpus__layout__separator": "<|nope|>"}, "<|nope|>"),
        ({"corpus__max_token": "5"}, "did you mean 'max_tokens'?"),
        ({"storage__unit_rows": "0"}, "storage.unit_rows must be more than 0"),
    ],
)
def test_bad_input_is_refused_with_a_hint(refused, options, words):
    said = refused(**options).replace("smollm2-135m-instruct-bcc81830", "SmolLM2")

    assert words.split("SmolLM2")[-1] in said
    assert "hint:" in said


def test_a_text_that_is_not_utf8_is_named(refused, text):
    (text / "3.txt").write_bytes(b"caf\xe9 " * 30)

    said = refused()

    assert "3.txt" in said
    assert "UTF-8" in said


def test_a_file_without_the_text_column_names_the_columns_there_are(refused, tmp_path):
    pq.write_table(pa.table({"body": ["a"], "lang": ["en"]}), tmp_path / "t.parquet")
    with gzip.open(tmp_path / "t.jsonl.gz", "wt") as file:
        file.write(json.dumps({"body": "a"}) + "\n")

    for name in ("t.parquet", "t.jsonl.gz"):
        said = refused(corpus__source__path=tmp_path / name)

        assert "text" in said
        assert "body" in said


def test_a_split_that_is_needed_and_empty_is_refused(refused):
    said = refused(corpus__splits__fractions="{train: 0.999, test: 0.001}")

    assert "test" in said
    assert "rows" in said


def test_a_corpus_without_text_is_refused(refused, text):
    for path in text.iterdir():
        path.write_text("")

    assert "hint:" in refused()


def test_another_config_on_the_same_path_is_refused_with_the_difference(
    refused, tmp_path, smollm2_store
):
    shutil.copytree(smollm2_store, tmp_path / "store")

    said = refused(corpus__max_tokens="6000")

    assert "corpus.source" in said
    assert "hint:" in said


def test_a_finished_store_is_left_as_it_is(
    capsys, tmp_path, smollm2_store, harvest_arguments, tree
):
    store = tmp_path / "store"
    shutil.copytree(smollm2_store, store)
    before = tree(store)

    status = run(harvest_arguments(store))

    assert status == 0
    assert "is complete already; nothing was done" in capsys.readouterr().out
    assert tree(store) == before


def test_other_numerics_are_refused_with_the_difference(
    refused, tmp_path, smollm2_store, harvest_arguments, capsys
):
    store = tmp_path / "store"
    shutil.copytree(smollm2_store, store)
    arguments = harvest_arguments(store)
    arguments[arguments.index("--sites") + 1] += ",attn_out.4"
    arguments[arguments.index("--batch_tokens") + 1] = "128"

    status = run(arguments)

    said = capsys.readouterr().err
    assert status == 1
    assert "batch_tokens: stored 256, asked 128" in said
    assert "hint: go on where and how it was begun" in said


def test_info_says_what_is_there(capsys, smollm2_store):
    assert run(["info", str(smollm2_store)]) == 0
    assert "resid_post.9" in capsys.readouterr().out


def test_info_of_no_store_says_how_to_make_one(capsys, tmp_path):
    assert run(["info", str(tmp_path)]) == 1
    assert "hint: `actlake harvest` makes one" in capsys.readouterr().err


def test_the_plan_says_what_would_be_done_and_does_nothing(capsys, tmp_path, harvest_arguments):
    store = tmp_path / "store"

    status = run([*harvest_arguments(store), "--plan"])

    out = capsys.readouterr().out
    assert status == 0
    assert "6,000 tokens" in out
    assert "24 to do" in out
    assert "layers 0–9" in out
    assert not store.exists()


@pytest.mark.ray
def test_a_finished_store_takes_more_sites_and_its_old_bytes_stay(
    tmp_path, actlake, smollm2_store, harvest_arguments, tree
):
    store = tmp_path / "store"
    shutil.copytree(smollm2_store, store)
    before = tree(store)
    arguments = harvest_arguments(store)
    arguments[arguments.index("--sites") + 1] = "resid_post.3,attn_out.4"
    arguments += ["--stages", "2", "--replicas", "2", "--cluster.num_cpus", "4"]

    status, out = actlake(*arguments)

    assert status == 0, out
    after = tree(store)
    assert {key: after[key] for key in before} == before
    assert open_store(store).coverage("attn_out.4").is_complete


@pytest.mark.ray
def test_the_demo_runs_and_tells_what_to_try_next(tmp_path, actlake):
    status, out = actlake("demo", "--out", str(tmp_path / "demo"), "--tokens", "3000")

    assert status == 0, out
    assert "every checksum right" in out
    assert "Try next" in out
    assert len(open_store(tmp_path / "demo" / "store")) == 3000
