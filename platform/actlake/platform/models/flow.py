"""How the stream flows through a decoder, seen by running it without memory.

A stage hands the hidden state on and nothing else, and hands it out as it leaves a block. So each
block has to run once, in order, on what the one below returned, and nothing else that depends on
the text may enter it. Names do not tell that, and a family that does otherwise would be wrong
without an error. The model is built on torch's meta device and run on fake tensors, which have
shapes and history but no values.

Shapes:  B contexts in the batch   L tokens in a context   D width of the stream
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from actlake.platform.models.errors import ModelNotSupported

logger = logging.getLogger(__name__)

_SHAPE = (2, 8)
_DEPTH = 3  # of objects in a block's arguments that are looked into


@contextmanager
def fake_tensors() -> Iterator[None]:
    """Within it, a model on the meta device runs: what depends on values is made up."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    # It tells of every operation that asks for values, which here are no errors.
    its_logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = its_logger.level
    its_logger.setLevel(logging.CRITICAL)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()):
            yield
    finally:
        its_logger.setLevel(level)


def asks_for_values(error: BaseException) -> bool:
    """Whether a pass over fake tensors ended because the model looks at values, of which none are.

    Which tokens go to which expert is such a question; it says nothing against the model.
    """
    from torch._subclasses.fake_tensor import (
        DataDependentOutputException,
        DynamicOutputShapeException,
    )
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    asking = (
        DataDependentOutputException,
        DynamicOutputShapeException,
        GuardOnDataDependentSymNode,
    )
    return isinstance(error, asking)


def runs_without_values(config: Any) -> None:
    """Let experts be computed in a way that does not ask which tokens go where."""
    config._experts_implementation = "batched_mm"


@dataclass(slots=True)
class _Seen:
    """What was seen so far of one pass."""

    width: int
    ids_BL: Tensor | None = None
    blocks: list[int] = field(default_factory=list)
    left: Any = None
    returned: int | None = None
    faults: list[str] = field(default_factory=list)

    def enter(self, block: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kwargs = dict(kwargs)
        entering = args[0] if args else kwargs.pop("hidden_states", None)
        stream = (*_SHAPE, self.width)
        found = tuple(entering.shape) if isinstance(entering, Tensor) else type(entering).__name__
        if found != stream:
            self.faults.append(
                f"block {block} is given {found} where the stream of the text is {stream}: "
                f"contexts, tokens, width"
            )
        elif self.blocks and entering is not self.left:
            self.faults.append(
                f"block {block} is not given what block {self.blocks[-1]} returned: the stream is "
                f"changed between them"
            )
        for tensor in _tensors([args[1:], kwargs]):
            if tensor is entering:
                continue
            if tensor.requires_grad:
                self.faults.append(
                    f"block {block} is given a tensor of shape {tuple(tensor.shape)} that depends "
                    f"on the text, beside the stream"
                )
            elif tensor is self.ids_BL:
                self.faults.append(f"block {block} is given the token ids beside the stream")
        self.blocks.append(block)

    @property
    def again(self) -> bool:
        """Whether a block ran more than once."""
        return len(set(self.blocks)) < len(self.blocks)

    def leave(self, output: Any) -> None:
        in_tuple = isinstance(output, (tuple, list))
        self.left = output[0] if in_tuple else output
        self.returned = len(output) if in_tuple else 0


def check_flow(decoder: nn.Module, blocks: nn.ModuleList, config: Any) -> int | None:
    """Refuse a decoder whose blocks do more than map the hidden state to the next.

    Parameters
    ----------
    decoder
        On the meta device; it is not changed.
    blocks
        The list of its blocks.
    config
        Its configuration.

    Returns
    -------
    int | None
        How many values a block returns in a tuple; 0 for the stream itself. None where the decoder
        asks for values, so that it cannot be run; that is logged as a warning.

    Raises
    ------
    ModelNotSupported
        A block gets more, or other, than what the one below returned; or they do not run once each.
    RuntimeError
        The decoder does not run, for a reason of its own.
    """
    decoder.requires_grad_(False)
    seen = _Seen(int(config.hidden_size))
    # What depends on the text is what has a gradient back to the embedding. It is no leaf, since
    # families write into it (CTRL scales it in place).
    embedding = decoder.get_input_embeddings()  # type: ignore[operator]  # of PreTrainedModel
    hooks = [
        embedding.register_forward_hook(lambda _, args, output: output.requires_grad_().clone())
    ]
    for number, block in enumerate(blocks):
        hooks += [
            block.register_forward_pre_hook(
                lambda _, args, kwargs, number=number: seen.enter(number, args, kwargs),
                with_kwargs=True,
            ),
            block.register_forward_hook(lambda _, args, output: seen.leave(output)),
        ]
    failed: RuntimeError | None = None
    try:
        with fake_tensors(), torch.enable_grad():
            seen.ids_BL = torch.zeros(_SHAPE, dtype=torch.int64, device="meta")
            decoder(input_ids=seen.ids_BL, use_cache=False)
    except RuntimeError as error:  # what was seen until then may say more
        failed = error
    finally:
        for hook in hooks:
            hook.remove()
    in_order = seen.blocks == list(range(len(blocks)))
    if seen.again or (not seen.faults and not failed and not in_order):
        runs = f"{len(blocks)} blocks do not run once each, in order, but {len(seen.blocks)} times"
        seen.faults.insert(0, f"its {runs}")
    if seen.faults:
        raise ModelNotSupported(
            f"Models of the family {config.model_type!r} cannot be harvested: {seen.faults[0]}\n"
            f"hint: choose a family with one plain residual stream, such as gemma3_text, llama or "
            f"qwen3"
        )
    if failed is None:
        return seen.returned
    if not asks_for_values(failed):
        raise failed
    logger.warning(
        "Whether blocks of the family %s get more than the stream could not be tried without "
        "weights: its loop asks for values. `actlake doctor --model` compares them with "
        "transformers' own",
        config.model_type,
    )
    return None


def _tensors(value: Any, depth: int = 0) -> Iterator[Tensor]:
    """All tensors in a block's arguments, in lists, dictionaries and objects too."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item, depth)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item, depth)
    elif hasattr(value, "__dict__") and depth < _DEPTH and not isinstance(value, (nn.Module, type)):
        yield from _tensors(vars(value), depth + 1)
