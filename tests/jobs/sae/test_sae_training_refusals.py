"""What cannot be trained is refused before a row is read, in words that help."""

from dataclasses import replace
from typing import Any

import pytest

from actlake.jobs.sae.config import (
    CheckpointConfig,
    EvaluationConfig,
    InModelConfig,
    OptimizerConfig,
    SAEConfig,
    SAESpec,
)
from actlake.jobs.sae.errors import InvalidSAE, InvalidTraining, NotEnoughRows
from actlake.jobs.sae.job import plan_saes, train_saes
from actlake.platform.cluster import ClusterConfig, InvalidClusterConfig
from actlake.platform.config import ConfigError
from actlake.platform.models.errors import InvalidModelConfig
from actlake.storage import Site
from actlake.storage.errors import ActlakeError, SiteNotStored, StoreNotFound, UnknownSplit
from actlake.storage.reading.batches import Batches

SPEC = SAESpec(site=Site(1), d_sae=32, options={"k": 4})


@pytest.fixture
def config(spoken: Any, tmp_path: Any) -> SAEConfig:
    return SAEConfig(
        store=str(spoken.folder), out=str(tmp_path / "out"), sae=SPEC, batch_rows=64, device="cpu"
    )


SPECS: list[tuple[SAESpec, type[ActlakeError], str]] = [
    (replace(SPEC, architecture="topkk"), InvalidSAE, r"topkk.*\n.*did you mean 'topk'"),
    (replace(SPEC, options={"kk": 4}), InvalidSAE, r"kk"),
    (replace(SPEC, options={"k": 33}), InvalidSAE, r"33"),
    (replace(SPEC, options={"d_in": 64}), InvalidSAE, r"d_in"),
    (replace(SPEC, architecture="jumprelu"), InvalidSAE, r"k\b"),
    (replace(SPEC, site=Site(7)), SiteNotStored, r"resid_post\.7.*\n.*did you mean"),
    (replace(SPEC, target=Site(7, "mlp_out")), SiteNotStored, r"mlp_out\.7"),
    (SAESpec(sites=(Site(0), Site(9)), options={"k": 4}), SiteNotStored, r"resid_post\.9"),
    (replace(SPEC, architecture="gated", options={}, target=Site(2)), InvalidSAE, r"gated"),
    (replace(SPEC, resample_every_rows=500), InvalidSAE, r"topk are not resampled"),
]


@pytest.mark.parametrize(("spec", "error", "words"), SPECS)
def test_saes_that_cannot_be_are_refused(
    config: SAEConfig, spec: SAESpec, error: type[ActlakeError], words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(Batches, "__next__", nothing_is_read)

    with pytest.raises(error, match=words) as refused:
        train_saes(replace(config, sae=spec))

    assert "hint:" in str(refused.value)
    with pytest.raises(error, match=words):
        plan_saes(replace(config, sae=spec))


def nothing_is_read(batches: Batches) -> None:
    raise AssertionError("a row was read")


TYPO = EvaluationConfig(split="tset")
CHANGES: list[tuple[dict[str, Any], type[ActlakeError], str]] = [
    ({"store": "nowhere"}, StoreNotFound, "no activation store"),
    ({"split": "trian"}, UnknownSplit, r"'trian'.*\(split\)\n.*'train'"),
    (
        {"evaluation": EvaluationConfig(split="tset")},
        UnknownSplit,
        r"evaluation\.split.*\n.*'test'",
    ),
    ({"evaluation": EvaluationConfig(split="train")}, InvalidTraining, "tested on the split"),
    ({"batch_rows": 4096}, NotEnoughRows, r"4,096 rows cannot be filled: 880 rows"),
    ({"rows": 2000}, NotEnoughRows, r"31 batches of 64.*1 epoch.*13\n.*--epochs 3"),
    ({"rows": 63}, InvalidTraining, "less than one batch"),
    ({"device": "cuda:7"}, InvalidModelConfig, r"Device 'cuda:7' was asked for"),
    ({"device": "cuda:1", "workers": 2}, InvalidClusterConfig, r"given their GPUs by Ray"),
    (
        {"device": "cuda:1", "cluster": ClusterConfig(address="10.0.0.1:6379")},
        InvalidClusterConfig,
        r"given their GPUs by Ray",
    ),
]


@pytest.mark.parametrize(("change", "error", "words"), CHANGES)
def test_trainings_that_cannot_be_are_refused(
    config: SAEConfig, change: dict[str, Any], error: type[ActlakeError], words: str
) -> None:
    with pytest.raises(error, match=words) as refused:
        train_saes(replace(config, **change))

    assert "hint:" in str(refused.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: replace(SPEC, d_sae=0), "d_sae must be at least 1"),
        (lambda: SAESpec(site=Site(1), sites=(Site(1), Site(2))), "both resid_post.1 and"),
        (lambda: SAESpec(sites=(Site(1),)), "two or more different sites"),
        (lambda: SAESpec(sites=(Site(1), Site(2)), target=Site(2)), "has no target"),
        (lambda: OptimizerConfig(learning_rate=0), "above 0"),
        (lambda: OptimizerConfig(warm_up=2), "a share between 0 and 1"),
        (lambda: OptimizerConfig(betas=(0.9, 1.0)), "below 1"),
        (lambda: OptimizerConfig(clip=0), "clip must be above 0"),
        (lambda: CheckpointConfig(keep=0), "keep of 1 or more"),
        (lambda: EvaluationConfig(rows=0), "rows and every_steps"),
        (lambda: InModelConfig(contexts=0), "needs contexts"),
        (lambda: SAEConfig(store="s", out="o", batch_rows=10, workers=3), "shared evenly by 3"),
        (lambda: SAEConfig(store="s", out="o", micro_batches=3), "3 micro-batch"),
        (lambda: SAEConfig(store="s", out="o", grid={"d_sae": ()}), r"grid\.d_sae has no value"),
        (lambda: SAEConfig(store="s", out="o", epochs=0), "epochs must be at least 1"),
    ],
)
def test_values_that_cannot_be_are_refused_where_they_are_given(make: Any, words: str) -> None:
    with pytest.raises(ActlakeError, match=words) as refused:
        make()

    assert "hint:" in str(refused.value)


def test_a_command_line_names_what_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    from actlake.jobs.sae.command import main

    with pytest.raises(ConfigError, match=r"sae\.d_say.*\n.*did you mean 'd_sae'"):
        main(["--store", "s", "--out", "o", "--sae.d_say", "3"])


def test_the_plan_says_what_would_be_done_and_does_nothing(
    config: SAEConfig, spoken: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from actlake.jobs.sae.command import main

    status = main(
        ["--store", str(spoken.folder), "--out", config.out, "--sae.site", "resid_post.1",
         "--grid", "{options.k: [2, 4]}", "--sae.d_sae", "32", "--batch_rows", "64", "--plan"]
    )  # fmt: skip

    shown = capsys.readouterr().out
    assert status == 0
    assert "resid_post.1-topk-32-k2, resid_post.1-topk-32-k4: 2,208 parameters" in shown
    assert "832 of 880 in the split" in shown
    assert "13 of 64 rows on" in shown
    assert not list((spoken.folder.parent).glob("out"))


def test_a_cluster_is_not_started_for_one_worker(config: SAEConfig) -> None:
    import ray

    unreachable = ClusterConfig(address="127.0.0.1:1")
    started = ray.is_initialized()

    plan_saes(replace(config, cluster=unreachable))

    assert ray.is_initialized() == started


def test_a_window_of_dead_latents_that_is_longer_than_the_training_is_told(
    config: SAEConfig,
) -> None:
    long = replace(config, sae=replace(SPEC, dead_after_rows=1_000_000))

    assert "dead after 1,000,000 rows" in str(plan_saes(long))
    assert "warning" not in str(plan_saes(config))
