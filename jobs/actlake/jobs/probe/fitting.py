"""Fit every probe of a set of examples at one site, controls and learning curve included.

The order of work: one pass for means and covariance; all logistic problems (penalties, controls,
labels) in step; closed forms; one pass over the validation rows to choose penalties; the learning
curve at the chosen ones; one pass over the test rows.

Probes are fitted on training rows only, also the one that is kept: validation rows choose its
penalty and are not added afterwards, so that the probe on disk is the one that was scored.

Shapes:  N rows   D width   H heads (columns of targets)   K columns of a head   A penalties
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actlake.jobs.probe.closed_forms import calibrate, discriminants, mean_differences, ridge_path
from actlake.jobs.probe.config import Kind, ProbeConfig
from actlake.jobs.probe.controls import TRUE, Heads
from actlake.jobs.probe.examples import Examples
from actlake.jobs.probe.gathering import Chosen, Framed, Gathered, Source, Streamed, Take
from actlake.jobs.probe.logistic import TOLERANCE, solve_logistic
from actlake.jobs.probe.problems import Basis, Problems, RowSource, Solution, penalties_for
from actlake.jobs.probe.scatter import Scatter
from actlake.jobs.probe.splits import TEST, TRAIN, VALIDATE
from actlake.platform.seeds import Seeds

Array = np.ndarray[Any, Any]
ROUGH = 0.05
"""Tolerance at which penalties are compared; the validation loss is then within some 1e-3 of its
own. The chosen one is solved to `TOLERANCE`."""


@dataclass(frozen=True)
class Fit:
    """One kind of probe for all heads, in the frame of the rows."""

    probe: str
    weight: Tensor
    """(D, H, K) float64."""
    bias: Tensor
    """(H, K) float64."""
    penalties: tuple[float, ...] = ()
    losses: Array | None = None
    """(H, A) loss on validation rows: bits, or mean squared error."""
    chosen: Array | None = None
    """(H,) place in `penalties`."""
    iterations: Array | None = None
    """(H,)"""
    converged: Array | None = None
    """(H,)"""
    share: float = 1.0
    """Of the training documents."""
    train_rows: int = 0


@dataclass(frozen=True)
class Fitted:
    """All probes of a set at a site, and what they say about the test rows."""

    fits: tuple[Fit, ...]
    scores: tuple[Array, ...]
    """Of each fit: (test rows, H, K) float32."""
    validated: tuple[Array, ...]
    """The same of the validation rows, on which the best layer is chosen."""
    mean: Tensor
    """(D,) float64: rows are read less this …"""
    scale: Tensor
    """(D,) float64: … and divided by this."""
    streamed: bool
    passes: int
    """Times that the solver of logistic problems went through the training rows."""

    def raw(self, fit: Fit, column: int) -> tuple[Array, Array]:
        """Weight (K, D) and bias (K,) of one head, for activations as they are stored."""
        weight = (fit.weight[:, column] / self.scale[:, None]).T.to(torch.float32)
        bias = fit.bias[column] - weight.to(torch.float64) @ self.mean
        return weight.cpu().numpy(), bias.cpu().numpy()


def fit_examples(
    take: Take,
    width: int,
    examples: Examples,
    heads: Heads,
    config: ProbeConfig,
    *,
    stream: bool,
    device: torch.device,
) -> Fitted:
    """Fit and score everything that a config asks for.

    Parameters
    ----------
    take
        Gives rows of the site by their numbers.
    stream
        Read rows again for every pass instead of holding them.
    """
    return _Fitting(take, width, examples, heads, config, stream, device).run()


@dataclass
class _Fitting:
    take: Take
    width: int
    examples: Examples
    heads: Heads
    config: ProbeConfig
    stream: bool
    device: torch.device
    passes: int = 0
    fits: list[Fit] = field(default_factory=list)

    def run(self) -> Fitted:
        source = self._source(TRAIN)
        exact = any(kind in ("ridge", "lda") for kind in self._kinds)
        scatter = Scatter.of(source, self._one_hot(), exact=exact)
        ones = torch.ones_like(scatter.mean)
        self.mean = scatter.mean
        self.scale = scatter.scale() if self.config.standardize else ones
        self.scatter = scatter.framed(self.scale)
        self.basis = Basis.of(self.scatter.covariance)
        self.train = self._framed(source)
        self.validate = self._framed(self._source(VALIDATE))
        self.fits += [self._fit(kind) for kind in self._kinds]
        if self.config.rank is not None and self.config.rank < self.heads.num_classes - 1:
            self.fits += [
                self._of_rank(fit, self.config.rank) for fit in self.fits if fit.probe == "logistic"
            ]
        curves = [
            self._again(fit, share)
            for share in self.config.learning_curve
            for fit in self.fits
            if fit.probe in ("logistic", "ridge")
        ]
        self.fits += [one for one in curves if one is not None]
        test = self._framed(self._source(TEST))
        return Fitted(
            tuple(self.fits), tuple(scores_of(test, self.fits)),
            tuple(scores_of(self.validate, self.fits)), self.mean, self.scale, self.stream,
            self.passes,
        )  # fmt: skip

    @property
    def _kinds(self) -> list[Kind]:
        numbers = self.examples.kind == "regression"
        return [kind for kind in self.config.probes if (kind == "ridge") == numbers]

    # Rows and targets.

    def _source(self, split: int) -> Source:
        which = self.examples.where(split)
        streamed = Streamed(self.take, self.examples, which, self.width, self.device)
        if self.stream:
            return streamed
        acts = torch.empty(streamed.num_rows, self.width, device=self.device)
        for where, chunk in streamed.chunks():
            acts[where] = chunk
        return Gathered(acts)

    def _framed(self, source: Source) -> Gathered | Framed:
        mean, scale = self.mean.to(torch.float32), self.scale.to(torch.float32)
        if isinstance(source, Streamed):
            return Framed(source, mean, scale)
        source.acts.sub_(mean).div_(scale)
        return source

    def _targets(self, split: int) -> Tensor:
        """(N, H) of a split."""
        found = self.heads.targets[self.examples.where(split)]
        return torch.from_numpy(np.ascontiguousarray(found)).to(self.device)

    def _one_hot(self) -> Tensor:
        """(N, H x classes) float32 for the moments; numbers as they are, about their mean."""
        targets = self._targets(TRAIN)
        if self.heads.num_classes == 1:
            self.origin = targets.mean(dim=0)
            return (targets - self.origin).to(torch.float32)
        hot = torch.nn.functional.one_hot(targets, self.heads.num_classes)
        return hot.flatten(1).to(torch.float32)

    def _columns(self, head: int) -> slice:
        return slice(head * self.heads.num_classes, (head + 1) * self.heads.num_classes)

    # The kinds of probes.

    def _fit(self, kind: Kind) -> Fit:
        fit = {
            "logistic": self._logistic,
            "ridge": self._ridge,
            "lda": self._lda,
            "mean_difference": self._mean_difference,
        }[kind]()
        return replace(fit, train_rows=self.train.num_rows)

    def _logistic(self) -> Fit:
        penalties, count = self.config.penalties, self.heads.count
        label_set, penalty = penalties_for(range(count), penalties)
        problems = Problems(
            self._targets(TRAIN),
            label_set.to(self.device),
            penalty.to(self.device),
            self.heads.num_classes,
        )
        rough = self._solve(problems, tolerance=ROUGH)
        shape = (count, len(penalties))
        weight = rough.weight.reshape(self.width, *shape, -1)
        bias = rough.bias.reshape(*shape, -1)
        losses, chosen = self._choose(weight, bias)
        heads = torch.arange(count, device=self.device)
        best = torch.from_numpy(chosen).to(self.device)
        found = self._solve(
            replace(
                problems,
                label_set=heads,
                penalty=penalty.to(self.device).reshape(shape)[heads, best],
            ),
            start=replace(rough, weight=weight[:, heads, best], bias=bias[heads, best]),
        )
        steps = rough.iterations.reshape(shape)[heads, best] + found.iterations
        return Fit(
            "logistic", found.weight, found.bias, penalties, losses, chosen,
            steps.cpu().numpy(), found.converged.cpu().numpy(),
        )  # fmt: skip

    def _solve(
        self, problems: Problems, *, tolerance: float = TOLERANCE, start: Solution | None = None
    ) -> Solution:
        found = solve_logistic(
            self.train, problems, self.basis,
            tolerance=tolerance, start=start, remember=not self.stream,
        )  # fmt: skip
        self.passes += found.passes
        return found

    def _ridge(self) -> Fit:
        weights, bias = ridge_path(self.scatter, self.basis, self.config.alphas)
        count = self.heads.count
        weight = weights.permute(1, 2, 0)[..., None]  # (D, H, A, 1)
        bias = (bias + self.origin)[:, None, None].expand(count, len(self.config.alphas), 1)
        losses, chosen = self._choose(weight, bias)
        heads = torch.arange(count, device=self.device)
        best = torch.from_numpy(chosen).to(self.device)
        return Fit(
            "ridge", weight[:, heads, best], bias[heads, best], self.config.alphas, losses, chosen
        )

    def _choose(self, weight: Tensor, bias: Tensor) -> tuple[Array, Array]:
        """Validation loss of each head at each penalty, (H, A), and the best place, (H,)."""
        count, penalties = weight.shape[1:3]
        sums = torch.zeros(count, penalties, dtype=torch.float64, device=self.device)
        targets = self._targets(VALIDATE)
        for where, scores in _scored(self.validate, weight, bias):
            each = targets[where][:, :, None].expand(-1, -1, penalties)
            sums += losses_of(scores, each).sum(dim=0, dtype=torch.float64)
        losses = (sums / self.validate.num_rows).cpu().numpy()
        return losses, losses.argmin(axis=1)

    def _lda(self) -> Fit:
        found = [discriminants(self.scatter, self._columns(h)) for h in range(self.heads.count)]
        weight = torch.stack([one for one, _ in found], dim=1)
        return Fit("lda", weight, torch.stack([bias for _, bias in found]))

    def _mean_difference(self) -> Fit:
        # In the rows' own basis the direction is a difference of means: scale² in the frame.
        square = self.scale.square()[:, None]
        plain = [
            mean_differences(self.scatter, self._columns(h)) * square
            for h in range(self.heads.count)
        ]
        weight = torch.stack(plain, dim=1)
        zero = torch.zeros(weight.shape[1:], dtype=torch.float64, device=self.device)
        scores = torch.cat([one for _, one in _scored(self.train, weight, zero)])
        targets = self._targets(TRAIN)
        found = [calibrate(scores[:, h], targets[:, h]) for h in range(self.heads.count)]
        slopes = torch.tensor([slope for slope, _ in found], dtype=torch.float64)
        return Fit(
            "mean_difference",
            weight * slopes.to(self.device)[:, None],
            torch.stack([bias for _, bias in found]),
        )

    def _of_rank(self, fit: Fit, rank: int) -> Fit:
        """Logistic probes on the `rank` directions in which the logits of `fit` vary most."""
        targets = self._targets(TRAIN)
        weights, biases = [], []
        for head in range(self.heads.count):
            weight = fit.weight[:, head]
            values, vectors = torch.linalg.eigh(weight.T @ self.scatter.covariance @ weight)
            values, vectors = values[-rank:].clamp_min(1e-12), vectors[:, -rank:]
            inner = weight @ (vectors / values.sqrt())
            zero = torch.zeros(rank, dtype=torch.float64, device=self.device)
            features = torch.cat([one for _, one in _scored(self.train, inner, zero)])
            problem = Problems(
                targets[:, head : head + 1],
                torch.zeros(1, dtype=torch.int64, device=self.device),
                torch.ones(1, dtype=torch.float64, device=self.device),
                self.heads.num_classes,
            )
            unit = Basis(torch.eye(rank, dtype=torch.float64, device=self.device), values * 0 + 1)
            found = solve_logistic(Gathered(features), problem, unit)
            weights.append(inner @ found.weight[:, 0])
            biases.append(found.bias[0])
        return replace(
            fit,
            probe=f"logistic_rank{rank}",
            weight=torch.stack(weights, dim=1),
            bias=torch.stack(biases),
        )

    # The learning curve.

    def _again(self, fit: Fit, share: float) -> Fit | None:
        """The true heads of a fit on fewer documents; None where a class is lacking there."""
        mask = documents_share(self.examples, share, Seeds(self.config.seed))
        own = slice(0, self.heads.labels)
        targets = self._targets(TRAIN)[mask.to(self.device)][:, own]
        if self.heads.num_classes > 1 and not _all_there(targets, self.heads.num_classes):
            return None
        assert fit.chosen is not None
        penalty = torch.tensor([fit.penalties[place] for place in fit.chosen[own]])
        rows = Chosen(self.train, mask.to(self.device))
        known = replace(fit, share=share, train_rows=rows.num_rows, losses=None, chosen=None)
        if fit.probe == "ridge":
            centred = (targets - self.origin[own]).to(torch.float32)
            scatter = Scatter.of(rows, centred)
            basis = Basis.of(scatter.covariance)
            weight = torch.stack(
                [
                    ridge_path(scatter, basis, [float(alpha)])[0][0][:, head]
                    for head, alpha in enumerate(penalty)
                ],
                dim=1,
            )
            level = scatter.target_sum / scatter.count + self.origin[own]
            bias = level - weight.T @ scatter.mean
            return replace(known, weight=weight[..., None], bias=bias[:, None])
        problems = Problems(
            targets,
            torch.arange(self.heads.labels, device=self.device),
            penalty.double().to(self.device),
            self.heads.num_classes,
        )
        found = solve_logistic(rows, problems, self.basis, remember=not self.stream)
        return replace(known, weight=found.weight, bias=found.bias)


def documents_share(examples: Examples, share: float, seeds: Seeds) -> Tensor:
    """(training rows,) bool, those of a share of the documents; larger ones contain smaller."""
    document = examples.document[examples.where(TRAIN)]
    names, of_row = np.unique(document, return_inverse=True)
    order = seeds.numpy(f"learning curve {examples.name}").permutation(len(names))
    kept = np.zeros(len(names), bool)
    kept[order[: max(1, round(share * len(names)))]] = True
    return torch.from_numpy(kept[of_row])


def _all_there(targets: Tensor, classes: int) -> bool:
    return all(len(column.unique()) == classes for column in targets.T)


def _scored(rows: RowSource, weight: Tensor, bias: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Scores of all rows, (n, …) float32, a chunk at a time."""
    flat = weight.reshape(len(weight), -1).to(torch.float32)
    level = bias.reshape(-1).to(torch.float32)
    for where, chunk in rows.chunks():
        yield where, torch.addmm(level, chunk, flat).view(-1, *weight.shape[1:])


def scores_of(rows: RowSource, fits: Sequence[Fit]) -> list[Array]:
    """What every fit says about all rows, (n, H, K) float32 each, in one pass."""
    if not fits:
        return []
    flat = [fit.weight.flatten(1) for fit in fits]
    weight, bias = torch.cat(flat, dim=1), torch.cat([fit.bias.flatten() for fit in fits])
    everything = torch.cat([one for _, one in _scored(rows, weight, bias)]).cpu().numpy()
    ends = np.cumsum([one.shape[1] for one in flat])[:-1]
    parts = np.split(everything, ends, axis=1)
    return [
        part.reshape(len(part), *fit.weight.shape[1:])
        for part, fit in zip(parts, fits, strict=True)
    ]


def losses_of(scores: Tensor, targets: Tensor) -> Tensor:
    """Log-loss in bits of scores (…, K) and codes (…); of numbers, the squared error."""
    if targets.is_floating_point():
        return (scores[..., 0].double() - targets).square()
    if scores.shape[-1] == 1:
        plain = scores[..., 0]
        nats = torch.nn.functional.softplus(plain) - targets * plain
    else:
        nats = -torch.log_softmax(scores, dim=-1).gather(-1, targets[..., None])[..., 0]
    return nats / float(np.log(2))


__all__ = ["TRUE", "Fit", "Fitted", "fit_examples"]
