"""`actlake doctor --device`: twelve checks, each of which sees the fault it is there for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actlake.jobs.cli import run
from actlake.jobs.doctor.check import run_checks
from actlake.jobs.doctor.device import checks, models, reading, training, units
from actlake.jobs.doctor.device.bench import Bench
from actlake.jobs.harvest import worker
from actlake.jobs.harvest.buffers import UnitBuffers
from actlake.jobs.sae.topk import TopKSAE
from actlake.platform.models.stage import ModelStage
from actlake.platform.torch_batches import TorchBatches

TWELVE = [
    "load", "families", "one unit twice", "buffers", "buffers in little memory", "batches",
    "overflow", "capture", "meter", "synchronisations", "SAE training", "out of memory",
]  # fmt: skip


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(torch.device("cpu"), tmp_path)


def test_the_twelve_checks_pass_on_a_cpu_and_say_what_they_expected_and_saw(
    capsys: pytest.CaptureFixture[str],
) -> None:
    status = run(["doctor", "--device", "cpu", "--json"])

    told = capsys.readouterr()
    findings = json.loads(told.out)["findings"]
    assert [one for one in findings if one["status"] != "ok"] == []
    assert status == 0
    names = list(dict.fromkeys(one["name"] for one in findings))
    assert [name for name in names if name not in ("versions", "GPU", "worker")] == TWELVE
    compared = {one["name"]: one for one in findings if "expected" in one}
    assert set(compared) == set(TWELVE) - {"capture", "meter", "synchronisations"}
    assert compared["one unit twice"]["seen"] == "2 of 2"
    assert compared["buffers"]["seen"] == "20 of 20"
    assert "12 of 12: out of memory" in told.err


def test_where_there_is_no_gpu_it_is_said_that_a_cpu_was_checked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(checks, "CHECKS", {})

    assert run(["doctor", "--device", "--json"]) == 0

    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)["findings"]}
    assert found["device"]["status"] == "warn"
    assert "no CUDA device" in found["device"]["says"]


def test_nothing_is_left_in_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    with checks.device_checks(torch.device("cpu")) as found:
        findings = list(run_checks([found[0], found[3]]))

    assert [finding.status for finding in findings] == ["ok", "ok"]
    assert list(tmp_path.iterdir()) == []


def test_a_device_that_is_not_here_is_refused_before_anything_is_made(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["doctor", "--device", "cuda:7"]) == 1

    assert "Device 'cuda:7' was asked for" in capsys.readouterr().err


def test_other_things_to_check_are_not_passed_over_in_silence(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["doctor", "--device", "cpu", "--store", "x"]) == 1

    assert "--device checks the device alone, and --store is given too" in capsys.readouterr().err


def noise_of_this_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are a little different at each run."""
    generator = torch.Generator().manual_seed(0)
    put = UnitBuffers.put

    def noisy(buffers: UnitBuffers, site: Any, acts_BLD: torch.Tensor) -> None:
        put(buffers, site, acts_BLD + 1e-5 * torch.randn(acts_BLD.shape, generator=generator))

    monkeypatch.setattr(UnitBuffers, "put", noisy)


def another_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    load = models.load_stage

    def loaded(*arguments: Any, **more: Any) -> ModelStage:
        stage = load(*arguments, **more)
        stage.module.to(torch.float64)
        return stage

    monkeypatch.setattr(models, "load_stage", loaded)


def rounded_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """What TF32 does: the first of two runs, the device's, has ten bits of mantissa."""
    runs = models.run_stages
    turn = iter(range(1000))

    def rounded(*arguments: Any, **more: Any) -> Any:
        seen = runs(*arguments, **more)
        if next(turn) % 2 == 0:
            seen = {site: acts.bfloat16().float() for site, acts in seen.items()}
        return seen

    monkeypatch.setattr(models, "run_stages", rounded)


def a_copy_that_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's rows are those of before the last batch."""
    to_host = UnitBuffers.to_host

    def late(buffers: UnitBuffers) -> Any:
        found = to_host(buffers)
        for rows in found.values():
            rows.view(np.int16)[-1] = 0
        return found

    monkeypatch.setattr(UnitBuffers, "to_host", late)


def batches_that_share_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that is read ahead is put over the one that is being looked at."""
    following = TorchBatches.__next__

    def shared(batches: TorchBatches) -> Any:
        batch = following(batches)
        if batches._reader is not None:
            batch.acts[0] = 0
        return batch

    monkeypatch.setattr(TorchBatches, "__next__", shared)


def infinities_that_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    write = worker.write_unit

    def written(store: Any, unit: int, rows: Any, **more: Any) -> Any:
        finite = {site: np.nan_to_num(values, posinf=6e4) for site, values in rows.items()}
        return write(store, unit, finite, **more)

    monkeypatch.setattr(worker, "write_unit", written)


def gradients_that_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    step = TopKSAE.step

    def scaled(sae: TopKSAE, *arguments: Any, **more: Any) -> Any:
        output = step(sae, *arguments, **more)
        object.__setattr__(output, "loss", output.loss * 1.01)
        return output

    monkeypatch.setattr(TopKSAE, "step", scaled)


def a_worker_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "device_fault", lambda error: None)


@pytest.mark.parametrize(
    ("check", "fault"),
    [
        (models.check_load, another_dtype),
        (models.check_families, rounded_products),
        (units.check_same_unit_twice, noise_of_this_device),
        (units.check_buffers, a_copy_that_is_late),
        (units.check_buffers_in_little_memory, a_copy_that_is_late),
        (reading.check_batches, batches_that_share_memory),
        (units.check_overflow, infinities_that_are_written),
        (training.check_training, gradients_that_are_lost),
        (units.check_out_of_memory, a_worker_that_says_nothing),
    ],
)
def test_each_check_sees_the_fault_it_is_there_for(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    check: Callable[[Bench], Any],
    fault: Callable[[pytest.MonkeyPatch], None],
) -> None:
    monkeypatch.setattr(models, "FAMILIES", ("llama",))
    fault(monkeypatch)

    findings = list(run_checks([("it", lambda: check(bench))]))

    failed = [finding for finding in findings if finding.status == "fail"]
    assert failed, findings
    assert all(finding.hint for finding in failed if finding.expected)
