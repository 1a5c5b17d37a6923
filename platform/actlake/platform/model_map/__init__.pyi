from .found import HeadFound, LayerFound, ModelMap, PointFound
from .measure import measure_model, probe_ids
from .reference import Reference, run_whole

__all__ = [
    "HeadFound",
    "LayerFound",
    "ModelMap",
    "PointFound",
    "Reference",
    "measure_model",
    "probe_ids",
    "run_whole",
]
