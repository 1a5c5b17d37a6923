"""The factors by which rows are multiplied before an SAE learns from them."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scaling:
    """Factors on inputs and, for a transcoder, on what it predicts.

    An SAE learns from rows whose mean norm is about √d, as SAELens' ``expected_average_only_in``;
    afterwards the factors are folded into its weights, and it reads rows as they are stored.
    """

    input: float | tuple[float, ...] = 1.0
    """Factor of the rows it reads; of a crosscoder one for each site."""

    output: float | None = None
    """Factor of the rows that a transcoder predicts; None for the others."""

    def of_inputs(self, num_sites: int, width: int) -> Tensor:
        """(S·D,) the factor of each number of an input row, float64."""
        factors = self.input if isinstance(self.input, tuple) else (self.input,) * num_sites
        assert len(factors) == num_sites, (factors, num_sites)
        return torch.tensor(factors, dtype=torch.float64).repeat_interleave(width)

    def of_outputs(self, num_sites: int, width: int) -> Tensor:
        """(S·D,) the factor of each number of an output row, float64."""
        if self.output is None:
            return self.of_inputs(num_sites, width)
        return torch.full((width,), self.output, dtype=torch.float64)
