from .found import HeadFound, LayerFound, ModelMap, PointFound, Problem
from .measure import measure_model, probe_ids
from .reference import Reference, run_whole
from .text import TextFound, examine_text, text_ids
from .tiny import save_tiny

__all__ = [
    "HeadFound",
    "LayerFound",
    "ModelMap",
    "PointFound",
    "Problem",
    "Reference",
    "TextFound",
    "examine_text",
    "measure_model",
    "probe_ids",
    "run_whole",
    "save_tiny",
    "text_ids",
]
