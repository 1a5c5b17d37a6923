"""`actlake doctor`: what it finds, that it changes nothing, and that it ends with the status."""

import importlib.metadata
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actlake.jobs.cli import run
from actlake.jobs.doctor import access, machine
from actlake.jobs.doctor.check import Finding, run_checks
from actlake.storage import ActlakeError
from actlake.storage.location import LocalFolder


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(("RAY_", "WANDB_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Run the command; its status, and findings by name (the last of each)."""

    def examine(*arguments: str) -> tuple[int, dict[str, Any]]:
        status = run(["doctor", "--json", *arguments])
        findings = json.loads(capsys.readouterr().out)
        assert all(f["hint"] for f in findings if f["status"] != "ok"), findings
        return status, {finding["name"]: finding for finding in findings}

    return examine


def test_a_sound_machine_and_store_are_called_so_and_left_as_they_are(
    doctor: Callable[..., tuple[int, dict[str, Any]]],
    smollm2_store: Path,
    smollm2_folder: Path,
    tmp_path: Path,
) -> None:
    config = tmp_path / "harvest.yaml"
    config.write_text(f"store: {smollm2_store}\nmodel: {{name: {smollm2_folder}}}\n")
    before = {path: path.stat().st_mtime_ns for path in smollm2_store.parent.rglob("*")}

    status, found = doctor("--config", str(config))

    assert status == 0
    assert "6,000 rows" in found["store"]["says"]
    assert "created by one only" in found["store access"]["says"]
    assert found["model access"]["status"] == "ok"
    assert found["versions"]["status"] == "ok"
    assert {path: path.stat().st_mtime_ns for path in smollm2_store.parent.rglob("*")} == before


def test_the_table_ends_with_a_count(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--model", "./none.gguf"]) == 1

    out = capsys.readouterr().out
    assert "fail" in out
    assert "there is no file ./none.gguf" in out
    assert "1 fail" in out


def test_a_store_is_tried_where_it_will_be_and_nothing_stays(
    doctor: Callable[..., tuple[int, dict[str, Any]]], tmp_path: Path
) -> None:
    _, found = doctor("--store", str(tmp_path / "not" / "yet"))

    assert "there is none at" in found["store"]["says"]
    assert list(tmp_path.iterdir()) == []


def test_the_stores_models_and_clusters_of_a_pipeline_are_all_examined(
    doctor: Callable[..., tuple[int, dict[str, Any]]], tmp_path: Path
) -> None:
    config = tmp_path / "pipeline.yaml"
    config.write_text(
        f"steps:\n  a: {{command: harvest, config: {{store: {tmp_path}/a, "
        f"model: {{name: {tmp_path}/none.gguf}}}}}}\n"
        f"  b: {{command: sae, config: {{store: {tmp_path}/a, out: {tmp_path}/b}}}}\n"
    )

    status, found = doctor("--config", str(config))

    assert status == 1
    assert found["model access"]["status"] == "fail"
    assert found["store access"]["status"] == "ok"


@pytest.mark.parametrize(
    ("arguments", "name", "words"),
    [
        (["--address", "http://127.0.0.1:1"], "cluster", "Nobody answers at http://127.0.0.1:1"),
        (["--address", "127.0.0.1:1"], "cluster", "There is no cluster at '127.0.0.1:1'"),
        (["--store", "ftp://b/x"], "store access", "ftp"),
        (["--store", "/proc/x"], "store access", "/proc"),
    ],
)
def test_what_cannot_be_reached_fails_with_a_hint(
    doctor: Callable[..., tuple[int, dict[str, Any]]],
    arguments: list[str],
    name: str,
    words: str,
) -> None:
    status, found = doctor(*arguments)

    assert status == 1
    assert found[name]["status"] == "fail"
    assert words in found[name]["says"]


def test_a_bucket_is_tried_and_one_that_is_not_there_fails(
    doctor: Callable[..., tuple[int, dict[str, Any]]], bucket: Any
) -> None:
    status, found = doctor("--store", f"{bucket.url}/store")
    assert status == 0
    assert "created by one only" in found["store access"]["says"]

    status, found = doctor("--store", f"s3://none-{bucket.name}/store")
    assert status == 1
    assert found["store access"]["status"] == "fail"
    assert f"none-{bucket.name}" in found["store access"]["says"]


def test_a_config_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--config", "/none.yaml"]) == 1
    assert "Cannot read /none.yaml" in capsys.readouterr().err


@pytest.mark.ray
def test_a_cluster_is_examined_and_room_is_counted(
    ray_head: Any,
    doctor: Callable[..., tuple[int, dict[str, Any]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = tmp_path / "harvest.yaml"
    config.write_text("sites: [resid_post.3]\nmodel: {device: cuda}\nreplicas: 2\n")
    arguments = ("--address", ray_head.dashboard, "--config", str(config))

    status, found = doctor(*arguments)
    assert status == 1
    assert "wants a token" in found["cluster"]["says"]

    monkeypatch.setenv("RAY_AUTH_TOKEN", ray_head.token)
    status, found = doctor(*arguments)
    assert status == 1
    assert found["cluster"]["says"].startswith("Ray 2.60")
    assert found["authentication"]["status"] == "ok"
    assert found["nodes"]["says"].startswith("1: 4 CPU")
    assert "asked: 2 x (1 CPU + 1 GPU)" in found["room"]["says"]


def test_nobody_logged_in_at_wandb_is_a_warning_and_no_question(
    doctor: Callable[..., tuple[int, dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr(access, "wandb_state", lambda asked: ("offline", "nobody is logged in"))

    status, found = doctor()

    assert status == 0
    assert found["W&B"]["status"] == "warn"
    assert "wandb login" in found["W&B"]["hint"]


def test_wandb_online_without_a_login_fails(
    doctor: Callable[..., tuple[int, dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for name, value in {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WANDB_MODE")
    config = tmp_path / "c.yaml"
    config.write_text("tracking: {wandb: online}\n")

    status, found = doctor("--config", str(config))

    assert status == 1
    assert "nobody is logged in" in found["W&B"]["says"]


def test_a_file_system_that_lets_two_create_one_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalFolder, "create", lambda self, key, data: self.write(key, [data]))

    found = next(iter(access.check_store(str(tmp_path / "store"))))

    assert found.status == "fail"
    assert "two drivers could write to one store" in found.says
    assert list(tmp_path.iterdir()) == []


def test_little_space_warns_and_none_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_free(num_bytes: float) -> str:
        monkeypatch.setattr(
            machine.shutil, "disk_usage", lambda folder: SimpleNamespace(free=num_bytes)
        )
        return next(iter(machine.check_disk([str(tmp_path / "x")]))).status

    assert [with_free(free) for free in (1e12, 5e9, 1e8)] == ["ok", "warn", "fail"]


def test_a_card_that_torch_does_not_see_fails_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine, "_cards", lambda: ["GPU 0: NVIDIA A100"])
    monkeypatch.setattr(torch.version, "cuda", None)

    (found,) = machine.check_gpus()

    assert found.status == "fail"
    assert "torch sees none of GPU 0: NVIDIA A100" in found.says
    assert "built without CUDA" in found.hint


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("numpy>=99", "is not >=99"),
        ("nosuchpackage>=1; extra == 'platform'", "nosuchpackage is not installed"),
        ("nosuchpackage>=1; extra == 'dev'", ""),
        ("numpy>=1", ""),
    ],
)
def test_packages_are_held_to_what_actlake_asks_for(
    monkeypatch: pytest.MonkeyPatch, line: str, words: str
) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: [line])

    (found,) = machine.check_versions()

    assert words in found.says
    assert found.status == ("fail" if words else "ok")


def test_a_check_that_breaks_is_a_finding_and_the_others_go_on() -> None:
    def breaks() -> list[Finding]:
        raise ZeroDivisionError("division by zero")

    def refuses() -> list[Finding]:
        raise ActlakeError("it is\nso\nhint: do this")

    found = list(
        run_checks([("a", breaks), ("b", refuses), ("c", lambda: [Finding("c", "ok", "well")])])
    )

    assert [(f.name, f.status, f.says, f.hint) for f in found] == [
        ("a", "fail", "ZeroDivisionError: division by zero", ""),
        ("b", "fail", "it is so", "do this"),
        ("c", "ok", "well", ""),
    ]
