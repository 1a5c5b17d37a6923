"""A stage: some layers of a decoder, and hooks that hand out sites while they run.

    stage = load_stage(model, range(0, 4), sites)
    hidden = stage.run(token_ids_BL, keep)          # keep(site, tensor_BLD), as they appear
    later = load_stage(model, range(4, 8), sites)
    later.run(hidden, keep)

The model in it is transformers' own, with stand-ins where layers are absent. The hidden
state that comes from the stage below is put in front of the first resident layer, so nothing
before it matters; the forward pass ends behind the last layer that is needed, so nothing
above it is run. No attention mask is given. Contexts shorter than the batch may be padded on the
right only where real tokens never see what follows them; most families look back only, and
`actlake.jobs.harvest.trying` finds out which do not.

Shapes:  B contexts in the batch   L tokens in a context   D width of the stream
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from actlake.platform.models.interventions import Intervention, register_change
from actlake.platform.models.points import POINTS, point_of
from actlake.platform.models.source import ResolvedModel
from actlake.platform.models.wiring import Tap
from actlake.storage.sites import Site

Capture = Callable[[Site, Tensor], None]
"""Takes a site and its tensor (B, L, D), in the model's dtype and on its device.

It is called in the middle of the forward pass. The tensor is the model's own and may be
overwritten as soon as the call returns (Falcon adds in place), so what is to be kept is
copied before returning; a copy to the host that is queued on the same CUDA stream counts.
"""


class _Done(Exception):
    """All that is needed of this forward pass has been computed."""


@dataclass(slots=True)
class _Pass:
    """What one forward pass is to do and has done."""

    inputs: Tensor
    capture: Capture
    waiting: set[Site]
    interventions: tuple[Intervention, ...]
    leaving_BLD: Tensor | None = None


class ModelStage:
    """Layers [a, b) of a model, ready to run. Made by `load_stage`; one pass at a time."""

    def __init__(
        self, module: nn.Module, model: ResolvedModel, layers: range, sites: Iterable[Site]
    ) -> None:
        stored = {site.stored for site in sites}
        self.module = module
        self.model = model
        self.layers = layers
        self.sites = tuple(sorted(site for site in stored if site.layer in layers))
        """The sites this stage hands out, under their stored names."""
        self.sends = any(site.layer >= layers.stop for site in stored)
        """Whether a later stage needs the hidden state."""
        self.device = torch.device(model.device.value)
        self._pass: _Pass | None = None

    @property
    def param_bytes(self) -> int:
        """Bytes of the parameters held."""
        return sum(parameter.nbytes for parameter in self.module.parameters())

    def run(
        self, inputs: Tensor, capture: Capture, interventions: Iterable[Intervention] = ()
    ) -> Tensor | None:
        """One forward pass through the stage's layers.

        Parameters
        ----------
        inputs
            For the stage with layer 0: token ids, (B, L), int64, padded on the right with any
            id. For a later one: what the stage below returned, (B, L, D), in the model's
            dtype. From any device; pinned host memory is copied without blocking. Never written to.
        capture
            Called once for each of `sites`, in the order in which they are computed.
        interventions
            What to change on the way; those of other stages' layers are left to them.

        Returns
        -------
        Tensor | None
            The hidden state that leaves the stage, (B, L, D), on the stage's device; None
            where no later stage needs it.
        """
        assert inputs.ndim == (3 if self.layers.start else 2), inputs.shape
        with torch.inference_mode():
            # A copy: families write into what they are given (CTRL scales embeddings in place).
            inputs = inputs.to(self.device, non_blocking=True, copy=True)
            here = (i for i in interventions if i.site.stored.layer in self.layers)
            self._pass = _Pass(inputs, capture, set(self.sites), tuple(here))
            hooks: list[RemovableHandle] = []
            try:
                hooks.extend(self._register_hooks())
                self.module(**self._arguments(inputs))
            except _Done:
                return self._pass.leaving_BLD
            finally:
                self._pass = None
                for hook in hooks:
                    hook.remove()
        raise AssertionError(f"layers {self.layers} ran to their end without {self.sites}")

    def _arguments(self, inputs: Tensor) -> dict[str, Any]:
        # Later stages give the hidden state here too: it sets the shape, dtype and device of
        # masks and rotary embeddings. Whatever happens to it before the first resident layer
        # (learned positions, Granite's scale) is undone by `_inject`, which has another copy.
        name = "inputs_embeds" if self.layers.start else "input_ids"
        # Positions are left to the family: RoBERTa's do not begin at 0.
        return {name: inputs.clone(), "use_cache": False}

    def _register_hooks(self) -> Iterable[RemovableHandle]:
        assert self._pass is not None
        anatomy = self.model.anatomy
        blocks = self.module.get_submodule(anatomy.blocks)
        assert isinstance(blocks, nn.ModuleList)
        if self.layers.start > 0:
            yield blocks[self.layers.start].register_forward_pre_hook(
                self._inject, with_kwargs=True
            )
        # A site is changed before it is read, and read as it was changed. Where two sites are one
        # module's input (OLMo 2: the stream is what the MLP reads), the stream comes first.
        changes = self._pass.interventions
        for site in sorted({*self.sites, *(c.site.stored for c in changes)}, key=_in_order):
            tap = anatomy.wirings[site.layer][point_of(site)]
            module = blocks[site.layer].get_submodule(tap.module)
            for change in changes:
                if change.site.stored == site:
                    yield register_change(change, module, tap, *self._pass.inputs.shape[:2])
            if site in self.sites:
                yield self._read(site, module, tap)
        yield blocks[self.layers.stop - 1].register_forward_hook(self._leave)

    # A hook that returns anything but None replaces the tensor. These three read and return
    # None; those of `interventions` replace, on the same `Tap`.

    def _read(self, site: Site, module: nn.Module, tap: Tap) -> RemovableHandle:
        def seen_going_in(module: nn.Module, args: Any, kwargs: Any) -> None:
            self._see(site, _first_input(args, kwargs), tap.factor)

        def seen_coming_out(module: nn.Module, args: Any, output: Any) -> None:
            self._see(site, _first_output(output), tap.factor)

        if tap.side == "in":
            return module.register_forward_pre_hook(seen_going_in, with_kwargs=True)
        return module.register_forward_hook(seen_coming_out)

    def _see(self, site: Site, tensor: Tensor, factor: float) -> None:
        assert self._pass is not None
        tensor = tensor if factor == 1.0 else tensor * factor
        # OPT and some mixtures of experts flatten contexts and tokens inside the block.
        self._pass.capture(site, tensor.reshape(*self._pass.inputs.shape[:2], -1))
        self._pass.waiting.discard(site)
        if not self._pass.waiting and not self.sends:
            raise _Done

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        assert self._pass is not None
        assert not self._pass.waiting, self._pass.waiting
        if self.sends:
            self._pass.leaving_BLD = _first_output(output)
        raise _Done

    def _inject(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        assert self._pass is not None
        if args:
            return (self._pass.inputs, *args[1:]), kwargs
        return args, kwargs | {"hidden_states": self._pass.inputs}


def _in_order(site: Site) -> tuple[int, int]:
    return site.layer, POINTS.index(point_of(site))


def _first_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    tensor = args[0] if args else kwargs["hidden_states"]
    assert isinstance(tensor, Tensor), type(tensor)
    return tensor


def _first_output(output: Any) -> Tensor:
    tensor = output[0] if isinstance(output, (tuple, list)) else output
    assert isinstance(tensor, Tensor), type(tensor)
    return tensor
