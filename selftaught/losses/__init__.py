"""Losses for other people's training code: functions, and modules that hold their settings.

Importing this package loads torch and nothing heavier.
"""

from selftaught.losses.contrastive import (
    InfoNCELoss,
    NTXentLoss,
    SupConLoss,
    info_nce_loss,
    ntxent_loss,
    supcon_loss,
)
from selftaught.losses.gradcache import cached_backward
from selftaught.losses.spheres import (
    Assignment,
    DeepSADLoss,
    MADLoss,
    mad_loss,
    mad_loss_with_assignment,
    nearest_center,
)

__all__ = [
    "Assignment",
    "DeepSADLoss",
    "InfoNCELoss",
    "MADLoss",
    "NTXentLoss",
    "SupConLoss",
    "cached_backward",
    "info_nce_loss",
    "mad_loss",
    "mad_loss_with_assignment",
    "nearest_center",
    "ntxent_loss",
    "supcon_loss",
]
