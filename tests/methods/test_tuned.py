"""Encoders that are held still or trained slowly, and the features that are kept of them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from selftaught import methods
from selftaught.data.plan import finetune_augment, plain
from selftaught.models.encoder import EncoderConfig
from selftaught.models.network import Network
from selftaught.training import kept_features
from selftaught.training.bad_files import BadFiles, SkippedWarning
from selftaught.training.ddp import TorchEngine
from selftaught.training.kept_features import KeptViews
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


@pytest.mark.parametrize("way", ["full", "all"])
def test_training_sees_one_side_of_an_image_whatever_evaluation_sees(way):
    sides = EncoderConfig(mirror=True)
    network = Network(encoder=sides, image_size=32, images=32, seed=5)
    both = methods.load("classifier")(runs.small_options("classifier", encoder=way), network)
    one, losses = task(encoder=way), []
    for made in (one, both):
        made.load_state_dict(one.state_dict())
        torch.nn.init.ones_(made.net.weight)
        losses.append(made(batch(made))["loss"])
    assert torch.equal(*losses)


def test_a_full_encoder_learns_by_its_forward_which_may_be_compiled():
    made, calls = task("spheres", encoder="full"), []
    made.begin(starts.Start(made, 32))
    forward = made.backbone().forward
    made.backbone().forward = lambda x: calls.append(len(x)) or forward(x)
    made(batch(made))
    assert calls == [8]


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
    kept = views | {"views": features[:, None], "masks": None}
    torch.testing.assert_close(made(kept)["loss"], made(views)["loss"])


def test_batch_statistics_that_are_kept_are_not_recalibrated():
    with pytest.raises(ValueError, match="recalibrate is 8; allowed: 0 with encoder head"):
        methods.options("spheres", encoder="head", recalibrate=8)


def test_dropout_is_a_function_of_seed_epoch_and_image_and_keeps_the_mean():
    made = task(dropout=0.25, encoder="head", features="h")
    ones = {"views": torch.ones(2000, 1, thin.WIDTH), "ids": torch.arange(2000), "epoch": 1}
    h = made.embed(ones)[0]
    assert h.unique().tolist() == pytest.approx([0.0, 1 / 0.75]) and abs(float(h.mean()) - 1) < 0.01
    some = {"views": ones["views"][:3], "ids": torch.tensor([7, 3, 1999]), "epoch": 1}
    assert torch.equal(made.embed(some)[0], h[[7, 3, 1999]])
    assert not torch.equal(made.embed(some | {"epoch": 2})[0], h[[7, 3, 1999]])
    assert torch.equal(made.eval().embed(ones)[0], ones["views"][:, 0])


class HalfMean(torch.nn.Module):
    """Features that tell an image from its mirror image: the mean, and that of its left half."""

    def __init__(self, mirror=False, factor=1.0):
        super().__init__()
        self.config = EncoderConfig(mirror=mirror)
        self.factor = torch.nn.Parameter(torch.tensor(factor), requires_grad=False)

    def pooled(self, images):
        halves = (images, images[..., :16])
        return self.factor * torch.stack([one.mean((1, 2, 3)) for one in halves], 1)


def test_kept_features_are_of_the_views_that_images_would_have(root, tmp_path):
    rows, module = np.array([2, 3, 5, 8]), HalfMean()
    mirror = replace(plain(finetune_augment()), horizontal_flip=0.5)
    with runs.opened(root, tmp_path, "classifier") as run:
        kept = KeptViews(run, "finetune", module, mirror, rows)
        images = run.images.open("finetune", mirror, views=1)
        for epoch in (0, 6):
            asked = np.array([8, 2, 3, 5, 5, 3])
            ((features, _, ids, _),) = kept.batches([(epoch, asked)])
            ((views, _, _, _),) = images.batches([(epoch, asked)])
            torch.testing.assert_close(features[:, 0], module.pooled(views[:, 0]))
            assert ids.tolist() == asked.tolist()
        images.close()
    assert not torch.equal(kept.plain, kept.mirrored)


def test_kept_features_of_both_sides_are_their_mean_but_in_training(root, tmp_path):
    rows, asked = np.array([2, 3, 5, 8]), [(0, np.array([8, 2, 3]))]
    still = plain(finetune_augment())
    drawn = replace(still, horizontal_flip=1.0)
    with runs.opened(root, tmp_path, "classifier") as run:

        def views(mirror, augment, **how):
            kept = KeptViews(run, "finetune", HalfMean(mirror), augment, rows, **how)
            return next(iter(kept.batches(asked)))[0]

        left, right = views(False, still), views(False, drawn)
        torch.testing.assert_close(views(True, still), (left + right) / 2)
        assert torch.equal(views(True, drawn, training=True), right)
        assert torch.equal(views(True, still, one_side=True), left)
    assert len(list((tmp_path / "features").glob("*/*"))) == 2  # computed once for all


def test_other_images_stand_in_for_those_that_cannot_be_read(root, tmp_path):
    (tmp_path / "some").mkdir()
    for path in root.glob("*.png"):
        content = b"no image" if path.name == "003.png" else path.read_bytes()
        (tmp_path / "some" / path.name).write_bytes(content)
    data = {"bad_files": "skip", "bad_limit": 0.5}
    with runs.opened(tmp_path / "some", tmp_path, "classifier", data=data) as run:
        bad = BadFiles(tmp_path, run.images.frame, run.images.root, 0.5)
        run = replace(run, images=replace(run.images, bad_files=bad))
        views = (run, "finetune", HalfMean(), finetune_augment(), np.arange(8))
        with pytest.warns(SkippedWarning, match="003.png"):
            kept = KeptViews(*views, training=True)
        ((_, _, ids, _),) = kept.batches([(1, np.array([3, 1]))])
        ((_, _, left, _),) = KeptViews(*views).batches([(1, np.array([3, 1]))])
    assert len(ids) == 2 and 3 not in ids.tolist() and left.tolist() == [1]


def test_features_are_kept_for_other_runs_and_are_those_of_these_weights_and_images(root, tmp_path):
    computed = []

    def count(event, **facts):
        if event == "batch" and facts["name"] == "features":
            computed.append(facts)

    def kept(folder, module, rows, root=root, **data):
        computed.clear()
        data = {"features": str(tmp_path / "shared"), **data}
        with runs.opened(root, tmp_path / folder, "classifier", data=data, on_event=count) as run:
            views = KeptViews(run, "plain", module, plain(finetune_augment()), np.array(rows))
        return views.plain, bool(computed)

    module, other = HalfMean(), HalfMean(factor=0.5)
    first, new = kept("first", module, [1, 2, 5])
    assert new
    again, new = kept("second", module, [5, 2])
    assert not new and torch.equal(again, first[[1, 2]])  # by ascending rows
    assert kept("third", module, [2, 7])[1]
    other_weights, new = kept("fourth", other, [1, 2, 5])
    assert new and not torch.equal(other_weights, first)
    moved = tmp_path / "moved"
    moved.mkdir()
    for source, name in ((5, "001.png"), (2, "002.png")):
        (moved / name).write_bytes((root / f"{source:03d}.png").read_bytes())
    changed, new = kept("fifth", module, [1, 2], root=moved)
    assert new
    torch.testing.assert_close(changed, first[[2, 1]])
    for path in (tmp_path / "shared").glob("*/*"):
        if len(load_file(path)["h"]) == 1:
            content = bytearray(path.read_bytes())
            content[8 + int.from_bytes(content[:8], "little")] ^= 1  # a bit of the first feature
            path.write_bytes(content)
    assert kept("sixth", module, [1, 2, 5])[1] is False and kept("seventh", module, [7])[1]


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
    written = [one.stat().st_mtime_ns for one in parts]
    assert parts
    seen = [0] * 9
    again = runs.train(root, tmp_path / "killed", "classifier", on_event=kill, **HELD)
    assert [one.stat().st_mtime_ns for one in parts] == written
    every = len(list((tmp_path / "whole").glob("features/*/*.safetensors")))
    assert len(list((tmp_path / "killed").glob("features/*/*.safetensors"))) == every > len(parts)
    assert all(torch.equal(whole.weights[key], value) for key, value in again.weights.items())
