"""How good the scores are: metrics, statistics over replicates, report."""

from selftaught.evaluation.metrics import auroc, evaluate
from selftaught.evaluation.statistics import stars, summarise, t_interval, welch_test

__all__ = [
    "auroc",
    "evaluate",
    "stars",
    "summarise",
    "t_interval",
    "welch_test",
]
