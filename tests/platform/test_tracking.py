import base64
import json
import logging
import math
import os
import platform
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actlake.platform import tracking
from actlake.platform.tracking import (
    JsonLinesTracker,
    MemoryTracker,
    TrackedRun,
    Tracker,
    TrackingConfig,
    TrackingError,
    jsonl,
    open_tracker,
    read_metrics,
    wandb_runs,
)

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@pytest.fixture(autouse=True)
def wandb_at_home_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No login, no setting of the person who runs the tests, nothing written outside."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(home / name.lower()))


# A reader of W&B's offline file, for these tests only: wandb ships none. The file is a log of
# 32 KiB blocks, each record with a CRC32 over its type and data, as in LevelDB.


def wandb_records(path: Path) -> Iterator[tuple[str, Any]]:
    from wandb.proto import wandb_internal_pb2

    content = path.read_bytes()
    assert content[:4] == b":W&B"
    assert struct.unpack("<H", content[4:6])[0] == 0xBEE1
    at, whole = 7, b""
    while at + 7 <= len(content):
        left_in_block = 32_768 - at % 32_768
        if left_in_block < 7:
            at += left_in_block
            continue
        crc, size, kind = struct.unpack("<IHB", content[at : at + 7])
        data = content[at + 7 : at + 7 + size]
        if (crc, size, kind) == (0, 0, 0):
            at += left_in_block
            continue
        if len(data) < size:
            return  # cut off by a kill
        assert zlib.crc32(bytes([kind]) + data) == crc, f"damaged record at byte {at}"
        at += 7 + size
        whole += data
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record.WhichOneof("record_type"), record


def items_of(items: Any) -> dict[str, Any]:
    return {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}


@dataclass
class WandbRun:
    """What an offline W&B run holds."""

    folder: Path

    def __post_init__(self) -> None:
        (file,) = self.folder.glob("*.wandb")
        self.records = list(wandb_records(file))

    @property
    def history(self) -> list[dict[str, Any]]:
        return [items_of(r.history.item) for kind, r in self.records if kind == "history"]

    @property
    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for kind, record in self.records:
            if kind == "summary":
                found |= items_of(record.summary.update)
        return found

    @property
    def config(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for kind, record in self.records:
            if kind in ("run", "config"):
                update = record.run.config if kind == "run" else record.config
                found |= items_of(update.update)
        return found

    @property
    def exit_codes(self) -> list[int]:
        return [record.exit.exit_code for kind, record in self.records if kind == "exit"]

    @property
    def run(self) -> Any:
        return next(record.run for kind, record in self.records if kind == "run")

    def points(self) -> list[tuple[int, str, float]]:
        return [
            (line["_step"], name, float(value))
            for line in self.history
            for name, value in line.items()
            if not name.startswith("_") and not isinstance(value, dict)
        ]


def wandb_runs_in(folder: Path, *, ended: bool = True) -> list[WandbRun]:
    """The runs in order of their start; `ended`: once wandb's process has closed their files."""
    patience = time.monotonic() + 10
    while True:
        runs = [WandbRun(path) for path in sorted((folder / "wandb").glob("offline-run-*"))]
        if not ended or all(run.exit_codes for run in runs) or time.monotonic() > patience:
            return runs
        time.sleep(0.02)


OFFLINE = TrackingConfig(wandb="offline")


def opened(folder: Path, config: TrackingConfig = OFFLINE, **more: Any) -> TrackedRun:
    given: dict[str, Any] = {"run_id": "run-1", "job_type": "test", "config_dict": {}} | more
    return open_tracker(config, folder=folder, **given)


# One suite for every tracker: what was logged can be read back from where it went.


@dataclass
class Sink:
    make: Callable[[Path], Tracker]
    points: Callable[[Tracker, Path], list[tuple[int, str, float]]]
    summary: Callable[[Tracker, Path], dict[str, Any]]
    pictures: Callable[[Tracker, Path], list[bytes]]
    pages: Callable[[Tracker, Path], list[str]]


def jsonl_points(_: Tracker, folder: Path) -> list[tuple[int, str, float]]:
    return [
        (int(line["step"]), name, value)
        for line in read_metrics(folder)
        for name, value in line.items()
        if name not in ("step", "time")
    ]


def memory_points(tracker: Tracker, _: Path) -> list[tuple[int, str, float]]:
    assert isinstance(tracker, MemoryTracker)
    return [(step, n, value) for step, metrics in tracker.history for n, value in metrics.items()]


def media(folder: Path, ending: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.rglob(f"media/**/*{ending}"))]


def wandb_pictures(_: Tracker, folder: Path) -> list[bytes]:
    """Pictures, or what stands for them where pillow is not installed."""
    pages = media(folder / "wandb", ".html")
    encoded = [page.split(b"base64,")[1].split(b'"')[0] for page in pages if b"base64," in page]
    return media(folder / "wandb", ".png") + [base64.b64decode(text) for text in encoded]


def wandb_tracker(folder: Path) -> Tracker:
    tracker = wandb_runs.open_wandb(
        OFFLINE, run_id="run-1", folder=folder, job_type="test", config_dict={}
    )
    assert tracker is not None
    return tracker


def memory_tracker(_: Path) -> MemoryTracker:
    return MemoryTracker()


JSONL = Sink(
    make=JsonLinesTracker,
    points=jsonl_points,
    summary=lambda _, folder: json.loads((folder / "summary.json").read_text()),
    pictures=lambda _, folder: [png.read_bytes() for png in (folder / "media").rglob("*.png")],
    pages=lambda _, folder: [page.decode() for page in media(folder, ".html")],
)
SINKS = {
    "jsonl": JSONL,
    "wandb": Sink(
        make=wandb_tracker,
        points=lambda _, folder: wandb_runs_in(folder)[0].points(),
        summary=lambda _, folder: wandb_runs_in(folder)[0].summary,
        pictures=wandb_pictures,
        pages=lambda _, folder: [page.decode() for page in media(folder, ".html")],
    ),
    "both": replace(JSONL, make=opened),
    "memory": Sink(
        make=memory_tracker,
        points=memory_points,
        summary=lambda tracker, _: tracker.values,
        pictures=lambda tracker, _: [png for _, _, png in tracker.images],
        pages=lambda tracker, _: [page for _, _, page in tracker.pages],
    ),
}


@pytest.fixture(params=SINKS)
def sink(request: pytest.FixtureRequest) -> Sink:
    return SINKS[request.param]


def test_what_was_logged_is_there(sink: Sink, tmp_path: Path):
    tracker = sink.make(tmp_path)

    tracker.log({"train/loss": 0.5, "rows": 3}, step=1)
    tracker.log({"train/loss": 0.25}, step=2)
    tracker.log({"test/loss": 1 / 3}, step=2)
    tracker.finish()

    assert sorted(sink.points(tracker, tmp_path)) == [
        (1, "rows", 3.0),
        (1, "train/loss", 0.5),
        (2, "test/loss", 1 / 3),
        (2, "train/loss", 0.25),
    ]


def test_numbers_that_are_not_finite_are_kept(sink: Sink, tmp_path: Path):
    tracker = sink.make(tmp_path)

    tracker.log({"nan": math.nan, "up": math.inf, "down": -math.inf}, step=0)
    tracker.finish()

    points = {name: value for _, name, value in sink.points(tracker, tmp_path)}
    assert math.isnan(points["nan"])
    assert (points["up"], points["down"]) == (math.inf, -math.inf)


def test_the_summary_holds_the_last_value_of_each(sink: Sink, tmp_path: Path):
    tracker = sink.make(tmp_path)

    tracker.summary({"fvu": 0.5, "store": "a1b2", "done": False})
    tracker.summary({"done": True})
    tracker.finish()

    summary = sink.summary(tracker, tmp_path)
    assert {"fvu": 0.5, "store": "a1b2", "done": True}.items() <= summary.items()


def test_pictures_and_pages_are_kept(sink: Sink, tmp_path: Path):
    picture = tmp_path / "p.png"
    picture.write_bytes(PNG)
    tracker = sink.make(tmp_path / "run")

    tracker.image("maps/first", PNG, step=1)
    tracker.image("maps/second", picture, step=1)
    tracker.html("report", "<p>all well</p>", step=2)
    tracker.finish()

    assert len(sink.pictures(tracker, tmp_path / "run")) == 2
    assert any("all well" in page for page in sink.pages(tracker, tmp_path / "run"))


def test_a_picture_that_is_no_png_is_refused(sink: Sink, tmp_path: Path):
    tracker = sink.make(tmp_path)

    with pytest.raises(TrackingError, match=r"not a PNG\nhint: save the picture with format='png'"):
        tracker.image("p", b"GIF89a", step=1)
    tracker.finish()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("step", r"every line already has one\nhint: put a word before it, such as train/step"),
        ("", "cannot name a metric"),
        ("a b", "hint: use letters, digits"),
        ("../up", "cannot name a metric"),
        ("/a", "cannot name a metric"),
    ],
)
def test_a_name_that_would_not_do_everywhere_is_refused_everywhere(
    sink: Sink, name: str, words: str, tmp_path: Path
):
    tracker = sink.make(tmp_path)

    with pytest.raises(TrackingError, match=words):
        tracker.log({name: 1.0}, step=1)
    with pytest.raises(TrackingError, match=words):
        tracker.image(name, PNG, step=1)
    tracker.finish()


def test_finishing_twice_is_finishing_once(sink: Sink, tmp_path: Path):
    tracker = sink.make(tmp_path)
    tracker.log({"x": 1}, step=1)

    tracker.finish(failed=True)
    tracker.finish()

    assert sink.points(tracker, tmp_path) == [(1, "x", 1.0)]


# The JSONL file


def test_every_line_is_standard_json_with_step_and_time(tmp_path: Path):
    tracker = JsonLinesTracker(tmp_path)
    tracker.log({"x": math.nan}, step=4)
    tracker.finish()

    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)

    assert line["step"] == 4
    assert line["x"] == "NaN"
    assert abs(line["time"] - time.time()) < 60


def test_going_on_from_a_checkpoint_counts_no_step_twice(tmp_path: Path):
    killed = JsonLinesTracker(tmp_path)
    for step in range(10):
        killed.log({"x": step}, step=step)
    killed.finish()

    resumed = JsonLinesTracker(tmp_path, resume_step=6)
    for step in range(7, 12):
        resumed.log({"x": step}, step=step)
    resumed.finish()

    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(12))


def test_without_a_checkpoint_every_line_stays(tmp_path: Path):
    for step in (1, 2):
        tracker = JsonLinesTracker(tmp_path)
        tracker.log({"x": 0}, step=step)
        tracker.finish()

    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]


@given(cut=st.integers(0, 400))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_line_torn_at_any_byte_is_cut_off_and_the_whole_ones_stay(cut: int, tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.unlink(missing_ok=True)
    tracker = JsonLinesTracker(tmp_path)
    for step in range(5):
        tracker.log({"train/loss": step / 3}, step=step)
    tracker.finish()
    torn = path.read_bytes()[:cut]
    path.write_bytes(torn)
    whole = torn.count(b"\n")

    seen = [line["step"] for line in read_metrics(path)]
    tracker = JsonLinesTracker(tmp_path)
    tracker.log({"train/loss": 9}, step=9)
    tracker.finish()

    assert seen == list(range(whole))
    assert [line["step"] for line in read_metrics(path)] == [*range(whole), 9]


@pytest.mark.parametrize("block", [1, 7, 64, 65_536])
@pytest.mark.parametrize("resume_step", [None, -1, 0, 7, 500])
def test_going_on_reads_what_it_cuts_off_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume_step: int | None, block: int
):
    monkeypatch.setattr(jsonl, "_BYTES_AT_ONCE", block)
    path = tmp_path / "metrics.jsonl"
    lines = [f'{{"step": {step // 2}, "x": {step}}}\n' for step in range(100)]
    path.write_text("".join(lines) + '{"step": 5')
    looked_at = []
    read_line = jsonl._read_line
    monkeypatch.setattr(jsonl, "_read_line", lambda line: looked_at.append(line) or read_line(line))

    JsonLinesTracker(tmp_path, resume_step=resume_step).finish()

    last = 49 if resume_step is None else resume_step
    kept = [line for step, line in enumerate(lines) if step // 2 <= last]
    assert path.read_text() == "".join(kept)
    assert len(looked_at) == 1 + len(lines) - len(kept) + bool(kept)


def test_a_damaged_line_in_the_middle_is_an_error_and_nothing_is_changed(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "x": 1}\n{"step": 2, "x"\n{"step": 3, "x": 3}\n')
    before = path.read_bytes()

    with pytest.raises(TrackingError, match=r"line at byte 20 of .*\.jsonl is not a line"):
        JsonLinesTracker(tmp_path, resume_step=1)
    with pytest.raises(TrackingError, match=r"Line 2 of .*metrics\.jsonl is not a line of metrics"):
        read_metrics(path)

    assert path.read_bytes() == before


def test_metrics_that_are_not_there_are_an_error_that_says_where(tmp_path: Path):
    with pytest.raises(TrackingError, match=r"no metrics at .*\nhint: give the folder of a run"):
        read_metrics(tmp_path)


def test_a_summary_goes_on_where_it_was(tmp_path: Path):
    first = JsonLinesTracker(tmp_path)
    first.summary({"a": 1, "api_key": "hunter2"})
    first.finish()

    second = JsonLinesTracker(tmp_path)
    second.summary({"b": 2})
    second.finish()

    text = (tmp_path / "summary.json").read_text()
    assert json.loads(text) == {"a": 1, "api_key": "<hidden>", "b": 2}


# W&B


def test_the_offline_run_holds_its_identity_and_config_without_credentials(tmp_path: Path):
    config = TrackingConfig(
        wandb="offline", project="lake", entity="us", group="sweep", name="first", tags=("a", "b")
    )
    asked = {"sae": {"k": 32}, "options": {"secret": "hunter2"}}

    with opened(tmp_path, config, config_dict=asked) as tracker:
        tracker.log({"x": 1}, step=1)

    (run,) = wandb_runs_in(tmp_path)
    assert (run.run.run_id, run.run.project, run.run.entity) == ("run-1", "lake", "us")
    assert (run.run.run_group, run.run.display_name) == ("sweep", "first")
    assert (list(run.run.tags), run.run.job_type) == (["a", "b"], "test")
    assert run.config["sae"] == {"k": 32}
    assert run.config["options"] == {"secret": "<hidden>"}
    assert run.exit_codes == [0]


def test_the_offline_run_says_nothing_about_the_machine_or_the_person(tmp_path: Path):
    with opened(tmp_path) as tracker:
        tracker.log({"x": 1}, step=1)

    (run,) = wandb_runs_in(tmp_path)
    (file,) = run.folder.glob("*.wandb")
    content = file.read_bytes()
    assert run.run.host != platform.node()
    assert str(Path.cwd()).encode() not in content
    assert sys.executable.encode() not in content
    assert not list(run.folder.rglob("requirements.txt"))
    assert not list(run.folder.rglob("wandb-metadata.json"))


def test_everything_is_written_below_the_folder_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    weights = tmp_path / "run" / "weights.safetensors"

    with opened(tmp_path / "run") as tracker:
        weights.write_bytes(bytes(100_000))
        tracker.log({"x": 1}, step=1)
        tracker.artifact(weights, kind="model")

    assert list((tmp_path / "cwd").iterdir()) == []
    outside = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in outside) < 10_000, outside
    (run,) = wandb_runs_in(tmp_path / "run")
    (artifact,) = [record.artifact for kind, record in run.records if kind == "artifact"]
    assert (artifact.name, artifact.type) == ("run-1-weights.safetensors", "model")


def test_an_artifact_that_is_not_there_is_an_error(tmp_path: Path):
    tracker = opened(tmp_path)

    with pytest.raises(TrackingError, match=r"no model at .*gone"):
        tracker.artifact(tmp_path / "gone", kind="model")
    tracker.finish()


def test_a_run_that_ends_with_an_error_is_marked_failed(tmp_path: Path):
    def crash() -> None:
        with opened(tmp_path):
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        crash()

    assert wandb_runs_in(tmp_path)[0].exit_codes == [1]


def test_the_axis_of_the_charts_can_be_a_metric(tmp_path: Path):
    with opened(tmp_path, replace(OFFLINE, step_metric="tokens")) as tracker:
        tracker.log({"x": 1, "tokens": 100}, step=1)

    metrics = [r.metric for kind, r in wandb_runs_in(tmp_path)[0].records if kind == "metric"]
    assert any(metric.step_metric == "tokens" for metric in metrics)


def test_a_resumed_run_has_the_same_identity(tmp_path: Path):
    for step in (1, 2):
        with opened(tmp_path, resume_step=step - 1) as tracker:
            tracker.log({"x": step}, step=step)
        time.sleep(1.1)  # wandb names its folders by the second

    runs = wandb_runs_in(tmp_path)
    assert [run.run.run_id for run in runs] == ["run-1", "run-1"]
    assert [point for run in runs for point in run.points()] == [(1, "x", 1.0), (2, "x", 2.0)]
    assert [line["x"] for line in read_metrics(tmp_path)] == [1, 2]


KILLED = """
import os, signal, sys, time
from pathlib import Path
from actlake.platform.tracking import TrackingConfig, open_tracker

tracker = open_tracker(TrackingConfig(wandb="offline"), run_id="killed", folder=Path(sys.argv[1]),
                       job_type="test", config_dict={"k": 1})
for step in range(2_000):
    tracker.log({"x": step / 7}, step=step)
time.sleep(1.5)
print("logged", flush=True)
time.sleep(60)
"""


def test_a_killed_run_has_logged_what_it_had_logged(tmp_path: Path):
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "logged\n"

        os.kill(process.pid, signal.SIGKILL)
        process.wait()

    expected = [(step, "x", step / 7) for step in range(2_000)]
    (run,) = wandb_runs_in(tmp_path, ended=False)
    points = run.points()
    assert jsonl_points(MemoryTracker(), tmp_path) == expected
    assert points == expected[: len(points)]
    assert len(points) >= 1_900
    assert run.config["k"] == 1


def test_auto_is_offline_where_nobody_is_logged_in_and_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.INFO), opened(tmp_path, TrackingConfig()) as tracker:
        tracker.log({"x": 1}, step=1)

    assert "W&B is offline (nobody is logged in; `wandb login` changes that)" in caplog.text
    assert "send it with `wandb sync" in caplog.text
    assert wandb_runs_in(tmp_path)[0].points() == [(1, "x", 1.0)]


def test_online_without_a_login_is_refused_at_once_and_never_asks(tmp_path: Path):
    with pytest.raises(
        TrackingError, match=r"nobody is logged in here\nhint: run `wandb login` or set WANDB_API"
    ):
        opened(tmp_path, TrackingConfig(wandb="online"))


class FakeWandb:
    """As much of wandb as choosing a mode takes; logged in, and its server opens no run."""

    class errors:
        class CommError(Exception):
            pass

        class UsageError(Exception):
            pass

    def __init__(self, base_url: str) -> None:
        self.settings = SimpleNamespace(
            base_url=base_url, model_fields_set=set(), run_name=None, run_id=None
        )
        singleton = SimpleNamespace(singleton=lambda: self)
        self.sdk = SimpleNamespace(wandb_setup=singleton)
        self.started: list[dict[str, Any]] = []

    def login(self, *, prompt: bool, verify: bool) -> bool:
        assert (prompt, verify) == (False, False)
        return True

    def Settings(self, **given: Any) -> dict[str, Any]:
        return given

    def init(self, *, config: dict[str, Any], settings: dict[str, Any]) -> Any:
        self.started.append(settings)
        if settings["mode"] == "online":
            raise self.errors.CommError("timed out")
        return FakeRun(Path(settings["root_dir"]))


class FakeRun:
    id = "run-1"

    def __init__(self, folder: Path) -> None:
        self.dir = str(folder / "files")
        self.logged: list[dict[str, float]] = []

    def log(self, metrics: dict[str, float], *, step: int) -> None:
        if step == 2:
            raise BrokenPipeError("the service is gone")
        self.logged.append(metrics)

    def finish(self, *, exit_code: int) -> None:
        pass


class _Refuse(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    """The address of a server that answers, though with an error."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Refuse) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


@pytest.fixture
def logged_in(server: str, monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb(server)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_a_run_whose_server_opens_nothing_is_kept_offline_and_that_is_said_loudly(
    logged_in: FakeWandb, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    opened(tmp_path, TrackingConfig()).finish()

    started = [(start["mode"], start["run_id"], start["run_name"]) for start in logged_in.started]
    assert started == [("online", "run-1", "run-1"), ("offline", "run-1-offline", "run-1")]
    (said,) = warnings_of(caplog)
    assert "did not open the run, so it is kept offline: timed out" in said
    assert "`wandb sync --id run-1`" in said


def test_a_real_run_without_network_is_kept_offline_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    import wandb

    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    wandb.teardown()  # so that it reads the environment anew

    with opened(tmp_path, TrackingConfig()) as tracker:
        tracker.log({"x": 1}, step=1)
    wandb.teardown()

    assert any("cannot be reached, so this run is kept offline" in s for s in warnings_of(caplog))
    assert "a" * 40 not in caplog.text
    (run,) = wandb_runs_in(tmp_path)
    assert (run.run.run_id, run.points()) == ("run-1", [(1, "x", 1.0)])


@pytest.mark.parametrize(("asked", "started"), [("offline", ["offline"]), ("disabled", [])])
def test_the_environment_decides_for_auto(
    asked: str,
    started: list[str],
    logged_in: FakeWandb,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("WANDB_MODE", asked)

    opened(tmp_path, TrackingConfig()).finish()

    assert [start["mode"] for start in logged_in.started] == started


def test_what_the_config_says_is_stronger_than_the_environment(
    logged_in: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WANDB_MODE", "online")

    opened(tmp_path, OFFLINE).finish()

    assert [start["mode"] for start in logged_in.started] == ["offline"]


def test_wandb_breaking_down_does_not_stop_the_run(
    logged_in: FakeWandb, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    tracker = opened(tmp_path, OFFLINE)

    for step in range(5):
        tracker.log({"x": step}, step=step)
    tracker.finish()

    assert [line["x"] for line in read_metrics(tmp_path)] == [0, 1, 2, 3, 4]
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert len(said) == 1
    assert "left out from here on: the service is gone" in said[0]
    assert "metrics.jsonl" in said[0]


def test_a_real_service_that_is_killed_does_not_stop_the_run(tmp_path: Path):
    code = (
        "import sys, time, psutil\n"
        "from pathlib import Path\n"
        "from actlake.platform.tracking import TrackingConfig, open_tracker\n"
        "with open_tracker(TrackingConfig(wandb='offline'), run_id='r', folder=Path(sys.argv[1]),"
        " job_type='t', config_dict={}) as tracker:\n"
        "    tracker.log({'x': 0}, step=0)\n"
        "    for child in psutil.Process().children(recursive=True): child.kill()\n"
        "    time.sleep(0.2)\n"
        "    for step in range(1, 50): tracker.log({'x': step}, step=step)\n"
        "print('ended')\n"
    )

    answer = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60
    )

    assert "ended" in answer.stdout, answer.stderr
    assert len(read_metrics(tmp_path)) == 50


def test_wandb_that_is_missing_is_an_error_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "wandb", None)

    with pytest.raises(TrackingError, match=r'hint: pip install "actlake\[platform\]", or set'):
        opened(tmp_path)


def test_disabled_never_imports_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "wandb", None)

    with opened(tmp_path, TrackingConfig(wandb="disabled")) as tracker:
        tracker.log({"x": 1}, step=1)

    assert jsonl_points(tracker, tmp_path) == [(1, "x", 1.0)]
    assert not (tmp_path / "wandb").exists()


def test_children_do_not_inherit_the_address_of_wandbs_process(tmp_path: Path):
    with opened(tmp_path):
        inherited = os.environ.get("WANDB_SERVICE")

    assert inherited is None


@pytest.mark.parametrize("run_id", ["", "a/b", "../a", "x" * 65])
def test_an_id_that_cannot_name_a_run_is_refused(run_id: str, tmp_path: Path):
    with pytest.raises(TrackingError, match="cannot be the id of a run\nhint: use letters"):
        opened(tmp_path, run_id=run_id)


def test_all_trackers_are_finished_also_when_one_of_them_fails():
    class Broken(MemoryTracker):
        def finish(self, *, failed: bool = False) -> None:
            raise OSError("disk full")

    healthy = MemoryTracker()

    with pytest.raises(OSError, match="disk full"):
        TrackedRun([Broken(), healthy]).finish(failed=True)

    assert (healthy.finished, healthy.failed) == (True, True)


def test_what_the_package_shows_is_there():
    assert all(hasattr(tracking, name) for name in tracking.__all__)
