from .config import HarvestConfig, PipelineConfig, StorageConfig
from .job import HarvestResult, harvest, plan
from .planning import HarvestPlan
from .repair import repair

__all__ = [
    "HarvestConfig",
    "PipelineConfig",
    "StorageConfig",
    "harvest",
    "plan",
    "repair",
    "HarvestPlan",
    "HarvestResult",
]
