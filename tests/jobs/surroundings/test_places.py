"""Places that cannot be written or read are said in words, and what is written others may read."""

import errno
import os
import resource
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from actlake.jobs import demo
from actlake.jobs.cli import COMMANDS, Command, run
from actlake.jobs.probe import Probe
from actlake.jobs.sae import read_sae
from actlake.jobs.transport.artefact import TransportOperator
from actlake.platform.corpus import hub_dataset
from actlake.platform.corpus.sources import HubDataset
from actlake.platform.runs import RunRecord, whole_folder
from actlake.platform.safetensors_files import plain_mode, readable, written

UNTRACKED = ("--tracking.wandb", "disabled")


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_result_lies_where_a_tilde_says_and_all_its_files_have_the_mode_of_the_umask(
    job, plain_environment
):
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "actlake.jobs", *job),
            *("--out=~/results/out", *UNTRACKED),  # no shell expands this one
        ],
        env=plain_environment, capture_output=True, text=True, timeout=200, check=False,
        umask=0o002,
    )  # fmt: skip

    assert ended.returncode == 0, ended.stderr
    results = Path(plain_environment["HOME"]) / "results"
    assert (results / "out" / "run.json").is_file()
    found = modes(results)
    assert any(name.endswith(".safetensors") for name in found)
    assert {name: oct(mode) for name, mode in found.items() if mode != 0o664} == {}


def test_a_cached_folder_is_open_to_others(umask, tmp_path, monkeypatch):
    from actlake.platform.models.cache import cached_folder

    monkeypatch.setenv("ACTLAKE_CACHE", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    umask(0o022)

    def make(folder: Path) -> None:
        (folder / "weights").touch(mode=0o600)

    folder = cached_folder("some-model", make)

    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert modes(folder) == {"weights": 0o644}


@contextmanager
def as_another_user() -> Iterator[None]:
    """Root may read everything; whoever else runs the tests is bound by modes already."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, unlike those of pytest."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


READERS: dict[str, tuple[tuple[str, ...], Callable[[Path], object]]] = {
    "SAE": (("cfg.json", "sae_weights.safetensors"), lambda folder: read_sae(str(folder))),
    "probe": (("probe.json", "probe.safetensors"), Probe.load),
    "operator": (("operator.json", "operator.safetensors"), TransportOperator.load),
    "record": (("run.json",), RunRecord.load),
}


@pytest.mark.parametrize("kind", READERS)
def test_a_file_that_may_not_be_read_is_not_called_missing(kind, open_folder):
    files, read = READERS[kind]
    for closed in files:
        for name in files:
            (open_folder / name).write_text('{"format": 1}')
            (open_folder / name).chmod(0o000 if name == closed else 0o644)

        with pytest.raises(PermissionError) as refused, as_another_user():
            read(open_folder)

        assert closed in str(refused.value.filename)


def test_safetensors_files_are_told_apart(open_folder):
    (open_folder / "closed").touch(mode=0o000)

    with as_another_user():
        with pytest.raises(PermissionError):
            readable(open_folder / "closed")
        with pytest.raises(FileNotFoundError):
            readable(open_folder / "missing")


def test_a_command_puts_what_the_system_refuses_into_words(monkeypatch, capsys):
    def closed(_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", "/data/run.json")

    monkeypatch.setitem(COMMANDS, "info", Command("", lambda: closed))

    assert run(["info", "store"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("actlake info: /data/run.json: Permission denied\nhint: this user may")


def test_what_only_a_bug_would_ask_keeps_its_traceback(monkeypatch):
    def broken(_: object) -> int:
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setitem(COMMANDS, "info", Command("", lambda: broken))

    with pytest.raises(OSError, match="Bad file descriptor"):
        run(["info", "store"])


@pytest.mark.parametrize("plan", [(), ("--plan",)])
def test_an_out_below_a_file_is_refused_with_a_hint(job, plan, capsys, tmp_path):
    (tmp_path / "file").touch()

    status = run([*job, "--out", str(tmp_path / "file" / "out"), *UNTRACKED, *plan])

    said = capsys.readouterr().err
    assert status == 1
    assert "Not a directory" in said or "exists" in said
    assert str(tmp_path / "file") in said
    assert "hint: " in said


@pytest.mark.parametrize("plan", [(), ("--plan",)])
def test_a_harvest_below_a_file_is_refused_before_the_model_is_looked_at(plan, capsys, tmp_path):
    (tmp_path / "file").touch()
    options = {
        "--store": tmp_path / "file" / "store",
        "--model.name": "nobody/nothing",
        "--sites": "resid_post.0",
        "--corpus.source.path": tmp_path / "file",
    }

    status = run(["harvest", *(str(word) for pair in options.items() for word in pair), *plan])

    said = capsys.readouterr().err
    assert status == 1
    assert f"{tmp_path / 'file' / 'store'}: Not a directory\nhint: " in said
    assert "nobody" not in said


def test_the_demo_says_where_it_cannot_write_before_it_fetches_a_model(
    monkeypatch, capsys, tmp_path
):
    (tmp_path / "file").touch()
    monkeypatch.setattr(demo, "smollm2_folder", lambda: pytest.fail("the model was fetched"))

    assert run(["demo", "--out", str(tmp_path / "file" / "demo")]) == 1
    assert f"{tmp_path / 'file' / 'demo'}: Not a directory" in capsys.readouterr().err


@pytest.mark.parametrize("plan", [(), ("--plan",)])
def test_a_pipeline_says_of_its_last_step_where_it_cannot_write_before_the_first(
    plan, capsys, tmp_path, small_store
):
    (tmp_path / "file").touch()
    pipeline = tmp_path / "pipeline.yaml"
    pipeline.write_text(
        f"logs: {tmp_path / 'logs'}\n"
        "steps:\n"
        "  first:\n"
        "    command: transport\n"
        f"    config: {{store: '{small_store}', out: '{tmp_path / 'first'}'}}\n"
        "  last:\n"
        "    command: transport\n"
        "    after: [first]\n"
        f"    config: {{store: '{small_store}', out: '{tmp_path / 'file' / 'last'}'}}\n"
    )

    assert run(["run", str(pipeline), *plan]) == 1
    assert f"{tmp_path / 'file' / 'last'}: Not a directory" in capsys.readouterr().err
    assert not (tmp_path / "first").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "{store}", "{file}/copy"],
        ["run", "{store}/../none.yaml"],
        ["cluster", "env", "--token-file", "{file}/token"],
        ["info", "{file}/store"],
    ],
)
def test_no_command_ends_with_a_traceback_below_a_file(arguments, capsys, tmp_path, small_store):
    (tmp_path / "file").touch()
    named = [word.format(store=small_store, file=tmp_path / "file") for word in arguments]

    status = run(named)

    assert status == 1
    assert "hint: " in capsys.readouterr().err


def test_a_place_that_may_not_be_written_is_refused_with_a_hint(job, capsys):
    status = run([*job, "--out", "/sys/out", *UNTRACKED])  # not even root may

    said = capsys.readouterr().err
    assert status == 1
    assert "/sys" in said
    assert "hint: " in said


def test_a_disk_that_is_full_in_the_middle_is_said_in_words(job, plain_environment, tmp_path):
    """A limit on the size of files fails like a full disk: at any write, with an errno."""
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "actlake.jobs", *job),
            *("--out", str(tmp_path / "out"), *UNTRACKED),
        ],
        env=plain_environment, capture_output=True, text=True, timeout=200, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
    )  # fmt: skip

    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "File too large" in ended.stderr
    assert "hint: " in ended.stderr


def test_what_safetensors_could_not_write_is_an_error_of_the_system(tmp_path):
    from safetensors import SafetensorError

    with pytest.raises(OSError, match="No space left") as full, written(tmp_path / "weights"):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    assert full.value.filename == str(tmp_path / "weights")
    with pytest.raises(SafetensorError, match="shape"), written(tmp_path / "weights"):
        raise SafetensorError("a shape that cannot be")


def test_the_mode_of_a_file_is_what_the_umask_says_and_nothing_is_left(umask, tmp_path):
    for mask in (0o077, 0o002, 0o000):
        umask(mask)
        assert plain_mode(tmp_path) == 0o666 & ~mask

    assert list(tmp_path.iterdir()) == []


def test_a_whole_folder_keeps_the_modes_of_folders(umask, tmp_path):
    umask(0o022)
    with whole_folder(tmp_path / "out") as folder:
        (folder / "inside").mkdir()
        (folder / "inside" / "weights").touch(mode=0o600)

    assert stat.S_IMODE((tmp_path / "out" / "inside").stat().st_mode) == 0o755
    assert modes(tmp_path / "out") == {"inside/weights": 0o644}


def test_a_tilde_is_the_home_folder_of_a_data_set_and_of_a_config(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.jsonl").write_text('{"text": "one"}\n')
    source = HubDataset(dataset="~/texts", dataset_split="train")

    assert next(iter(hub_dataset._open(source)))["text"] == "one"

    (tmp_path / "run.yaml").write_text("no_such_key: 1\n")
    assert run(["transport", "--config", "~/run.yaml"]) == 1
    assert "no_such_key" in capsys.readouterr().err


def test_a_level_of_logging_that_is_none_is_said_and_the_command_runs(
    capsys, small_store, monkeypatch
):
    monkeypatch.setenv("ACTLAKE_LOG", "loudly")

    assert run(["info", str(small_store)]) == 0
    assert "ACTLAKE_LOG is no level of logging (LOUDLY)" in capsys.readouterr().err
