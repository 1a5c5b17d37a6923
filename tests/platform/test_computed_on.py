"""The record of a run says on what it was computed."""

from pathlib import Path

import pytest
import torch

from actlake.platform.computed_on import computed_on
from actlake.platform.runs import RunRecord


def test_a_record_names_the_processor_the_threads_and_the_type_of_the_model(tmp_path: Path) -> None:
    found = computed_on("cpu", threads=3, in_model_dtype=torch.bfloat16)

    RunRecord.start("x", {}, computed_on=found).save(tmp_path)

    assert RunRecord.load(tmp_path).computed_on == {
        "device": "cpu", "name": found["name"], "cuda": torch.version.cuda, "threads": 3,
        "in_model_dtype": "bfloat16",
    }  # fmt: skip
    assert found["name"]


def test_a_gpu_is_named_by_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU of {device}")

    assert computed_on("cuda:1", threads=1)["name"] == "GPU of cuda:1"
    assert "name" not in computed_on(None, threads=1)
