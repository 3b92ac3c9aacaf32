"""Model folders of format 1: read, scored with one line of warning, refused where damaged."""

import hashlib
import json
import warnings
from dataclasses import asdict

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save

from selftaught import Detector
from selftaught.errors import InputError
from selftaught.models import Calibration, Preprocessing, files, read_model, save_model
from tests.thin import WIDTH
from tests.tiny import spheres

pytestmark = pytest.mark.usefixtures("thin_encoder")

SIZE = 32
FACTS = {
    "preprocessing": {
        "image_size": SIZE, "input_range": [0.0, 1.0], "autocontrast": 2.0, "order": "composed",
        "mask_scale": 1, "masked": False,
    },
    "threshold": 1.5,
    "normal_scores": [1.0, 2.5, 3.0],
    "training": {"seed": 1, "preset": "quick"},
}  # fmt: skip


@pytest.fixture(scope="module")
def task(thin_encoder):
    return spheres(5, head=(16, 8), stem="small", batch_norm="plain")


def write(folder, task, **changes):
    """What the first version of `save_model` wrote."""
    folder.mkdir(exist_ok=True)
    contents = {
        "encoder.safetensors": save(task.embedder.state_dict()),
        "centers.safetensors": save({"centers": task.centers}),
    }
    architecture = {
        "encoder": asdict(task.network.encoder),
        "head_widths": [WIDTH, 16, 8],
        "centers": len(task.centers),
    }
    document = {"format": 1, "architecture": architecture, **FACTS, **changes}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    document["sha256"] = {**digests, "facts": files._digest(document)}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "model.json").write_text(json.dumps(document))
    return folder


@pytest.fixture
def folder(tmp_path, task):
    return write(tmp_path / "model", task)


@pytest.fixture
def paths(tmp_path):
    rng, found = np.random.default_rng(0), [tmp_path / f"{i}.png" for i in range(3)]
    for path in found:
        cv2.imwrite(str(path), rng.integers(0, 256, (40, 50), np.uint8))
    return found


def test_it_comes_out_as_spheres(folder, task):
    stored = read_model(folder)
    state = task.state_dict()
    assert stored.method == "spheres" and stored.options == {"centers": 5}
    assert stored.state.keys() == state.keys()
    assert all(torch.equal(stored.state[name], state[name]) for name in state)
    assert stored.state["active"].all() and not stored.state["counts"].any()
    films = Preprocessing(image_size=SIZE, autocontrast=2.0, known=False)
    assert stored.preprocessing == films
    assert stored.calibration == Calibration(1.5, (1.0, 2.5, 3.0))
    assert stored.training == FACTS["training"]


def test_it_scores_as_before_and_says_what_it_does_not_know(folder, task, paths):
    detector = Detector.load(folder, device="cpu")
    wanted = Detector(
        task, Preprocessing(image_size=SIZE, autocontrast=2.0), Calibration(), device="cpu"
    ).score(paths)
    with pytest.warns(UserWarning) as told:
        assert torch.equal(detector.score(paths), wanted)
    (line,) = told
    assert str(line.message).startswith("the model does not say how its films were prepared")
    assert "masks" not in str(line.message) and line.filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert detector.score(torch.rand(2, 1, SIZE, SIZE)).shape == (2,)


def test_an_embedder_with_its_centers_is_saved_as_when_only_spheres_could_be(
    folder, task, tmp_path
):
    written = save_model(tmp_path / "again", task.embedder, task.centers, FACTS)
    one, other = read_model(folder), read_model(written)
    assert one.state.keys() == other.state.keys()
    assert all(torch.equal(one.state[name], other.state[name]) for name in one.state)
    for name in ("method", "options", "network", "preprocessing", "calibration", "training"):
        assert getattr(one, name) == getattr(other, name), name


@pytest.mark.parametrize(
    ("centers", "facts", "message"),
    [
        (torch.zeros(3, 7), FACTS, r"centers: shape \(3, 7\), must be \(K, 8\)"),
        (torch.zeros(3, 8), {}, "facts with 'preprocessing'"),
        (None, FACTS, "an Embedder, its centres"),
    ],
)
def test_what_is_no_embedder_with_centers_and_facts_is_not_saved(
    task, tmp_path, centers, facts, message
):
    with pytest.raises(ValueError, match=message):
        save_model(tmp_path / "again", task.embedder, centers, facts)
    assert not (tmp_path / "again").exists()


def test_masks_are_used_where_they_are_given(tmp_path, task, paths):
    view = {**FACTS["preprocessing"], "masked": True}
    detector = Detector.load(write(tmp_path / "model", task, preprocessing=view), device="cpu")
    with pytest.warns(UserWarning, match="with masks, of which none are given"):
        plain = detector.score(paths)
    mask = np.zeros((40, 50), np.uint8)
    mask[:, :20] = 255
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    with pytest.warns(UserWarning, match="prepared alike$"):
        masked = detector.score(paths, masks=[tmp_path / "mask.png", None, None])
    assert masked[0] != plain[0] and torch.equal(masked[1:], plain[1:])


def test_the_least_that_such_a_model_could_say(tmp_path, task):
    facts = {"preprocessing": {"image_size": 8, "input_range": [0, 255]}, "threshold": None}
    facts |= {"normal_scores": [], "training": {}, "remark": "kept once"}
    detector = Detector.load(write(tmp_path / "model", task, **facts), device="cpu")
    assert detector.calibration == Calibration() and detector.input_range == (0.0, 255.0)


def test_a_model_of_today_takes_its_place(folder, task):
    films = Preprocessing(image_size=SIZE)
    save_model(folder, task, films, Calibration())
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "weights.safetensors"]
    assert read_model(folder).preprocessing == films


@pytest.mark.parametrize("name", ["encoder.safetensors", "centers.safetensors", "model.json"])
def test_damage_is_refused(folder, name):
    content = (folder / name).read_bytes()
    for changed in (content[:-1], content + b"}", content[:50] + b"\0" + content[51:]):
        (folder / name).write_bytes(changed)
        with pytest.raises(InputError, match=name):
            Detector.load(folder)
    (folder / name).unlink()
    with pytest.raises(InputError, match=name):
        Detector.load(folder)


HEAD = [WIDTH, 16, 8]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": None}, "model.json"),
        ({"architecture": {"encoder": {}, "head_widths": HEAD}}, "lacks 'centers'"),
        ({"architecture": {"encoder": {}, "head_widths": HEAD, "centers": 0}}, "centers=0"),
        ({"architecture": {"encoder": {}, "head_widths": HEAD, "centers": 5}}, "has shape|"
         "does not belong|bytes"),
        ({"architecture": {"encoder": {}, "head_widths": "wide", "centers": 5}}, "cannot be built"),
        ({"architecture": {"encoder": {}, "head_widths": [], "centers": 5}}, "unpack"),
        ({"preprocessing": {"image_size": "32", "input_range": [0, 1]}}, "image_size is '32'"),
        ({"preprocessing": None}, "model.json"),
        ({"normal_scores": [1, "2"]}, "normal_scores"),
        ({"threshold": "high"}, "threshold is 'high'"),
    ],
)  # fmt: skip
def test_wrong_facts_are_refused(tmp_path, task, changes, message):
    with pytest.raises(InputError, match=message) as caught:
        Detector.load(write(tmp_path / "model", task, **changes))
    assert "\n" not in str(caught.value)


def test_centres_that_are_none_are_refused(folder):
    for tensors in ({"centers": torch.tensor(1.0)}, {"other": torch.zeros(5, 8)}, {}):
        content = save(tensors)
        (folder / "centers.safetensors").write_bytes(content)
        document = json.loads((folder / "model.json").read_text())
        document["sha256"]["centers.safetensors"] = hashlib.sha256(content).hexdigest()
        (folder / "model.json").write_text(json.dumps(document))
        with pytest.raises(InputError, match="has shape|is missing"):
            Detector.load(folder)
