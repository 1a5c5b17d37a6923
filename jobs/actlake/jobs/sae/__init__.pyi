from .config import (
    CheckpointConfig,
    EarlyStop,
    EvaluationConfig,
    InModelConfig,
    OptimizerConfig,
    ReportConfig,
    SAEConfig,
    SAESpec,
)
from .encode import EncodeResult, encode_store
from .evaluation import RowScores, evaluate_rows
from .job import SAEResult, plan_saes, train_saes
from .planning import SAEPlan
from .trained import TrainedSAE, read_sae

__all__ = [
    "CheckpointConfig",
    "EarlyStop",
    "EvaluationConfig",
    "InModelConfig",
    "OptimizerConfig",
    "ReportConfig",
    "SAEConfig",
    "SAEPlan",
    "SAEResult",
    "SAESpec",
    "plan_saes",
    "train_saes",
    "EncodeResult",
    "encode_store",
    "RowScores",
    "evaluate_rows",
    "TrainedSAE",
    "read_sae",
]
