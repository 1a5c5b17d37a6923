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
from actlake.platform.models.flow import check_flow, runs_without_values
from actlake.platform.models.foreign import foreign_errors
from actlake.platform.models.wiring import Wiring, wire_block

# Their blocks take more from below than the hidden state, so a later stage could not run them.
NEEDS_MORE: Mapping[str, str] = {
    "gemma3n": "embeddings of the token ids in every layer",
    "gemma4": "embeddings of the token ids in every layer",
    "deepseek_v4": "several residual streams mixed in every layer",
    "hy_v4": "several residual streams mixed in every layer",
    "evolla": "a protein's embeddings in some layers",
    "mllama": "the image's embeddings in some layers",
    "rwkv": "a recurrent state beside the stream",
    "blip_text": "an image's embeddings in every layer",
    "kosmos_2_text": "an image before every text",
    "idefics": "an image's embeddings in some layers",
    "voxtral_realtime": "the delay of the sound in every layer",
    "blt": "bytes and patches beside the stream",
    "xlnet": "a second stream that does not see its own token",
}


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Where the parts of a decoder are and how large they are."""

    decoder: str
    """Name of the decoder inside the whole model, such as ``model`` or ``model.language_model``."""

    blocks: str
    """Name of the list of blocks inside the decoder, such as ``layers`` or ``h``."""

    embedding: str
    """Name of the token embedding inside the decoder, which only the first stage loads."""

    block_output: int | None
    """How many values a block returns in a tuple; 0 for the stream itself, None if not known."""

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
    whole: Any, *, location: str, commit: str | None, trust_remote_code: bool
) -> type[Any]:
    """The class of a whole model, with its head and, where it has them, its other senses.

    Parameters
    ----------
    whole
        The configuration of the whole model.

    Raises
    ------
    ModelNotSupported
        It has no decoder, needs more than its hidden state, or is code that was not trusted.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MULTIMODAL_LM_MAPPING

    decoder = whole.get_text_config(decoder=True)
    _check_stream(decoder)
    is_part = decoder is not whole
    mappings = [MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MULTIMODAL_LM_MAPPING]
    if is_part:
        mappings.reverse()
    with foreign_errors(f"import the family {whole.model_type!r}"):
        mapped = [mapping[type(whole)] for mapping in mappings if type(whole) in mapping]
        # Of some, what is mapped is built from a part of the configuration.
        known = [cls for cls in mapped if not is_part or not _takes(cls, decoder)]
        known += _named_in(whole)
    settings = getattr(whole, "auto_map", {})
    reference = settings.get("AutoModelForCausalLM") or settings.get("AutoModel")
    if not known and not reference:
        raise _no_decoder(decoder.model_type)
    _check_decoder(whole, decoder)
    if known:
        cls: type[Any] = known[0]
        _check_loader(cls)
        return cls
    if not trust_remote_code:
        raise ModelNotSupported(
            f"transformers has no model for the family {whole.model_type!r}\n"
            f"hint: a newer transformers may have; code that comes with the model is run only "
            f"with trust_remote_code: true"
        )
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    with foreign_errors(f"run the code of {location!r}"):
        trusted: type[Any] = get_class_from_dynamic_module(reference, location, revision=commit)
        return trusted


def _check_loader(cls: type[Any]) -> None:
    """Refuse a class that loads more than weights: a stage has files of weights and no others."""
    from transformers import PreTrainedModel

    loader = next(owner for owner in cls.__mro__ if "from_pretrained" in vars(owner))
    if loader is not PreTrainedModel:
        raise ModelNotSupported(
            f"{cls.__name__} cannot be harvested: it loads more than its weights\n"
            f"hint: save the part that reads text by itself, as of Qwen2.5-Omni its thinker: "
            f"model.thinker.save_pretrained(folder)"
        )


def _takes(cls: type[Any], config: Any) -> bool:
    expected = getattr(cls, "config_class", None)
    return expected is not None and isinstance(config, expected)


def _named_in(whole: Any) -> list[type[Any]]:
    """Transformers' classes that config.json names and that generate text, mapped or not."""
    import transformers

    named = (getattr(transformers, name, None) for name in whole.architectures or ())
    return [
        cls
        for cls in named
        if isinstance(cls, type)
        and issubclass(cls, transformers.PreTrainedModel)
        and issubclass(cls, transformers.GenerationMixin)
        and getattr(cls, "config_class", None) is type(whole)
    ]


def _check_stream(config: Any) -> None:
    """Refuse families that are known to need more than the hidden state, with what it is."""
    family = config.model_type
    for prefix, more in NEEDS_MORE.items():
        if family.startswith(prefix):
            raise ModelNotSupported(
                f"Models of the family {family!r} cannot be harvested: they need {more}, and "
                f"a stage is given the hidden state only\n"
                f"hint: choose a family with one plain residual stream, such as gemma3_text, "
                f"llama or qwen3"
            )


def _check_decoder(whole: Any, decoder: Any) -> None:
    from transformers import MODEL_FOR_MASKED_LM_MAPPING

    for config in (whole, decoder):
        is_masked = type(config) in MODEL_FOR_MASKED_LM_MAPPING
        looks_ahead = is_masked and not getattr(config, "is_decoder", False)
        if getattr(config, "is_encoder_decoder", False) or looks_ahead:
            raise _no_decoder(config.model_type)
    sizes = ("num_hidden_layers", "hidden_size", "vocab_size")
    if not all(isinstance(getattr(decoder, size, None), int) for size in sizes):
        raise _no_decoder(decoder.model_type)


def _no_decoder(family: str) -> ModelNotSupported:
    return ModelNotSupported(
        f"A model of the family {family!r} is not a decoder-only language model\n"
        f"hint: actlake reads causal decoders: gpt2, llama, gemma2, qwen3, pythia, …"
    )


def build_without_memory(cls: type[Any], whole: Any) -> Any:
    """The whole model on torch's meta device, ready to run on fake tensors.

    Raises
    ------
    ModelNotSupported
        transformers cannot build it.
    """
    runs_without_values(whole)
    with torch.device("meta"), foreign_errors(f"build a model of the family {whole.model_type!r}"):
        return cls(whole).eval()


def dissect(whole: Any, cls: type[Any]) -> Anatomy:
    """Build the model without memory, read off where its parts are, and run it once.

    Parameters
    ----------
    whole
        The configuration of the whole model, which is changed.
    cls
        From `model_class`.

    Raises
    ------
    ModelNotSupported
        It has no plain list of blocks, or they do more than map the hidden state to the next.
    """
    config = whole.get_text_config(decoder=True)
    skeleton = build_without_memory(cls, whole)
    path, blocks_path = _find_blocks(skeleton, config)
    decoder = skeleton.get_submodule(path)
    blocks = decoder.get_submodule(blocks_path)
    embedding = decoder.get_input_embeddings()
    names = {module: name for name, module in decoder.named_modules()}
    with foreign_errors(f"run a model of the family {config.model_type!r}"):
        block_output = check_flow(decoder, blocks, config)
    block_params = tuple(_count(block) for block in blocks)
    apart = sum(block_params) + _count(embedding)
    return Anatomy(
        decoder=path,
        blocks=blocks_path,
        embedding=names[embedding],
        block_output=block_output,
        block_params=block_params,
        embedding_params=_count(embedding),
        embedding_rows=_rows(embedding, config),
        shared_params=_count(decoder) - apart,
        wirings=tuple(wire_block(block, config) for block in blocks),
    )


def _find_blocks(skeleton: nn.Module, config: Any) -> tuple[str, str]:
    """Names of the decoder in the whole model, and of the list of its blocks in the decoder."""
    lists = [
        (decoder, name.removeprefix(f"{decoder}."))
        for name, module in skeleton.named_modules()
        if isinstance(module, nn.ModuleList)
        and type(skeleton.get_submodule(decoder := _owner(skeleton, name)).config) is type(config)
    ]
    for path, name in lists:
        blocks = skeleton.get_submodule(f"{path}.{name}".lstrip("."))
        if len(blocks) == config.num_hidden_layers:  # type: ignore[arg-type]  # a ModuleList
            return path, name
    alone = [found for found in lists if "." not in found[1]]
    if len(alone) == 1:  # LongCat counts the two halves of each block
        return alone[0]
    there = ", ".join(f"{len(skeleton.get_submodule(f'{path}.{name}'.lstrip('.')))} in {name}"  # type: ignore[arg-type]
                      for path, name in lists[:4]) or "none"  # fmt: skip
    raise ModelNotSupported(
        f"A model of the family {config.model_type!r} has no list of its "
        f"{config.num_hidden_layers} blocks, each of which runs once, so it cannot be cut into "
        f"stages; it has {there}\n"
        f"hint: choose another family"
    )


def _rows(embedding: nn.Module, config: Any) -> int:
    if isinstance(embedding, nn.Embedding):
        return embedding.num_embeddings
    return int(config.vocab_size)


def _owner(skeleton: nn.Module, name: str) -> str:
    """Name of the model of transformers' that a module is part of: a decoder, an encoder."""
    from transformers import PreTrainedModel

    while name:
        name = name.rpartition(".")[0]
        if isinstance(skeleton.get_submodule(name), PreTrainedModel):
            break
    return name


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def max_positions_of(config: Any) -> int | None:
    """Longest context the positions reach, or None where they have no end (ALiBi, XLNet's -1)."""
    found = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
    return int(found) if found and found > 0 else None
