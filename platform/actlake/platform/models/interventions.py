"""Change a site while the model runs: replace, steer, ablate, patch, splice.

    steer = Intervention(Site(6), lambda acts_BLD: acts_BLD + 4.0 * direction_D)
    stage.run(token_ids_BL, keep, [steer])

An intervention is a site and a function of its tensor. It is put on the same `Tap` that
capturing reads, so what can be captured can be changed. What is captured at a changed site is
what the model goes on with. Several interventions on one site follow each other in the order
given. A function that returns its argument as it was changes nothing, to the last bit.

Shapes:  B contexts in the batch   L tokens in a context   D width of the stream
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from actlake.platform.models.errors import InvalidIntervention
from actlake.platform.models.wiring import Tap
from actlake.storage.sites import Site

Change = Callable[[Tensor], Tensor]
"""Takes a copy of a site's tensor (B, L, D), in the model's dtype and on its device, and returns
what stands there instead, of the same shape: another tensor, or its argument, written to or not."""


@dataclass(frozen=True, slots=True)
class Intervention:
    """A site and what becomes of its tensor."""

    site: Site
    change: Change


def replace_with(site: Site, acts_BLD: Tensor, where_BL: Tensor | None = None) -> Intervention:
    """Put `acts_BLD` at a site, everywhere or only where `where_BL` (bool) is true."""

    def change(own_BLD: Tensor) -> Tensor:
        given_BLD = acts_BLD.to(own_BLD.device, own_BLD.dtype)
        if where_BL is None:
            return given_BLD
        return torch.where(where_BL.to(own_BLD.device).unsqueeze(-1), given_BLD, own_BLD)

    return Intervention(site, change)


def register_change(
    intervention: Intervention, module: nn.Module, tap: Tap, num_contexts: int, num_tokens: int
) -> RemovableHandle:
    """Hook one intervention onto the module that carries its site.

    Parameters
    ----------
    module
        The one that `tap` names.
    num_contexts, num_tokens
        B and L of the batch; some families flatten them inside the block.
    """
    apply = _Applied(intervention, tap.factor, (num_contexts, num_tokens))

    def going_in(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if args:
            return (apply(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": apply(kwargs["hidden_states"])}

    def mid_stream(module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        # The block keeps this very tensor to add the MLP's output to: a replaced argument
        # would change what the MLP reads and leave the stream as it was.
        tensor = args[0] if args else kwargs["hidden_states"]
        tensor.copy_(apply(tensor))

    def coming_out(module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, (tuple, list)):
            return type(output)((apply(output[0]), *output[1:]))
        return apply(output)

    if tap.side == "out":
        return module.register_forward_hook(coming_out)
    if intervention.site.point == "resid_mid":
        return module.register_forward_pre_hook(mid_stream, with_kwargs=True)
    return module.register_forward_pre_hook(going_in, with_kwargs=True)


@dataclass(frozen=True, slots=True)
class _Applied:
    """An intervention on the module's own tensor, which may be scaled or flattened."""

    intervention: Intervention
    factor: float
    batch: tuple[int, int]

    def __call__(self, tensor: Tensor) -> Tensor:
        seen = tensor if self.factor == 1.0 else tensor * self.factor
        seen_BLD = seen.reshape(*self.batch, -1)
        # A copy: the tensor may be the stream itself (what OLMo 2's MLP reads), which a function
        # that writes into its argument would change too.
        changed_BLD = self.intervention.change(seen_BLD.clone())
        self._check(changed_BLD, seen_BLD)
        changed = changed_BLD.to(tensor.device, tensor.dtype).reshape(tensor.shape)
        if self.factor != 1.0:  # x * f / f is not x: what did not change keeps its bits
            return torch.where(changed == seen, tensor, changed / self.factor)
        # The model may add to it in place (Falcon does); the caller's tensor stays as it is.
        return changed.clone()

    def _check(self, changed: object, seen_BLD: Tensor) -> None:
        if isinstance(changed, Tensor) and changed.shape == seen_BLD.shape:
            return
        got = tuple(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
        raise InvalidIntervention(
            f"The intervention at {self.intervention.site} returned {got}; the site holds a "
            f"tensor of shape {tuple(seen_BLD.shape)}\n"
            f"hint: return a tensor of the shape that was given, (contexts, tokens, width)"
        )
