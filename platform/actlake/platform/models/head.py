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

from actlake.platform.models.anatomy import Anatomy
from actlake.platform.models.errors import ModelNotSupported
from actlake.platform.models.loading import Absent, load_pretrained
from actlake.platform.models.source import ResolvedModel

logger = logging.getLogger(__name__)

# Where checkpoints of models with more than text keep the decoder and its unembedding.
NESTED_DECODER_WITH_HEAD = {
    r"^(model\.)?language_model\.lm_head": "lm_head",
    r"^(model\.)?language_model\.(model\.)?": "model.",
}


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
        self.in_tuple = False

    def forward(self, hidden: Any, *args: object, **kwargs: object) -> Any:
        """What comes is not looked at."""
        return (self.hidden_BLD,) if self.in_tuple else self.hidden_BLD


def load_head(model: ResolvedModel) -> ModelHead:
    """Load the final norm and the unembedding, and nothing of the blocks.

    Raises
    ------
    ModelNotSupported
        transformers has no causal model of the family.
    WeightsMismatch
        Their weights are missing, unreadable or have another shape.
    """
    cls = causal_class(model)

    def leave_out(module: nn.Module) -> None:
        _leave_out_blocks(module, model)

    module = load_pretrained(
        model,
        cls,
        leave_out,
        layers=range(0),
        nested_keys=NESTED_DECODER_WITH_HEAD,
        what="the head",
    )
    base = _base(module)
    blocks = base.get_submodule(model.anatomy.blocks)
    assert isinstance(blocks, nn.ModuleList)
    last = blocks[-1]
    assert isinstance(last, PassThrough)
    head = ModelHead(module, model, last)
    _settle_form(head, last)
    logger.info("Loaded the head of %s: %.0f MB of parameters", model.name, head.param_bytes / 1e6)
    return head


def causal_class(model: ResolvedModel) -> type[Any]:
    """The class of the model with its head."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    config = model.hf_config
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        cls: type[Any] = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        return cls
    reference = getattr(config, "auto_map", {}).get("AutoModelForCausalLM")
    if model.trust_remote_code and reference:
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        trusted: type[Any] = get_class_from_dynamic_module(
            reference, model.location, revision=model.commit
        )
        return trusted
    raise ModelNotSupported(
        f"transformers has no causal model of the family {model.family!r}, so there is no head "
        f"to compute logits with\nhint: a newer transformers may have one"
    )


def _base(module: nn.Module) -> nn.Module:
    base = module.base_model
    assert isinstance(base, nn.Module)
    return base


def _leave_out_blocks(module: nn.Module, model: ResolvedModel) -> None:
    anatomy: Anatomy = model.anatomy
    base = _base(module)
    blocks = base.get_submodule(anatomy.blocks)
    assert isinstance(blocks, nn.ModuleList)
    for layer in range(len(blocks)):
        stand_in = PassThrough if layer == len(blocks) - 1 else Absent
        blocks[layer] = stand_in(blocks[layer])
    if not model.hf_config.tie_word_embeddings:
        base.set_submodule(anatomy.embedding, Absent(base.get_submodule(anatomy.embedding)))


def _settle_form(head: ModelHead, last: PassThrough) -> None:
    """Find out whether the family's blocks return a tensor or a tuple, on two tokens."""
    hidden_BLD = torch.ones(1, 2, head.model.dim)
    wanted = (1, 2, head.model.vocab_size)
    for last.in_tuple in (False, True):
        try:
            found = tuple(head.logits(hidden_BLD).shape)
        except (TypeError, AttributeError, RuntimeError, IndexError, ValueError):
            continue
        if found[:2] == wanted[:2]:
            return
    raise ModelNotSupported(
        f"The head of {head.model.name} (family {head.model.family}) does not take a hidden "
        f"state from its last block in a form actlake knows\nhint: report the family"
    )
