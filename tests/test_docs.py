"""What the README and the examples say is what happens."""

import re
from pathlib import Path

import pytest
import yaml

from actlake.jobs.harvest import HarvestConfig
from actlake.jobs.pipeline.config import PipelineConfig
from actlake.jobs.probe import ProbeConfig
from actlake.jobs.sae import SAEConfig
from actlake.jobs.transport import TransportConfig
from actlake.platform.config import read_config

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
CONFIGS = {
    "harvest": HarvestConfig,
    "pipeline": PipelineConfig,
    "probe": ProbeConfig,
    "sae": SAEConfig,
    "transport": TransportConfig,
}
"""What an example configures, by the first word of its name."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_a_config_of_its_command(path):
    job = path.stem.split("_")[0]

    config = read_config(CONFIGS[job], ["--config", str(path)], command=f"actlake {job}")

    written = yaml.safe_load(path.read_text())
    name = "logs" if job == "pipeline" else "store"
    assert getattr(config, name) == written[name]


def test_files_that_texts_and_helps_name_as_examples_are_there():
    said = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "jobs").rglob("*.py")]
    named = {
        name
        for path in said
        for name in re.findall(r"examples/[\w/]+\.(?:yaml|ipynb)", path.read_text())
    }

    assert len(named) > 5
    assert {name for name in named if not (ROOT / name).is_file()} == set()


def test_the_readmes_yaml_is_the_first_example_without_its_defaults(tmp_path):
    written = tmp_path / "readme.yaml"
    written.write_text(blocks("yaml")[0])

    config = read_config(HarvestConfig, ["--config", str(written)], command="actlake harvest")

    example = ROOT / "examples" / "harvest_smollm2.yaml"
    assert config == read_config(
        HarvestConfig, ["--config", str(example)], command="actlake harvest"
    )


def test_the_readmes_way_of_reading_works(tmp_path, monkeypatch, smollm2_store):
    (tmp_path / "actlake-demo").mkdir()
    (tmp_path / "actlake-demo" / "store").symlink_to(smollm2_store)
    monkeypatch.chdir(tmp_path)
    reading = [block for block in blocks("python") if "open_store" in block or "xarray" in block]
    assert len(reading) == 4

    for block in reading:
        exec(compile(block, "README.md", "exec"), {})


def test_the_readmes_harvest_is_a_config(monkeypatch):
    seen = []
    monkeypatch.setattr("actlake.jobs.harvest.harvest", seen.append)
    (block,) = (block for block in blocks("python") if "HarvestConfig" in block)

    exec(compile(block, "README.md", "exec"), {})

    assert seen[0].sites[0].layer == 4


def test_the_readme_names_only_what_is_there():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / "README.md").read_text())

    assert links
    missing = [link for link in links if not (ROOT / link).exists()]
    assert not missing
