"""Language models as stages that hand out activations.

    model = resolve_model(ModelConfig(name="EleutherAI/pythia-70m"))
    sites = [Site.parse("resid_post.3")]
    model.check_sites(sites)
    stages = split_layers(num_layers_needed(sites), 2)
    stage = load_stage(model, stages[0], sites)

`resolve_model` finds the model and reads no weights; `load_stage` loads some layers of it.
"""

from actlake.platform.models.gguf import convert_gguf
from actlake.platform.models.loading import load_stage
from actlake.platform.models.numerics import Resolved
from actlake.platform.models.smollm2 import smollm2_folder
from actlake.platform.models.source import ModelConfig, ResolvedModel, resolve_model
from actlake.platform.models.split import (
    check_split,
    layer_bytes,
    num_layers_needed,
    split_layers,
    stage_bytes,
)
from actlake.platform.models.stage import Capture, ModelStage
from actlake.platform.models.tokenizer import load_tokenizer, save_tokenizer

__all__ = [
    "Capture",
    "ModelConfig",
    "ModelStage",
    "Resolved",
    "ResolvedModel",
    "check_split",
    "convert_gguf",
    "layer_bytes",
    "load_stage",
    "load_tokenizer",
    "num_layers_needed",
    "resolve_model",
    "save_tokenizer",
    "smollm2_folder",
    "split_layers",
    "stage_bytes",
]
