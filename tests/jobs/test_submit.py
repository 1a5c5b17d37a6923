"""`actlake submit` and `actlake jobs` on a real cluster, and what is refused before."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from actlake.jobs.cli import run
from actlake.jobs.steps import demand
from actlake.jobs.submission import command, shipping
from actlake.jobs.submission.environment import job_environment, looks_secret, refuse_secrets
from actlake.jobs.submission.errors import InvalidSubmission, SecretExposed
from actlake.jobs.submission.shipping import CONFIG, START, pack_code, pack_job
from actlake.platform.cluster import Resources, job_start
from actlake.storage import open_store
from actlake.storage.errors import StoreError

SECRET = "hf_abcdefghijklmnopqrstuvwx"
WANDB = "0123456789abcdef" * 2 + "01234567"
CPUS, GPUS = Resources(cpus=4), Resources(cpus=4, gpus=2)


@pytest.fixture(autouse=True)
def _no_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("RAY_A"):
            monkeypatch.delenv(name)


@pytest.fixture
def here(ray_head: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The cluster, with its address and token in this process's environment."""
    for name in ("RAY_AUTH_TOKEN", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.setenv(name, ray_head.environment[name])
    return ray_head


def actlake_on(cluster: Any, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "actlake.jobs", *arguments],
        env=cluster.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def committed(store: Path) -> int:
    try:
        return len(open_store(store).committed(["resid_post.3"]))
    except StoreError:
        return 0


@pytest.fixture
def other_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is shipped is not what the nodes have installed."""

    def with_another_line(folder: Path) -> dict[str, Path]:
        folders = pack_code(folder)
        with (folders["jobs"] / "stores.py").open("a") as file:
            file.write("# another line\n")
        return folders

    monkeypatch.setattr(shipping, "pack_code", with_another_line)


@pytest.mark.ray
def test_a_stopped_harvest_goes_on_when_it_is_submitted_again(
    here: Any,
    other_code: None,  # a driver refuses workers with other code than its own
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    harvest_arguments: Callable[[Path], list[str]],
    wait_for: Callable[..., None],
    smollm2_store: Path,
    tree: Callable[[Path], dict[str, bytes]],
) -> None:
    store = tmp_path / "store"
    arguments = ["submit", *harvest_arguments(store), "--env", "WANDB_MODE=offline"]
    assert run([*arguments, "--id", "stopped"]) == 0
    assert "actlake jobs logs stopped --follow" in capfd.readouterr().err

    follower = actlake_on(here, "jobs", "logs", "stopped", "--follow")
    assert follower.stdout is not None
    assert follower.stdout.readline()
    follower.send_signal(signal.SIGINT)
    said, _ = follower.communicate(timeout=60)
    assert follower.returncode == 130
    assert "Detached; stopped goes on" in said
    assert "actlake jobs logs stopped --follow --address http://127.0.0.1" in said
    assert "Traceback" not in said

    wait_for(lambda: committed(store) >= 2, "the job commits nothing", timeout_s=240)
    assert run(["jobs", "stop", "stopped"]) == 0
    assert "submitted again, it goes on from there" in capfd.readouterr().out
    assert 2 <= committed(store) < 24
    assert run(["jobs", "logs", "stopped"]) == 0
    log = capfd.readouterr().out
    assert "the same command goes on from here" in log
    assert "actlake: the job ended with status 143" in log.splitlines()

    assert run([*arguments, "--id", "resumed", "--follow"]) == 0
    assert "resumed succeeded with status 0" in capfd.readouterr().err
    assert tree(store) == tree(smollm2_store)
    assert run(["jobs", "list", "--json"]) == 0
    listed = {job["job"]: job for job in json.loads(capfd.readouterr().out)}
    assert listed["stopped"]["state"] == "STOPPED"
    assert listed["resumed"]["labels"]["result"] == str(store)
    assert run(["jobs", "status", "resumed"]) == 0
    assert "exit status: 0" in capfd.readouterr().out


@pytest.mark.ray
def test_an_installed_copy_with_other_code_is_refused(
    here: Any,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    harvest_arguments: Callable[[Path], list[str]],
) -> None:
    monkeypatch.setattr(job_start, "code_hash", lambda folders=None: "0123456789abcdef")

    status = run(["submit", *harvest_arguments(tmp_path / "s"), "--installed", "--follow"])

    out = capfd.readouterr().out
    assert status == job_start.REFUSED, out
    assert "other code of actlake" in out
    assert "hint: install the same code there, or submit without --installed" in out


@pytest.mark.ray
@pytest.mark.parametrize(
    ("options", "asked"),
    [
        (["--model.device", "cuda"], "asked: 1 x (1 CPU + 1 GPU)"),
        (["--replicas", "9"], "9 replica(s) of 1 stage(s) do not fit this cluster"),
    ],
)
def test_more_than_the_cluster_has_is_refused_with_what_is_there(
    here: Any,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    harvest_arguments: Callable[[Path], list[str]],
    options: list[str],
    asked: str,
) -> None:
    assert run(["submit", *harvest_arguments(tmp_path / "store"), *options]) == 1

    said = capfd.readouterr().err
    assert asked in said
    assert "there: 4 CPU + " in said
    assert "hint:" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["harvets"], "did you mean 'harvest'?"),
        (["info"], "'info' is not a job with a config"),
        (["harvest", "--store", "/s", "--sites", "resid_post.3"], "model: not given"),
        (["transport", "--store", "runs/x", "--out", "/o"], "are relative or begin with ~, and"),
        (["transport", "--store", "/s", "--out", "/o", "--env", "no name"], "not the name of a"),
        (["transport", "--store", "/s", "--out", "/o", "--drain", "0"], "at least one second"),
        (["transport", "--store", "s3://me:pw12@b/x", "--out", "/o"], "a credential: store"),
        (["transport", "--store", "/s", "--out", "~/o"], "out: ~/o"),
        (
            ["transport", "--store", "/s", "--out", "/o", "--dictionary.path", "tests"],
            "path: tests",
        ),
        (["sae", "encode", "runs/sae", "s", "--out", "/o"], "store: s\n"),
        (["sae", "encode", "~/sae", "/s", "--out", "/o"], "sae: ~/sae"),
    ],
)
def test_what_is_wrong_with_a_job_is_said_before_a_cluster_is_asked(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.setattr(command, "JobServer", None)  # calling it would be a TypeError

    assert run(["submit", *arguments]) == 1

    said = capsys.readouterr().err
    assert words in said
    assert "pw12" not in said


def test_variables_are_passed_by_name_or_with_a_value_and_never_otherwise() -> None:
    here = {"HF_HOME": "/cache", "PATH": "/bin", "WANDB_API_KEY": "k"}

    assert job_environment(["HF_HOME", "A=b=c", "EMPTY="], here=here) == {
        "HF_HOME": "/cache",
        "A": "b=c",
        "EMPTY": "",
    }
    with pytest.raises(InvalidSubmission, match="is not set here"):
        job_environment(["MISSING"], here=here)


@pytest.mark.parametrize(
    "words",
    [
        "WANDB_API_KEY", "HF_TOKEN=x", "AWS_SECRET_ACCESS_KEY=x", "DB_PASSWORD=x", "GH_TOKEN=x",
        f"HARMLESS={SECRET}", "URL=postgres://me:hunter2@db/x", "MYAPIKEY=x",
        "X=-----BEGIN RSA PRIVATE KEY-----", "RAY_AUTH_TOKEN=x", f"HARMLESS={WANDB}",
    ],
)  # fmt: skip
def test_credentials_are_refused_by_name_and_their_values_not_shown(words: str) -> None:
    here = {"WANDB_API_KEY": "from-here"}

    with pytest.raises(SecretExposed) as told:
        job_environment([words], here=here)

    said = str(told.value)
    assert words.partition("=")[0] in said
    assert "hint: workers have the environment in which their node was started" in said
    for secret in (SECRET, WANDB, "hunter2", "from-here", "PRIVATE KEY"):
        assert secret not in said


@pytest.mark.parametrize("name", ["TOKENIZERS_PARALLELISM", "MAX_TOKENS", "MONKEY_BUSINESS"])
def test_names_that_only_sound_like_credentials_pass(name: str) -> None:
    assert not looks_secret(name, "false")


def test_a_commit_is_no_key_although_it_looks_like_one() -> None:
    assert not looks_secret("MODEL_REVISION", WANDB)
    refuse_secrets({"model": {"revision": WANDB}})

    with pytest.raises(SecretExposed, match="labels"):
        refuse_secrets({"labels": WANDB})


@pytest.mark.parametrize(
    ("config", "nodes", "asked"),
    [
        ({"store": "/s", "out": "/o", "moments": {"workers": 1}}, [CPUS], "1 x (4 CPU)"),
        ({"store": "/s", "out": "/o", "cluster": {"address": "local"}}, [CPUS], None),
        ({"store": "/s", "out": "/o", "moments": {"workers": 8, "threads": 4}}, [CPUS],
         "1 x (4 CPU)"),
        ({"sae": {}, "workers": 3, "device": "auto"}, [CPUS], "3 x (1 CPU)"),
        ({"sae": {}, "workers": 3, "device": "auto"}, [CPUS, GPUS], "3 x (1 CPU + 1 GPU)"),
        ({"tasks": [], "workers": 3, "resources": {"cpus": 2, "gpus": 0.5}}, [CPUS],
         "1 x (2 CPU + 0.5 GPU)"),
        ({"sites": ["a"], "model": {"device": "auto"}, "stages": 2, "replicas": 2}, [GPUS],
         "2 x (1 CPU + 1 GPU then 1 CPU + 1 GPU)"),
        ({"sites": ["a"], "model": {"name": "x"}, "threads": 3}, [CPUS], "1 x (3 CPU)"),
    ],
)  # fmt: skip
def test_every_command_says_what_it_reserves(
    config: dict[str, Any], nodes: list[Resources], asked: str | None
) -> None:
    found = demand(config, nodes)

    assert (found and str(found)) == asked


@pytest.fixture
def packed(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "job"
    folder.mkdir()
    arguments = ["harvest", "--config", CONFIG, "--plan"]
    pack_job(folder, arguments=arguments, config_yaml="store: /s\n", with_code=True)
    yield folder
    shutil.rmtree(folder)


def test_what_travels_is_the_config_the_code_and_nothing_else(packed: Path) -> None:
    job = json.loads((packed / job_start.JOB_FILE).read_text())

    assert job["arguments"] == ["harvest", "--config", CONFIG, "--plan"]
    assert yaml.safe_load((packed / CONFIG).read_text()) == {"store": "/s"}
    names = {path.name.partition("-")[0] for path in packed.iterdir()}
    assert names == {CONFIG, START, job_start.JOB_FILE, "actlake"}
    assert {path.suffix for path in (packed / "actlake").rglob("*") if path.is_file()} == {
        ".py", ".pyi", ".typed",
    }  # fmt: skip


def test_the_shipped_copy_is_complete_alone(packed: Path, tmp_path: Path) -> None:
    """Nothing else of ours is on the path: the data types of Zarr are found as well."""
    installed = [str(folder.parents[1]) for folder in job_start.package_folders().values()]
    checked = subprocess.run(
        [
            sys.executable, "-c",
            "import json, sys\n"
            "installed = set(json.loads(sys.argv[1]))\n"
            "sys.path[:] = [p for p in sys.path if p not in installed]\n"
            "import actlake_job_start as start, importlib.metadata as m\n"
            "import actlake.storage, actlake.jobs.cli\n"
            "print(actlake.storage.__file__)\n"
            "print(start.mismatch(json.load(open('job.json'))))\n"
            "print({e.name for e in m.entry_points(group='zarr.data_type')})",
            json.dumps(installed),
        ],
        cwd=packed, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert checked.returncode == 0, checked.stderr
    where, mismatch, types = checked.stdout.splitlines()
    assert Path(where).is_relative_to(packed)
    assert mismatch == ""
    assert "bfloat16" in types


def test_a_pipeline_travels_with_the_files_that_its_steps_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "maps.yaml").write_text("store: /shared/s\nout: /shared/o\nseed: 7\n")
    pipeline = tmp_path / "pipeline.yaml"
    pipeline.write_text(
        f"logs: /shared/logs\nsteps: {{maps: {{command: transport, files: [{tmp_path}/maps.yaml], "
        "config: {out: /shared/p}}}\n"
    )
    packed: dict[str, Any] = {}
    monkeypatch.setattr(command, "JobServer", lambda address: packed["stop"])

    with pytest.raises(KeyError):  # there is no cluster: what would travel is looked at alone
        command.main(["run", str(pipeline)])
    whole = yaml.safe_load(command._whole_config("run", [str(pipeline)]))

    step = whole["steps"]["maps"]
    assert (step["config"]["store"], step["config"]["out"]) == ("/shared/s", "/shared/p")
    assert step["config"]["seed"] == 7
    assert "files" not in step
    assert str(tmp_path) not in str(whole)


def test_an_encoding_travels_with_its_options_and_no_config() -> None:
    options = ["encode", "/s/sae", "/s/store", "--out", "/s/latents", "--workers", "4"]

    words, config_yaml, config = command._read("sae", options)

    assert (words, config_yaml) == (options, "")
    assert (config["store"], config["out"]) == ("/s/store", "/s/latents")


@pytest.mark.ray
@pytest.mark.slow
def test_a_whole_pipeline_and_an_encoding_run_on_a_cluster(
    here: Any, capfd: pytest.CaptureFixture[str], whole_pipeline: Callable[..., Path]
) -> None:
    path = whole_pipeline(workers=2)
    folder = path.parent

    status = run(["submit", "run", str(path), "--id", "whole", "--follow"])

    out = capfd.readouterr().out
    assert status == 0, out
    assert "4 done" in out
    assert open_store(folder / "store").coverage("resid_post.3").is_complete
    for name in ("maps", "sae", "probes"):
        assert (folder / name / "report.html").is_file()
    assert run(["run", str(path), "--plan"]) == 0
    assert "4 of 4 steps are done" in capfd.readouterr().out

    [sae] = [one.parent for one in (folder / "sae").glob("*/sae_weights.safetensors")]
    encoding = ["sae", "encode", str(sae), str(folder / "store"), "--out", str(folder / "latents")]
    assert run(["submit", *encoding, "--workers", "2", "--id", "encoded", "--follow"]) == 0
    assert "activations of" in capfd.readouterr().out
    assert list((folder / "latents").rglob("*.parquet"))
