"""One SAE while it is trained: model, optimizer, counters, and how all of it is written down."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from actlake.jobs.sae import means as named
from actlake.jobs.sae.communicator import Communicator
from actlake.jobs.sae.config import SAESpec
from actlake.jobs.sae.data import Example, parts_of
from actlake.jobs.sae.data_parallel import average_gradients
from actlake.jobs.sae.dead_latents import Firing, Weights, dead_name, dead_window, resample
from actlake.jobs.sae.means import Means
from actlake.jobs.sae.schedules import coefficient_values, learning_rate
from actlake.jobs.sae.trainable import TrainableSAE
from actlake.platform.seeds import Seeds


@dataclass(frozen=True)
class StepOptions:
    """What is the same for all SAEs of a training."""

    steps: int
    batch_rows: int
    """Over all workers."""
    micro_batches: int
    autocast: bool


@dataclass(frozen=True)
class Ending:
    """Why an SAE is trained no more, before the last step."""

    step: int
    failed: bool
    """Its loss was not finite; else it stopped becoming better."""
    words: str


class Trainee:
    """One SAE in training.

    Parameters
    ----------
    model
        With its first weights.
    variance
        (S,) of each site that it reconstructs, the variance summed over dimensions, scaled.
    """

    def __init__(
        self,
        spec: SAESpec,
        model: TrainableSAE,
        options: StepOptions,
        *,
        variance: Tensor,
        device: torch.device,
    ) -> None:
        self.spec = spec
        self.name = str(spec.name)
        self.model = model
        self.ending: Ending | None = None
        self.best: tuple[float, int] | None = None
        """Lowest FVU on held-out rows, and evaluations since then."""
        self._options = options
        self._device = device
        self._variance = variance.to(device, torch.float64)
        self._parameters = [part for part in model.parameters() if part.requires_grad]
        self._optimizer = torch.optim.Adam(
            self._parameters,
            lr=spec.optimizer.learning_rate,
            betas=spec.optimizer.betas,
            fused=True,
        )
        window = dead_window(spec.dead_after_rows, options.steps * options.batch_rows)
        self._firing = Firing(model.d_sae, dead_after_rows=window, device=device)
        self._means = Means(device)
        self._first_bad = torch.full((), -1, dtype=torch.int64, device=device)

    @property
    def dead_after_rows(self) -> int:
        """Rows without a firing after which its latents count as dead."""
        return self._firing.dead_after_rows

    @property
    def active(self) -> bool:
        """Whether it still learns."""
        return self.ending is None

    def step(self, example: Example, step: int, comm: Communicator) -> None:
        """Learn from this worker's rows of batch `step`, counted from 0."""
        config, options = self.spec.optimizer, self._options
        rate = learning_rate(config, step, steps=options.steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)
        fired, error, values = self._forward_and_backward(example, step, comm)
        average_gradients(self._parameters, comm)
        norm = self._clip()
        self._optimizer.step()
        self.model.after_step()
        fired, error, values = self._over_workers(fired, error, values, comm)
        self._firing.count(fired, options.batch_rows)
        self._resample(example, step, comm)
        self._watch(values[named.LOSS], norm, step)
        self._means.add(
            {
                **values,
                named.GRADIENT_NORM: norm,
                named.L0: fired.sum() / options.batch_rows,
                # As on held-out rows: of a crosscoder the mean over its sites.
                named.FVU: (error / (options.batch_rows * self._variance)).mean(),
            }
        )

    def _forward_and_backward(
        self, example: Example, step: int, comm: Communicator
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Gradients; of this worker's rows the firings, squared error of each site, mean losses."""
        parts = parts_of(example, self._options.micro_batches)
        coefficients = coefficient_values(self.model.coefficients, step)
        dead = self._firing.dead
        fired = torch.zeros_like(self._firing.rows_since)
        error = torch.zeros_like(self._variance)
        values: dict[str, Tensor] = {}
        for read, target in parts:
            with torch.autocast(
                self._device.type, dtype=torch.bfloat16, enabled=self._options.autocast
            ):
                out = self.model.step(read, target, coefficients=coefficients, dead=dead, comm=comm)
            loss = out.loss / len(parts)
            loss.backward()  # type: ignore[no-untyped-call]
            fired += out.fired
            error += out.squared_error
            named_parts = {f"train/{name}": value / len(parts) for name, value in out.parts.items()}
            for name, value in {named.LOSS: loss.detach(), **named_parts}.items():
                values[name] = values[name] + value if name in values else value
        return fired, error, values

    def _clip(self) -> Tensor:
        """The gradient's norm over all parameters, before it is shortened to what is allowed."""
        gradients = [part.grad for part in self._parameters if part.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        limit = self.spec.optimizer.clip
        # On a CPU to look costs nothing, and a pass over all gradients does.
        if limit is not None and (self._device.type != "cpu" or float(norm) > limit):
            torch.nn.utils.clip_grads_with_norm_(self._parameters, limit, norm)
        return norm

    @staticmethod
    def _over_workers(
        fired: Tensor, error: Tensor, values: Mapping[str, Tensor], comm: Communicator
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Of all workers' rows, in one exchange; counts stay exact in float64."""
        if comm.size == 1:
            return fired, error, dict(values)
        losses = torch.stack([value.double() for value in values.values()])
        summed = comm.sum(torch.cat([error, losses, fired.double()]))
        error, losses, fired_by_all = torch.split(summed, [len(error), len(losses), len(fired)])
        means = (losses / comm.size).unbind()
        return (
            fired_by_all.to(fired.dtype),
            error,
            dict(zip(values, means, strict=True)),
        )

    def _resample(self, example: Example, step: int, comm: Communicator) -> None:
        every = self.spec.resample_every_rows
        if every is None:
            return
        rows, steps = self._options.batch_rows, self._options.steps
        if step >= steps * (1 - self.spec.optimizer.decay):
            return  # new weights would not be learned to the end, and be published as they are
        if (step + 1) * rows // every == step * rows // every:
            return
        dead = self._firing.dead
        revived = resample(
            Weights.of(self.model),
            self._optimizer,
            dead,
            example[0],
            self.model.trained(),
            seeds=Seeds(self.spec.seed),
            purpose=f"resample {step}",
            comm=comm,
        )
        if revived:
            self._firing.rows_since[dead] = 0

    def _watch(self, loss: Tensor, norm: Tensor, step: int) -> None:
        """Keep the first step whose loss or gradient was not finite, without waiting for it."""
        bad = ~(torch.isfinite(loss) & torch.isfinite(norm))
        first = bad & (self._first_bad < 0)
        self._first_bad = torch.where(first, step, self._first_bad)

    def first_bad_step(self) -> int | None:
        """The step, counted from 0, at which the loss or gradient was not finite."""
        step = int(self._first_bad)
        return None if step < 0 else step

    def logged(self, step: int) -> dict[str, float]:
        """The means since the last call, with what is true after `step` steps."""
        values = self._means.take()
        if not values:
            return {}
        last, rows = step - 1, step * self._options.batch_rows
        window = self.dead_after_rows
        dead = float(self._firing.dead.double().mean())
        coefficients = coefficient_values(self.model.coefficients, last)
        return {
            **values,
            named.LEARNING_RATE: learning_rate(
                self.spec.optimizer, last, steps=self._options.steps
            ),
            **{f"train/coefficient_{name}": value for name, value in coefficients.items()},
            # Before so many rows none can be dead, and a share of 0 would say too much.
            **({f"train/{dead_name(window)}": dead} if rows >= window else {}),
            named.ROWS: rows,
        }

    def judge(self, fvu: float, step: int) -> None:
        """Note an evaluation; ends the training when patience is over."""
        early = self.spec.early_stop
        best, since = self.best or (math.inf, 0)
        least = early.least if early else 0.0
        better = fvu < best * (1 - least) or not math.isfinite(best)
        self.best = (fvu, 0) if better else (best, since + 1)
        if early and self.best[1] >= early.patience:
            words = f"FVU {best:.4f} was not bettered in {self.best[1]} evaluations"
            self.ending = Ending(step, failed=False, words=words)

    # What a checkpoint holds.

    def tensors(self) -> dict[str, Tensor]:
        """Weights, Adam's moments and counters, on the CPU."""
        found = {f"model.{name}": part for name, part in self.model.state_dict().items()}
        numbered = self._optimizer.state_dict()["state"]
        for number, state in numbered.items():
            found |= {f"adam.{number}.{name}": value for name, value in state.items()}
        found["rows_since_fired"] = self._firing.rows_since
        return {
            name: part.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, part in found.items()
        }

    def facts(self) -> dict[str, Any]:
        """The rest, as plain JSON."""
        sums, steps = self._means.state()
        ending = self.ending
        return {
            "means": {"sums": sums, "steps": steps},
            "best": self.best,
            "ending": None
            if ending is None
            else {"step": ending.step, "failed": ending.failed, "words": ending.words},
        }

    def load(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Go on from what `tensors` and `facts` gave."""
        model = _below(tensors, "model.")
        self.model.load_state_dict(model)
        numbered: dict[int, dict[str, Tensor]] = {}
        for name, value in _below(tensors, "adam.").items():
            number, _, key = name.partition(".")
            numbered.setdefault(int(number), {})[key] = value
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": numbered, "param_groups": groups})
        self._firing.rows_since = tensors["rows_since_fired"].to(self._device)
        self._means.load(facts["means"]["sums"], facts["means"]["steps"])
        self._first_bad.fill_(-1)
        best, ending = facts["best"], facts["ending"]
        self.best = None if best is None else (float(best[0]), int(best[1]))
        self.ending = None if ending is None else Ending(**ending)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): part for name, part in tensors.items() if name.startswith(prefix)
    }
