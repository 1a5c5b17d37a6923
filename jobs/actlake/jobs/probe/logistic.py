"""L2 logistic regression, many problems at once, to convergence.

Problems (label sets: the true one and controls, the labels of a multilabel task)
share the rows, so a step of all of them is two matrix products: ten columns cost little more
than one, which would wait for memory. Each is solved by its own Newton method with conjugate
gradients (Nocedal and Wright 2006, algorithm 7.1), in step with the others, and leaves when it
has converged. Penalties follow from the largest to the smallest, each from where the one before
ended; where columns are few, several penalties go in step.

What is minimised is scikit-learn's objective with C = 1/λ: the sum of log-losses plus
λ/2 ‖w‖², the intercept free. Binary problems have one column (sigmoid), others one a class
(softmax). Weights are kept in the basis of the rows' principal components, where the Hessian
of a problem is close to the diagonal w̄ n Λ + λ, with w̄ the mean curvature of its losses and Λ
the eigenvalues of the covariance: that diagonal preconditions the conjugate gradients. Where it
does not do well, since few rows carry the curvature, the Hessian's block of each column is
computed once more from the rows, and its inverse takes the diagonal's place.

Shapes:  N rows   D width   P problems   K columns of a problem   S label sets
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from actlake.jobs.probe.problems import Basis, Problems, RowSource, Solution

TOLERANCE = 5e-3
"""Of the last step; weights are then within some 1e-4 of the optimum."""
MAX_NEWTON = 60
MAX_CG = 200
_HALVINGS = 12
_COLUMNS = 6
"""Columns from which more of them cost more time; penalties are solved in step until there are as
many."""
_HARD = 10
"""Products with the Hessian in a Newton step from which its blocks are worth computing: they bring
a step down to about five."""
_HARDER = 40
"""The same where there are blocks of an earlier step or penalty."""
_FORCING = 0.3  # of the residual of a Newton step, at most
_ROUNDING = 1e-6  # of an objective summed from float32 losses
_NOISE = 1e-6  # of a gradient in the preconditioner's metric, per root of a row
_LIGHT = 0.01
"""Curvature of a row, of at most 1/4, below which it is only counted in blocks of the Hessian."""


def solve_logistic(
    rows: RowSource,
    problems: Problems,
    basis: Basis,
    *,
    tolerance: float = TOLERANCE,
    start: Solution | None = None,
    remember: bool = True,
) -> Solution:
    """Fit all problems.

    Parameters
    ----------
    rows
        About centred, of about one scale: float32 products are taken of them.
    basis
        Of the same rows.
    tolerance
        Length of a Newton step, relative to the weights, below which a problem is solved. The
        step is still made, so that the error is about its square.
    start
        Where to begin; at zero if left out.
    remember
        Keep the probabilities of all rows while a step is computed (N x P x K float32); else
        they are computed again for every product, as suits rows that are streamed.
    """
    return _Newton(rows, problems, basis, tolerance, remember).run(start)


@dataclass
class _State:
    """Problems that are not solved yet, at their current weights."""

    which: Tensor  # (P,) numbers of the problems
    theta: Tensor  # (D + 1, P, K) float64, in the basis; the bias is the last row
    value: Tensor  # (P,) float64
    gradient: Tensor  # (D + 1, P, K) float64
    curvature: Tensor  # (P, K) float64, mean of p (1 - p)
    remembered: list[Tensor] = field(default_factory=list)  # chunks of (n, P, K) probabilities

    def select(self, keep: Tensor) -> "_State":
        if bool(keep.all()):
            return self
        return _State(
            self.which[keep],
            self.theta[:, keep],
            self.value[keep],
            self.gradient[:, keep],
            self.curvature[keep],
            [part[:, keep] for part in self.remembered],
        )


@dataclass
class _Newton:
    rows: RowSource
    problems: Problems
    basis: Basis
    tolerance: float
    remember: bool
    passes: int = 0
    blocks: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """By label set: blocks of the Hessian without penalty, (K, D + 1, D + 1), and the curvature
    (K,) where they were computed."""
    inverses: dict[int, Tensor] = field(default_factory=dict)
    """(K, D + 1, D + 1) float32 by problem: of an estimate of the blocks of its Hessian."""

    def __post_init__(self) -> None:
        self.device = self.basis.vectors.device
        self.total = (
            torch.full_like(self.problems.penalty, self.rows.num_rows)
            if self.problems.weight is None
            else self.problems.weight.sum(dim=0, dtype=torch.float64)
        )

    def run(self, start: Solution | None) -> Solution:
        penalty, label_set = self.problems.penalty, self.problems.label_set
        self.theta = self._start(start, len(penalty), self.problems.columns)
        self.iterations = torch.zeros_like(label_set)
        self.converged = torch.zeros_like(label_set, dtype=torch.bool)
        before: dict[int, int] = {}
        values = sorted(set(penalty.tolist()), reverse=True)
        in_step = max(1, _COLUMNS // (self.problems.columns * len(set(label_set.tolist()))))
        for first in range(0, len(values), in_step):
            group = penalty.new_tensor(values[first : first + in_step])
            which = torch.nonzero(torch.isin(penalty, group))[:, 0]
            for problem in which.tolist():
                one = int(label_set[problem])
                if one in before and start is None:
                    self.theta[:, problem] = self.theta[:, before[one]]
            for problem in sorted(which.tolist(), key=lambda p: -float(penalty[p])):
                before[int(label_set[problem])] = problem
            self._solve(which)
        return self._solution(self.theta, self.iterations, self.converged)

    def _solve(self, which: Tensor) -> None:
        """Solve some problems in step, from where they are."""
        state = self._evaluate(which, self.theta[:, which])
        self._use_blocks(state)
        for _ in range(MAX_NEWTON):
            step, products = self._direction(state)
            before = state.theta
            state = self._advance(state, step)
            self.iterations[state.which] += 1
            self.theta[:, state.which] = state.theta
            moved = _norm((state.theta - before)[:-1])
            done = moved <= self.tolerance * _norm(state.theta[:-1])
            done |= _norm(state.gradient) <= 1e-9 * self.total[state.which]
            self.converged[state.which[done]] = True
            if bool(done.all()):
                return
            products, state = products[~done], state.select(~done)
            if self._compute_blocks(state, products.tolist()):
                self._use_blocks(state)

    def _start(self, start: Solution | None, count: int, columns: int) -> Tensor:
        shape = (self.rows.width + 1, count, columns)
        theta = torch.zeros(shape, dtype=torch.float64, device=self.device)
        if start is not None:
            theta[:-1] = torch.tensordot(self.basis.vectors.T, start.weight, 1)
            theta[-1] = start.bias
        return theta

    def _solution(self, theta: Tensor, iterations: Tensor, converged: Tensor) -> Solution:
        bias = theta[-1].clone()
        if self.problems.columns > 1:  # a constant on all classes changes nothing
            bias -= bias.mean(dim=-1, keepdim=True)
        weight = torch.tensordot(self.basis.vectors, theta[:-1], 1)
        return Solution(weight, bias, iterations, converged, self.passes)

    # One pass over the rows.

    def _through(self, directions: Tensor, use: Callable[[slice, Tensor, int], Tensor]) -> Tensor:
        """``[X 1]ᵀ use([X 1] d)``: (D + 1, P, K), products float32, sums float64."""
        _, count, columns = directions.shape
        flat = directions[:-1].reshape(-1, count * columns)
        # Few long rows on the left, and rows of X never transposed: up to four times as fast.
        weights = (self.basis.vectors @ flat).to(torch.float32).T.contiguous()
        bias = directions[-1].reshape(-1).to(torch.float32)
        total = torch.zeros(weights.shape, dtype=torch.float64, device=self.device)
        sums = torch.zeros(count * columns, dtype=torch.float64, device=self.device)
        for number, (where, chunk) in enumerate(self.rows.chunks()):
            scores = torch.addmm(bias, chunk, weights.T).view(-1, count, columns)
            back = use(where, scores, number).reshape(-1, count * columns)
            total += back.T @ chunk
            sums += back.sum(dim=0)
        self.passes += 1
        found = torch.cat([self.basis.vectors.T @ total.T, sums[None]]).view(-1, count, columns)
        if self.problems.columns > 1:  # a constant on all classes changes nothing; this is noise
            found[-1] -= found[-1].mean(dim=-1, keepdim=True)
        return found

    def _evaluate(self, which: Tensor, theta: Tensor) -> _State:
        """Value, gradient and curvature of some problems."""
        sets = self.problems.label_set[which]
        value = torch.zeros(len(which), dtype=torch.float64, device=self.device)
        curvature = torch.zeros(theta.shape[1:], dtype=torch.float64, device=self.device)
        remembered: list[Tensor] = []

        def residual(where: slice, scores: Tensor, number: int) -> Tensor:
            codes = self.problems.codes[where][:, sets]
            loss, probability, error = _losses(scores, codes)
            weight = self._weight(where, which)
            bend = probability * (1 - probability)
            if weight is not None:
                loss, error, bend = (
                    loss * weight,
                    error * weight[..., None],
                    bend * weight[..., None],
                )
            value.add_(loss.sum(dim=0))
            curvature.add_(bend.sum(dim=0))
            if self.remember:
                remembered.append(probability)
            return error

        gradient = self._through(theta, residual)
        penalty = self.problems.penalty[which]
        gradient[:-1] += penalty[:, None] * theta[:-1]
        value += penalty / 2 * theta[:-1].square().sum(dim=(0, 2))
        curvature /= self.total[which, None]
        return _State(which, theta, value, gradient, curvature, remembered)

    def _hessian(self, state: _State, direction: Tensor) -> Tensor:
        """The Hessian of each problem times its direction."""
        penalty = self.problems.penalty[state.which]
        columns = self.problems.columns
        # Unless they are remembered, the scores at the weights come from the same pass.
        both = direction if state.remembered else torch.cat([direction, state.theta], dim=2)

        def bent(where: slice, scores: Tensor, number: int) -> Tensor:
            if state.remembered:
                probability, along = state.remembered[number], scores
            else:
                along, at = scores[..., :columns], scores[..., columns:]
                probability = torch.sigmoid(at) if columns == 1 else torch.softmax(at, -1)
            if columns == 1:
                back = probability * (1 - probability) * along
            else:
                mixed = probability * along
                back = mixed - probability * mixed.sum(dim=-1, keepdim=True)
            weight = self._weight(where, state.which)
            back = back if weight is None else back * weight[..., None]
            return back if state.remembered else torch.cat([back, torch.zeros_like(back)], dim=2)

        found = self._through(both, bent)[..., :columns]
        found[:-1] += penalty[:, None] * direction[:-1]
        return found

    def _weight(self, where: slice, which: Tensor) -> Tensor | None:
        weight = self.problems.weight
        return None if weight is None else weight[where][:, which]

    # One Newton step.

    def _direction(self, state: _State) -> tuple[Tensor, Tensor]:
        """The Newton step of each problem, and how many products with the Hessian it took.

        The residual that is left is at most the square root of the gradient's relative size, so
        that convergence is superlinear (Nocedal and Wright, eq. 7.3).
        """
        scale = self._diagonal(state)
        step = torch.zeros_like(state.theta)
        products = torch.zeros_like(state.which)
        residual = -state.gradient
        along = self._precondition(state, residual, scale)
        slope = _dot(residual, along)
        size = slope.sqrt()
        # Of the gradient's size per row, in the metric of the preconditioner.
        relative = size / self.total[state.which].sqrt()
        wanted = size * relative.sqrt().clamp(1e-3, _FORCING)
        wanted = torch.maximum(wanted, _NOISE * self.total[state.which].sqrt())
        live = torch.arange(len(state.which), device=self.device)
        part, keep = state, slope > 0
        for _ in range(MAX_CG):
            part, live, slope = part.select(keep), live[keep], slope[keep]
            residual, along, scale = residual[:, keep], along[:, keep], scale[:, keep]
            if not len(live):
                break
            products[live] += 1
            curved = self._hessian(part, along)
            length = slope / _dot(along, curved)
            step[:, live] += length[:, None] * along
            residual = residual - length[:, None] * curved
            better = self._precondition(part, residual, scale)
            before, slope = slope, _dot(residual, better)
            along = better + (slope / before)[:, None] * along
            keep = slope.sqrt() > wanted[live]
        return step, products

    def _precondition(self, state: _State, residual: Tensor, scale: Tensor) -> Tensor:
        """An estimate of the inverse Hessian of each problem, times its residual."""
        better = residual / scale
        for place, problem in enumerate(state.which.tolist()):
            if problem in self.inverses:
                columns = residual[:, place].to(torch.float32)
                found = [
                    torch.mv(inverse, column)
                    for inverse, column in zip(self.inverses[problem], columns.T, strict=True)
                ]
                better[:, place] = torch.stack(found, dim=1).double()
        if self.problems.columns > 1:
            # The optimum has weights that sum to zero over classes, as gradients do. Outside that
            # space the Hessian is only λ, and directions that left it would converge slowly.
            better -= better.mean(dim=-1, keepdim=True)
        return better

    def _compute_blocks(self, state: _State, products: Sequence[int]) -> bool:
        """Blocks of the Hessian where a step took many products; whether there were any.

        Of a label set, at the weights of the smallest penalty that is hard.
        """
        penalty, which = self.problems.penalty, state.which.tolist()
        hardest: dict[int, int] = {}
        for place, problem in enumerate(which):
            one = int(self.problems.label_set[problem])
            if products[place] > (_HARDER if one in self.blocks else _HARD):
                there = hardest.get(one)
                if there is None or penalty[problem] < penalty[which[there]]:
                    hardest[one] = place
        for one, place in hardest.items():
            curvature = state.curvature[place].clamp_min(1e-10)
            self.blocks[one] = self._blocks(state, place), curvature
        return bool(hardest)

    def _use_blocks(self, state: _State) -> None:
        """Inverses for the penalties of the problems, in proportion to their curvature now."""
        for place, problem in enumerate(state.which.tolist()):
            one = int(self.problems.label_set[problem])
            if one in self.blocks:
                blocks, reference = self.blocks[one]
                ratio = state.curvature[place].clamp_min(1e-10) / reference
                full = blocks * ratio[:, None, None]
                diagonal = full.diagonal(dim1=1, dim2=2)
                diagonal[:, :-1] += self.problems.penalty[problem]
                diagonal += 1e-8 * diagonal.amax(dim=1, keepdim=True)
                inverse = torch.cholesky_inverse(torch.linalg.cholesky(full))
                self.inverses[problem] = inverse.to(torch.float32)

    def _blocks(self, state: _State, place: int) -> Tensor:
        """``[X 1]ᵀ diag(p (1 - p)) [X 1]`` of a problem, in the basis: (K, D + 1, D + 1).

        Rows of little curvature are taken to be like all others: what they add is the covariance
        times their curvature.
        """
        columns, width = self.problems.columns, self.rows.width + 1
        total = torch.zeros(columns, width, width, dtype=torch.float64, device=self.device)
        light = torch.zeros(columns, dtype=torch.float64, device=self.device)
        theta = state.theta[:, place]
        weights, bias = (self.basis.vectors @ theta[:-1]).float(), theta[-1].float()
        for number, (where, chunk) in enumerate(self.rows.chunks()):
            if state.remembered:
                probability = state.remembered[number][:, place]
            else:
                scores = torch.addmm(bias, chunk, weights)
                probability = torch.sigmoid(scores) if columns == 1 else torch.softmax(scores, -1)
            bend = probability * (1 - probability)
            weight = self._weight(where, state.which[place : place + 1])
            bend = bend if weight is None else bend * weight
            heavy = bend > _LIGHT
            light += (bend * ~heavy).sum(dim=0)
            for column in range(columns):
                mine = heavy[:, column]
                root = bend[mine, column : column + 1].sqrt()
                scaled = torch.cat([chunk[mine] * root, root], dim=1)
                total[column] += scaled.T @ scaled
        self.passes += 1
        turn = torch.eye(width, dtype=torch.float64, device=self.device)
        turn[:-1, :-1] = self.basis.vectors
        found: Tensor = turn.T @ total @ turn
        like_all = torch.cat([self.basis.variances, self.basis.variances.new_ones(1)])
        found.diagonal(dim1=1, dim2=2).add_(light[:, None] * like_all)
        return found

    def _diagonal(self, state: _State) -> Tensor:
        """(D + 1, P, K): an estimate of the Hessian's diagonal in the basis."""
        bend = (state.curvature * self.total[state.which, None]).clamp_min(1e-10)
        inner = self.basis.variances[:, None, None] * bend
        inner = inner + self.problems.penalty[state.which][:, None]
        return torch.cat([inner, bend[None]])

    def _advance(self, state: _State, step: Tensor) -> _State:
        """Make the step, halved for those problems whose value it would not lower."""
        slope = _dot(state.gradient, step)
        length = torch.ones_like(state.value)
        new = self._evaluate(state.which, state.theta + step)
        for _ in range(_HALVINGS):
            allowed = state.value + 1e-4 * length * slope + _ROUNDING * state.value.abs()
            worse = ~(new.value <= allowed)
            if not bool(worse.any()):
                return new
            length[worse] /= 2
            new = self._evaluate(state.which, state.theta + length[:, None] * step)
        return new


def _losses(scores: Tensor, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-loss (N, P) in nats, probabilities and their error (N, P, K)."""
    if scores.shape[-1] == 1:
        target = codes[..., None].to(scores.dtype)
        probability = torch.sigmoid(scores)
        loss = torch.nn.functional.softplus(scores) - target * scores
        return loss[..., 0], probability, probability - target
    logs = torch.log_softmax(scores, dim=-1)
    probability = logs.exp()
    place = codes[..., None].to(torch.int64)
    error = probability.scatter_add(-1, place, torch.full_like(place, -1, dtype=scores.dtype))
    return -logs.gather(-1, place)[..., 0], probability, error


def _dot(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum(dim=(0, 2))


def _norm(value: Tensor) -> Tensor:
    return value.square().sum(dim=(0, 2)).sqrt()
