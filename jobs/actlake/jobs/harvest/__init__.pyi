from .config import HarvestConfig, StagesConfig, StorageConfig
from .job import HarvestResult, harvest, plan
from .planning import HarvestPlan
from .repair import repair

__all__ = [
    "HarvestConfig",
    "StagesConfig",
    "StorageConfig",
    "harvest",
    "plan",
    "repair",
    "HarvestPlan",
    "HarvestResult",
]
