"""The head of a model: final norm and unembedding, from the last residual stream to logits.

    head = load_head(model)
    logits_BLV = head.logits(hidden_BLD)        # hidden: what leaves the last block

The head is transformers' own causal model with a stand-in for every block, so soft caps
(Gemma 2), scaled logits (Granite, Cohere) and tied embeddings are as they are there. It does
not care where a hidden state comes from: of a lower layer it gives the logit lens.

Shapes:  B contexts in the batch   L tokens in a context   D width of the stream   V vocabulary
"""

import logging
from typing import Any

import torch
from torch import Tensor, nn

from actlake.platform.models.errors import ModelNotSupported
from actlake.platform.models.loading import load_pretrained
from actlake.platform.models.source import ResolvedModel
from actlake.platform.models.stand_ins import Absent, blocks_of, leave_out_of_head, with_logits

logger = logging.getLogger(__name__)


class ModelHead:
    """Final norm and unembedding. Made by `load_head`."""

    def __init__(self, module: nn.Module, model: ResolvedModel, last: "PassThrough") -> None:
        self.module = module
        self.model = model
        self.device = torch.device(model.device.value)
        self._last = last

    @property
    def param_bytes(self) -> int:
        """Bytes of the parameters held; a tied embedding is among them."""
        return sum(parameter.nbytes for parameter in self.module.parameters())

    def logits(self, hidden_BLD: Tensor) -> Tensor:
        """Logits, (B, L, V), in the model's dtype; B · L · V of them, so few contexts at once."""
        with torch.inference_mode():
            # Two copies: families write into what they are given (CTRL scales embeddings in place).
            hidden_BLD = hidden_BLD.to(self.device, self.model.dtype.value, copy=True)
            self._last.hidden_BLD = hidden_BLD
            try:
                output = self.module(inputs_embeds=hidden_BLD.clone(), use_cache=False)
            finally:
                self._last.hidden_BLD = None
            logits_BLV = output.logits
            assert isinstance(logits_BLV, Tensor)
            return logits_BLV


class PassThrough(Absent):
    """Stands where the last block is, and gives the hidden state that is to enter the head."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__(original)
        self.hidden_BLD: Tensor | None = None

    def forward(self, hidden: Any = None, *args: object, **kwargs: object) -> Any:
        """What comes is not looked at."""
        return self.formed(self.hidden_BLD)


def load_head(model: ResolvedModel) -> ModelHead:
    """Load the final norm and the unembedding, and nothing of the blocks.

    Raises
    ------
    ModelNotSupported
        transformers has no causal model of the family.
    WeightsMismatch
        Their weights are missing, unreadable or have another shape.
    """
    tied = bool(getattr(model.whole_config, "tie_word_embeddings", False))
    whole = load_pretrained(
        model,
        lambda whole: leave_out_of_head(whole, model.anatomy, tied=tied, last=PassThrough),
        layers=range(0),
        tied=tied,
        what="the head",
    )
    blocks = blocks_of(whole.get_submodule(model.anatomy.decoder), model.anatomy)
    last = blocks[-1]
    assert isinstance(last, PassThrough)
    head = ModelHead(with_logits(whole, model.anatomy), model, last)
    _settle_form(head, last)
    logger.info("Loaded the head of %s: %.0f MB of parameters", model.name, head.param_bytes / 1e6)
    return head


def _settle_form(head: ModelHead, last: PassThrough) -> None:
    """Run a few tokens through the head; where the blocks' output is not known, find that out."""
    shape = (2, 3)  # a form that takes the first context for the stream shows with two of them
    hidden_BLD = torch.ones(*shape, head.model.dim)
    known = head.model.anatomy.block_output
    why = ""
    for last.num_outputs in (0, 1) if known is None else (known,):
        try:
            found = tuple(head.logits(hidden_BLD).shape)
        except (TypeError, AttributeError, RuntimeError, IndexError, ValueError) as error:
            why = f"{type(error).__name__}: {error}"
            continue
        if found[:2] == shape:
            return
        why = f"its logits have the shape {found}"
    raise ModelNotSupported(
        f"The head of {head.model.name} (family {head.model.family}) does not take a hidden "
        f"state from its last block in a form actlake knows: {why}\nhint: report the family"
    )
