from .config import HarvestConfig, StorageConfig
from .job import HarvestResult, harvest, plan
from .planning import HarvestPlan
from .repair import repair

__all__ = [
    "HarvestConfig",
    "StorageConfig",
    "harvest",
    "plan",
    "repair",
    "HarvestPlan",
    "HarvestResult",
]
