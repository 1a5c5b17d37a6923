"""Solvers against scikit-learn, on the same rows."""

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Ridge

from actlake.jobs.probe.closed_forms import calibrate, discriminants, ridge_path
from actlake.jobs.probe.gathering import Chosen, Framed, Gathered
from actlake.jobs.probe.logistic import solve_logistic
from actlake.jobs.probe.problems import Basis, Problems, Solution, penalties_for
from actlake.jobs.probe.scatter import Scatter

PENALTIES = (0.1, 1.0, 30.0, 1e3)
Rows = tuple[np.ndarray, np.ndarray]


def correlated(rows: int, width: int, classes: int, *, seed: int = 0, shift: float = 1.0) -> Rows:
    """Standardised rows with a spectrum over four decades, and classes that overlap."""
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.normal(size=(width, width)))
    codes = rng.choice(classes, rows, p=np.arange(1, classes + 1) / (classes * (classes + 1) / 2))
    x = rng.normal(size=(rows, width)) + shift * rng.normal(size=(classes, width))[codes] / 2
    x = (x * np.logspace(0, -2, width)) @ turn
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    return x.astype(np.float32), codes


def solved(x: np.ndarray, codes: np.ndarray, classes: int, **how: object) -> Solution:
    rows = Gathered(torch.from_numpy(x), chunk=100)
    label_set, penalty = penalties_for(range(codes.shape[1]), PENALTIES)
    problems = Problems(torch.from_numpy(codes), label_set, penalty, classes)
    scatter = Scatter.of(rows, torch.zeros(len(x), 1))
    return solve_logistic(rows, problems, Basis.of(scatter.covariance), **how)


def relative(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


@pytest.mark.parametrize("classes", [2, 4])
def test_logistic_weights_are_scikit_learns_at_every_penalty(classes: int) -> None:
    x, codes = correlated(600, 20, classes)

    found = solved(x, codes[:, None], classes)

    assert found.converged.all()
    for place, penalty in enumerate(PENALTIES):
        theirs = LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=10_000).fit(
            x.astype(np.float64), codes
        )
        assert relative(found.weight[:, place].T.numpy(), theirs.coef_) < 1e-3
        assert found.bias[place].numpy() == pytest.approx(theirs.intercept_, abs=1e-3)


def test_problems_solved_together_are_those_solved_alone() -> None:
    x, codes = correlated(500, 12, 3)
    other = np.random.default_rng(1).permutation(codes)

    both = solved(x, np.stack([codes, other], axis=1), 3)
    alone = solved(x, other[:, None], 3)

    assert relative(both.weight[:, len(PENALTIES) :].numpy(), alone.weight.numpy()) < 1e-4


def test_separable_classes_have_a_finite_optimum() -> None:
    x, codes = correlated(400, 10, 2, shift=40.0)

    found = solved(x, codes[:, None], 2)

    assert found.converged.all()
    theirs = LogisticRegression(C=10.0, tol=1e-10, max_iter=10_000).fit(x.astype(np.float64), codes)
    assert theirs.score(x, codes) == 1.0
    assert relative(found.weight[:, 0].T.numpy(), theirs.coef_) < 1e-3


@pytest.mark.parametrize("classes", [2, 3])
def test_probabilities_computed_anew_lead_to_the_same_optimum(classes: int) -> None:
    x, codes = correlated(400, 10, classes)

    kept, anew = (solved(x, codes[:, None], classes, remember=how) for how in (True, False))

    assert relative(anew.weight.numpy(), kept.weight.numpy()) < 1e-5


def test_a_start_at_the_optimum_takes_a_single_step() -> None:
    x, codes = correlated(400, 10, 3)
    first = solved(x, codes[:, None], 3)

    again = solved(x, codes[:, None], 3, start=first)

    assert again.iterations.tolist() == [1] * len(PENALTIES)


def test_weights_of_rows_are_rows_left_out() -> None:
    x, codes = correlated(400, 8, 2)
    kept = np.arange(400) % 3 > 0
    rows = Gathered(torch.from_numpy(x), chunk=64)
    basis = Basis.of(Scatter.of(rows, torch.zeros(400, 1)).covariance)
    one = torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.float64)
    targets = torch.from_numpy(codes[:, None])

    weighted = solve_logistic(
        rows, Problems(targets, *one, 2, torch.from_numpy(kept[:, None]).float()), basis
    )
    chosen = Chosen(rows, torch.from_numpy(kept))
    fewer = solve_logistic(chosen, Problems(targets[kept], *one, 2), basis)

    assert relative(weighted.weight.numpy(), fewer.weight.numpy()) < 1e-4


def test_moments_are_those_of_numpy_far_from_zero() -> None:
    rng = np.random.default_rng(0)
    x = (1000 + rng.normal(size=(300, 6)) * np.logspace(-1, 1, 6)).astype(np.float32)
    y = rng.normal(size=(300, 2)).astype(np.float32)

    found = Scatter.of(Gathered(torch.from_numpy(x), chunk=70), torch.from_numpy(y))

    exact = x.astype(np.float64)
    assert found.mean.numpy() == pytest.approx(exact.mean(axis=0), rel=1e-6)
    assert relative(found.covariance.numpy(), np.cov(exact.T, bias=True)) < 1e-4
    assert relative(found.cross.numpy(), (exact - exact.mean(axis=0)).T @ y) < 1e-4


@pytest.mark.parametrize("alpha", [0.5, 20.0, 1e4])
def test_ridge_is_scikit_learns(alpha: float) -> None:
    x, _ = correlated(500, 15, 2)
    x = x * np.logspace(-1, 1, 15, dtype=np.float32) + 3
    y = x @ np.random.default_rng(1).normal(size=15) + np.random.default_rng(2).normal(size=500)
    scatter = Scatter.of(Gathered(torch.from_numpy(x)), torch.from_numpy(y[:, None]).float())

    weights, level = ridge_path(scatter, Basis.of(scatter.covariance), [alpha])

    theirs = Ridge(alpha=alpha).fit(x.astype(np.float64), y)
    ours = weights[0, :, 0].numpy()
    assert relative(ours, theirs.coef_) < 1e-3
    assert float(level) - ours @ scatter.mean.numpy() == pytest.approx(theirs.intercept_, rel=1e-3)


@pytest.mark.parametrize("classes", [2, 4])
def test_discriminants_are_scikit_learns(classes: int) -> None:
    x, codes = correlated(500, 12, classes)
    hot = torch.nn.functional.one_hot(torch.from_numpy(codes)).float()
    scatter = Scatter.of(Gathered(torch.from_numpy(x)), hot)

    weight, bias = discriminants(scatter, slice(0, classes))

    theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(x.astype(np.float64), codes)
    coef = theirs.coef_ - theirs.coef_.mean(axis=0) * (classes > 2)
    assert relative(weight.T.numpy(), coef) < 1e-3
    centred = torch.from_numpy(x).double() - scatter.mean
    scores = (centred @ weight + bias).numpy()
    said = (scores[:, 0] > 0).astype(int) if classes == 2 else scores.argmax(axis=1)
    assert (said == theirs.predict(x)).mean() > 0.998


def test_discriminants_leave_out_what_never_varies() -> None:
    x, codes = correlated(300, 8, 2)
    wider = np.concatenate([x, np.zeros((300, 1), np.float32), x[:, :1]], axis=1)
    hot = torch.nn.functional.one_hot(torch.from_numpy(codes)).float()

    plain, wide = (
        discriminants(Scatter.of(Gathered(torch.from_numpy(rows)), hot), slice(0, 2))[0]
        for rows in (x, wider)
    )

    assert relative(wider @ wide.numpy(), x @ plain.numpy()) < 1e-3


@pytest.mark.parametrize("classes", [2, 3])
def test_calibration_is_maximum_likelihood(classes: int) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, classes, 400)
    scores = rng.normal(size=(400, classes if classes > 2 else 1)) * 30
    scores += 20 * (np.eye(classes)[codes] if classes > 2 else codes[:, None])

    slope, bias = calibrate(torch.from_numpy(scores), torch.from_numpy(codes))

    def loss(slope: float, bias: np.ndarray) -> float:
        logits = torch.from_numpy(slope * scores + bias)
        if classes == 2:
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        return float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(codes)))

    best = loss(slope, bias.numpy())
    for nudge in (1e-3, -1e-3):
        assert loss(slope * (1 + nudge), bias.numpy()) > best
        assert loss(slope, bias.numpy() + nudge * np.arange(1, len(bias) + 1)) > best


def test_a_frame_is_applied_to_rows_as_they_come() -> None:
    x, _ = correlated(50, 4, 2)
    mean, scale = torch.arange(4.0), torch.arange(1.0, 5.0)

    framed = Framed(Gathered(torch.from_numpy(x), chunk=13), mean, scale)

    seen = torch.cat([rows for _, rows in framed.chunks()])
    assert torch.allclose(seen, (torch.from_numpy(x) - mean) / scale)
