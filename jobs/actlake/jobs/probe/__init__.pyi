from .artefact import Probe
from .config import (
    DictionaryConfig,
    DrawnSplits,
    MarkersConfig,
    ProbeConfig,
    RowsConfig,
    StoreSplits,
    TaskConfig,
)
from .examples import Examples
from .job import ProbePlan, ProbeResult, plan_probes, train_probes

__all__ = [
    "DictionaryConfig",
    "DrawnSplits",
    "Examples",
    "MarkersConfig",
    "Probe",
    "ProbeConfig",
    "ProbePlan",
    "ProbeResult",
    "RowsConfig",
    "StoreSplits",
    "TaskConfig",
    "plan_probes",
    "train_probes",
]
