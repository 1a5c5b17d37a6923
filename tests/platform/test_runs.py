import getpass
import json
import math
import os
import platform
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from actlake.platform import runs
from actlake.platform.redact import HIDDEN, without_secrets
from actlake.platform.runs import (
    CodeVersion,
    Input,
    ResultExists,
    RunRecord,
    RunRecordError,
    code_version,
    whole_folder,
)


@pytest.fixture
def record() -> RunRecord:
    return RunRecord.start(
        "train-sae",
        {"steps": 10, "sites": ["resid_post.6"], "out": "runs/a"},
        inputs={"store": Input("stores/small", "a1b2c3"), "labels": Input("labels.csv")},
        seed=7,
    )


def test_a_saved_record_reads_back_as_it_was(record: RunRecord, tmp_path: Path):
    finished = record.finish({"fvu": 0.25, "dead": 3, "loss": math.inf})

    path = finished.save(tmp_path)

    assert path == tmp_path / "run.json"
    assert RunRecord.load(tmp_path) == finished


def test_an_unfinished_record_reads_back_too(record: RunRecord, tmp_path: Path):
    record.save(tmp_path)

    assert RunRecord.load(tmp_path) == record
    assert RunRecord.load(tmp_path).finished is None


def test_a_record_is_standard_json_also_with_numbers_that_are_not_finite(
    record: RunRecord, tmp_path: Path
):
    finished = record.finish({"loss": float("nan"), "norm": np.float32(0.5)})

    content = json.loads(finished.save(tmp_path).read_text(), parse_constant=pytest.fail)

    assert content["metrics"] == {"loss": "NaN", "norm": 0.5}
    assert math.isnan(RunRecord.load(tmp_path).metrics["loss"])


def test_a_record_says_when_in_utc(record: RunRecord):
    finished = record.finish({})

    assert finished.finished is not None
    assert datetime.now(UTC) - record.started < timedelta(seconds=30)
    assert finished.finished >= record.started
    assert finished.to_dict()["started"].endswith("Z")


def test_a_record_names_versions_without_importing_anything():
    code = (
        "import sys; from actlake.platform.runs import RunRecord; "
        "record = RunRecord.start('x', {}); "
        "print({'torch', 'transformers', 'ray', 'wandb'} & set(sys.modules), "
        "sorted(record.versions))"
    )

    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert answer.stdout.startswith("set() ")
    for name in ("python", "platform", "numpy", "torch"):
        assert f"'{name}'" in answer.stdout


def test_a_package_that_is_not_installed_is_left_out():
    assert "no-such-package" not in runs.versions(["numpy", "no-such-package"])


def test_a_record_holds_no_host_and_no_credentials(tmp_path: Path):
    config = {
        "store": "s3://AKIA:hunter2@bucket/acts",
        "options": {"key": "AKIA", "secret": "hunter2", "region": "eu"},
        "max_tokens": 100,
        "pad_token": "<pad>",
    }

    text = RunRecord.start("x", config).save(tmp_path).read_text()

    assert "hunter2" not in text
    assert "AKIA" not in text
    assert platform.node() not in text
    assert f'"{getpass.getuser()}"' not in text
    assert RunRecord.load(tmp_path).config["pad_token"] == "<pad>"
    assert RunRecord.load(tmp_path).config["max_tokens"] == 100


def test_credentials_are_known_by_their_keys_and_nothing_else_is_hidden():
    shown = without_secrets(
        {
            "api_key": "a", "client_secret": "b", "hf_token": "c", "Authorization": "d",
            "nested": [{"password": "e"}], "empty": {"token": ""},
            "sort_key": "layer", "eos_token": "</s>", "tokens": 3, "key_dim": 64,
        }
    )  # fmt: skip

    assert shown == {
        "api_key": HIDDEN, "client_secret": HIDDEN, "hf_token": HIDDEN, "Authorization": HIDDEN,
        "nested": [{"password": HIDDEN}], "empty": {"token": ""},
        "sort_key": "layer", "eos_token": "</s>", "tokens": 3, "key_dim": 64,
    }  # fmt: skip


def test_a_missing_record_is_an_error_that_says_where(tmp_path: Path):
    with pytest.raises(RunRecordError, match=r"no run\.json in .*\nhint: a finished result"):
        RunRecord.load(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"format": 1, "job": "x"}'])
def test_a_damaged_record_is_an_error_that_says_which(content: str, tmp_path: Path):
    (tmp_path / "run.json").write_text(content)

    with pytest.raises(RunRecordError, match=r"run\.json is not a run record"):
        RunRecord.load(tmp_path)


def test_a_record_of_a_newer_format_is_refused_by_name(record: RunRecord, tmp_path: Path):
    path = record.save(tmp_path)
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))

    with pytest.raises(RunRecordError, match="has format 2; this version of actlake reads 1"):
        RunRecord.load(tmp_path)


def _git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    answer = subprocess.run(
        ["git", "-C", str(folder), *identity, *words], capture_output=True, text=True, check=True
    )
    return answer.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout in which runs.py seems to lie."""
    source = tmp_path / "platform" / "actlake" / "platform" / "runs.py"
    source.parent.mkdir(parents=True)
    source.write_text("")
    (tmp_path / "pyproject.toml").write_text("")
    _git(tmp_path, "init", "-q")
    monkeypatch.setattr(runs, "__file__", str(source))
    return tmp_path


def test_code_in_a_checkout_is_named_by_its_commit_and_whether_it_was_changed(checkout: Path):
    _git(checkout, "add", "-A")
    _git(checkout, "commit", "-qm", "first")
    clean = code_version()

    (checkout / "pyproject.toml").write_text("# changed")
    changed = code_version()

    assert clean.commit == changed.commit == _git(checkout, "rev-parse", "HEAD")
    assert (clean.dirty, changed.dirty) == (False, True)


def test_a_checkout_without_a_commit_has_none_and_is_changed(checkout: Path):
    assert code_version().commit is None
    assert code_version().dirty is True


def test_a_wheel_inside_another_projects_checkout_does_not_take_its_commit(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
):
    _git(checkout, "add", "-A")
    _git(checkout, "commit", "-qm", "another project")
    installed = checkout / ".venv/lib/python3.11/site-packages/actlake/platform/runs.py"
    monkeypatch.setattr(runs, "__file__", str(installed))

    code = code_version()

    assert code == CodeVersion(code.actlake, None, None)


def test_a_folder_appears_only_when_it_is_whole(tmp_path: Path):
    to = tmp_path / "results" / "sae"

    with whole_folder(to) as folder:
        (folder / "inside").mkdir()
        (folder / "inside" / "weights").write_bytes(b"w")
        seen_early = to.exists()

    assert not seen_early
    assert (to / "inside" / "weights").read_bytes() == b"w"
    assert [path.name for path in to.parent.iterdir()] == ["sae"]


def test_a_folder_that_fails_leaves_nothing(tmp_path: Path):
    def fail() -> None:
        with whole_folder(tmp_path / "sae") as folder:
            (folder / "weights").write_bytes(b"w")
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail()

    assert list(tmp_path.iterdir()) == []


def test_a_result_that_exists_is_refused_before_any_work(tmp_path: Path):
    (tmp_path / "sae").mkdir()
    (tmp_path / "sae" / "weights").write_bytes(b"old")

    with (
        pytest.raises(ResultExists, match=r"already something at .*sae; results are never over"),
        whole_folder(tmp_path / "sae"),
    ):
        pytest.fail("the body must not run")

    assert (tmp_path / "sae" / "weights").read_bytes() == b"old"


def test_an_empty_folder_may_be_filled(tmp_path: Path):
    (tmp_path / "sae").mkdir()

    with whole_folder(tmp_path / "sae") as folder:
        (folder / "weights").write_bytes(b"w")

    assert (tmp_path / "sae" / "weights").exists()


def test_the_slower_of_two_is_refused_and_changes_nothing(tmp_path: Path):
    to = tmp_path / "sae"

    def race() -> None:
        with whole_folder(to) as slow:
            with whole_folder(to) as fast:
                (fast / "weights").write_bytes(b"fast")
            (slow / "weights").write_bytes(b"slow")

    with pytest.raises(ResultExists, match="already something"):
        race()

    assert (to / "weights").read_bytes() == b"fast"
    assert [path.name for path in tmp_path.iterdir()] == ["sae"]


def test_what_a_killed_process_left_is_removed_and_what_a_live_one_holds_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from actlake.platform.runs import whole_folder\n"
        "with whole_folder(Path(sys.argv[1])):\n"
        "    print('in', flush=True); time.sleep(60)\n"
    )
    monkeypatch.setattr(runs, "_STALE_AFTER_S", -1)
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "sae")], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"in\n"

        with whole_folder(tmp_path / "sae") as folder:
            others = [path for path in tmp_path.iterdir() if path != folder]
            assert len(others) == 1
        (tmp_path / "sae").rmdir()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    time.sleep(0.01)
    with whole_folder(tmp_path / "sae"):
        pass

    assert [path.name for path in tmp_path.iterdir()] == ["sae"]


def test_a_folder_with_brackets_in_its_name_does_not_sweep_its_neighbours_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(runs, "_STALE_AFTER_S", -1)
    neighbours, own = tmp_path / ".set1.x.partial", tmp_path / ".set[1].x.partial"
    neighbours.mkdir()
    own.mkdir()
    time.sleep(0.01)

    with whole_folder(tmp_path / "set[1]"):
        pass

    assert neighbours.exists()
    assert not own.exists()
