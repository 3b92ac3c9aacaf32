"""How good the scores are: metrics, statistics over replicates, report."""

from selftaught.evaluation.metrics import auroc, evaluate
from selftaught.evaluation.statistics import (
    holm,
    paired_t_test,
    stars,
    summarise,
    t_interval,
    welch_from_summary,
    welch_test,
)

__all__ = [
    "auroc",
    "evaluate",
    "holm",
    "paired_t_test",
    "stars",
    "summarise",
    "t_interval",
    "welch_from_summary",
    "welch_test",
]
