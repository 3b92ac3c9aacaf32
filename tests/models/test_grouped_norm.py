"""Batch norm by groups against torch's of each group, in float64, on one process and on two."""

import pytest
import torch
from torch import nn

from selftaught import distributed
from selftaught.models.encoder import EncoderConfig
from selftaught.models.grouped_norm import GroupedNorm, Groups, group_norms
from selftaught.models.heads import build_embedder
from tests import thin
from tests.ranks import run_ranks

ROWS, SIZE = 12, 3
SHUFFLED = torch.randperm(ROWS, generator=torch.Generator().manual_seed(4))


def data():
    generator = torch.Generator().manual_seed(1)
    # A large mean: squares summed in float32 would lose it.
    x = 30 + torch.randn(ROWS, 4, 5, 3, generator=generator, dtype=torch.float64)
    return x, torch.randn(x.shape, generator=generator, dtype=torch.float64)


def norm_of(affine=True):
    norm = nn.BatchNorm2d(4, momentum=0.3, affine=affine).double()
    if affine:
        with torch.no_grad():
            norm.weight.copy_(torch.tensor([0.5, 2.0, -1.0, 1.5]))
            norm.bias.copy_(torch.tensor([0.0, 1.0, 2.0, -3.0]))
    return norm


def grouped(norm):
    groups, holder = Groups(), nn.Sequential(norm)
    group_norms(holder, groups)
    assert isinstance(holder[0], GroupedNorm)
    return holder, groups


def training_pass(x, g, places, affine=True):
    """Output, its gradients and the buffers after a training step of this rank's rows."""
    module, groups = grouped(norm_of(affine))
    x = x.clone().requires_grad_()
    with groups.split(places, SIZE):
        y = module(x)
    y.backward(g)
    return y.detach(), x.grad, [p.grad for p in module.parameters()], list(module.buffers())


def by_hand(places, affine=True):
    """The same by torch's batch norm: rows sent to their places, each group apart, sent back."""
    (x, g), norm = data(), norm_of(affine)
    x.requires_grad_()
    back = places.argsort()
    apart = [norm_of(affine) for _ in range(ROWS // SIZE)]
    parts = [one(part) for one, part in zip(apart, x[back].chunk(len(apart)), strict=True)]
    y = torch.cat(parts)[places]
    y.backward(g)
    grads = [
        sum(p.grad for p in same) for same in zip(*(one.parameters() for one in apart), strict=True)
    ]
    means = [sum(b) / len(b) for b in zip(*(one.buffers() for one in apart), strict=True)]
    assert len(grads) == len(list(norm.parameters()))
    return y.detach(), x.grad, grads, means


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("places", [torch.arange(ROWS), SHUFFLED], ids=["in order", "shuffled"])
def test_each_group_has_its_own_statistics_wherever_its_rows_stand(places, affine):
    found, wanted = training_pass(*data(), places, affine), by_hand(places, affine)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, check_dtype=False)


def on_rank():
    x, g = (one.chunk(2)[distributed.rank()] for one in data())
    return training_pass(x, g, SHUFFLED)


def test_groups_reach_over_ranks():
    whole, ranks = training_pass(*data(), SHUFFLED), run_ranks(2, on_rank)
    for part in (0, 1):
        torch.testing.assert_close(torch.cat([rank[part] for rank in ranks]), whole[part])
    for one, other, both in zip(ranks[0][2], ranks[1][2], whole[2], strict=True):
        torch.testing.assert_close(one + other, both)
    for rank in ranks:
        torch.testing.assert_close(rank[3], whole[3])


def test_outside_training_and_outside_a_split_it_is_plain_batch_norm():
    (module, groups), (x, _) = grouped(norm_of()), data()
    plain = norm_of()
    torch.testing.assert_close(module(x), plain(x))  # all rows are one group
    torch.testing.assert_close(list(module.buffers()), list(plain.buffers()))
    module[0].load_state_dict(plain.state_dict())
    module.eval(), plain.eval()
    with groups.split(SHUFFLED, SIZE):
        assert torch.equal(module(x), plain(x)), "shuffling changes nothing in eval mode"


@pytest.mark.parametrize(
    ("rows", "size", "counts"),
    [(12, 4, [4, 4, 4]), (11, 4, [6, 5]), (8, 8, [4, 4]), (3, 8, [3]), (5, 1, [1] * 5)],
)
def test_groups_are_of_the_size_asked_for_or_larger_and_two_where_rows_allow(rows, size, counts):
    groups = Groups()
    with groups.split(torch.arange(rows), size):
        members = groups.members(torch.empty(rows, 2))
        assert members.sum(0).tolist() == counts and bool((members.sum(1) == 1).all())
    assert groups.members(torch.empty(7, 2)).shape == (7, 1)


def test_a_group_without_statistics_is_refused():
    norm, groups = grouped(nn.BatchNorm1d(3))
    with groups.split(torch.arange(4), 1), pytest.raises(ValueError, match="2 or more values"):
        norm(torch.randn(4, 3))


def test_names_and_precision_stay():
    with thin.patch():
        embedder = build_embedder(EncoderConfig(), 1)
    state = embedder.state_dict()
    group_norms(embedder, Groups())
    assert embedder.state_dict().keys() == state.keys()
    assert not any(isinstance(one, nn.BatchNorm2d) for one in embedder.modules())
    low = embedder.encoder.layers.bn1(torch.randn(4, 64, 3, 3).bfloat16())
    assert low.dtype == torch.bfloat16
