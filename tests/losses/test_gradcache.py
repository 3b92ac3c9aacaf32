"""Chunked batches give the gradient of the whole batch, with all its negatives."""

import pytest
import torch
from torch import nn

from selftaught.losses import NTXentLoss, cached_backward, info_nce_loss
from tests.losses.formulas import views


def encoder(*extra: nn.Module) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(17, 12), nn.Tanh(), *extra, nn.Linear(12, 8)).double()


def gradients(*modules: nn.Module) -> list[torch.Tensor]:
    found = [p.grad.clone() for module in modules for p in module.parameters()]
    for module in modules:
        module.zero_grad()
    return found


@pytest.mark.parametrize("chunk_size", [1, 4, 7, 100])
def test_equals_the_whole_batch(chunk_size):
    model, loss = encoder(), NTXentLoss(nn.Parameter(torch.tensor(0.2).double()))
    x = views(11, 17, 0.5)
    expected = loss(model(x[0]), model(x[1]))
    expected.backward()
    whole = gradients(model, loss)
    value = cached_backward(model, x, loss, chunk_size=chunk_size)
    torch.testing.assert_close(value, expected.detach())
    assert not value.requires_grad
    torch.testing.assert_close(gradients(model, loss), whole)


def test_differs_from_accumulation():
    model, loss = encoder(), NTXentLoss(0.2)
    x = views(8, 17, 0.5)
    for half in (slice(0, 4), slice(4, 8)):
        (loss(model(x[0][half]), model(x[1][half])) / 2).backward()
    accumulated = gradients(model)
    cached_backward(model, x, loss, chunk_size=4)
    assert (gradients(model)[0] - accumulated[0]).abs().max() > 1e-3


def test_views_of_different_length():
    model = encoder()
    query, key = views(6, 17, 0.5)
    queue = views(9, 17, 0.5, seed=5)[0]

    def loss(q, k, n):
        return info_nce_loss(q, k, negatives=n)

    loss(model(query), model(key), model(queue)).backward()
    whole = gradients(model)
    cached_backward(model, [query, key, queue], loss, chunk_size=4)
    torch.testing.assert_close(gradients(model), whole)


def test_dropout_draws_the_same_mask_twice_and_the_stream_goes_on():
    model, loss = encoder(nn.Dropout(0.5)), NTXentLoss(0.2)
    x = views(6, 17, 0.5)
    torch.manual_seed(11)
    halves = [model(part) for view in x for part in view.split(3)]
    after = torch.rand(1)
    loss(torch.cat(halves[:2]), torch.cat(halves[2:])).backward()
    expected = gradients(model)
    torch.manual_seed(11)
    cached_backward(model, x, loss, chunk_size=3)
    torch.testing.assert_close(gradients(model), expected)
    assert torch.equal(torch.rand(1), after)


def test_batch_norm_moves_once_for_each_chunk():
    model, twin, loss = encoder(nn.BatchNorm1d(12)), encoder(nn.BatchNorm1d(12)), NTXentLoss()
    x = views(8, 17, 0.5)
    cached_backward(model, x, loss, chunk_size=4)
    for view in x:
        for part in view.split(4):
            twin(part)
    assert int(model[2].num_batches_tracked) == 4
    torch.testing.assert_close(model.state_dict(), twin.state_dict())


def test_autocast():
    model, loss = encoder().float(), NTXentLoss(0.2)
    x = [v.float() for v in views(6, 17, 0.5)]
    with torch.autocast("cpu", torch.bfloat16):
        loss(model(x[0]), model(x[1])).backward()
    expected = gradients(model)
    with torch.autocast("cpu", torch.bfloat16):
        cached_backward(model, x, loss, chunk_size=2)
    torch.testing.assert_close(gradients(model), expected, rtol=0.05, atol=2e-3)


def test_scaler_scales_gradients_only():
    class Scaler:
        def scale(self, loss):
            return 8 * loss

    model, loss = encoder(), NTXentLoss()
    x = views(6, 17, 0.5)
    value = cached_backward(model, x, loss, chunk_size=2)
    plain = gradients(model)
    assert torch.equal(cached_backward(model, x, loss, chunk_size=2, scaler=Scaler()), value)
    torch.testing.assert_close(gradients(model), [8 * g for g in plain])


def test_wrong_arguments_are_named():
    x = views(6, 17, 0.5)
    with pytest.raises(ValueError, match="chunk_size: must be 1 or more, got 0"):
        cached_backward(encoder(), x, NTXentLoss(), chunk_size=0)
    with pytest.raises(ValueError, match="views: need rows"):
        cached_backward(encoder(), [x[0], x[1][:0]], NTXentLoss(), chunk_size=2)
