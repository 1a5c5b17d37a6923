"""Where stages will run is asked about a model before its text is laid out."""

import json
from pathlib import Path
from typing import Any

import pytest

from actlake.jobs.harvest import machines
from actlake.platform.cluster import Resources, WorkerPlan
from actlake.platform.cluster.same_code import SILENT, NodeAnswer
from actlake.platform.model_map import save_tiny
from actlake.platform.models import ModelConfig, ResolvedModel, resolve_model
from actlake.platform.models.errors import ModelNotSupported

WORKERS = WorkerPlan("cpu", 1, Resources(cpus=1))


@pytest.fixture
def quantised(tmp_path: Path) -> ResolvedModel:
    """A model of a cluster whose method needs a package that is not here."""
    folder = save_tiny("llama", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    return resolve_model(ModelConfig(name=str(folder), device="cpu"), here=False)


def answered(monkeypatch: pytest.MonkeyPatch, *values: Any) -> list[Any]:
    """Let nodes answer so; what they were asked."""
    asked: list[Any] = []

    def ask(*question: Any, **how: Any) -> list[NodeAnswer]:
        asked.append((question, how))
        return [NodeAnswer(f"10.0.0.{i}", value) for i, value in enumerate(values)]

    monkeypatch.setattr(machines, "ask_nodes", ask)
    return asked


def test_a_node_without_the_package_of_a_quantised_model_is_named_with_what_to_install(
    quantised: ResolvedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    why = machines.why_not_here(quantised)
    assert "quantised with 'bitsandbytes'" in why
    asked = answered(monkeypatch, "", why, SILENT, RuntimeError("no actlake"))

    with pytest.raises(ModelNotSupported) as refused:
        machines._check_nodes(quantised, WORKERS)

    told = str(refused.value)
    assert "2 of the 4 node(s) that a stage fits on cannot load" in told
    assert "10.0.0.1: transformers cannot load" in told
    assert "10.0.0.3: no actlake" in told
    assert "hint: install the package or use the device that it names" in told
    assert asked == [((machines.why_not_here, quantised), {"on": WORKERS.resources})]


def test_nodes_that_can_load_it_or_do_not_answer_are_no_reason_to_refuse(
    quantised: ResolvedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered(monkeypatch, "", SILENT)

    machines._check_nodes(quantised, WORKERS)


def test_of_a_model_that_is_not_quantised_nothing_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = resolve_model(ModelConfig(name=str(save_tiny("llama", tmp_path)), device="cpu"))
    asked = answered(monkeypatch)

    machines._check_nodes(model, WORKERS)

    assert machines.why_not_here(model) == ""
    assert asked == []
