"""The numbers in docs/losses.md are the ones the code prints, and its table of equals holds."""

import doctest
from pathlib import Path

import pytest
import torch

from selftaught.losses import info_nce_loss, ntxent_loss, supcon_loss
from tests.losses.formulas import views

PAGE = Path(__file__).resolve().parents[2] / "docs" / "losses.md"


def test_examples_print_what_the_page_says():
    result = doctest.testfile(str(PAGE), module_relative=False)
    assert result.attempted >= 9 and result.failed == 0


def test_first_example_runs():
    exec(PAGE.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0], {})


def sup_contrast(features, same, temperature, base_temperature):
    """The formula of SupContrast's code, every view an anchor."""
    rows = torch.cat(features.unbind(1))
    others = 1 - torch.eye(len(rows))
    logits = rows @ rows.T / temperature
    log_probability = logits - ((logits.exp() * others).sum(1, keepdim=True)).log()
    positives = same.float().repeat(2, 2) * others
    mean = (positives * log_probability).sum(1) / positives.sum(1)
    return -(temperature / base_temperature) * mean.mean()


def test_migration_table():
    lightly = pytest.importorskip("lightly.loss")
    metric = pytest.importorskip("pytorch_metric_learning.losses")
    clip = pytest.importorskip("open_clip.loss")
    a, b = (v.float() for v in views(8, 16, 0.5))
    y, rows = torch.arange(8) % 3, torch.arange(8).repeat(2)
    both, t = torch.cat([a, b]), 0.2
    unit = [torch.nn.functional.normalize(v) for v in (a, b)]
    features = torch.stack(unit, 1)
    for theirs, ours in (
        (lightly.NTXentLoss(t)(a, b), ntxent_loss(a, b, t)),
        (metric.SupConLoss(t)(both, y.repeat(2)), supcon_loss(a, b, y, t)),
        (metric.NTXentLoss(t)(both, rows), ntxent_loss(a, b, t)),
        (
            sup_contrast(features, y[:, None] == y, t, 0.07),
            supcon_loss(*features.unbind(1), y, t, normalize=False) * (t / 0.07),
        ),
        (sup_contrast(features, torch.eye(8), t, t), ntxent_loss(*features.unbind(1), t)),
        (
            clip.ClipLoss()(*unit, torch.tensor(1 / t)),
            info_nce_loss(*unit, temperature=t, symmetric=True, normalize=False),
        ),
    ):
        torch.testing.assert_close(ours, theirs)
