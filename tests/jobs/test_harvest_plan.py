"""How a model is cut into stages, and what the plan says of it."""

import pytest

from actlake.jobs.harvest import HarvestConfig, PipelineConfig
from actlake.jobs.harvest.config import InvalidHarvest
from actlake.jobs.harvest.planning import plan_harvest, plan_stages
from actlake.platform.models import ModelConfig, resolve_model
from actlake.platform.models.errors import InvalidSplit
from actlake.storage import Site, open_store


@pytest.fixture(scope="module")
def model(smollm2_folder):
    return resolve_model(ModelConfig(name=str(smollm2_folder)))


def config(**changes):
    asked = {"store": "unused", "model": ModelConfig(name="unused"), "sites": (Site(15),)}
    return HarvestConfig(**{**asked, **changes})


def cut(model, **changes):
    return [(s.start, s.stop) for s in plan_stages(model, config(**changes))]


def test_stages_have_about_the_same_bytes_or_the_same_layers(model):
    by_compute = PipelineConfig(balance="compute")

    assert cut(model, stages=2) == [(0, 4), (4, 16)]
    assert cut(model, stages=2, pipeline=by_compute) == [(0, 8), (8, 16)]


def test_boundaries_are_where_stages_begin(model):
    assert cut(model, pipeline=PipelineConfig(boundaries=(3, 9))) == [(0, 3), (3, 9), (9, 16)]


@pytest.mark.parametrize("boundaries", [(16,), (20,), (9, 3), (0, 4), (4, 4)])
def test_boundaries_that_do_not_cover_the_layers_are_refused(model, boundaries):
    with pytest.raises(InvalidSplit, match=r"do not cover layers \[0, 16\)"):
        cut(model, pipeline=PipelineConfig(boundaries=boundaries))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stages": 3, "pipeline": PipelineConfig(boundaries=(4,))}, "hint: leave stages out"),
        ({"replicas": 2, "min_replicas": 3}, "replicas is the most there will be"),
        ({"max_attempts": 0}, "max_attempts must be more than 0"),
        ({"pipeline": PipelineConfig(batches_in_flight=0)}, "pipeline.batches_in_flight"),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(changes, words):
    with pytest.raises(InvalidHarvest, match=words):
        config(**changes)


def test_the_plan_says_what_stages_hold_send_and_how_long_they_wait(model, smollm2_store):
    schema = open_store(smollm2_store).schema

    planned = plan_harvest(
        config(stages=2, batch_tokens=256), model, schema, pending_units=24, threads=1
    )

    # 23 batches of 256 tokens in 6,000 rows; stages of 4 and 12 layers out of 16.
    assert planned.idle == pytest.approx(1 - 23 * 16 / (2 * 24 * 12))
    assert planned.idle_by_compute == pytest.approx(1 / 24)
    assert planned.wire_bytes_per_token == 576 * 4
    assert planned.stage_hidden_bytes == (0, 256 * 576 * 4 * 4 * 3)
    assert "2,304 bytes per token from stage to stage" in str(planned)
    assert "stages wait 36% of the time; 4% with --pipeline.balance compute" in str(planned)
