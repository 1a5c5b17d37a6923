"""`actlake doctor`: what it finds, that it changes nothing, and that it ends with the status."""

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actlake.jobs.cli import run
from actlake.jobs.doctor import access, cluster, machine
from actlake.jobs.doctor.check import Finding, run_checks
from actlake.platform.cluster.same_code import SILENT, NodeAnswer
from actlake.storage import ActlakeError
from actlake.storage.errors import StoreNotWritable
from actlake.storage.fence import FolderWriter


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
        findings = json.loads(capsys.readouterr().out)["findings"]
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


def test_a_store_that_is_only_read_need_not_be_writable(
    doctor: Callable[..., tuple[int, dict[str, Any]]],
    smollm2_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any) -> None:
        raise StoreNotWritable("read-only\nhint: mount it for writing")

    monkeypatch.setattr(FolderWriter, "create", refuse)
    config = tmp_path / "sae.yaml"
    config.write_text(f"store: {smollm2_store}\nout: {tmp_path}/out\n")

    status, found = doctor("--config", str(config))
    assert status == 0
    assert "can be read" in found["store access"]["says"]
    assert "6,000 rows" in found["store"]["says"]

    status, found = doctor("--store", str(smollm2_store))
    assert status == 1
    assert found["store access"]["says"] == "read-only"


def test_a_store_that_is_to_be_read_and_is_not_there_fails(
    doctor: Callable[..., tuple[int, dict[str, Any]]], tmp_path: Path
) -> None:
    config = tmp_path / "sae.yaml"
    config.write_text(f"store: {tmp_path}/none\nout: {tmp_path}/out\n")

    status, found = doctor("--config", str(config))

    assert status == 1
    assert f"{tmp_path}/none" in found["store access"]["says"]


def test_a_models_revision_is_looked_for(
    doctor: Callable[..., tuple[int, dict[str, Any]]], smollm2_folder: Path, tmp_path: Path
) -> None:
    config = tmp_path / "harvest.yaml"
    config.write_text(f"model: {{name: {smollm2_folder}, revision: v1}}\n")

    status, found = doctor("--config", str(config))

    assert status == 1
    assert "v1" in found["model access"]["says"]


def test_nodes_that_say_nothing_are_not_counted_as_well() -> None:
    here = cluster.code_hash()
    well, bad = Finding("GPU", "ok", "none"), Finding("store access", "fail", "no disk", "mount it")
    answers = [NodeAnswer("10.0.0.1", (here, [well])), NodeAnswer("10.0.0.2", SILENT)]

    assert cluster._same_code(answers[:1]).status == "ok"
    silent = cluster._same_code(answers)
    assert (silent.status, silent.says) == ("warn", "these nodes did not answer: 10.0.0.2")
    other = cluster._same_code([NodeAnswer("10.0.0.3", ("f00d", [])), *answers])
    assert (other.status, other.says) == ("fail", "other code than here on 10.0.0.3")
    broken = cluster._same_code([NodeAnswer("10.0.0.4", ImportError("no actlake")), *answers])
    assert broken.says == "other code than here on 10.0.0.4"

    answers.append(NodeAnswer("10.0.0.5", (here, [well, bad])))
    assert [(one.name, one.status, one.says) for one in cluster._of_nodes(answers)] == [
        ("GPU on nodes", "ok", "well on 2 node(s)"),
        ("store access", "fail", "on 10.0.0.5: no disk"),
    ]


JOINED = """
import sys
from actlake.jobs.cli import run
sys.exit(run(["doctor", "--json", "--address", *sys.argv[1:]]))
"""


@pytest.mark.ray
def test_stores_and_models_are_tried_on_every_node(ray_head: Any, tmp_path: Path) -> None:
    asked = [ray_head.address, "--store", str(tmp_path / "store"), "--model", "./none.gguf"]

    examined = subprocess.run(
        [sys.executable, "-c", JOINED, *asked],
        env=ray_head.environment | {"WANDB_MODE": "offline"},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip

    found = [
        (one["name"], one["status"], one["says"]) for one in json.loads(examined.stdout)["findings"]
    ]
    assert ("code", "ok", "all 1 node(s) run this code") in found
    assert ("store access on nodes", "ok", "well on 1 node(s)") in found
    says = [says for name, status, says in found if name == "model access" and status == "fail"]
    assert says[0] == "there is no file ./none.gguf"
    assert says[1].endswith(": there is no file ./none.gguf")
    assert says[1].startswith("on ")
    assert examined.returncode == 1


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

    config.write_text("sae: {site: resid_post.3}\nworkers: 9\n")
    _, found = doctor(*arguments)
    assert "asked: 9 x (1 CPU)" in found["room"]["says"]
    config.write_text("sae: {site: resid_post.3}\nworkers: 2\nresources: {cpus: 2}\n")
    _, found = doctor(*arguments)
    assert found["room"]["says"] == "2 x (2 CPU) fits"


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
    monkeypatch.setattr(FolderWriter, "create", FolderWriter.replace)

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
