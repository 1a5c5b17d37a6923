"""Kill `actlake sae` at any step, run the same command again: the curve is the undisturbed one."""

import random
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from actlake.jobs.sae.checkpoint import Checkpoints
from actlake.jobs.sae.command import main
from actlake.platform.tracking import read_metrics

STEPS = 600
NAMES = ("resid_post.1-topk-256", "resid_post.1-batchtopk-256")


def command(store: Path, out: Path) -> list[str]:
    return [
        "--store", str(store),
        "--out", str(out),
        "--sae", "{site: resid_post.1, d_sae: 256, options: {k: 8}, dead_after_rows: 2000}",
        "--saes", "[{}, {architecture: batchtopk, options: {k: 8}}]",
        "--batch_rows", "88",
        "--epochs", str(STEPS // 10),
        "--log_every", "10",
        "--checkpoint.every_steps", "50",
        "--evaluation.every_steps", "300",
        "--report.latents", "0",
        "--threads", "1",
        "--device", "cpu",
        "--tracking.wandb", "disabled",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(spoken: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert main(command(spoken.folder, out)) == 0
    return out


def last_checkpoint(out: Path) -> int:
    return max(Checkpoints(out / "checkpoints", keep=9).steps(), default=0)


def grown_or_ended(out: Path, before: int, driver: Any) -> bool:
    return last_checkpoint(out) > before or driver.process.poll() is not None


def numbers(folder: Path) -> list[dict[str, float]]:
    """All that was logged, but for times."""
    return [
        {k: v for k, v in line.items() if k != "time" and not k.startswith("speed/")}
        for line in read_metrics(folder)
    ]


def equal(out: Path, undisturbed: Path) -> bool:
    for name in NAMES:
        assert numbers(out / name) == numbers(undisturbed / name)
        ours, theirs = (load_file(f / name / "sae_weights.safetensors") for f in (out, undisturbed))
        assert all(torch.equal(ours[part], theirs[part]) for part in theirs)
    return True


def test_a_killed_and_a_stopped_training_go_on_to_the_same_bits(
    spoken: Any, tmp_path: Path, undisturbed: Path, start: Callable[..., Any], wait_for: Any
) -> None:
    out = tmp_path / "out"
    arguments = command(spoken.folder, out)

    killed = start("sae", *arguments)
    wait_for(lambda: last_checkpoint(out) >= 100, "no checkpoint was written")
    time.sleep(random.Random(0).uniform(0, 0.2))
    killed.kill()
    killed.process.communicate()
    at_kill = last_checkpoint(out)
    stopped = start("sae", *arguments)
    wait_for(lambda: last_checkpoint(out) > at_kill, "it did not go on")
    stopped.process.send_signal(signal.SIGTERM)
    shown = stopped.wait()

    assert at_kill < STEPS
    assert stopped.process.returncode == 143, shown
    assert "the same command goes on from here" in shown
    assert f"after step {last_checkpoint(out):,} of {STEPS}" in shown
    assert main(arguments) == 0
    assert equal(out, undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(3))
def test_kills_at_many_steps_leave_the_same_bits(
    spoken: Any, tmp_path: Path, undisturbed: Path, start: Callable[..., Any], wait_for: Any,
    seed: int,
) -> None:  # fmt: skip
    rng = random.Random(seed)
    out = tmp_path / "out"
    interrupted = 0

    for _ in range(5):
        before = last_checkpoint(out)
        driver = start("sae", *command(spoken.folder, out))
        wait_for(
            partial(grown_or_ended, out, before, driver),
            "nothing was written",
        )
        time.sleep(rng.uniform(0, 0.4))
        driver.kill()
        driver.process.communicate()
        interrupted += last_checkpoint(out) < STEPS

    assert interrupted >= 2
    assert main(command(spoken.folder, out)) == 0
    assert equal(out, undisturbed)
