"""The parts of a training, each held against what others wrote or against arithmetic."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actlake.jobs.sae.communicator import ALONE
from actlake.jobs.sae.config import OptimizerConfig, SAEConfig, SAESpec
from actlake.jobs.sae.data import SiteFacts, scaling_of
from actlake.jobs.sae.dead_latents import Firing, Weights, dead_window, resample
from actlake.jobs.sae.errors import InvalidSAE
from actlake.jobs.sae.evaluation import evaluate_rows
from actlake.jobs.sae.means import Means
from actlake.jobs.sae.schedules import coefficient_values, learning_rate
from actlake.jobs.sae.sweep import expand
from actlake.jobs.sae.trainable import build_sae
from actlake.jobs.sae.trainee import StepOptions, Trainee
from actlake.platform.config import ConfigError
from actlake.platform.seeds import Seeds
from actlake.storage import Site

CPU = torch.device("cpu")
DIM, LATENTS, ROWS = 12, 40, 64


# The same curve as SAELens' own trainer.


@pytest.fixture
def batches() -> list[torch.Tensor]:
    """60 batches of sparse sums of few directions, with noise."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(20, DIM, generator=generator)
    drawn = []
    for _ in range(60):
        active = torch.rand(ROWS, 20, generator=generator) < 0.15
        values = torch.rand(ROWS, 20, generator=generator) * active
        noise = 0.05 * torch.randn(ROWS, DIM, generator=generator)
        drawn.append(3 * (values @ directions) + noise)
    return drawn


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("standard", {"l1_coefficient": 0.3, "l1_warm_up_steps": 20}),
        ("gated", {"l1_coefficient": 0.3}),
        ("jumprelu", {"l0_coefficient": 0.05, "l0_warm_up_steps": 10}),
        ("topk", {"k": 3}),
        ("batchtopk", {"k": 3}),
        ("matryoshka_batchtopk", {"k": 3, "matryoshka_widths": [10, 40]}),
    ],
)
def test_losses_are_those_of_saelens_own_trainer(
    architecture: str, options: dict[str, Any], batches: list[torch.Tensor]
) -> None:
    spec = SAESpec(
        site=Site(0),
        architecture=architecture,
        d_sae=LATENTS,
        options=options,
        dead_after_rows=5 * ROWS,
        optimizer=OptimizerConfig(
            learning_rate=3e-3, schedule="linear", warm_up=0.1, decay=0.2, clip=1.0
        ),
    )
    trainee = trainee_of(spec, steps=len(batches))

    ours = []
    for step, rows in enumerate(batches):
        trainee.step((rows, None), step, ALONE)
        ours.append(trainee.logged(step + 1))

    theirs = losses_of_saelens(spec, batches)
    assert [line["train/loss"] for line in ours] == pytest.approx(theirs, rel=2e-3)
    if "topk" in architecture:
        assert ours[-1]["train/dead_in_320_rows"] > 0  # the auxiliary loss has taken part


@pytest.mark.parametrize("architecture", ["topk", "jumprelu"])
def test_the_fvu_of_a_crosscoder_is_the_same_in_training_and_on_held_out_rows(
    architecture: str, batches: list[torch.Tensor]
) -> None:
    # The second site is large and badly reconstructed: pooling would give its FVU alone.
    rows_NSD = torch.stack([batches[0], 30 * torch.randn_like(batches[0])], dim=1)
    centred = (rows_NSD - rows_NSD.mean(0)).double().numpy()
    variance = (centred**2).sum((0, 2)) / ROWS
    spec = SAESpec(
        sites=(Site(0), Site(1)), architecture=architecture, d_sae=LATENTS,
        options={"k": 8} if architecture == "topk" else {},
    )  # fmt: skip
    trainee = trainee_of(spec, steps=1, variance=torch.from_numpy(variance))
    before = trainee.model.trained()

    trainee.step((rows_NSD, None), 0, ALONE)

    error = ((before(rows_NSD) - rows_NSD).double().numpy() ** 2).sum((0, 2)) / ROWS
    by_hand = (error / variance).mean()
    assert trainee.logged(1)["train/fvu"] == pytest.approx(by_hand, rel=1e-4)
    assert evaluate_rows(before, [rows_NSD]).fvu == pytest.approx(by_hand, rel=1e-4)
    assert abs(error.sum() / variance.sum() - by_hand) > 0.02  # what the curve once showed


def trainee_of(spec: SAESpec, *, steps: int, variance: torch.Tensor | None = None) -> Trainee:
    model = build_sae(
        spec.architecture, spec.options,
        d_in=DIM, d_sae=spec.d_sae, num_sites=len(spec.inputs), seed=spec.seed, device=CPU,
    )  # fmt: skip
    options = StepOptions(steps=steps, batch_rows=ROWS, micro_batches=1, autocast=False)
    if variance is None:
        variance = torch.ones(1)
    return Trainee(spec, model, options, variance=variance, device=CPU)


def losses_of_saelens(spec: SAESpec, batches: list[torch.Tensor]) -> list[float]:
    from sae_lens import SAETrainer
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.registry import get_sae_training_class

    kind, config = get_sae_training_class(spec.architecture)
    torch.manual_seed(spec.seed)
    sae = kind(config(d_in=DIM, d_sae=spec.d_sae, **spec.options))
    rate, steps = spec.optimizer.learning_rate, len(batches)
    trainer = SAETrainer(
        cfg=SAETrainerConfig(
            total_training_samples=steps * ROWS, train_batch_size_samples=ROWS, lr=rate,
            lr_end=rate, lr_scheduler_name="constant", lr_warm_up_steps=steps // 10,
            lr_decay_steps=steps // 5, adam_beta1=0.9, adam_beta2=0.999, device="cpu",
            autocast=False, dead_feature_window=4, n_checkpoints=0, checkpoint_path=None,
            save_final_checkpoint=False, logger=LoggingConfig(log_to_wandb=False),
        ),
        sae=sae,
        data_provider=iter(batches),
    )  # fmt: skip
    losses = []
    for rows in batches:
        losses.append(float(trainer.step(rows).loss.detach()))
        trainer.n_training_steps += 1
    return losses


# Schedules.


@pytest.mark.parametrize("warm_up", [0.0, 0.1])
def test_a_cosine_is_that_of_torch(warm_up: float) -> None:
    config = OptimizerConfig(learning_rate=0.5, schedule="cosine", warm_up=warm_up, end=0.1)
    first = round(40 * warm_up)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40 - first, eta_min=0.05)

    rates = []
    for _ in range(first, 40):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()

    assert [learning_rate(config, step, steps=40) for step in range(first, 40)] == pytest.approx(
        rates
    )


@given(
    steps=st.integers(1, 500),
    warm_up=st.floats(0, 1),
    decay=st.floats(0, 1),
    end=st.floats(0, 1),
    schedule=st.sampled_from(["constant", "cosine", "linear"]),
)
def test_a_rate_is_never_negative_nor_above_the_highest(
    steps: int, warm_up: float, decay: float, end: float, schedule: Any
) -> None:
    config = OptimizerConfig(
        learning_rate=2.0, schedule=schedule, warm_up=warm_up, decay=decay, end=end
    )

    rates = [learning_rate(config, step, steps=steps) for step in range(steps)]

    assert all(0 <= rate <= 2 for rate in rates)
    risen = round(warm_up * steps)
    assert all(a < b for a, b in itertools.pairwise(rates[:risen]))
    assert all(a >= b for a, b in itertools.pairwise(rates[risen:]))


def test_a_coefficient_rises_from_nothing_and_stays() -> None:
    rising = [coefficient_values({"l1": (2.0, 4)}, step)["l1"] for step in range(6)]

    assert rising == [0.0, 0.5, 1.0, 1.5, 2.0, 2.0]
    assert coefficient_values({"l0": (2.0, 0)}, 0) == {"l0": 2.0}


# Dead latents.


@given(st.lists(st.sampled_from([8, 16, 32]), min_size=1, max_size=20))
def test_death_is_counted_in_rows_whatever_the_batches(sizes: list[int]) -> None:
    firing = Firing(2, dead_after_rows=64, device=CPU)

    for rows in sizes:
        firing.count(torch.tensor([0, 1]), rows)

    assert firing.rows_since.tolist() == [sum(sizes), 0]
    assert firing.dead.tolist() == [sum(sizes) >= 64, False]


def test_dead_latents_show_in_a_short_training_whose_window_is_left_out(batches) -> None:
    spec = SAESpec(site=Site(0), d_sae=LATENTS, options={"k": 2})
    trainee = trainee_of(spec, steps=len(batches))
    assert trainee.dead_after_rows == len(batches) * ROWS // 10
    for name in ("b_enc", "W_enc"):  # 7 latents that nothing can make fire
        trainee.model.weights.get_parameter(name).data[..., :7] = -1e3 * (name == "b_enc")

    lines = []
    for step, rows in enumerate(batches):
        trainee.step((rows, None), step, ALONE)
        lines.append(trainee.logged(step + 1))

    name = "train/dead_in_384_rows"
    assert [name in line for line in lines] == [n >= 6 for n in range(1, len(batches) + 1)]
    assert lines[5][name] >= 7 / LATENTS
    assert dead_window(None, 10**9) == 1_000_000


def test_no_latent_is_given_new_weights_while_the_learning_rate_falls(
    batches: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = SAESpec(
        site=Site(0), architecture="standard", d_sae=LATENTS, resample_every_rows=ROWS,
        optimizer=OptimizerConfig(decay=0.25),
    )  # fmt: skip
    trainee = trainee_of(spec, steps=20)
    resampled: list[str] = []
    monkeypatch.setattr(
        "actlake.jobs.sae.trainee.resample",
        lambda *arguments, purpose, **options: resampled.append(purpose) or 0,
    )

    for step in range(20):
        trainee.step((batches[step], None), step, ALONE)

    assert resampled == [f"resample {step}" for step in range(15)]


def test_a_dead_latent_gets_the_direction_of_a_row_that_is_reconstructed_badly() -> None:
    model = build_sae("standard", {}, d_in=DIM, d_sae=LATENTS, seed=0)
    weights = Weights.of(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    rows = torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(1))
    rows[5] *= 1000  # all of the loss is in this one
    model.step(rows, coefficients={"l1": 1.0}, dead=None).loss.backward()
    optimizer.step()
    dead = torch.zeros(LATENTS, dtype=torch.bool)
    dead[[3, 7]] = True
    before = weights.decoder.detach().clone()

    revived = resample(
        weights, optimizer, dead, rows, model.trained(), seeds=Seeds(0), purpose="t", comm=ALONE
    )

    direction = torch.nn.functional.normalize(rows[5] - weights.decoder_bias.detach(), dim=0)
    living = before[~dead].norm(dim=1).mean()
    assert revived == 2
    assert torch.allclose(weights.decoder[3].detach(), direction * living, atol=1e-5)
    cosine = torch.nn.functional.cosine_similarity(weights.encoder[:, 7].detach(), direction, dim=0)
    assert float(cosine) == pytest.approx(1)
    assert torch.equal(weights.decoder[~dead].detach(), before[~dead])
    assert not optimizer.state[weights.decoder]["exp_avg"][dead].any()
    assert optimizer.state[weights.decoder]["exp_avg_sq"][~dead].any()


def test_drawing_again_draws_the_same() -> None:
    drawn = []
    for _ in range(2):
        model = build_sae("standard", {}, d_in=DIM, d_sae=LATENTS, seed=0)
        rows = torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(1))
        optimizer = torch.optim.Adam(model.parameters())
        dead = torch.arange(LATENTS) % 2 == 0
        resample(
            Weights.of(model), optimizer, dead, rows, model.trained(),
            seeds=Seeds(4), purpose="resample 10", comm=ALONE,
        )  # fmt: skip
        drawn.append(Weights.of(model).decoder.detach())

    assert torch.equal(*drawn)


# Means.


@given(st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=20), st.integers(0, 20))
def test_means_that_are_written_down_in_between_are_the_same(values: list[float], cut: int) -> None:
    through, resumed = Means(CPU), Means(CPU)

    for number, value in enumerate(values):
        through.add({"a": torch.tensor(value)})
        if number == cut:
            sums, steps = resumed.state()
            resumed = Means(CPU)
            resumed.load(sums, steps)
        resumed.add({"a": torch.tensor(value)})

    assert through.take() == resumed.take()
    assert through.take() == {}


# Sweeps.


def config_of(**fields: Any) -> SAEConfig:
    base = SAESpec(site=Site(9), d_sae=64, options={"k": 4})
    return SAEConfig(**{"store": "s", "out": "o", "sae": base, **fields})


def test_a_grid_is_all_combinations_for_each_of_the_list() -> None:
    config = config_of(
        saes=({"site": "resid_post.4"}, {"architecture": "jumprelu"}),
        grid={"d_sae": (64, 128), "optimizer.learning_rate": (1e-3, 1e-4), "seed": (0, 1)},
    )

    specs = expand(config)

    assert len(specs) == 2 * 2 * 2 * 2
    assert len({spec.name for spec in specs}) == 16
    assert specs[0].name == "resid_post.4-topk-64-k4-seed0-lr0.001"
    assert {spec.options.get("k") for spec in specs[8:]} == {None}  # a jumprelu has no k
    assert {(spec.site, spec.d_sae, spec.optimizer.learning_rate, spec.seed) for spec in specs} == {
        (Site(site), width, rate, seed)
        for site in (4, 9) for width in (64, 128) for rate in (1e-3, 1e-4) for seed in (0, 1)
    }  # fmt: skip


def test_options_of_the_grid_are_added_to_those_of_all() -> None:
    config = config_of(
        grid={"options.k": (2, 8)}, saes=({"options": {"aux_loss_coefficient": 0.5}},)
    )

    options = [spec.options for spec in expand(config)]

    assert options == [
        {"k": 2, "aux_loss_coefficient": 0.5}, {"k": 8, "aux_loss_coefficient": 0.5},
    ]  # fmt: skip


def test_a_name_that_is_given_is_kept_and_made_longer_only_where_it_is_shared() -> None:
    named = config_of(sae=SAESpec(site=Site(9), name="mine"))
    swept = config_of(sae=SAESpec(site=Site(9), name="mine"), grid={"seed": (1, 2)})

    assert [spec.name for spec in expand(named)] == ["mine"]
    assert [spec.name for spec in expand(swept)] == ["mine-seed1", "mine-seed2"]


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"saes": ({}, {})}, InvalidSAE, "several of them are resid_post.9-topk-64"),
        ({"saes": ({"with": 3},)}, ConfigError, "there is no such key"),
        ({"grid": {"option.k": (1,)}}, ConfigError, "did you mean 'options'"),
        ({"sae": SAESpec()}, InvalidSAE, "SAE 1 of 1 reads no site"),
        ({"sae": SAESpec(site=Site(1), name="../x")}, InvalidSAE, "cannot name an SAE"),
        ({"sae": SAESpec(site=Site(1), name="checkpoints")}, InvalidSAE, "cannot name an SAE"),
    ],
)
def test_sweeps_that_cannot_be_are_refused(fields: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words.replace(".", r"\.")) as refused:
        expand(config_of(**fields))

    assert "hint:" in str(refused.value)


def test_each_site_of_a_crosscoder_is_scaled_by_itself() -> None:
    facts = {
        Site(i): SiteFacts(scale=10.0**i, variance=1.0, mean=torch.zeros(2).numpy())
        for i in range(3)
    }
    crosscoder = SAESpec(sites=(Site(2), Site(0)))
    transcoder = SAESpec(site=Site(1), target=Site(2))

    assert scaling_of(crosscoder, facts).input == (100.0, 1.0)
    assert (scaling_of(transcoder, facts).input, scaling_of(transcoder, facts).output) == (10, 100)
