"""Probes in closed form: ridge, linear discriminants, differences of means.

All are of centred rows, and given as weight (D, K) and bias (K,), in float64: scores are
``x @ weight + bias``, one column a class, or a single one for binary tasks and numbers.

Shapes:  N rows   D width   K classes   T targets
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from actlake.jobs.probe.problems import Basis
from actlake.jobs.probe.scatter import Scatter

_RANK_TOLERANCE = 1e-8  # of eigenvalues; the square of scikit-learn's tol of singular values
_CALIBRATION_STEPS = 100


def ridge_path(scatter: Scatter, basis: Basis, alphas: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Ridge for all targets and penalties: weights (A, D, T) and biases (T,).

    ``w = (Σ (x - x̄)(x - x̄)ᵀ + α)⁻¹ Σ (x - x̄) t``, which is scikit-learn's ``Ridge(alpha)``.
    One eigendecomposition serves all penalties.
    """
    projected = basis.vectors.T @ scatter.cross
    weights = [
        basis.vectors @ (projected / (scatter.count * basis.variances + alpha)[:, None])
        for alpha in alphas
    ]
    return torch.stack(weights), scatter.target_sum / scatter.count


def discriminants(scatter: Scatter, which: slice) -> tuple[Tensor, Tensor]:
    """Linear discriminant analysis of one-hot targets: log-posteriors up to a constant.

    Fisher's, with the pooled covariance within classes divided by N and priors as in the data,
    which is scikit-learn's ``LinearDiscriminantAnalysis(solver="lsqr")``. Directions in which
    rows do not vary within classes are left out.
    """
    counts, sums = scatter.target_sum[which], scatter.cross[:, which]
    means = sums / counts
    within = scatter.covariance - (sums / counts) @ sums.T / scatter.count
    spread = within.diagonal().clamp_min(0).sqrt()
    spread = torch.where(spread > 0, spread, 1.0)
    values, vectors = torch.linalg.eigh(within / torch.outer(spread, spread))
    kept = values > _RANK_TOLERANCE * values[-1]
    whiten = (vectors[:, kept] / values[kept].sqrt()) / spread[:, None]
    weight = whiten @ (whiten.T @ means)
    bias = -0.5 * (weight * means).sum(dim=0) + (counts / counts.sum()).log()
    return _one_column(weight, bias)


def mean_differences(scatter: Scatter, which: slice) -> Tensor:
    """Directions (D, K) from the mean of all rows to each class's; binary: between the two."""
    means = scatter.cross[:, which] / scatter.target_sum[which]
    if means.shape[1] == 2:
        return means[:, 1:] - means[:, :1]
    return means


def calibrate(scores: Tensor, codes: Tensor) -> tuple[float, Tensor]:
    """Slope and biases (K,) that turn scores into logits: maximum likelihood, by Newton.

    Parameters
    ----------
    scores
        (N, K), or (N, 1) for binary tasks. The slope is the same for all classes.
    """
    binary = scores.shape[1] == 1
    spread = float(scores.double().std()) or 1.0
    features = scores.double() / spread
    if binary:  # a softmax over (0, score) is a sigmoid
        features = torch.cat([torch.zeros_like(features), features], dim=1)
    classes = features.shape[1]
    target = torch.nn.functional.one_hot(codes.to(torch.int64), classes).double()
    theta = torch.zeros(1 + classes, dtype=torch.float64, device=scores.device)
    ridge = 1e-6 * torch.eye(1 + classes, dtype=torch.float64, device=scores.device)

    def loss(at: Tensor) -> float:
        logs = torch.log_softmax(at[0] * features + at[1:], dim=1)
        return float(-(logs * target).sum() + 0.5 * at @ ridge @ at)

    for _ in range(_CALIBRATION_STEPS):
        probability = torch.softmax(theta[0] * features + theta[1:], dim=1)
        error = probability - target
        gradient = torch.cat([(error * features).sum()[None], error.sum(dim=0)]) + ridge @ theta
        mean = (probability * features).sum(dim=1, keepdim=True)
        hessian = torch.empty_like(ridge)
        hessian[0, 0] = (probability * (features - mean) ** 2).sum()
        hessian[0, 1:] = hessian[1:, 0] = (probability * (features - mean)).sum(dim=0)
        hessian[1:, 1:] = probability.sum(dim=0).diag() - probability.T @ probability
        step = torch.linalg.solve(hessian + ridge, gradient)
        size, before = 1.0, loss(theta)
        while size > 1e-4 and not loss(theta - size * step) <= before + 1e-12 * abs(before):
            size /= 2
        theta = theta - size * step
        if float(step.abs().max()) < 1e-9 * (1 + float(theta.abs().max())):
            break
    bias = theta[2:] - theta[1] if binary else theta[1:] - theta[1:].mean()
    return float(theta[0]) / spread, bias


def _one_column(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Binary tasks have a single column: the log-odds of the second class."""
    if weight.shape[1] == 2:
        return weight[:, 1:] - weight[:, :1], bias[1:] - bias[:1]
    return weight - weight.mean(dim=1, keepdim=True), bias - bias.mean()
