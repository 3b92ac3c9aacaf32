"""An exported file gives the detector's scores and what they mean, or is refused."""

import dataclasses
import zipfile

import cv2
import numpy as np
import pytest
import torch

from selftaught.data.images.decode import read_grey
from selftaught.data.images.masks import read_mask
from selftaught.detector import Detector
from selftaught.errors import InputError
from selftaught.export import check, runtime
from selftaught.models import Calibration, Preprocessing, save_model
from selftaught.models.bank import Bank
from tests import thin, tiny

pytestmark = pytest.mark.slow  # tracing takes half a minute
SHAPES = [(40, 30), (64, 64), (64, 48), (20, 31), (90, 47), (33, 32), (100, 101), (32, 32)]


def write_films(folder):
    """Noise of many sizes, every other film of 16 bits and far from white; masks of most."""
    random, paths, masks = np.random.default_rng(0), [], []
    for number, (height, width) in enumerate(SHAPES):
        levels = cv2.GaussianBlur(random.random((height, width)), (0, 0), 1 + number / 2)
        levels = (levels - levels.min()) / (levels.max() - levels.min())
        kind, white = ((np.uint8, 255), (np.uint16, 9000))[number % 2]
        paths.append(folder / f"{number}.png")
        cv2.imwrite(str(paths[-1]), (levels * white).astype(kind))
        masks.append(folder / f"{number}-mask.png" if number % 3 < 2 else None)
        if masks[-1]:
            cv2.imwrite(str(masks[-1]), (levels > 0.4).astype(np.uint8))
    return paths, masks


def pixels(films):
    """Images and masks, as the file takes them."""
    images = [read_grey(path) for path in films.paths]
    pairs = zip(films.masks, films.paths, images, strict=True)
    return images, [mask and read_mask(mask, path, image.shape) for mask, path, image in pairs]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model with masks whose normal scores are those of the films themselves; its film files.

    Its score is by the bank, so that one file holds nearest centres and nearest neighbours.
    """
    folder = tmp_path_factory.mktemp("export")
    paths, masks = write_films(folder)
    task, films = tiny.spheres(3, mirror=True), Preprocessing(image_size=32, masked=True)
    random = torch.Generator().manual_seed(1)
    plain = Detector(task, films, Calibration(), device="cpu")
    h = plain.embed(paths, masks=masks)[0]
    others = [h[torch.randperm(len(h), generator=random)] + h.std() * one for one in (0.3, 0.7)]
    bank = Bank.of(torch.cat([others[0], h.roll(1, 1)]), others[1], by="ratio", ratio_neighbours=2)
    plain = Detector(task, films, Calibration(), bank=bank, device="cpu")
    calibration = Calibration.from_normals(plain.score(paths, masks=masks), 0.5)
    calibration = dataclasses.replace(calibration, patients=(0, 1, 0, 2, 3, 3, 3, 4))
    save_model(folder / "model", task, films, calibration, bank=bank)
    detector = Detector.load(folder / "model", device="cpu")
    listed = check.Films(paths, masks, [""] * len(paths), "test")
    check.export(detector, folder / "model", folder / "model.onnx", listed)
    return detector, listed, folder / "model.onnx"


@pytest.fixture(scope="module", autouse=True)
def thin_networks():
    with thin.patch():
        yield


def test_scores_and_what_they_mean_are_the_detectors_ties_included(model):
    detector, films, path = model
    wanted = detector.explain(films.paths, masks=films.masks)
    made = runtime.Exported.load(path).score(*pixels(films))
    for name in ("score", "model_score"):
        values = np.array([row[name] for row in made])
        assert np.abs(values / wanted[name].to_numpy() - 1).max() < 1e-5
    assert [row["center"] for row in made] == wanted["center"].tolist()
    # The films are the normal ones: each is at its rank, and the fourth is the threshold itself.
    ranks = np.argsort(np.argsort(wanted["score"])) + 1
    np.testing.assert_allclose([row["percentile"] for row in made], 100 * ranks / len(ranks))
    assert [row["flagged"] for row in made] == (ranks > len(ranks) // 2).astype(int).tolist()
    np.testing.assert_allclose([row["p_value"] for row in made], wanted["p_value"], rtol=1e-6)


def test_a_torch_export_file_gives_the_same_and_is_refused_when_altered(model, tmp_path):
    detector, films, path = model
    check.export(detector, path.with_name("model"), tmp_path / "m.pt2", films)
    made, wanted = (
        runtime.Exported.load(one).score(*pixels(films)) for one in (tmp_path / "m.pt2", path)
    )
    for one, other in zip(made, wanted, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    assert runtime.verify(tmp_path / "m.pt2")["films"] == 3
    with (
        zipfile.ZipFile(tmp_path / "m.pt2") as whole,
        zipfile.ZipFile(tmp_path / "a.pt2", "w") as out,
    ):
        for name in whole.namelist():
            part = bytearray(whole.read(name))
            if "weight_0" in name:
                part[-1] ^= 1
            out.writestr(name, bytes(part))
    with pytest.raises(InputError, match="graph or weights"):
        runtime.verify(tmp_path / "a.pt2")


def test_films_of_one_shape_are_scored_together_as_alone(model):
    exported = runtime.Exported.load(model[2])
    films = [read_grey(one) for one in model[1].paths[:2]]
    stack = [films[0], films[0][::-1].copy(), films[0].astype(np.uint16), films[1]]
    together = exported.score(stack, [None] * 4)
    for film, row in zip(stack, together, strict=True):
        alone = exported.score([film], [None])[0]
        assert row["score"] == pytest.approx(alone["score"], rel=1e-5)
    assert together[0]["score"] != pytest.approx(together[2]["score"], rel=1e-6)  # other levels


def test_the_graph_itself_gives_no_score_for_what_is_no_film(model):
    run = runtime.Exported.load(model[2])._run
    flat, bright = np.full((1, 9, 9), 7, np.uint16), np.full((1, 9, 9), 300, np.uint16)
    bright[0, 0, 0] = 0
    whole = np.full((1, 9, 9), 255, np.uint8)
    for film in (flat, bright):
        made = run(film, np.array([8]), whole)
        assert all(np.isnan(made[name]) for name in ("score", "percentile", "p_value"))
        assert made["flagged"] == -1
    assert np.isfinite(run(bright, np.array([12]), whole)["score"])


def test_another_score_or_flag_is_refused(model):
    detector, films, path = model
    exported = runtime.Exported.load(path)
    higher = Detector.load(path.with_name("model"), device="cpu")
    scores = higher.calibration.normal_scores
    for text, change in (
        ("flagged 0 in the file and 1", {"threshold": scores[1]}),
        ("p_value", {"patients": ()}),
    ):
        higher.calibration = dataclasses.replace(detector.calibration, **change)
        with pytest.raises(InputError, match=text):
            check.compare(higher, exported, films)
    higher.calibration = Calibration(detector.calibration.threshold, scores[2:])
    with pytest.raises(InputError, match="percentile"):
        check.compare(higher, exported, films)
    parameter = next(higher.scorer.parameters())
    parameter.mul_(1.01)
    with pytest.raises(InputError, match="not exported: .* has (model_score|percentile)"):
        check.compare(higher, exported, films)


class Untraceable(torch.nn.Module):
    def forward(self, images):
        return {"score": torch.from_numpy(images.numpy().mean((1, 2, 3)))}


def test_a_scorer_that_cannot_be_traced_is_refused_in_one_line(model, tmp_path):
    detector, films, path = model
    other = Detector.load(path.with_name("model"), device="cpu")
    other.scorer, other.by = Untraceable(), "model"
    with pytest.raises(InputError, match="method spheres cannot be exported") as error:
        check.export(other, path.with_name("model"), tmp_path / "m.onnx", films)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())
