"""ARAE: perturbations within their limits, and the loss by hand."""

import pytest
import torch
from torch import nn

from selftaught import methods
from selftaught.methods import noise
from selftaught.methods.arae import Arae
from selftaught.methods.joint_autoencoder import JointAutoencoder
from selftaught.models.network import Network
from tests import thin
from tests.methods.starts import Start

SIZE = 32


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def task_of(kind=Arae, name="arae", **options):
    with thin.patch():
        task = kind(methods.options(name, **options), Network(image_size=SIZE, seed=4))
    return task.double()


def batch_of(labels=(0, -1, 1, 0, 0, -1)):
    batch = Start(None, SIZE).batch(range(len(labels)))
    doubles = {name: batch[name].double() for name in ("views", "masks")}
    return batch | doubles | {"semi_label": torch.tensor(labels)}


@pytest.mark.parametrize("known_abnormal", ["left_out", "reconstructed"])
def test_without_perturbation_it_is_the_plain_autoencoder(known_abnormal):
    plain = task_of(JointAutoencoder, "joint-ae", known_abnormal=known_abnormal)
    task, batch = task_of(epsilon=0.0, known_abnormal=known_abnormal), batch_of()
    outputs, expected = task(batch), plain(batch)
    torch.testing.assert_close(outputs["loss"], expected["loss"], rtol=1e-9, atol=0)
    assert float(outputs["feature_difference"]) == 0
    for one in (outputs, expected):
        one["loss"].backward()
    for (name, ours), theirs in zip(task.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-12, msg=name)


def test_perturbations_are_as_large_as_allowed_and_inside_masks():
    task, batch = task_of(epsilon=0.03), batch_of()
    images, masks = batch["views"][:, 0], batch["masks"][:, 0]
    delta = task.perturb(batch) - images
    assert float(delta.abs().max()) == pytest.approx(0.03, rel=1e-12)
    assert not (delta * (1 - masks)).any()
    # From uniform noise a step of 1.25 epsilon gets to the limit with probability 1.25 / 2.
    free = (masks > 0) & (images > 0.03) & (images < 0.97)
    share = ((delta[free].abs() - 0.03).abs() < 1e-9).double().mean()
    assert free.sum() > 1000 and float(share) == pytest.approx(0.625, abs=0.05)
    moved = images + delta
    assert moved.min() >= 0 and moved.max() <= 1
    assert torch.equal(task.perturb(batch), moved), "the noise is that of epoch and image"
    assert not torch.equal(task.perturb(batch | {"epoch": 1}), moved)


class Filters(nn.Module):
    """Features that are linear in the images."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.weight = torch.randn(4, 1, 3, 3, generator=generator, dtype=torch.float64)

    def parts(self, images):
        return torch.conv2d(images, self.weight), None, None


def test_the_step_goes_up_the_difference_of_the_features():
    task, batch = task_of(epsilon=0.1), batch_of()
    task.embedder = Filters()
    images, masks = batch["views"][:, 0], batch["masks"][:, 0]
    drawn = noise.uniform(4, 0, batch["ids"], (1, SIZE, SIZE)).double()
    delta = 0.1 * (2 * drawn - 1) * masks
    start = (images + delta).clamp(0, 1)
    weight = task.embedder.weight
    slope = torch.conv_transpose2d(torch.conv2d(start - images, weight), weight)
    expected = (delta + 0.125 * slope.sign()).clamp(-0.1, 0.1) * masks
    moved = task.perturb(batch)
    torch.testing.assert_close(moved, (images + expected).clamp(0, 1))
    before, after = (torch.conv2d(one - images, weight).norm() for one in (start, moved))
    assert after > 1.5 * before


def test_the_step_leaves_no_trace_in_the_network():
    task = task_of()
    task.perturb(batch_of())
    assert all(module.training for module in task.modules())
    assert all(parameter.grad is None for parameter in task.parameters())
    assert all(int(v) == 0 for k, v in task.named_buffers() if k.endswith("batches_tracked"))


@pytest.mark.parametrize("target", ["clean", "adversarial"])
def test_the_loss_by_hand(target):
    options = {"target": target, "epsilon": 0.2, "consistency": 0.7}
    task, again, batch = task_of(**options), task_of(**options), batch_of()
    images, masks = batch["views"][:, 0], batch["masks"][:, 0]
    moved = again.perturb(batch)
    features = again.embedder.parts(torch.cat([images, moved]))[0]
    decoded = again.decoder(features[6:])
    wanted = images if target == "clean" else moved
    errors, area, difference = 0.0, 0.0, 0.0
    for row, label in enumerate(batch["semi_label"].tolist()):
        if label != -1:
            errors += (masks[row] * (decoded[row] - wanted[row]) ** 2).sum()
            area += masks[row].sum()
            difference += ((features[6 + row] - features[row]) ** 2).mean() / 6
    outputs = task(batch)
    torch.testing.assert_close(outputs["loss"], errors / area + 0.7 * difference)
    for (name, ours), theirs in zip(task.named_buffers(), again.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)


def test_a_batch_of_known_abnormal_images_teaches_nothing():
    task = task_of()
    loss = task(batch_of([-1] * 6))["loss"]
    loss.backward()
    assert loss.item() == 0 and not any(p.grad.any() for p in task.parameters())
