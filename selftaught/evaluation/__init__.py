"""How good the scores are: metrics, statistics over replicates, calibration, report."""

from selftaught.evaluation.calibration import percentiles, threshold_from_normals
from selftaught.evaluation.metrics import auroc, evaluate
from selftaught.evaluation.statistics import stars, summarise, t_interval, welch_test

__all__ = [
    "auroc",
    "evaluate",
    "percentiles",
    "stars",
    "summarise",
    "t_interval",
    "threshold_from_normals",
    "welch_test",
]
