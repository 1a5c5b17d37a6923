"""Fill an activation store from a language model and a text."""

from actlake.jobs.harvest.config import HarvestConfig, StorageConfig
from actlake.jobs.harvest.job import HarvestResult, harvest, plan
from actlake.jobs.harvest.plan import HarvestPlan
from actlake.jobs.harvest.repair import repair

__all__ = [
    "HarvestConfig",
    "StorageConfig",
    "harvest",
    "plan",
    "repair",
    "HarvestPlan",
    "HarvestResult",
]
