from .chain import ModelChain, load_chain
from .config import ModelConfig
from .divergence import token_cross_entropy, token_divergence
from .gguf import convert_gguf
from .head import ModelHead, load_head
from .interventions import Intervention, replace_with
from .loading import check_stored_embedding, load_stage
from .numerics import Resolved
from .smollm2 import smollm2_folder
from .source import ResolvedModel, resolve_model
from .split import (
    check_split,
    layer_bytes,
    num_layers_needed,
    pipeline_idle,
    split_layers,
    stage_bytes,
)
from .stage import Capture, ModelStage
from .tokenizer import load_tokenizer, tokenizer_digest, tokenizer_file
from .trial import try_stage

__all__ = [
    "Capture",
    "Intervention",
    "ModelChain",
    "ModelConfig",
    "ModelHead",
    "ModelStage",
    "Resolved",
    "ResolvedModel",
    "check_split",
    "check_stored_embedding",
    "pipeline_idle",
    "convert_gguf",
    "layer_bytes",
    "load_chain",
    "load_head",
    "load_stage",
    "load_tokenizer",
    "num_layers_needed",
    "replace_with",
    "resolve_model",
    "smollm2_folder",
    "split_layers",
    "stage_bytes",
    "token_cross_entropy",
    "token_divergence",
    "tokenizer_digest",
    "tokenizer_file",
    "try_stage",
]
