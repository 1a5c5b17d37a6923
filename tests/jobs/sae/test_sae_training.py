"""The training as a whole: what comes out, and that nothing changes it but what should."""

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from actlake.jobs.sae.checkpoint import Checkpoints
from actlake.jobs.sae.config import (
    CheckpointConfig,
    EvaluationConfig,
    InModelConfig,
    OptimizerConfig,
    ReportConfig,
    SAEConfig,
    SAESpec,
)
from actlake.jobs.sae.data import Feeder, first_rows, site_facts, training_batches
from actlake.jobs.sae.errors import AlreadyTraining, ConfigChanged, NonFiniteLoss
from actlake.jobs.sae.evaluation import evaluate_rows
from actlake.jobs.sae.job import _only_one, plan_saes, train_saes
from actlake.jobs.sae.opening import open_config
from actlake.jobs.sae.trained import read_sae
from actlake.jobs.sae.worker import work_on
from actlake.platform.cluster import Member, WorkStopped
from actlake.platform.runs import RunRecord
from actlake.platform.tracking import TrackingConfig, read_metrics
from actlake.storage import Site, open_store

POST = Site(1)
BASE = SAESpec(site=POST, d_sae=48, options={"k": 4}, dead_after_rows=300)
MANY: tuple[dict[str, Any], ...] = (
    {"name": "topk"},
    {"name": "batchtopk", "architecture": "batchtopk", "options": {"k": 4}},
    {"name": "jumprelu", "architecture": "jumprelu", "optimizer.schedule": "cosine"},
    {"name": "standard", "architecture": "standard", "resample_every_rows": 500},
    {"name": "gated", "architecture": "gated", "options": {"l1_warm_up_steps": 9}},
    {"name": "nested", "architecture": "matryoshka_batchtopk",
     "options": {"k": 4, "matryoshka_widths": [16, 48]}},
    {"name": "transcoder", "site": "mlp_in.1", "target": "mlp_out.1"},
    {"name": "crosscoder", "sites": ["resid_post.0", "resid_post.1"]},
)  # fmt: skip
"""One of each kind, all on one stream."""


@pytest.fixture
def config(spoken, tmp_path) -> SAEConfig:
    """36 steps in three epochs, tested and written down now and then; tracked in files only."""
    return SAEConfig(
        store=str(spoken.folder),
        out=str(tmp_path / "out"),
        sae=BASE,
        batch_rows=64,
        epochs=3,
        log_every=5,
        threads=1,
        device="cpu",
        checkpoint=CheckpointConfig(every_steps=10),
        evaluation=EvaluationConfig(rows=200, every_steps=12),
        report=ReportConfig(latents=2, contexts=2, rows=300),
        tracking=TrackingConfig(wandb="disabled"),
    )


class Killed(BaseException):
    """What ends a training in the middle, as nothing else may catch."""


def run_until(config: SAEConfig, step: int, *, kill: bool) -> None:
    """Train until `step` steps are logged; then stop in an orderly way, or not."""
    stop = threading.Event()

    def watch(news: dict[str, Any]) -> None:
        if news["step"] >= step and kill:
            raise Killed
        if news["step"] >= step:
            stop.set()

    opened = open_config(config)
    record_a_beginning(config)
    if kill:
        with pytest.raises(Killed):
            work_on(opened, Member(0, 1, stop=stop, report=watch))
    else:
        assert not work_on(opened, Member(0, 1, stop=stop, report=watch)).outcome.complete


def record_a_beginning(config: SAEConfig) -> None:
    """What `train_saes` writes before it trains."""
    from actlake.jobs.sae.job import _begin

    opened = open_config(config)
    opened.out.mkdir(exist_ok=True)
    if not (opened.out / "run.json").exists():
        _begin(opened)


def curve(folder: Path) -> list[dict[str, float]]:
    """All that was logged, but for times."""
    lines = read_metrics(folder)
    return [
        {k: v for k, v in line.items() if k != "time" and not k.startswith("speed/")}
        for line in lines
    ]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(
        torch.equal(part, other[name]) for name, part in one.items()
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "sae_weights.safetensors")


@pytest.fixture(scope="module")
def undisturbed(spoken, tmp_path_factory) -> Path:
    """All of `MANY`, trained without a pause."""
    return train_many(spoken, tmp_path_factory.mktemp("undisturbed") / "out")


def many(spoken: Any, out: Path) -> SAEConfig:
    return SAEConfig(
        store=str(spoken.folder),
        out=str(out),
        sae=BASE,
        saes=MANY,
        batch_rows=64,
        epochs=3,
        log_every=5,
        threads=1,
        device="cpu",
        checkpoint=CheckpointConfig(every_steps=10),
        evaluation=EvaluationConfig(rows=200, every_steps=12),
        report=ReportConfig(latents=0),
        tracking=TrackingConfig(wandb="disabled"),
    )


def train_many(spoken: Any, out: Path) -> Path:
    train_saes(many(spoken, out))
    return out


# What comes out.


def test_the_published_sae_is_the_one_that_was_tested(config, spoken):
    config = replace(
        config, evaluation=replace(config.evaluation, in_model=InModelConfig(contexts=4))
    )

    result = train_saes(config)

    folder = result.folder(BASE)
    sae = read_sae(str(folder))
    test = spoken.acts[POST][spoken_rows(spoken, "test")]
    rows = first_rows(held_out(config), 200, torch.device("cpu"))
    scores = evaluate_rows(sae, (batch[POST] for batch in rows))
    assert len(test) >= 200
    assert result.metrics[f"{folder.name}/held_out/fvu"] == pytest.approx(scores.fvu)
    assert result.metrics[f"{folder.name}/held_out/l0"] == 4
    assert np.isfinite(result.metrics[f"{folder.name}/in_model/ce_recovered"])
    computed_on = RunRecord.load(folder).computed_on
    assert computed_on["device"] == "cpu"
    assert (computed_on["threads"], computed_on["in_model_dtype"]) == (1, "float32")
    assert "resid_post.1" in result.report.read_text()


def spoken_rows(spoken: Any, split: str) -> np.ndarray:
    allowed = np.zeros_like(spoken.allowed)
    allowed[spoken.contexts(split)] = spoken.allowed[spoken.contexts(split)]
    return np.flatnonzero(allowed.ravel())


def held_out(config: SAEConfig) -> Any:
    from actlake.jobs.sae.data import held_out_batches

    return held_out_batches(open_store(config.store), [config.sae], config)


def test_saelens_loads_what_was_trained_and_computes_the_same(undisturbed, spoken):
    from sae_lens import SAE

    rows = torch.from_numpy(spoken.acts[POST][100:200])
    for name in ("topk", "batchtopk", "jumprelu", "standard", "gated", "nested"):
        theirs = SAE.load_from_disk(undisturbed / name)
        ours = read_sae(str(undisturbed / name))

        assert torch.allclose(theirs(rows), ours(rows), atol=1e-5), name
        assert theirs.cfg.metadata.store_fingerprint == spoken.store().fingerprint


def test_training_makes_reconstructions_better(undisturbed):
    for spec in MANY:
        tested = [line["held_out/fvu"] for line in curve(undisturbed / spec["name"])
                  if "held_out/fvu" in line]  # fmt: skip

        assert len(tested) == 3
        assert tested[-1] < tested[0], spec["name"]


def test_rows_are_fed_with_a_mean_norm_of_the_root_of_their_width(config, spoken):
    batches = training_batches(open_store(config.store), [config.sae], config)
    facts = site_facts(batches, normalise=True)

    feeder = Feeder({site: known.scale for site, known in facts.items()})
    fed = [
        feeder(batch, [config.sae])[0][0] for batch in first_rows(batches, 832, torch.device("cpu"))
    ]

    norms = torch.cat(fed).norm(dim=1)
    assert float(norms.mean()) == pytest.approx(16**0.5, rel=0.01)


def test_no_excluded_and_no_held_out_row_is_trained_on(config, spoken):
    batches = training_batches(open_store(config.store), [config.sae], config)

    rows = np.concatenate([next(batches).rows for _ in range(batches.steps_per_epoch)])

    assert set(rows) <= set(spoken_rows(spoken, "train"))


def test_a_transcoder_predicts_its_target_and_not_what_it_reads(undisturbed, spoken):
    sae = read_sae(str(undisturbed / "transcoder"))
    read, target = (torch.from_numpy(spoken.acts[Site(1, p)]) for p in ("mlp_in", "mlp_out"))

    predicted = sae(read)

    def unexplained(rows: torch.Tensor) -> float:
        return float((predicted - rows).square().sum() / (rows - rows.mean(0)).square().sum())

    assert unexplained(target) < 1 < unexplained(read)
    assert sae.hook_out == "blocks.1.hook_mlp_out"


# Many on one stream.


def test_an_sae_among_many_is_the_one_that_is_trained_alone(undisturbed, spoken, tmp_path):
    alone = replace(many(spoken, tmp_path / "alone"), saes=(MANY[1],))

    train_saes(alone)

    name = MANY[1]["name"]
    assert same(weights(tmp_path / "alone" / name), weights(undisturbed / name))
    assert curve(tmp_path / "alone" / name) == curve(undisturbed / name)


def test_saes_are_made_and_trained_in_the_threads_that_are_asked_for(config, pools, monkeypatch):
    from actlake.jobs.sae import worker

    real, seen, before = worker.Training, [], pools()

    def noting(*arguments, **options):
        seen.append(set(pools().values()))
        return real(*arguments, **options)

    monkeypatch.setattr(worker, "Training", noting)
    report = lambda news: seen.append(set(pools().values()))  # noqa: E731
    opened = open_config(replace(config, threads=3))
    record_a_beginning(config)

    work_on(opened, Member(0, 1, stop=threading.Event(), report=report))

    assert len(seen) > 1
    assert all(threads == {3} for threads in seen)
    assert pools() == before


def test_parts_of_a_step_add_up_to_the_step(config, tmp_path):
    whole = replace(config, out=str(tmp_path / "whole"), saes=({}, {"architecture": "jumprelu"}))
    parts = replace(whole, out=str(tmp_path / "parts"), micro_batches=4)

    results = [train_saes(one) for one in (whole, parts)]

    for spec in results[0].specs:
        one, other = ([line["train/loss"] for line in curve(result.folder(spec))
                       if "train/loss" in line] for result in results)  # fmt: skip
        assert one == pytest.approx(other, rel=1e-4)


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "gated"])
def test_half_precision_products_change_the_losses_a_little(config, architecture, tmp_path):
    spec = SAESpec(site=POST, architecture=architecture, d_sae=48)
    spec = replace(spec, options={"k": 4}) if "topk" in architecture else spec
    exact = replace(config, sae=spec, epochs=1, out=str(tmp_path / "exact"))
    half = replace(exact, out=str(tmp_path / "half"), autocast="bfloat16")

    results = [train_saes(one) for one in (exact, half)]

    losses = [[line["train/loss"] for line in curve(result.folder(spec)) if "train/loss" in line]
              for result in results]  # fmt: skip
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert all(part.dtype == torch.float32 for part in weights(results[1].folder(spec)).values())


# Going on.


def test_killed_anywhere_it_goes_on_to_the_same_bits(undisturbed, spoken, tmp_path):
    config = many(spoken, tmp_path / "out")

    run_until(config, 5, kill=True)  # before there is a checkpoint
    run_until(config, 25, kill=True)  # five steps after one
    run_until(config, 30, kill=False)
    train_saes(config)

    for spec in MANY:
        name = spec["name"]
        assert same(weights(tmp_path / "out" / name), weights(undisturbed / name)), name
        assert curve(tmp_path / "out" / name) == curve(undisturbed / name), name
    last = [Checkpoints(out / "checkpoints", keep=9) for out in (tmp_path / "out", undisturbed)]
    for spec in MANY:
        one, other = (checkpoints.tensors(39, spec["name"]) for checkpoints in last)
        assert same(one, other), spec["name"]


def test_a_stop_writes_down_the_step_it_comes_at(config):
    run_until(config, 15, kill=False)

    steps = Checkpoints(Path(config.out) / "checkpoints", keep=9).steps()
    assert steps == [10, 15]
    assert plan_saes(config).done == 15


def test_only_the_last_checkpoints_stay(undisturbed):
    assert Checkpoints(undisturbed / "checkpoints", keep=9).steps() == [30, 39]
    assert sorted(path.name for path in (undisturbed / "checkpoints").iterdir()) == [
        "step-000000030", "step-000000039",
    ]  # fmt: skip


def test_a_damaged_checkpoint_is_named(config):
    run_until(config, 15, kill=False)
    broken = Path(config.out) / "checkpoints" / "step-000000015"
    next(broken.glob("*.safetensors")).write_bytes(b"no")

    with pytest.raises(OSError, match=r"cannot be read.*\n.*remove .*step-000000015"):
        train_saes(config)


def test_a_finished_training_is_left_alone(undisturbed, spoken):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")}

    result = train_saes(many(spoken, undisturbed))

    assert result.was_there
    assert {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")} == before
    assert result.metrics["topk/held_out/l0"] == 4


def test_another_configuration_does_not_go_on_and_the_difference_is_named(config):
    run_until(config, 10, kill=False)
    wider = replace(config, sae=replace(BASE, d_sae=64))
    written = (Path(config.out) / "run.json").read_bytes()

    with pytest.raises(ConfigChanged, match=r"sae\.d_sae: stored 48, asked 64") as refused:
        train_saes(wider)

    assert "hint:" in str(refused.value)
    assert (Path(config.out) / "run.json").read_bytes() == written


def test_another_store_does_not_go_on(config, undisturbed):
    run_until(config, 10, kill=False)
    path = Path(config.out) / "run.json"
    content = json.loads(path.read_text())
    content["inputs"]["store"]["fingerprint"] = "0" * 16
    path.write_text(json.dumps(content))

    with pytest.raises(ConfigChanged, match='store: stored "0000000000000000"'):
        train_saes(config)


@pytest.mark.parametrize(
    "change",
    [
        {"checkpoint": CheckpointConfig(every_steps=7, keep=1)},
        {"threads": 2},
        {"report": ReportConfig(latents=0)},
    ],
)
def test_what_does_not_decide_the_weights_may_change_on_the_way(config, change, tmp_path):
    run_until(config, 10, kill=False)

    result = train_saes(replace(config, **change))

    assert not result.was_there


def test_two_at_once_into_one_folder_are_refused(config):
    with _only_one(Path(config.out)), pytest.raises(AlreadyTraining, match="hint"):
        train_saes(config)


def test_a_folder_with_something_else_is_not_written_into(config):
    Path(config.out).mkdir()
    (Path(config.out) / "thesis.tex").touch()

    with pytest.raises(FileExistsError, match="no training of SAEs"):
        train_saes(config)


# Ending early.


def test_a_loss_that_is_not_finite_stops_the_training_and_keeps_the_last_good_state(config):
    run_until(config, 15, kill=False)
    poison(config)

    with pytest.raises(NonFiniteLoss, match=r"not finite at step 16 of 39\n.*step-000000015"):
        train_saes(config)

    assert Checkpoints(Path(config.out) / "checkpoints", keep=9).steps()[-1] == 15
    assert json.loads((Path(config.out) / "run.json").read_text())["finished"] is None


def poison(config: SAEConfig) -> None:
    """Let a weight of the last checkpoint be so large that the loss overflows."""
    from safetensors.torch import save_file

    path = next((Path(config.out) / "checkpoints" / "step-000000015").glob("*.safetensors"))
    tensors = load_file(path)
    tensors["model.weights.W_dec"][:] = 1e30
    path.unlink()
    save_file(tensors, path)


def test_one_that_fails_does_not_stop_the_others(config):
    wild = {"name": "wild", "architecture": "standard", "optimizer.learning_rate": 1e30,
            "optimizer.warm_up": 0}  # fmt: skip
    config = replace(config, saes=({"name": "tame"}, wild))

    with pytest.raises(NonFiniteLoss, match=r"The loss of wild is not finite at step \d+ of 39"):
        train_saes(config)

    out = Path(config.out)
    assert read_sae(str(out / "tame")).d_sae == 48
    assert not (out / "wild" / "cfg.json").exists()
    kept = Checkpoints(out / "checkpoints", keep=9).tensors(39, "wild")
    assert all(torch.isfinite(part).all() for part in kept.values())
    with pytest.raises(NonFiniteLoss, match="wild"):  # and says so again
        train_saes(config)


def test_each_sae_ends_when_it_gets_no_better(config):
    config = replace(
        config,
        evaluation=replace(config.evaluation, every_steps=3),
        saes=(
            {"name": "long"},
            {"name": "short", "early_stop": {"patience": 2, "least": 0.99}},
        ),
    )

    result = train_saes(config)

    lines = {name: curve(Path(config.out) / name) for name in ("long", "short")}
    assert max(line["step"] for line in lines["long"]) == 39
    assert max(line["step"] for line in lines["short"]) == 9
    about = {
        name: json.loads((Path(config.out) / name / "cfg.json").read_text())["metadata"]
        for name in lines
    }
    assert {name: said["rows_trained"] for name, said in about.items()} == {
        "long": 39 * 64, "short": 9 * 64,
    }  # fmt: skip
    assert "short/held_out/fvu" in result.metrics
    assert "not bettered in 2 evaluations" in result.report.read_text()


def test_a_stop_is_told_to_who_asked(config, monkeypatch):
    import actlake.jobs.sae.job as job

    class AlreadySet(threading.Event):
        def __init__(self) -> None:
            super().__init__()
            self.set()

    monkeypatch.setattr(job, "Event", AlreadySet)

    with pytest.raises(WorkStopped, match=r"after step 0 of 39.*\n.*the same command goes on"):
        train_saes(config)


def test_the_optimiser_is_told_every_rate(config):
    config = replace(config, log_every=1, sae=replace(BASE, optimizer=OptimizerConfig(decay=0.5)))

    result = train_saes(config)

    rates = [line["train/learning_rate"] for line in curve(result.folder(config.sae))
             if "train/learning_rate" in line]  # fmt: skip
    assert len(rates) == 39
    assert rates[5] == 3e-4
    assert rates[-1] == pytest.approx(3e-4 / 20)
