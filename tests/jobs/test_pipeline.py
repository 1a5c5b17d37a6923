"""`actlake run`: the order of steps, what runs beside what, and how failures and stops travel."""

import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from actlake.jobs.cli import run
from actlake.jobs.pipeline.errors import InvalidGraph, InvalidPipeline
from actlake.jobs.pipeline.graph import Step, order
from actlake.jobs.pipeline.running import PipelineRun, Running

COMMAND = """
import pathlib, signal, sys, time
name, out, seconds, status = sys.argv[1:]
print("hello from", name, flush=True)
def stop(*_):
    pathlib.Path(out + ".stopped").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
pathlib.Path(out + ".begun").write_text(str(time.monotonic()))
time.sleep(float(seconds))
if int(status) == 0:
    pathlib.Path(out).touch()
pathlib.Path(out + ".ended").write_text(str(time.monotonic()))
sys.exit(int(status))
"""


def step(name: str, folder: Path, *inputs: str, seconds: float = 0.0, status: int = 0) -> Step:
    config = {
        "out": str(folder / name), "seconds": seconds, "status": status,
        "inputs": [str(folder / one) for one in inputs],
    }  # fmt: skip
    return Step(name, "transport", config, str(folder / name))


def pipeline(*steps: Step, parallel: int = 1) -> tuple[PipelineRun, list[str]]:
    """A run of steps whose command is a small script, and what it tells."""
    said: list[str] = []
    folder = Path(steps[0].output).parent

    def start(one: Step, logs: Path) -> Running:
        logs.mkdir(exist_ok=True)
        words = (one.name, one.output, str(one.config["seconds"]), str(one.config["status"]))
        log = logs / f"{one.name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", COMMAND, *words], stdout=output, stderr=output
            )
        return Running(one, process, log)

    ordered = order({one.name: (one, ()) for one in steps})
    made = PipelineRun(
        ordered, parallel, folder / "logs", said.append,
        start=start, is_done=lambda one: Path(one.output).exists(),
    )  # fmt: skip
    return made, said


def test_a_step_waits_for_those_whose_results_its_config_names(tmp_path: Path) -> None:
    probe = step("probe", tmp_path, "sae/weights", "store")
    steps = {
        "probe": (probe, ()),
        "sae": (step("sae", tmp_path, "store"), ()),
        "store": (step("store", tmp_path), ()),
        "last": (step("last", tmp_path), ("probe",)),
    }

    ordered = order(steps)

    assert [one.name for one in ordered] == ["store", "sae", "probe", "last"]
    assert {one.name: one.waits_for for one in ordered} == {
        "store": (), "sae": ("store",), "probe": ("sae", "store"), "last": ("probe",),
    }  # fmt: skip


def test_a_place_that_only_begins_alike_is_another(tmp_path: Path) -> None:
    other = step("other", tmp_path, "store-2")
    ordered = order({"other": (other, ()), "store": (step("store", tmp_path), ())})

    assert [one.waits_for for one in ordered] == [(), ()]


def test_urls_are_places_too() -> None:
    make = Step("make", "harvest", {"store": "s3://b/x"}, "s3://b/x/")
    use = Step("use", "sae", {"store": "s3://b/x", "out": "/o"}, "/o")

    ordered = order({"use": (use, ()), "make": (make, ())})

    assert ordered[1].waits_for == ("make",)


@given(st.sets(st.tuples(st.integers(0, 7), st.integers(0, 7))))
def test_an_order_keeps_every_edge_or_names_a_circle(edges: set[tuple[int, int]]) -> None:
    names = [f"s{number}" for number in range(8)]
    after: Mapping[str, list[str]] = {
        name: [f"s{a}" for a, b in edges if f"s{b}" == name and a != b] for name in names
    }
    steps = {name: (Step(name, "sae", {}, f"/out/{name}"), tuple(after[name])) for name in names}

    if _has_circle(after):
        with pytest.raises(InvalidGraph, match="wait for each other"):
            order(steps)
    else:
        places = {one.name: place for place, one in enumerate(order(steps))}
        assert all(places[a] < places[b] for b, before in after.items() for a in before)


def _has_circle(after: Mapping[str, list[str]]) -> bool:
    left = dict(after)
    while ready := [name for name, before in left.items() if not set(before) & left.keys()]:
        for name in ready:
            del left[name]
    return bool(left)


def test_two_steps_with_one_result_are_refused(tmp_path: Path) -> None:
    one, two = step("a", tmp_path), Step("b", "sae", {}, f"{tmp_path}/x/../a")

    with pytest.raises(InvalidPipeline, match="Steps a and b have one result"):
        order({"a": (one, ()), "b": (two, ())})


def test_a_step_that_waits_for_none_that_is_there_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(InvalidGraph, match="did you mean 'harvest'"):
        order({"harvest": (step("harvest", tmp_path), ()), "b": (step("b", tmp_path), ("havest",))})


def test_steps_run_after_their_inputs_and_again_does_nothing(tmp_path: Path) -> None:
    steps = (step("c", tmp_path, "b"), step("a", tmp_path), step("b", tmp_path, "a"))

    first, _ = pipeline(*steps, parallel=3)
    again, said = pipeline(*steps, parallel=3)

    assert first.run() == {"a": "done", "b": "done", "c": "done"}
    times = [float((tmp_path / f"{n}.{w}").read_text()) for n in "abc" for w in ("begun", "ended")]
    assert times == sorted(times)
    assert again.run() == {"a": "was done", "b": "was done", "c": "was done"}
    assert all("done already" in words for words in said)


@pytest.mark.parametrize("parallel", [1, 2])
def test_no_more_steps_run_side_by_side_than_are_allowed(tmp_path: Path, parallel: int) -> None:
    steps = [step(name, tmp_path, seconds=1.0) for name in "abcd"]

    made, _ = pipeline(*steps, parallel=parallel)

    assert set(made.run().values()) == {"done"}
    moments = sorted(
        (float((tmp_path / f"{name}.{word}").read_text()), change)
        for name in "abcd"
        for word, change in (("begun", 1), ("ended", -1))
    )
    together = 0
    most = max(together := together + change for _, change in moments)
    assert most == parallel


def test_a_step_is_asked_once_whether_it_is_done(tmp_path: Path) -> None:
    steps = [step(name, tmp_path, seconds=1.0) for name in "abc"]
    made, _ = pipeline(*steps)
    asked: list[str] = []
    is_done = made.is_done
    made.is_done = lambda one: asked.append(one.name) or is_done(one)

    assert set(made.run().values()) == {"done"}
    assert asked == ["a", "b", "c"]


def test_a_failed_step_stops_its_dependants_and_no_others(tmp_path: Path) -> None:
    steps = (
        step("bad", tmp_path, status=3), step("after", tmp_path, "bad"),
        step("later", tmp_path, "after"), step("other", tmp_path),
    )  # fmt: skip

    made, said = pipeline(*steps)

    assert made.run() == {
        "bad": "failed", "after": "blocked", "later": "blocked", "other": "done",
    }  # fmt: skip
    told = "\n".join(said)
    assert "bad: failed after 0 s (status 3)\n    hello from bad" in told
    assert "after: not run: bad failed" in told
    assert not (tmp_path / "after.begun").exists()


def test_a_signal_reaches_the_running_steps_and_no_more_are_begun(tmp_path: Path) -> None:
    steps = (
        step("a", tmp_path, seconds=60), step("b", tmp_path, seconds=60),
        step("c", tmp_path, "a"),
    )  # fmt: skip
    made, said = pipeline(*steps, parallel=2)

    def interrupt() -> None:
        while not all((tmp_path / f"{name}.begun").exists() for name in "ab"):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=interrupt)
    thread.start()
    outcomes = made.run()
    thread.join()

    assert outcomes == {"a": "stopped", "b": "stopped", "c": "stopped"}
    assert (tmp_path / "a.stopped").exists()
    assert (tmp_path / "b.stopped").exists()
    assert "c: not begun" in said
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        path = tmp_path / "pipeline.yaml"
        path.write_text(textwrap.dedent(text).format(folder=tmp_path))
        return str(path)

    return write


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps: {{}}", "at least one step"),
        ("steps: {{a: {{command: harvst}}}}", "did you mean 'harvest'?"),
        ("steps: {{a: {{command: info}}}}", "'info' is not a job with a config"),
        ("steps: {{a: {{command: transport, config: {{stroe: x}}}}}}", "did you mean 'store'?"),
        ("parallel: 0\nsteps: {{a: {{command: transport}}}}", "parallel is 0"),
        ("steps: {{a b: {{command: transport}}}}", "cannot name a step"),
        ("steps: {{a: {{command: transport, config: {{store: s}}}}}}", "Step a: "),
        ("stepps: {{}}", "did you mean 'steps'?"),
    ],
)
def test_mistakes_in_any_step_are_found_before_the_first_is_run(
    capsys: pytest.CaptureFixture[str], written: Callable[[str], str], text: str, words: str
) -> None:
    assert run(["run", written(text)]) == 1

    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said


def test_the_example_is_read_and_each_step_waits_for_its_store(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "examples").symlink_to(Path(__file__).parents[2] / "examples")
    monkeypatch.chdir(tmp_path)

    assert run(["run", "examples/pipeline_smollm2.yaml", "--plan"]) == 0

    out = capsys.readouterr().out
    lines = {line.split()[0]: line for line in out.splitlines()[:-1]}
    assert list(lines) == ["text", "maps", "autoencoder", "reviews", "probes"]
    assert "after text" in lines["maps"]
    assert "after text" in lines["autoencoder"]
    assert "after reviews" in lines["probes"]


@pytest.mark.parametrize("name", ["ray_cluster.yaml", "kuberay_job.yaml"])
def test_the_clusters_of_the_examples_have_a_token_and_no_secret(name: str) -> None:
    text = (Path(__file__).parents[2] / "examples" / "cluster" / name).read_text()

    parts = list(yaml.safe_load_all(text))

    assert parts
    plain = str(parts)
    assert "RAY_AUTH_MODE=token" in plain or "'authOptions': {'mode': 'token'}" in plain
    assert not re.search(r"[0-9a-f]{32}|AKIA[A-Z0-9]{16}|\bhf_\w{16}", text)


def test_the_dashboards_of_the_examples_are_on_loopback_or_behind_a_token_and_a_policy() -> None:
    folder = Path(__file__).parents[2] / "examples" / "cluster"
    launcher = yaml.safe_load((folder / "ray_cluster.yaml").read_text())
    job, policy = yaml.safe_load_all((folder / "kuberay_job.yaml").read_text())

    starts = [
        line
        for role in ("head", "worker")
        for line in launcher[f"{role}_start_ray_commands"]
        if "ray start" in line
    ]
    assert len(starts) == 2
    assert all("export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=" in line for line in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert policy["kind"] == "NetworkPolicy"
    assert all(source.get("podSelector") for source in policy["spec"]["ingress"][0]["from"])


HARVESTED = """
logs: {folder}/logs
steps:
  maps:
    command: transport
    config:
      store: {folder}/store
      out: {folder}/maps
      pairs: {{listed: ["resid_post.3->resid_post.9"]}}
      save: [ridge]
      tracking: {{wandb: disabled}}
  text:
    command: harvest
    files: [{folder}/harvest.yaml]
"""


@pytest.fixture
def harvested(
    tmp_path: Path,
    written: Callable[[str], str],
    smollm2_store: Path,
    harvest_arguments: Callable[[Path], list[str]],
    capfd: pytest.CaptureFixture[str],
) -> str:
    """A pipeline whose harvest is done: its config is that of the store."""
    shutil.copytree(smollm2_store, tmp_path / "store")
    with pytest.raises(SystemExit):
        run([*harvest_arguments(tmp_path / "store"), "--print-config"])
    (tmp_path / "harvest.yaml").write_text(capfd.readouterr().out)
    return written(HARVESTED)


def test_a_pipeline_goes_on_after_a_harvest_that_is_done(
    tmp_path: Path, harvested: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["run", harvested, "--plan"]) == 0
    plan = capfd.readouterr().out.split("\n")
    assert [line.split()[:3] for line in plan[:2]] == [
        ["text", "harvest", "done"],
        ["maps", "transport", "ready"],
    ]

    assert run(["run", harvested]) == 0, capfd.readouterr().err
    assert "1 was done, 1 done" in capfd.readouterr().out
    assert (tmp_path / "maps" / "report.html").exists()

    assert run(["run", harvested]) == 0
    assert "2 was done" in capfd.readouterr().out


def test_a_harvest_of_another_text_is_not_done(
    harvested: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["run", harvested, "--steps.text.config.corpus.max_tokens", "5000", "--plan"]) == 0

    lines = capfd.readouterr().out.split("\n")
    assert [line.split()[:3] for line in lines[:2]] == [
        ["text", "harvest", "ready"],
        ["maps", "transport", "after"],
    ]


@pytest.mark.slow
@pytest.mark.ray
def test_a_pipeline_killed_in_its_harvest_leaves_no_step_and_goes_on(
    tmp_path: Path,
    harvested: str,
    actlake: Callable[..., tuple[int, str]],
    start: Callable[..., object],
    wait_for: Callable[..., None],
    smollm2_store: Path,
    tree: Callable[[Path], dict[str, bytes]],
) -> None:
    from actlake.storage import open_store
    from actlake.storage.errors import StoreError

    store = tmp_path / "store"
    shutil.rmtree(store)

    def committed() -> int:
        try:
            return len(open_store(store).committed(["resid_post.3"]))
        except StoreError:
            return 0

    killed = start("run", harvested)
    wait_for(lambda: committed() >= 2, "the harvest commits nothing")
    killed.process.kill()  # type: ignore[attr-defined]
    killed.wait()  # type: ignore[attr-defined]
    counts = []
    for _ in range(2):  # the step hears of it, and finishes what it holds
        time.sleep(15)
        counts.append(committed())
    assert all(a == b for a, b in pairwise(counts))

    status, out = actlake("run", harvested)

    assert status == 0, out
    assert tree(store) == tree(smollm2_store)
    assert (tmp_path / "maps" / "run.json").exists()


@pytest.fixture
def finished(whole_pipeline: Callable[..., Path]) -> str:
    """A pipeline of all four commands that has run to its end."""
    path = str(whole_pipeline())

    assert run(["run", path]) == 0
    return path


def states(path: str, capfd: pytest.CaptureFixture[str], *options: str) -> dict[str, str]:
    """What `--plan` says of each step."""
    capfd.readouterr()
    assert run(["run", path, *options, "--plan"]) == 0
    lines = capfd.readouterr().out.splitlines()[:-1]
    return {line.split()[0]: line.split()[2] for line in lines}


@pytest.mark.slow
@pytest.mark.ray
def test_steps_of_every_command_are_run_seen_as_done_and_seen_to_be_of_another_store(
    finished: str, capfd: pytest.CaptureFixture[str]
) -> None:
    everything = dict.fromkeys(["text", "maps", "autoencoder", "probes"], "done")
    assert states(finished, capfd) == everything

    for step, change in {
        "maps": "moments.precision=float64",
        "autoencoder": "seed=1",
        "probes": "seed=1",
    }.items():
        key, value = change.split("=")
        changed = states(finished, capfd, f"--steps.{step}.config.{key}", value)
        assert changed == everything | {step: "ready"}

    shutil.rmtree(Path(finished).parent / "store")
    other = ("--steps.text.config.corpus.context_length", "32")
    assert run(["run", finished, *other]) == 1
    assert "1 done, 3 failed" in capfd.readouterr().out  # none writes over another result
    assert states(finished, capfd, *other) == {
        "text": "done", "maps": "ready", "autoencoder": "ready", "probes": "ready",
    }  # fmt: skip
