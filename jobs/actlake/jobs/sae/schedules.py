"""What changes with the step: learning rates, and coefficients of sparsity."""

import math
from collections.abc import Mapping

from actlake.jobs.sae.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, *, steps: int) -> float:
    """The rate of update `step`, counted from 0, of `steps` in all.

    A linear warm-up whose first update has a rate above 0 and whose last has the full one; then
    constant, a half cosine from the full rate to `config.end` of it (Loshchilov and Hutter
    2016, "SGDR", arXiv:1608.03983, eq. 5, without restarts), or constant and then linear. As in
    torch's and SAELens' schedulers the end is what would come after the last update.
    """
    warm_up = round(config.warm_up * steps)
    full = config.learning_rate
    if step < warm_up:
        return full * (step + 1) / warm_up
    falling = steps - warm_up
    if config.schedule == "linear":
        falling = min(round(config.decay * steps), falling)
    done = step - (steps - falling)
    if config.schedule == "constant" or done <= 0:
        return full
    share = done / falling
    if config.schedule == "cosine":
        share = (1 - math.cos(math.pi * share)) / 2
    return full * (1 - share * (1 - config.end))


def coefficient_values(
    coefficients: Mapping[str, tuple[float, int]], step: int
) -> dict[str, float]:
    """Values at a step of coefficients that rise linearly from 0 in their warm-up steps.

    As SAELens' ``CoefficientScheduler``: step s of a warm-up of w steps has s / w of the value.
    """
    return {
        name: value * min(1.0, step / warm_up) if warm_up else value
        for name, (value, warm_up) in coefficients.items()
    }
