"""What only many rows reach: rounds of tiles, ragged last ones, places beyond 2^31."""

import pytest
import torch

from benchmarks.ntxent import inputs, sampled_truth
from selftaught.losses import info_nce_loss, mad_loss, nearest_center, ntxent_loss
from tests.gpu.test_contrastive_gpu import TIERS, backend

__all__ = ["backend"]
CUDA = torch.device("cuda")


# Triton: one round of 79 distances, two (a block of its own in the last), eleven.
@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("rows", [20_000, 30_010, 65_536])
def test_ntxent_of_many_rows(rows, tier, backend):
    views = inputs(rows, 128, CUDA, 1.0)
    chosen = torch.cat([torch.linspace(0, rows - 1, 62).long(), torch.tensor([1, rows - 2])])
    expected, gradient = sampled_truth(views, 0.5, chosen)
    loss = ntxent_loss(*views, 0.5, backend=backend, precision=tier)
    found = torch.cat(torch.autograd.grad(loss, views))[chosen.cuda()].double()
    assert abs(float(loss) / expected - 1) < TIERS[tier]
    assert (found - gradient).norm() < TIERS[tier] * gradient.norm()
    each = (found - gradient).norm(dim=1) / gradient.norm(dim=1)
    assert each.max() < 10 * TIERS[tier]


def test_operands_beyond_two_to_the_31():
    """270,000 negatives of 8,192 columns."""
    generator = torch.Generator("cuda").manual_seed(0)
    settings = {"device": "cuda", "generator": generator, "dtype": torch.float16}
    query, key = (torch.randn(64, 8192, **settings).requires_grad_() for _ in range(2))
    bank = torch.randn(270_000, 8192, **settings)
    assert bank.numel() > 2**31
    bank[-1] = query.detach()[0] + 0.1 * key.detach()[0]  # the last row decides the first loss
    settings = {"temperature": 0.5, "in_batch": False, "reduction": "none"}
    found = info_nce_loss(query, key, negatives=bank, backend="triton", **settings)
    grad = torch.autograd.grad(found.sum(), query)[0].double()
    leaf = query.detach().double().requires_grad_()
    q = torch.nn.functional.normalize(leaf, dim=1)
    k = torch.nn.functional.normalize(key.detach().double(), dim=1)
    parts = [
        q @ torch.nn.functional.normalize(part.double(), dim=1).T / 0.5
        for part in bank.split(30_000)
    ]
    positive = (q * k).sum(1, keepdim=True) / 0.5
    truth = torch.cat([positive, *parts], 1).logsumexp(1) - positive[:, 0]
    expected = torch.autograd.grad(truth.sum(), leaf)[0]
    torch.testing.assert_close(found.double(), truth, rtol=5e-3, atol=0)
    assert (grad - expected).norm() < 5e-3 * expected.norm()


def test_rows_of_the_nearest_center_beyond_two_to_the_31():
    rows = 17_000_000
    generator = torch.Generator("cuda").manual_seed(0)
    centers = torch.randn(7, 128, device="cuda", generator=generator)
    labels = torch.arange(rows, device="cuda") % 7
    x = centers.bfloat16().repeat(-(-rows // 7), 1)[:rows]
    assert x.numel() > 2**31
    squared, index = nearest_center(x, centers, backend="triton")
    assert torch.equal(index, labels)
    some = slice(rows - 1000, None)
    truth = (x[some].double() - centers.double()[labels[some]]).square().sum(1)
    torch.testing.assert_close(squared[some].double(), truth, rtol=1e-5, atol=1e-12)
    x.requires_grad_()
    loss = mad_loss(x, centers, torch.zeros_like(labels), reduction="sum", backend="triton")
    (grad,) = torch.autograd.grad(loss, x)
    expected = 2 * (x.detach()[some].double() - centers.double()[labels[some]])
    torch.testing.assert_close(grad[some].double(), expected, rtol=1e-2, atol=1e-6)
