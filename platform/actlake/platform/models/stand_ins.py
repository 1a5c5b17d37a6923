"""Stand-ins for the parts of a model that a process does not load.

A stage keeps some blocks and what is around them; the head keeps everything but the blocks. What
is taken out of the model before weights are read is never read.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from actlake.platform.models.anatomy import Anatomy


class Absent(nn.Module):
    """Stands where a module is not loaded; its output is never read.

    It keeps what the original knows of itself, since some families' loops ask each block what
    kind it is, or look into its parts; none of those is loaded or counted.
    """

    def __init__(self, original: nn.Module, num_outputs: int | None = None) -> None:
        super().__init__()
        known = {name: value for name, value in vars(original).items() if name[0] != "_"}
        vars(self).update(known)
        # In a tuple, so that it is no part of the model.
        vars(self)["_original"] = (original,)
        self.num_outputs = 1 if num_outputs is None else num_outputs

    def __getattr__(self, name: str) -> Any:
        if "_original" not in vars(self):
            raise AttributeError(name)
        return getattr(vars(self)["_original"][0], name)

    def forward(self, hidden: Any = None, *args: object, **kwargs: object) -> Any:
        """Hand on what came, in the form in which the family's loop expects it."""
        return self.formed(kwargs.get("hidden_states") if hidden is None else hidden)

    def formed(self, hidden: Any) -> Any:
        """As a block returns it: by itself, or first of a tuple."""
        return (hidden, *[None] * (self.num_outputs - 1)) if self.num_outputs else hidden


def leave_out_of_stage(whole: nn.Module, anatomy: Anatomy, layers: range) -> None:
    """Leave some blocks of a model and what they need; everything beside its decoder goes."""
    decoder = _leave_out_beside(whole, anatomy.decoder)
    blocks = blocks_of(decoder, anatomy)
    # Layers keep their places in the list: some families look up layer_types[i].
    for layer in range(len(blocks)):
        if layer not in layers:
            blocks[layer] = Absent(blocks[layer], anatomy.block_output)
    if layers.start > 0:
        embedding = decoder.get_submodule(anatomy.embedding)
        decoder.set_submodule(anatomy.embedding, Absent(embedding))


def leave_out_of_head(
    whole: nn.Module, anatomy: Anatomy, *, tied: bool, last: Callable[[nn.Module], nn.Module]
) -> None:
    """Leave what stands behind the last block of a model.

    Parameters
    ----------
    tied
        Whether the unembedding is the embedding.
    last
        Makes what stands for the last block.
    """
    decoder = _leave_out_beside(whole, anatomy.decoder, keep_in=with_logits(whole, anatomy))
    blocks = blocks_of(decoder, anatomy)
    for layer in range(len(blocks) - 1):
        blocks[layer] = Absent(blocks[layer], anatomy.block_output)
    blocks[-1] = last(blocks[-1])
    if not tied:
        decoder.set_submodule(anatomy.embedding, Absent(decoder.get_submodule(anatomy.embedding)))


def with_logits(whole: nn.Module, anatomy: Anatomy) -> nn.Module:
    """The part of a model that computes logits: the innermost with an unembedding."""
    path = anatomy.decoder
    while path:
        path = path.rpartition(".")[0]
        part = whole.get_submodule(path)
        if getattr(part, "get_output_embeddings", lambda: None)() is not None:
            return part
    return whole


def blocks_of(decoder: nn.Module, anatomy: Anatomy) -> nn.ModuleList:
    """The list of a decoder's blocks."""
    blocks = decoder.get_submodule(anatomy.blocks)
    assert isinstance(blocks, nn.ModuleList)
    return blocks


def _leave_out_beside(whole: nn.Module, path: str, keep_in: nn.Module | None = None) -> nn.Module:
    """Take out what stands beside the module at `path`, on every level; return that module.

    In `keep_in` all stays: some families have more than a matrix behind the final norm.
    """
    parent = whole
    for step in filter(None, path.split(".")):
        for name, beside in list(parent.named_children()):
            if name != step and parent is not keep_in:
                setattr(parent, name, Absent(beside))
        parent = parent.get_submodule(step)
    return parent


def left_out(whole: nn.Module) -> list[str]:
    """Names of the stand-ins in a model."""
    return [name for name, module in whole.named_modules() if isinstance(module, Absent)]
