"""`actlake doctor --model`: a model measured; what is wrong is said, marked and the status."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from actlake.jobs.cli import run
from actlake.jobs.doctor import model_map
from actlake.platform.model_map import save_tiny

PROMISES = ["sites", "stage cut", "sums", "head", "edits", "dtype range"]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, Any], Any]]:
    """Run the command; its status, findings by name (the last of each), and the map."""

    def examine(*arguments: str) -> tuple[int, dict[str, Any], Any]:
        status = run(["doctor", "--json", *arguments])
        told = json.loads(capsys.readouterr().out)
        return status, {one["name"]: one for one in told["findings"]}, told["model"]

    return examine


@pytest.mark.parametrize("family", ["qwen3", "gpt2", "mamba"])
def test_a_tiny_random_model_of_a_family_keeps_every_promise(
    doctor: Callable[..., tuple[int, dict[str, Any], Any]], family: str
) -> None:
    status, found, measured = doctor("--model", family, "--random")

    assert status == 0
    promised = [found[name]["status"] for name in PROMISES if name in found]
    assert promised == ["ok"] * (5 if family == "mamba" else 6)  # mamba has no sums to hold
    assert measured["name"] == family
    assert measured["problems"] == []
    moved = [one["moved"] for layer in measured["layers"] for one in layer["points"].values()]
    assert len(moved) == (5 if family == "mamba" else 21)
    assert min(moved) > 1e-3


def test_a_model_without_a_tokenizer_is_measured_on_random_tokens(
    doctor: Callable[..., tuple[int, dict[str, Any], Any]], tmp_path: Path
) -> None:
    folder = save_tiny("llama", tmp_path / "model")

    status, found, measured = doctor("--model", str(folder))

    assert status == 0
    assert found["tokenizer"]["status"] == "warn"
    assert "comes without a tokenizer" in found["tokenizer"]["says"]
    assert measured["text"] is None
    assert measured["problems"] == []


def test_what_does_not_hold_fails_by_its_site_and_is_marked_in_the_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from actlake.platform.models.interventions import _Applied

    plain = _Applied.__call__

    def idle(self: _Applied, tensor: torch.Tensor) -> torch.Tensor:
        own = self.intervention.site.point == "mlp_in"
        return tensor.clone() if own else plain(self, tensor)

    monkeypatch.setattr(_Applied, "__call__", idle)

    assert run(["doctor", "--model", "llama", "--random"]) == 1

    lines = capsys.readouterr().out.splitlines()
    (lower,) = (number for number, line in enumerate(lines) if line.split()[:1] == ["layer"])
    assert lines[lower - 1].split() == ["resid_", "resid_", "resid_", "attn_", "mlp_", "mlp_"]
    assert lines[lower].split()[1:7] == ["pre", "mid", "post", "out", "in", "out"]
    assert lines[lower].split()[7:] == ["norm", "largest", "cut", "sums"]
    rows = [line.split() for line in lines if line.split()[:1] == ["2"]]
    assert rows[0][5] == "!0"
    assert rows[0][1] == "="
    assert rows[0][-2:] == ["0", "0"]  # the cut and the sums are exact
    told = " ".join(" ".join(lines).split())
    assert "fail edits mlp_in.0 can be edited without moving what the model predicts" in told
    assert "and 1 more" in told


def test_a_model_that_does_not_fit_is_not_loaded(
    doctor: Callable[..., tuple[int, dict[str, Any], Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = save_tiny("llama", tmp_path / "model")
    monkeypatch.setattr(model_map, "free_memory", lambda device: 1000)
    monkeypatch.setattr(model_map, "measure_model", None)

    status, found, measured = doctor("--model", str(folder))

    assert status == 1
    assert "cpu has 1.0 kB" in found["model"]["says"]
    assert "--model llama --random" in found["model"]["hint"]
    assert measured is None


def test_a_model_that_is_not_there_is_said_once(
    doctor: Callable[..., tuple[int, dict[str, Any], Any]],
) -> None:
    status, found, measured = doctor("--model", "./none")

    assert status == 1
    assert found["model access"]["status"] == "fail"
    assert "model" not in found
    assert measured is None


def test_a_family_that_is_none_is_refused_with_the_nearest(
    doctor: Callable[..., tuple[int, dict[str, Any], Any]],
) -> None:
    status, found, _ = doctor("--model", "qwen33", "--random")

    assert status == 1
    assert "transformers has no family 'qwen33'" in found["model"]["says"]
    assert "qwen3" in found["model"]["hint"]


def test_random_without_a_family_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--random"]) == 1
    assert "--random needs --model FAMILY" in capsys.readouterr().err


def test_values_beyond_float16_are_a_warning_with_the_setting(
    doctor: Callable[..., tuple[int, dict[str, Any], Any]], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_tiny("llama", tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.down_proj.weight"] *= 1e6
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    status, found, _ = doctor("--model", str(folder))

    assert status == 0
    assert found["dtype range"]["status"] == "warn"
    assert "bfloat16" in found["dtype range"]["hint"]
