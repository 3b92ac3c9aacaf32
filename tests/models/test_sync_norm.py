"""Batch norm over ranks against plain batch norm of the whole batch, in float64."""

import pytest
import torch
from torch import nn

from selftaught import distributed
from selftaught.models.encoder import EncoderConfig
from selftaught.models.heads import build_embedder
from selftaught.models.sync_norm import SyncNorm, _Normalise, synchronise_norms
from tests.ranks import results_of, start_ranks

CUTS = (3, 7)  # the ranks' rows are uneven on purpose
SHAPES = [(7, 4), (7, 4, 3), (7, 4, 5, 3)]


def network(shape, affine):
    norm = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)]
    norm = norm(4, eps=1e-3, momentum=0.3, affine=affine)
    if affine:
        with torch.no_grad():
            norm.weight.copy_(torch.tensor([0.5, 2.0, -1.0, 1.5]))
            norm.bias.copy_(torch.tensor([0.0, 1.0, 2.0, -3.0]))
    return nn.Sequential(norm).double()


def data(shape):
    generator = torch.Generator().manual_seed(len(shape))
    # A large mean: one-pass variance formulas would lose it.
    x = 1e3 + torch.randn(shape, generator=generator, dtype=torch.float64)
    return x, torch.randn(shape, generator=generator, dtype=torch.float64)


def pass_through(module, x, g):
    """Two training steps, then eval mode."""
    out = []
    for _ in range(2):
        x = x.detach().requires_grad_()
        y = module(x)
        module.zero_grad()
        y.backward(g)
        out += [y.detach(), x.grad]
    grads = [p.grad.clone() for p in module.parameters()]
    buffers = [b.clone() for b in module.buffers()]
    return out, grads, buffers, module.eval()(x).detach()


def on_ranks(case_list):
    results = []
    rank = distributed.rank()
    rows = slice(0, CUTS[0]) if rank == 0 else slice(CUTS[0], CUTS[1])
    for shape, affine in case_list:
        module = network(shape, affine)
        names = list(module.state_dict())
        synchronise_norms(module)
        assert isinstance(module[0], SyncNorm)
        assert list(module.state_dict()) == names
        x, g = data(shape)
        results.append(pass_through(module, x[rows], g[rows]))
    embedder = build_embedder(EncoderConfig(batch_norm="plain"), 1)
    names = list(embedder.state_dict())
    synchronise_norms(embedder)
    assert list(embedder.state_dict()) == names
    kinds = {type(m) for m in embedder.modules() if "Norm" in type(m).__name__}
    assert kinds == {SyncNorm}, kinds
    low = embedder.encoder.layers.bn1(torch.randn(4, 64, 3, 3).bfloat16())
    assert low.dtype == torch.bfloat16
    return results


CASES = [(shape, affine) for shape in SHAPES for affine in (True, False)]


@pytest.fixture(scope="module")
def ranks():
    return results_of(*start_ranks(2, on_ranks, CASES))


@pytest.mark.parametrize("number", range(len(CASES)), ids=[str(case) for case in CASES])
def test_two_ranks_give_what_one_process_gives(ranks, number):
    shape, affine = CASES[number]
    outputs, grads, buffers, evaluated = pass_through(network(shape, affine), *data(shape))
    found = [rank[number] for rank in ranks]
    for i, expected in enumerate(outputs):
        torch.testing.assert_close(torch.cat([f[0][i] for f in found]), expected)
    for i, expected in enumerate(grads):
        torch.testing.assert_close(sum(f[1][i] for f in found), expected)
    for i, expected in enumerate(buffers):
        torch.testing.assert_close(found[0][2][i], expected)
        assert torch.equal(found[0][2][i], found[1][2][i]), "the ranks' statistics drift apart"
    torch.testing.assert_close(torch.cat([f[3] for f in found]), evaluated)


def test_gradients_are_exact():
    x = torch.randn(5, 3, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *given: _Normalise.apply(*given, 1e-3)[0], (x, weight, bias)
    )


def test_fp32_is_as_exact_as_torchs_own():
    x, g = data((7, 4, 5, 3))
    truth = pass_through(network(x.shape, True), x, g)
    theirs = pass_through(network(x.shape, True).float(), x.float(), g.float())
    plain = network(x.shape, True).float()
    ours = SyncNorm(4, eps=1e-3, momentum=0.3)
    ours.load_state_dict(plain[0].state_dict())
    ours = pass_through(ours, x.float(), g.float())
    for own, other, exact in zip(ours, theirs, truth, strict=True):
        for a, b, c in zip(*(v if isinstance(v, list) else [v] for v in (own, other, exact)),
                           strict=True):  # fmt: skip
            errors = [float((v.double() - c.double()).norm()) for v in (a, b)]
            assert errors[0] <= 2 * errors[1] + 1e-12


def test_one_process_keeps_its_norms():
    module = network(SHAPES[0], True)
    synchronise_norms(module)
    assert type(module[0]) is nn.BatchNorm1d


def test_refuses_what_has_no_statistics():
    norm = SyncNorm(4)
    with pytest.raises(ValueError, match="2 or more values"):
        norm(torch.randn(1, 4))
    with pytest.raises(ValueError, match=r"must be \(B, C"):
        norm(torch.randn(4))


def test_cumulative_average():
    ours, theirs = SyncNorm(4, momentum=None), nn.BatchNorm1d(4, momentum=None)
    for _ in range(3):
        x = torch.randn(6, 4)
        ours(x), theirs(x)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
