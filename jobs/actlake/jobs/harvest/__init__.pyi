from .config import HarvestConfig, StagesConfig, StorageConfig
from .job import HarvestResult, harvest, plan
from .planning import HarvestPlan

__all__ = [
    "HarvestConfig",
    "StagesConfig",
    "StorageConfig",
    "harvest",
    "plan",
    "HarvestPlan",
    "HarvestResult",
]
