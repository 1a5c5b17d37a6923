"""From the last hidden state that a stage has to the loss: the layers above it, and the head.

A harvest loads no layer above its last site. For the loss they are loaded for a moment, beside the
last stage, where there is memory for them and nothing has to be fetched.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from actlake.platform.free_memory import free_memory
from actlake.platform.models import (
    ModelHead,
    ModelStage,
    ResolvedModel,
    load_head,
    load_stage,
    stage_bytes,
    token_cross_entropy,
)
from actlake.platform.models.errors import ModelError
from actlake.platform.models.locate import find_file
from actlake.platform.models.weights import weight_files
from actlake.storage import Site
from actlake.storage.summary import human_bytes

_SPARE = 1.3
"""What must be free, as a multiple of what is loaded."""


class NotPredicted(Exception):
    """The loss cannot be had; the words say why."""


@dataclass(frozen=True, slots=True)
class Predictor:
    """What is above a layer."""

    above: ModelStage | None
    """None where nothing is."""
    head: ModelHead

    @classmethod
    def load(cls, model: ResolvedModel, first_layer: int, *, tokens: int) -> "Predictor":
        """Load the layers from `first_layer` on, and the head.

        Parameters
        ----------
        tokens
            Of the longest context: as many rows of logits are held.

        Raises
        ------
        NotPredicted
            There is too little memory, a file would have to be fetched for it, or the head cannot
            be had.
        """
        layers = range(first_layer, model.num_layers)
        above = f"layers {layers.start}–{layers.stop - 1} and the head" if layers else "the head"
        if absent := _not_fetched(model, layers):
            raise NotPredicted(f"{above} lie in {', '.join(absent)}, not fetched from the hub yet")
        logits = 4 * tokens * model.vocab_size * 4  # in float32, and what is made of them
        unembedding = model.vocab_size * model.dim * model.dtype.value.itemsize
        needed = unembedding + logits + (stage_bytes(model, layers) if layers else 0)
        free = free_memory(model.device.value)
        if free is not None and _SPARE * needed > free:
            raise NotPredicted(
                f"{above} need {human_bytes(needed)} beside the last stage, and "
                f"{human_bytes(free)} are free"
            )
        try:
            stage = load_stage(model, layers, [_top(model)]) if layers else None
            return cls(stage, load_head(model))
        except ModelError as error:
            problem, _, _ = str(error).partition("\n")
            raise NotPredicted(problem) from error

    def loss(self, hidden_BLD: Tensor, ids_BL: Tensor, *, num_before: int) -> float:
        """Sum of -log p over the tokens after the first of the text, nats.

        Parameters
        ----------
        hidden_BLD
            What leaves the layer below, of one context.
        num_before
            Tokens before the text.
        """
        last = hidden_BLD
        if self.above is not None:
            seen: list[Tensor] = []
            self.above.run(hidden_BLD, lambda site, acts_BLD: seen.append(acts_BLD.clone()))
            (last,) = seen
        with torch.inference_mode():
            losses_BL = token_cross_entropy(self.head.logits(last), ids_BL)
        return float(losses_BL[:, num_before:].double().sum())


def _top(model: ResolvedModel) -> Site:
    return Site(model.num_layers - 1)


def _not_fetched(model: ResolvedModel, layers: range) -> list[str]:
    """Files of a hub model that these layers and the head need and that are not on this machine."""
    if model.commit is None:
        return []
    from huggingface_hub import try_to_load_from_cache

    files = weight_files(partial(find_file, model.location, model.commit), of=model.name)
    return [
        name
        for name in files.read_by(layers, blocks=model.anatomy.blocks)
        if not isinstance(try_to_load_from_cache(model.location, name, revision=model.commit), str)
    ]
