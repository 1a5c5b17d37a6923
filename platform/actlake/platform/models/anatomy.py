"""What a model is made of, learnt from its configuration without reading a weight.

The model is built once on torch's meta device, where parameters have shapes and no memory;
what is read off it is plain data that travels to other processes: where the blocks are, how
many parameters each has, and which sites each carries.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from actlake.platform.models.errors import ModelNotSupported
from actlake.platform.models.foreign import foreign_errors
from actlake.platform.models.wiring import Wiring, wire_block

# Their blocks take more from below than the hidden state, so a later stage could not run them.
NEEDS_MORE: Mapping[str, str] = {
    "gemma3n": "embeddings of the token ids in every layer",
    "gemma4": "embeddings of the token ids in every layer",
    "deepseek_v4": "several residual streams mixed in every layer",
    "hy_v4": "several residual streams mixed in every layer",
    "mllama": "the image's embeddings in some layers",
    "rwkv": "a recurrent state beside the stream",
    "blt": "bytes and patches beside the stream",
}


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Where the parts of a decoder are and how large they are."""

    blocks: str
    """Name of the list of blocks inside the base model, such as ``layers`` or ``h``."""

    embedding: str
    """Name of the token embedding, which only the first stage loads."""

    block_params: tuple[int, ...]
    """Parameters of each block."""

    embedding_params: int

    embedding_rows: int
    """Token ids that the embedding has a row for, from 0; often more than there are tokens."""

    shared_params: int
    """Parameters outside blocks and embedding, which every stage loads since families use them
    in several places: learned positions and norms, a few vectors."""

    wirings: tuple[Wiring, ...]
    """Of each block, the points it has and where they are read."""

    def stage_params(self, layers: range) -> int:
        """How many parameters a stage of these layers loads."""
        embedding = self.embedding_params if layers.start == 0 else 0
        return sum(self.block_params[layers.start : layers.stop]) + embedding + self.shared_params


def model_class(
    config: Any, *, location: str, commit: str | None, trust_remote_code: bool
) -> type[Any]:
    """The class of the model without its head, for a decoder's configuration.

    Raises
    ------
    ModelNotSupported
        It is not a decoder, needs more than its hidden state, or is code that was not trusted.
    """
    from transformers import MODEL_MAPPING

    check_decoder(config)
    if type(config) in MODEL_MAPPING:
        found = MODEL_MAPPING[type(config)]
        cls: type[Any] = found[0] if isinstance(found, (tuple, list)) else found
        return cls
    reference = getattr(config, "auto_map", {}).get("AutoModel")
    if trust_remote_code and reference:
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        with foreign_errors(f"run the code of {location!r}"):
            trusted: type[Any] = get_class_from_dynamic_module(reference, location, revision=commit)
            return trusted
    raise ModelNotSupported(
        f"transformers has no model for the family {config.model_type!r}\n"
        f"hint: a newer transformers may have; code that comes with the model is run only "
        f"with trust_remote_code: true"
    )


def check_decoder(config: Any) -> None:
    """Refuse what is not a decoder whose blocks map a hidden state to the next."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    family = config.model_type
    for prefix, more in NEEDS_MORE.items():
        if family.startswith(prefix):
            raise ModelNotSupported(
                f"Models of the family {family!r} cannot be harvested: they need {more}, and "
                f"a stage is given the hidden state only\n"
                f"hint: choose a family with one plain residual stream, such as gemma3_text, "
                f"llama or qwen3"
            )
    is_masked = type(config) in MODEL_FOR_MASKED_LM_MAPPING
    is_causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or hasattr(config, "auto_map")
    if getattr(config, "is_encoder_decoder", False) or is_masked or not is_causal:
        raise ModelNotSupported(
            f"A model of the family {family!r} is not a decoder-only language model\n"
            f"hint: actlake reads causal decoders: gpt2, llama, gemma2, qwen3, pythia, …"
        )


def dissect(config: Any, cls: type[Any]) -> Anatomy:
    """Build the model without memory and read off where its parts are.

    Raises
    ------
    ModelNotSupported
        It has no plain list of blocks.
    """
    with torch.device("meta"), foreign_errors(f"build a model of the family {config.model_type!r}"):
        skeleton = cls(config)
    blocks = _find_blocks(skeleton, config)
    names = {module: name for name, module in skeleton.named_modules()}
    embedding = skeleton.get_input_embeddings()
    block_params = tuple(_count(block) for block in blocks)
    apart = sum(block_params) + _count(embedding)
    return Anatomy(
        blocks=names[blocks],
        embedding=names[embedding],
        block_params=block_params,
        embedding_params=_count(embedding),
        embedding_rows=_rows(embedding, config),
        shared_params=_count(skeleton) - apart,
        wirings=tuple(wire_block(block, config) for block in blocks),
    )


def _find_blocks(skeleton: nn.Module, config: Any) -> nn.ModuleList:
    for module in skeleton.modules():
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers:
            return module
    raise ModelNotSupported(
        f"A model of the family {config.model_type!r} has no list of its "
        f"{config.num_hidden_layers} blocks, so it cannot be cut into stages\n"
        f"hint: choose another family"
    )


def _rows(embedding: nn.Module, config: Any) -> int:
    if isinstance(embedding, nn.Embedding):
        return embedding.num_embeddings
    return int(config.vocab_size)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def num_layers_of(config: Any) -> int:
    """Number of blocks; families name it differently and transformers translates."""
    return int(config.num_hidden_layers)


def max_positions_of(config: Any) -> int | None:
    """Longest context the positions reach, or None where they have no end (ALiBi)."""
    found = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
    return int(found) if found else None
