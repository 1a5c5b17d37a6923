"""What the README and the examples say is what happens."""

import re
from pathlib import Path

import pytest

from actlake.jobs.harvest import HarvestConfig
from actlake.platform.config import read_config

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("harvest_*.yaml"))


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_config_is_read(path):
    config = read_config(HarvestConfig, ["--config", str(path)], command="actlake harvest")

    assert config.sites


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
