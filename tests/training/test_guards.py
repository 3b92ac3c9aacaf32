"""Guards against silent collapse speak when they must and only then."""

import numpy as np
import pytest
import torch

from selftaught.training import guards


def test_spread_is_the_mean_standard_deviation_per_dimension():
    z = torch.randn(300, 7, generator=torch.Generator().manual_seed(1)) * torch.arange(1.0, 8)
    assert guards.spread(z) == pytest.approx(np.std(z.numpy(), axis=0).mean(), rel=1e-5)


def test_effective_rank_counts_equal_directions():
    base = torch.linalg.qr(torch.randn(50, 5, dtype=torch.float64))[0]
    base = base - base.mean(0)
    base = torch.linalg.qr(base)[0]
    assert guards.effective_rank(base) == pytest.approx(5, rel=1e-6)
    line = torch.arange(50.0)[:, None] * torch.ones(1, 4)
    assert guards.effective_rank(line) == pytest.approx(1, abs=1e-6)


def test_spread_guard_gives_the_figure():
    assert not guards.check_spread(0.01, 1.0)
    (text,) = guards.check_spread(0.0009, 1.0)
    assert "0.0009" in text


def test_equal_scores_are_a_collapse():
    assert guards.check_scores(torch.full((9,), 0.3))
    assert not guards.check_scores(torch.linspace(0, 1, 9))
    assert not guards.check_scores(torch.ones(1))


def test_statistics_guard_compares_the_gap_with_the_embedding_itself():
    z = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    assert not guards.check_batch_statistics(z + 0.01, z)
    # The published defect: running statistics of another input scale flatten the embedding.
    assert guards.check_batch_statistics(z, z * 0.003)
