"""Whoever sets W&B's variables is heard by every job, and whoever says offline is not reported."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from actlake.platform.tracking import TrackingError
from actlake.platform.tracking.wandb_runs import wandb_state

USERS = {
    "WANDB_MODE": "offline",
    "WANDB_PROJECT": "project-of-the-user",
    "WANDB_ENTITY": "entity-of-the-user",
    "WANDB_RUN_GROUP": "group-of-the-user",
    "WANDB_NAME": "name-of-the-user",
    "WANDB_JOB_TYPE": "type-of-the-user",
    "WANDB_TAGS": "tag-of-the-user,another-tag",
    "WANDB_NOTES": "notes-of-the-user",
    "WANDB_RUN_ID": "id-of-the-user",
}


def runs_below(folder: Path) -> list[bytes]:
    """What W&B has kept of each run."""
    return [path.read_bytes() for path in sorted(folder.rglob("offline-run-*/*.wandb"))]


def test_every_job_tracks_as_the_environment_says(job, command, tmp_path):
    outs = [tmp_path / "a" / "out", tmp_path / "b" / "out"]
    variables = {name: value for name, value in USERS.items() if name != "WANDB_RUN_ID"}
    ends = [command(*job, "--out", out, **variables) for out in outs]

    assert [ended.returncode for ended in ends] == [0, 0], ends[0].stderr + ends[1].stderr
    said = [value.partition(",")[0].encode() for name, value in variables.items()][1:]
    for out, ended in zip(outs, ends, strict=True):
        (run,) = runs_below(out)
        assert [words for words in said if words not in run] == []
        # What is printed to send is there when the job has ended.
        (named,) = re.findall(r"`wandb sync ([^`]+)`", ended.stderr)
        assert list(Path(named).glob("*.wandb"))
    # The same job into another folder is another run.
    names = [path.name for path in tmp_path.rglob("offline-run-*/*.wandb")]
    assert len(names) == len(set(names)) == 2


def test_the_id_of_the_environment_is_the_runs(tracked, tmp_path):
    tracked(**USERS)

    (folder,) = (tmp_path / "out").rglob("offline-run-*")
    assert folder.name.endswith("-id-of-the-user")


def test_the_configuration_is_stronger_than_the_environment(transport, command, tmp_path):
    ours = {"project": "p-asked", "entity": "e-asked", "group": "g-asked", "name": "n-asked"}
    asked = [word for name, value in ours.items() for word in (f"--tracking.{name}", value)]

    ended = command(*transport, "--out", tmp_path / "out", *asked, **USERS)

    assert ended.returncode == 0, ended.stderr
    (run,) = runs_below(tmp_path / "out")
    assert all(value.encode() in run for value in ours.values())
    assert b"project-of-the-user" not in run
    assert b"name-of-the-user" not in run


TRACKED = """
import sys
from pathlib import Path
from actlake.platform.tracking import TrackingConfig, open_tracker
from actlake.storage.errors import ActlakeError

try:
    config = TrackingConfig(wandb=sys.argv[2])
    with open_tracker(config, run_id="ours", folder=Path(sys.argv[1]), job_type="job",
                      config_dict={}) as tracker:
        tracker.log({"x": 1}, step=1)
except ActlakeError as error:
    sys.exit(str(error))
"""
"""What a job does with its tracker, without the job."""


@pytest.fixture
def tracked(tmp_path, plain_environment):
    """``tracked("auto", WANDB_DIR="…")``: open a run in a process with these variables."""

    def run(asked: str = "auto", **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", TRACKED, str(tmp_path / "out"), asked],
            env=dict(plain_environment) | variables,
            capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path,
        )  # fmt: skip

    return run


def test_without_either_a_run_is_in_our_project(tracked, tmp_path):
    tracked(WANDB_MODE="offline", WANDB_PROJECT="")

    (run,) = runs_below(tmp_path / "out")
    assert b"\x07actlake" in run  # a field of protobuf: its length, then its text


def test_wandbs_files_lie_where_wandb_dir_says(tracked, tmp_path):
    (tmp_path / "elsewhere").mkdir()

    tracked(WANDB_MODE="offline", WANDB_DIR=str(tmp_path / "elsewhere"))

    assert len(runs_below(tmp_path / "elsewhere")) == 1
    assert runs_below(tmp_path / "out") == []


def test_what_we_switch_off_can_be_switched_on(tracked, tmp_path):
    tracked(WANDB_MODE="offline", WANDB_HOST="host-of-the-user", WANDB_X_DISABLE_META="false")

    (run,) = runs_below(tmp_path / "out")
    assert b"host-of-the-user" in run


def test_several_saes_of_one_environment_are_several_runs(small_store, command, tmp_path):
    saes = [f"{{site: resid_post.{layer}, d_sae: 16, options: {{k: 4}}}}" for layer in (0, 1)]
    ended = command(
        "sae", "--store", small_store, "--out", tmp_path / "out", "--saes", f"[{', '.join(saes)}]",
        "--batch_rows", "64", "--epochs", "1", "--evaluation.rows", "64", "--device", "cpu",
        "--report.latents", "0", "--report.rows", "64", **USERS,
    )  # fmt: skip

    assert ended.returncode == 0, ended.stderr
    runs = runs_below(tmp_path / "out")
    ids = [set(re.findall(rb"id-of-the-user[-\w.]*", run)) for run in runs]
    assert len(runs) == 3  # a run each, and their report
    assert len(set(map(frozenset, ids))) == 3
    assert all(b"group-of-the-user" in run for run in runs)


@pytest.fixture
def state(tmp_path, monkeypatch):
    """``state({"WANDB_MODE": ""})``: the mode that a run would have, and why."""

    def asked(variables: dict[str, str]) -> tuple[str, str]:
        import wandb

        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.chdir(tmp_path)
        wandb.teardown()  # so that it reads the environment anew
        return wandb_state()

    return asked


@pytest.mark.parametrize(
    ("variables", "mode"),
    [
        ({"WANDB_MODE": ""}, "offline"),  # as where it is not set, without a login
        ({"WANDB_MODE": "Offline"}, "offline"),
        ({"WANDB_MODE": "dryrun"}, "offline"),
        ({"WANDB_MODE": " OFFLINE "}, "offline"),
        ({"WANDB_MODE": "Disabled"}, "disabled"),
        ({"WANDB_DISABLED": "true"}, "disabled"),
        ({"WANDB_DISABLED": "1", "WANDB_MODE": "offline"}, "disabled"),
        ({"WANDB_DISABLED": "false"}, "offline"),
        ({"WANDB_TAGS": "", "WANDB_RUN_ID": "", "WANDB_NAME": "", "WANDB_RESUME": ""}, "offline"),
    ],
)
def test_a_mode_is_understood_however_it_is_written(variables, mode, state):
    assert state(variables)[0] == mode


def test_wandb_offline_in_the_folder_is_heard(state, tmp_path):
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_text("[default]\nmode = disabled\n")

    assert state({}) == ("disabled", "W&B's settings file says so")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WANDB_MODE", "perhaps"),
        ("WANDB_MODE", "shared"),
        ("WANDB_INIT_TIMEOUT", "soon"),
        ("WANDB_PROJECT", "a/b"),
        ("WANDB_RESUME", "sometimes"),
        ("WANDB_TAGS", "a,,b"),
    ],
)
def test_a_value_that_cannot_be_is_named(name, value, state):
    with pytest.raises(TrackingError, match=rf"(?s){name}.*\nhint: "):
        state({name: value})


def test_a_job_refuses_a_value_that_cannot_be_before_any_work(transport, command, tmp_path):
    ended = command(*transport, "--out", tmp_path / "out", WANDB_MODE="perhaps")

    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert "actlake transport: WANDB_MODE is 'perhaps'" in ended.stderr
    assert not (tmp_path / "moments").exists()


@dataclass
class Server:
    """One that W&B could reach, and what was asked of it."""

    url: str
    asked: list[str]


@pytest.fixture
def server() -> Iterator[Server]:
    asked: list[str] = []

    class Listening(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.command} {self.path}")
            self.send_error(404)

        do_POST = do_HEAD = do_PUT = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Listening) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Server(f"http://127.0.0.1:{http.server_port}", asked)
        http.shutdown()
        thread.join()


KEY = {"WANDB_API_KEY": "a" * 40}
OFFLINE_IN_SOME_WAY = {
    "nobody is logged in": ("auto", {}),
    "the configuration says offline": ("offline", KEY),
    "it does, and the variables something else": (
        "offline",
        KEY | {"WANDB_MODE": "online", "WANDB_ERROR_REPORTING": "true"},
    ),
    "the configuration says disabled": ("disabled", KEY),
    "the variable says offline": ("auto", KEY | {"WANDB_MODE": "Offline"}),
    "the variable does, and that reports are welcome": (
        "auto",
        KEY | {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "true"},
    ),
    "the older variable says disabled": ("auto", KEY | {"WANDB_DISABLED": "true"}),
}


@pytest.mark.parametrize("way", OFFLINE_IN_SOME_WAY)
def test_offline_means_that_nothing_is_sent(way, server, tracked):
    asked, variables = OFFLINE_IN_SOME_WAY[way]

    ended = tracked(asked, **variables, WANDB_BASE_URL=server.url)

    assert ended.returncode == 0, ended.stderr
    assert server.asked == []


@pytest.mark.parametrize("variables", [{}, {"DO_NOT_TRACK": "1", "WANDB_ERROR_REPORTING": "true"}])
def test_online_nothing_is_sent_that_w_and_b_counts_of_itself(variables, server, tracked):
    tracked("auto", **KEY, **variables, WANDB_BASE_URL=server.url, WANDB_INIT_TIMEOUT="2")

    assert server.asked
    assert not [asked for asked in server.asked if "otel" in asked]
