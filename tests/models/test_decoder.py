"""The decoder's shapes and weights, and errors that look inside masks alone."""

import pytest
import torch

from selftaught import distributed
from selftaught.models.decoder import (
    Decoder,
    FeatureMap,
    feature_side,
    masked_mse,
    reconstruction_error,
)
from selftaught.models.encoder import EncoderConfig
from selftaught.models.fresh import fresh_weights
from selftaught.models.heads import build_embedder
from tests.ranks import run_ranks


def parameters(module):
    return sum(one.numel() for one in module.parameters())


def test_the_published_number_of_parameters():
    with torch.device("meta"):
        assert parameters(Decoder(512, 512)) == 9_752_640
        assert parameters(Decoder(512, 28, stem="small")) == 9_752_640
        assert (
            parameters(Decoder(2048, 64)) == 27 * 2048**2 * 85 // 64 + 2 * 2048**2 * 43 // 64 + 256
        )


@pytest.mark.parametrize(
    ("size", "stem", "side"),
    [(512, "imagenet", 16), (64, "imagenet", 2), (50, "imagenet", 2), (32, "imagenet", 1),
     (28, "small", 4), (32, "small", 4)],
)  # fmt: skip
@pytest.mark.parametrize("output", ["sigmoid", "tanh"])
def test_an_image_as_large_as_the_encoders(size, stem, side, output):
    assert feature_side(size, stem) == side
    with torch.device("meta"):
        result = Decoder(64, size, stem=stem, output=output)(torch.zeros(2, 64, side, side))
    assert result.shape == (2, 1, size, size)


def test_the_output_has_the_range_of_its_last_function():
    x = 50 * torch.randn(4, 64, 2, 2, generator=torch.Generator().manual_seed(0))
    for output, low in (("sigmoid", 0), ("tanh", -1)):
        with fresh_weights(0):
            result = Decoder(64, 64, output=output)(x)
        assert low <= result.min() < low + 0.3 and 0.7 < result.max() <= 1


def test_every_parameter_gets_a_gradient():
    x = torch.randn(4, 64, 2, 2)
    for stem, size in (("imagenet", 64), ("small", 16)):
        decoder = Decoder(64, size, stem=stem)
        decoder(x).square().sum().backward()
        assert all(one.grad.abs().sum() > 0 for one in decoder.parameters())


def test_weights_depend_on_the_seed_and_the_part_alone():
    def draw(*arguments):
        with fresh_weights(*arguments):
            return torch.randn(5)

    before = torch.get_rng_state()
    first = draw(1, "decoder")
    torch.manual_seed(5)
    assert torch.equal(draw(1, "decoder"), first)
    others = [draw(1), draw(2, "decoder"), draw(1, "branch")]
    assert not any(torch.equal(first, one) for one in others)
    torch.set_rng_state(before)
    draw(3)
    assert torch.equal(torch.get_rng_state(), before)
    encoder = build_embedder(EncoderConfig(), 1).encoder
    with fresh_weights(1):
        assert torch.equal(
            next(encoder.parameters()), next(build_embedder(EncoderConfig(), 1).parameters())
        )


def test_places_differ_by_the_position_map_alone():
    z = torch.randn(3, 4)
    with fresh_weights(0):
        plain, placed = (FeatureMap((8, 6, 4), 5, position=one) for one in (False, True))
    assert torch.equal(plain(z), plain(z)[:, :, :1, :1].expand(3, 8, 5, 5))
    moved = placed(z) - placed(z)[:, :, :1, :1]
    torch.testing.assert_close(moved[0], moved[1])
    assert float(placed.position.detach().std()) == pytest.approx(0.02, rel=0.2)
    assert parameters(placed) == parameters(plain) + 8 * 5 * 5


def images(seed=0, count=6, side=8):
    generator = torch.Generator().manual_seed(seed)
    x, x_hat, mask = torch.rand(3, count, 1, side, side, generator=generator, dtype=torch.float64)
    mask[:, :, : side // 2] = 0
    # The body part of every image is smaller than that of the one before.
    return x_hat, x * (mask > 0), mask * torch.linspace(1, 0.1, count).view(-1, 1, 1, 1)


def test_the_masked_error_by_hand():
    x_hat, x, mask = images()
    expected = (mask * (x_hat - x) ** 2).sum() / mask.sum()
    torch.testing.assert_close(masked_mse(x_hat, x, mask), expected)
    weights = torch.tensor([1, 0, 2, 0, 0, 1])
    expected = (weights.view(-1, 1, 1, 1) * mask * (x_hat - x) ** 2).sum() / mask.sum()
    torch.testing.assert_close(masked_mse(x_hat, x, mask, weights), expected)
    assert masked_mse(x_hat, x, torch.zeros_like(mask)) == 0
    each = (mask * (x_hat - x) ** 2).sum((1, 2, 3))
    torch.testing.assert_close(reconstruction_error(x_hat, x, mask), each / mask.sum((1, 2, 3)))
    torch.testing.assert_close(reconstruction_error(x_hat, x, mask, "frame"), each / 64)


def test_what_is_outside_the_mask_changes_nothing():
    x_hat, x, mask = images()
    elsewhere = torch.where(mask == 0, x_hat + 9, x_hat).requires_grad_()
    assert torch.equal(masked_mse(elsewhere, x, mask), masked_mse(x_hat, x, mask))
    for over in ("mask", "frame"):
        result = [reconstruction_error(one, x, mask, over) for one in (elsewhere, x_hat)]
        assert torch.equal(*result)
    (gradient,) = torch.autograd.grad(masked_mse(elsewhere, x, mask), elsewhere)
    assert ((gradient != 0) == (mask != 0)).all()


def test_errors_are_single_precision_under_autocast():
    x_hat, x, mask = (one.float() for one in images())
    with torch.autocast("cpu", torch.bfloat16):
        low = masked_mse(x_hat.bfloat16(), x, mask)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, masked_mse(x_hat.bfloat16().float(), x, mask))


def loss_and_gradient():
    """The loss over all ranks, and the mean over ranks of each one's gradient, in rank order."""
    ranks, rank = distributed.world_size(), distributed.rank()
    x_hat, x, mask = (one.chunk(ranks)[rank] for one in images())
    weights = torch.tensor([1, 0, 1, 1, 1, 0]).chunk(ranks)[rank]
    x_hat = x_hat.clone().requires_grad_()
    results = []
    for given in (None, weights):
        loss = masked_mse(x_hat, x, mask, given)
        (gradient,) = torch.autograd.grad(loss, x_hat)
        loss = distributed.gather(loss.detach()[None]).mean()
        results += [loss.numpy(), distributed.gather(gradient).numpy() / ranks]
    return results


def test_two_ranks_have_the_loss_and_gradient_of_one():
    one, two = loss_and_gradient(), run_ranks(2, loss_and_gradient)
    for rank in two:
        for left, right in zip(one, rank, strict=True):
            torch.testing.assert_close(torch.tensor(right), torch.tensor(left))


def test_a_linear_autoencoder_leaves_the_smallest_eigenvalues_inside_the_mask():
    generator = torch.Generator().manual_seed(0)
    scales = torch.linspace(2, 0.2, 16, dtype=torch.float64)
    pixels = torch.randn(60, 16, generator=generator, dtype=torch.float64) * scales
    pixels -= pixels.mean(0)
    mask = torch.ones(60, 16, dtype=torch.float64)
    mask[:, ::4] = 0
    pixels *= mask
    x, region = (one.view(60, 1, 4, 4) for one in (pixels, mask))
    encode, decode = (
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((16, 3), (3, 16))
    )
    optimizer = torch.optim.LBFGS(
        [encode, decode], max_iter=300, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss():
        optimizer.zero_grad()
        value = masked_mse((pixels @ encode @ decode).view_as(x), x, region)
        value.backward()
        return value

    optimizer.step(loss)
    eigenvalues = torch.linalg.eigvalsh(pixels.T @ pixels / 60)
    # 12 pixels are inside: 3 directions are kept, and of the other 9 the variance is left.
    torch.testing.assert_close(loss().detach(), eigenvalues[:-3].sum() / 12, rtol=1e-7, atol=0)
