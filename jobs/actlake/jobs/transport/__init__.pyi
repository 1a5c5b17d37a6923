from .artefact import TransportOperator
from .config import (
    CausalConfig,
    DictionaryConfig,
    MomentsConfig,
    RowsConfig,
    ShortcutConfig,
    TransportConfig,
)
from .job import TransportPlan, TransportResult, fit_transport, plan_transport
from .moments_file import StoredMoments
from .pairs import Grid, Listed, Pair

__all__ = [
    "CausalConfig",
    "DictionaryConfig",
    "Grid",
    "Listed",
    "MomentsConfig",
    "Pair",
    "RowsConfig",
    "ShortcutConfig",
    "StoredMoments",
    "TransportConfig",
    "TransportOperator",
    "TransportPlan",
    "TransportResult",
    "fit_transport",
    "plan_transport",
]
