"""The losses built on tiled passes equal the formulas, in value and in every gradient."""

import pytest
import torch

from selftaught.kernels.contrastive import Contrastive
from selftaught.kernels.reference import contrastive as reference
from selftaught.kernels.reference.tiles import EagerTiles
from tests.losses.formulas import relative_error, views

TAU = torch.tensor(0.3, dtype=torch.float64)
TILED = Contrastive(EagerTiles())
LAST = (True, "auto")


def case(name: str, images: int):
    """Op, its arguments, and how many of its inputs may need a gradient."""
    z1, z2 = views(images, 7, 0.4)
    negatives = views(5, 7, 0.4, seed=3)[0]
    z = torch.cat([z1, z2])
    classes = torch.arange(images) % 3
    ragged = torch.arange(2 * images) % 5  # not the two views of an image, and some alone
    return {
        "ntxent": ("ntxent", (z, TAU, 0.0, *LAST), 2),
        "ntxent, raw": ("ntxent", (z, None, 0.9, False, "auto"), 2),
        "supcon": ("supcon", (z, classes.repeat(2), TAU, 0.0, True, *LAST), 2),
        "supcon, no classes": (
            "supcon",
            (z, torch.arange(images).repeat(2), TAU, 0, True, *LAST),
            2,
        ),
        "supcon, unpaired": ("supcon", (z, ragged, TAU, 0.0, False, *LAST), 2),
        "info_nce": ("info_nce", (z1, z2, None, TAU, 0.0, False, True, *LAST), 4),
        "info_nce, more": ("info_nce", (z1, z2, negatives, TAU, 0.0, False, True, *LAST), 4),
        "queue alone": ("info_nce", (z1, z2, negatives, TAU, 0.0, False, False, *LAST), 4),
        "no queue": ("info_nce", (z1, z2, None, TAU, 0.0, False, False, *LAST), 4),
        "clip": ("info_nce", (z1, z2, None, TAU, 0.0, True, True, False, "auto"), 4),
    }[name]


NAMES = (
    "ntxent",
    "ntxent, raw",
    "supcon",
    "supcon, no classes",
    "supcon, unpaired",
    "info_nce",
    "info_nce, more",
    "queue alone",
    "no queue",
    "clip",
)


@pytest.mark.parametrize("images", [1, 2, 9])
@pytest.mark.parametrize("name", NAMES)
def test_equal_to_the_formulas(name, images):
    op, arguments, many = case(name, images)
    expected = getattr(reference, op)(*arguments)
    loss = getattr(TILED, op)(*arguments)
    torch.testing.assert_close(loss, expected, rtol=1e-11, atol=1e-13)
    grad = torch.linspace(-0.5, 1.5, len(loss), dtype=loss.dtype)
    needs = [True] * many
    wanted = getattr(reference, f"{op}_backward")(grad, *arguments, expected, needs)
    found = getattr(TILED, f"{op}_backward")(grad, *arguments, loss, needs)
    for value, truth in zip(found, wanted, strict=True):
        assert value.shape == truth.shape
        torch.testing.assert_close(value, truth, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_only_what_is_needed(name):
    """Asking for fewer gradients changes none of those asked for."""
    op, arguments, many = case(name, 4)
    loss = getattr(TILED, op)(*arguments)
    backward = getattr(TILED, f"{op}_backward")
    everything = backward(torch.ones_like(loss), *arguments, loss, [True] * many)
    for position in range(many):
        needs = [place == position for place in range(many)]
        found = backward(torch.ones_like(loss), *arguments, loss, needs)
        for place, (value, whole) in enumerate(zip(found, everything, strict=True)):
            torch.testing.assert_close(value, whole if place == position else value[:0])


@pytest.mark.parametrize("name", ["ntxent", "supcon, no classes", "clip"])
def test_small_losses_keep_their_digits(name):
    op, arguments, many = case(name, 8)
    arguments = [*arguments]
    if op == "info_nce":
        query = torch.nn.functional.normalize(arguments[0])
        key = torch.nn.functional.normalize(arguments[0] + 1e-3 * arguments[1])
        arguments[:2] = query, key
    else:
        first, second = arguments[0].chunk(2)
        arguments[0] = torch.cat([first, first + 1e-3 * second])
    place = {"ntxent": 1, "supcon": 2, "info_nce": 3}[op]
    arguments[place] = torch.tensor(0.04, dtype=torch.float64)
    low = [
        a.float() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments
    ]
    high = [
        a.double() if isinstance(a, torch.Tensor) and a.dtype == torch.float32 else a for a in low
    ]
    truth = getattr(reference, op)(*high)
    loss = getattr(TILED, op)(*low)
    assert float(truth.median()) < 1e-3
    assert float(((loss - truth) / truth).abs().max()) < 2e-5
    wanted = getattr(reference, f"{op}_backward")(
        torch.ones_like(truth), *high, truth, [True] * many
    )
    found = getattr(TILED, f"{op}_backward")(torch.ones_like(loss), *low, loss, [True] * many)
    for value, expected in zip(found, wanted, strict=True):
        if expected.numel():
            assert relative_error(value, expected) < 5e-5
