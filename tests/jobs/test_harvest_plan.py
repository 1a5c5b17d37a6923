"""How a model is cut into stages, and what the plan says of it."""

from types import SimpleNamespace

import pytest

from actlake.jobs.harvest import HarvestConfig, StagesConfig
from actlake.jobs.harvest.config import InvalidHarvest, StorageConfig
from actlake.jobs.harvest.machines import resolve
from actlake.jobs.harvest.planning import plan_harvest, plan_stages
from actlake.platform.cluster import ClusterConfig, InvalidClusterConfig, Resources, ResourcesConfig
from actlake.platform.cluster.worker_plan import WorkerPlan
from actlake.platform.models import ModelConfig, resolve_model
from actlake.platform.models.errors import InvalidSplit
from actlake.storage import Site, open_store
from actlake.storage.errors import InvalidSite


@pytest.fixture(scope="module")
def model(smollm2_folder):
    return resolve_model(ModelConfig(name=str(smollm2_folder)))


def config(**changes):
    asked = {"store": "unused", "model": ModelConfig(name="unused"), "sites": (Site(15),)}
    return HarvestConfig(**{**asked, **changes})


WORKERS = WorkerPlan("cpu", 1, Resources(cpus=1))


def cut(model, **changes):
    return [(s.start, s.stop) for s in plan_stages(model, config(**changes))]


def test_stages_have_about_the_same_bytes_or_the_same_layers(model):
    by_compute = StagesConfig(balance="compute")

    assert cut(model, stages=2) == [(0, 4), (4, 16)]
    assert cut(model, stages=2, pipeline=by_compute) == [(0, 8), (8, 16)]


def test_boundaries_are_where_stages_begin(model):
    assert cut(model, pipeline=StagesConfig(boundaries=(3, 9))) == [(0, 3), (3, 9), (9, 16)]


@pytest.mark.parametrize("boundaries", [(16,), (20,), (9, 3), (0, 4), (4, 4)])
def test_boundaries_that_do_not_cover_the_layers_are_refused(model, boundaries):
    with pytest.raises(InvalidSplit, match=r"do not cover layers \[0, 16\)"):
        cut(model, pipeline=StagesConfig(boundaries=boundaries))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stages": 3, "pipeline": StagesConfig(boundaries=(4,))}, "hint: leave stages out"),
        ({"replicas": 2, "min_replicas": 3}, "replicas is the most there will be"),
        ({"max_attempts": 0}, "max_attempts must be more than 0"),
        ({"pipeline": StagesConfig(batches_in_flight=0)}, "pipeline.batches_in_flight"),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(changes, words):
    with pytest.raises(InvalidHarvest, match=words):
        config(**changes)


def test_the_plan_says_what_stages_hold_send_and_how_long_they_wait(model, smollm2_store):
    schema = open_store(smollm2_store).schema

    planned = plan_harvest(
        config(stages=2, batch_tokens=256),
        model,
        schema,
        pending_units=24,
        workers=WORKERS,
        beginning="every context begins with <bos> (asked for)",
        special_tokens="no special token is written in the text",
        rows_per_split={"train": 90, "test": 10},
        tried={"contexts": "run each alone"},
    )

    # 23 batches of 256 tokens in 6,000 rows; stages of 4 and 12 layers out of 16.
    assert planned.idle == pytest.approx(1 - 23 * 16 / (2 * 24 * 12))
    assert planned.idle_by_compute == pytest.approx(1 / 24)
    assert planned.wire_bytes_per_token == 576 * 4
    assert planned.stage_hidden_bytes == (0, 256 * 576 * 4 * 4 * 3)
    # Weights in float32: an embedding of 49,152 rows of 576, blocks of 3,540,096 numbers and the
    # last norm. Rows: 256 of 576 float16 in each of three units; the site is in the second stage.
    embedding, block, norm = 49_152 * 576, 3_540_096, 576
    assert planned.stage_param_bytes == (
        4 * (embedding + 4 * block + norm),
        4 * (12 * block + norm),
    )
    assert planned.stage_buffer_bytes == (0, 256 * 576 * 2 * 3)
    text = str(planned)
    assert "text      every context begins with <bos> (asked for)\n" in text
    assert "splits    train 90 (90.0%), test 10 (10.0%)\n" in text
    assert "contexts  run each alone\n" in text
    assert "layers 0–3: 169.9 MB of weights, up to 0 B of rows in flight" in text
    assert (
        "layers 4–15: 169.9 MB of weights, up to 884.7 kB of rows and 7.1 MB of hidden states in "
        "flight"
    ) in text
    assert "1 replica(s) x 2 stage(s) on cpu, 1 thread(s) and 1 CPU reserved each" in text
    assert "2,304 bytes per token from stage to stage" in str(planned)
    assert "stages wait 36% of the time; 4% with --pipeline.balance compute" in str(planned)


def test_the_plan_says_what_int8_saves_and_what_it_takes_in_memory(model, smollm2_store):
    planned = plan_harvest(
        config(storage=StorageConfig(dtype="int8"), batch_tokens=256),
        model,
        open_store(smollm2_store).schema,
        pending_units=24,
        workers=WORKERS,
        beginning="",
        special_tokens="",
        rows_per_split={},
        tried={},
    )

    # 6,000 rows of 576 codes and 9 scales of two bytes, in place of 576 numbers of two.
    assert planned.num_bytes == 6000 * (576 + 18)
    assert "3.6 MB of activations, 3.3 MB less than in float16 (48%); jobs read" in str(planned)
    # In flight they are as the model computes them: 256 rows of float32 in two units.
    assert planned.stage_buffer_bytes == (256 * 576 * 4 * 2,)


def resolved(smollm2_folder, device="cpu", **changes):
    asked = ModelConfig(name=str(smollm2_folder), device=device)
    _, workers = resolve(config(model=asked, cluster=ClusterConfig(address="local"), **changes))
    return workers


def test_a_stage_reserves_what_is_asked_for_and_a_cpu_a_thread_otherwise(smollm2_folder):
    asked = ResourcesConfig(cpus=0.5, memory_mb=700)

    assert resolved(smollm2_folder, threads=3) == WorkerPlan("cpu", 3, Resources(cpus=3))
    assert resolved(smollm2_folder, threads=3, resources=asked) == WorkerPlan(
        "cpu", 3, Resources(cpus=0.5, memory_mb=700)
    )
    assert resolved(smollm2_folder, resources=ResourcesConfig(cpus=2)).threads == 2


def test_cuda_without_a_gpu_is_refused(smollm2_folder, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda **options: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda *which: "a card")
    card = SimpleNamespace(total_memory=80 * 2**30)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda which: card)
    none, half = ResourcesConfig(gpus=0), ResourcesConfig(gpus=0.5)

    with pytest.raises(InvalidClusterConfig, match=r"hint: leave resources\.gpus out"):
        resolved(smollm2_folder, device="cuda", resources=none)
    assert resolved(smollm2_folder, device="auto", resources=none).device == "cpu"
    assert resolved(smollm2_folder, device="auto", resources=half).resources.gpus == 0.5
    found = resolved(smollm2_folder, device="auto")
    assert (found.resources.gpus, found.device_bytes) == (1, 80 * 2**30)


@pytest.mark.parametrize("name", ["resid_pst.3", "sae.topk_32.3"])
def test_a_site_that_no_model_has_is_refused_before_anything_is_looked_for(name):
    with pytest.raises(InvalidSite, match=rf"There is no point .*{name}.*\nhint: "):
        config(sites=(Site.parse(name),))
