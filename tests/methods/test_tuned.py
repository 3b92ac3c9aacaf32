"""Encoders that are held still or trained slowly, and the features that are kept of them."""

import numpy as np
import pytest
import torch

from selftaught import methods
from selftaught.data.plan import draw, finetune_augment
from selftaught.models.network import Network
from selftaught.training import kept_features
from selftaught.training.ddp import TorchEngine
from selftaught.training.frozen import Features
from tests import thin
from tests.methods import runs, starts


@pytest.fixture(autouse=True)
def thin_encoder():
    torch.set_num_threads(1)
    with thin.patch():
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return runs.write(tmp_path_factory.mktemp("images"))


def task(name="classifier", images=32, **options):
    network = Network(image_size=32, images=images, seed=5)
    return methods.load(name)(runs.small_options(name, **options), network)


def batch(task):
    return starts.Start(task, 32).batch(range(8))


def stepped(way, **more):
    """The state before and after three steps of a classifier whose linear layer is no zero."""
    made = task(encoder=way, **more)
    torch.nn.init.ones_(made.net.weight)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    engine = TorchEngine(made, weight_decay=0.1, optimizer="sgd")
    for _ in range(3):
        engine.backward(engine.forward(batch(made))["loss"], 1)
        engine.step(0.01)
    return before, made.state_dict()


def test_a_held_encoder_does_not_change_by_a_bit_and_a_slow_one_keeps_its_statistics():
    for way in ("head", "all", "full"):
        before, after = stepped(way)
        same = {name: torch.equal(before[name], value) for name, value in after.items()}
        body = {name: one for name, one in same.items() if ".encoder." in name}
        statistics = [one for name, one in body.items() if "running_" in name]
        weights = [one for name, one in body.items() if name.endswith("conv1.weight")]
        assert statistics and weights and not same["net.weight"]
        assert all(statistics) if way != "full" else not any(statistics)
        assert all(body.values()) if way == "head" else not any(weights)


def test_a_slow_encoder_has_a_tenth_of_the_heads_rate():
    made = task(encoder="all")
    torch.nn.init.ones_(made.net.weight)
    engine = TorchEngine(made, weight_decay=0.0, optimizer="sgd")
    before = {name: value.detach().clone() for name, value in made.named_parameters()}
    engine.backward(engine.forward(batch(made))["loss"], 1)
    slopes = {name: value.grad.clone() for name, value in made.named_parameters()}
    engine.step(0.5)
    for name, value in made.named_parameters():
        rate = 0.05 if ".encoder." in name else 0.5
        torch.testing.assert_close(value.detach(), before[name] - rate * slopes[name])


def test_auto_holds_the_encoder_where_images_are_few():
    ways = [task(encoder="auto", images=images).way for images in (1999, 2000)]
    assert ways == ["head", "all"]


@pytest.mark.parametrize("name", ["spheres", "soel", "classifier", "supervised", "relative"])
def test_features_stand_for_the_views_they_are_of(name):
    made = task(name, encoder="head", alpha=0.1)
    made.begin(starts.Start(made, 32))
    views = batch(made)
    with torch.no_grad():
        features = made.frozen()(views["views"][:, 0])
    kept = {k: v for k, v in views.items() if k not in ("views", "masks")} | {"features": features}
    torch.testing.assert_close(made(kept)["loss"], made(views)["loss"])


def test_batch_statistics_that_are_kept_are_not_recalibrated():
    with pytest.raises(ValueError, match="recalibrate is 8; allowed: 0 with encoder head"):
        methods.options("spheres", encoder="head", recalibrate=8)


def test_dropout_is_a_function_of_seed_epoch_and_image_and_keeps_the_mean():
    made = task(dropout=0.25, encoder="head", features="h")
    ones = {"features": torch.ones(2000, thin.WIDTH), "ids": torch.arange(2000), "epoch": 1}
    h = made.embed(ones)[0]
    assert h.unique().tolist() == pytest.approx([0.0, 1 / 0.75]) and abs(float(h.mean()) - 1) < 0.01
    some = {"features": ones["features"][:3], "ids": torch.tensor([7, 3, 1999]), "epoch": 1}
    assert torch.equal(made.embed(some)[0], h[[7, 3, 1999]])
    assert not torch.equal(made.embed(some | {"epoch": 2})[0], h[[7, 3, 1999]])
    assert torch.equal(made.eval().embed(ones)[0], ones["features"])


def test_kept_features_are_mirrored_as_views_are_and_stand_in_for_bad_files():
    rows = np.array([2, 3, 5, 8])
    kept = {"row": torch.from_numpy(rows), "plain": torch.rand(4, 3), "mirrored": torch.rand(4, 3)}
    augment = finetune_augment()
    features = Features(
        kept, augment=augment, seed=4, stage="finetune", others=lambda epoch, one: [one, 7, 5, 2]
    )
    asked = np.array([8, 2, 3, 5] * 8)
    ((got, ids, _),) = features.batches([(6, asked)])
    drawn = draw(augment, seed=4, stage="finetune", epoch=6, samples=asked, views=1)[:, 0, 0] == 1
    assert drawn.any() and not drawn.all() and ids.tolist() == asked.tolist()
    for row, image, turned in zip(got, asked, drawn, strict=True):
        assert torch.equal(row, kept["mirrored" if turned else "plain"][rows.tolist().index(image)])
    ((_, ids, _),) = features.batches([(0, np.array([8, 7, 3]))])
    assert ids.tolist() == [8, 5, 3]


class Killed(Exception):
    pass


HELD = {"encoder": "head", "lr": 1e-2, "dropout": 0.5, "optimizer": "sgd"}


def test_a_run_killed_while_features_are_computed_goes_on_with_those_it_has(
    root, tmp_path, monkeypatch
):
    monkeypatch.setattr(kept_features, "PART", 8)
    whole = runs.train(root, tmp_path / "whole", "classifier", **HELD)

    def kill(event, **facts):
        if event == "batch" and facts["name"] == "features":
            seen.append(facts["number"])
            if len(seen) == 4:
                raise Killed

    seen = []
    with pytest.raises(Killed):
        runs.train(root, tmp_path / "killed", "classifier", on_event=kill, **HELD)
    parts = list((tmp_path / "killed").glob("features/*/*.safetensors"))
    assert len(parts) == 1
    written = parts[0].stat().st_mtime_ns
    seen = [0] * 9
    again = runs.train(root, tmp_path / "killed", "classifier", on_event=kill, **HELD)
    assert parts[0].stat().st_mtime_ns == written and 9 < len(seen) < 9 + 6
    assert all(torch.equal(whole.weights[key], value) for key, value in again.weights.items())
