"""What the guide and the examples say can be done."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from actlake.jobs import sae
from actlake.jobs.sae.config import SAEConfig
from actlake.jobs.sae.sweep import expand
from actlake.platform.config import from_dict, read_config

ROOT = Path(__file__).parents[3]
GUIDE = (ROOT / "docs" / "sae.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


@pytest.mark.parametrize(("name", "number"), [("sae_smollm2", 1), ("sae_sweep", 8)])
def test_every_example_is_a_training(name: str, number: int) -> None:
    path = ROOT / "examples" / f"{name}.yaml"

    config = read_config(SAEConfig, ["--config", str(path)], command="actlake sae")

    assert len(expand(config)) == number


def test_the_guides_yaml_is_eight_saes() -> None:
    (written,) = (yaml.safe_load(block) for block in blocks("yaml"))

    config = from_dict(SAEConfig, {"store": "s", "out": "o", **written})

    assert len(expand(config)) == 8


def test_the_guides_python_trains_and_encodes(
    spoken: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "smollm2").symlink_to(spoken.folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    trained = sae.train_saes

    def small(config: SAEConfig) -> Any:
        return trained(replace(config, batch_rows=256, report=sae.ReportConfig(latents=0)))

    monkeypatch.setattr(sae, "train_saes", small)
    (block,) = blocks("python")
    names: dict[str, Any] = {}

    for theirs, ours in {"Site(9)": "Site(1)", "post.9": "post.1", "4608": "128"}.items():
        block = block.replace(theirs, ours)
    exec(compile(block, "docs/sae.md", "exec"), names)

    assert names["latents"].shape == (1000, 128)
    assert names["result"].metrics["resid_post.1-topk-128/held_out/l0"] == 32


def test_the_guide_names_only_files_that_are_there() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", GUIDE)

    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
