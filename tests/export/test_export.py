"""An exported file gives the detector's scores, percentiles and flags, or is refused."""

import json
import subprocess
import sys

import cv2
import numpy as np
import onnx
import pytest
import torch

from selftaught.data.images.decode import read_grey
from selftaught.detector import Detector
from selftaught.errors import InputError
from selftaught.export import check, runtime
from selftaught.models import Calibration, Preprocessing, save_model
from selftaught.models.bank import Bank
from tests import thin, tiny

SHAPES = [(40, 30), (64, 64), (64, 48), (20, 31), (90, 47), (33, 32), (100, 101), (32, 32)]


def write_films(folder):
    """Noise of many sizes, every other film of 16 bits and far from white."""
    random, paths = np.random.default_rng(0), []
    for number, (height, width) in enumerate(SHAPES):
        levels = cv2.GaussianBlur(random.random((height, width)), (0, 0), 1 + number / 2)
        levels = (levels - levels.min()) / (levels.max() - levels.min())
        kind, white = ((np.uint8, 255), (np.uint16, 9000))[number % 2]
        paths.append(folder / f"{number}.png")
        cv2.imwrite(str(paths[-1]), (levels * white).astype(kind))
    return paths


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model whose normal scores and threshold are those of the films themselves; its film files.

    Its score is by the bank, so that one file holds nearest centres and nearest neighbours.
    """
    folder = tmp_path_factory.mktemp("export")
    paths = write_films(folder)
    task, films = tiny.spheres(3), Preprocessing(image_size=32)
    random = torch.Generator().manual_seed(1)
    plain = Detector(task, films, Calibration(), device="cpu")
    h = plain.embed(paths)[0]
    others = [h[torch.randperm(len(h), generator=random)] + h.std() * one for one in (0.3, 0.7)]
    bank = Bank.of(torch.cat([others[0], h.roll(1, 1)]), others[1], by="ratio", ratio_neighbours=2)
    scores = Detector(task, films, Calibration(), bank=bank, device="cpu").score(paths)
    calibration = Calibration.from_normals(scores, 0.5)
    save_model(folder / "model", task, films, calibration, bank=bank)
    detector = Detector.load(folder / "model", device="cpu")
    listed = check.Films(paths, None, [""] * len(paths), "test")
    check.export(detector, folder / "model", folder / "model.onnx", listed)
    return detector, listed, folder / "model.onnx"


@pytest.fixture(scope="module", autouse=True)
def thin_networks():
    with thin.patch():
        yield


def test_scores_percentiles_and_flags_are_the_detectors_ties_included(model):
    detector, films, path = model
    wanted = detector.explain(films.paths)
    made = runtime.Exported.load(path).score([read_grey(one) for one in films.paths])
    for name in ("score", "model_score"):
        values = np.array([row[name] for row in made])
        assert np.abs(values / wanted[name].to_numpy() - 1).max() < 1e-5
    assert [row["center"] for row in made] == wanted["center"].tolist()
    # The films are the normal ones: each is at its rank, and the fourth is the threshold itself.
    ranks = np.argsort(np.argsort(wanted["score"])) + 1
    np.testing.assert_allclose([row["percentile"] for row in made], 100 * ranks / len(ranks))
    assert [row["flagged"] for row in made] == (ranks > len(ranks) // 2).astype(int).tolist()


def test_films_of_one_shape_are_scored_together_as_alone(model):
    exported = runtime.Exported.load(model[2])
    films = [read_grey(one) for one in model[1].paths[:2]]
    stack = [films[0], films[0][::-1].copy(), films[0].astype(np.uint16), films[1]]
    together = exported.score(stack)
    for film, row in zip(stack, together, strict=True):
        alone = exported.score([film])[0]
        assert row["score"] == pytest.approx(alone["score"], rel=1e-5)
    assert together[0]["score"] != pytest.approx(together[2]["score"], rel=1e-6)  # other levels


def test_a_float_film_is_one_of_16_bits(model):
    exported = runtime.Exported.load(model[2])
    film = np.random.default_rng(0).integers(0, 65536, (40, 50)).astype(np.uint16)
    made, wanted = exported.score([film / 65535.0]), exported.score([film])
    assert made == wanted


@pytest.mark.parametrize(
    ("film", "text"),
    [
        (np.zeros((4, 5, 3), np.uint8), "shape"),
        (np.eye(4, dtype=np.int32), "int32"),
        (np.eye(4) * 2, "0 to 1"),
        (np.full((4, 5), 7, np.uint8), "shows nothing"),
    ],
)
def test_films_that_are_none_are_refused(model, film, text):
    with pytest.raises(InputError, match=text):
        runtime.Exported.load(model[2]).score([film])


def test_the_graph_itself_gives_no_score_for_what_is_no_film(model):
    run = runtime.Exported.load(model[2])._run
    flat, bright = np.full((1, 9, 9), 7, np.uint16), np.full((1, 9, 9), 300, np.uint16)
    bright[0, 0, 0] = 0
    for film in (flat, bright):
        made = run(film, np.array([8]), None)
        assert np.isnan(made["score"]) and np.isnan(made["percentile"]) and made["flagged"] == -1
    assert np.isfinite(run(bright, np.array([12]), None)["score"])


def altered(path, change, seal=False):
    """A copy of a file with one change; `seal`: with checksums that fit it."""
    model, copy = onnx.load(path), path.with_name("altered.onnx")
    change(model)
    onnx.save(model, copy)
    if seal:
        entry = model.metadata_props[0]
        digest = runtime.split(copy, copy.read_bytes())[0]
        entry.value = json.dumps(runtime.sealed(json.loads(entry.value), digest))
        onnx.save(model, copy)
    return copy


def weights(factor):
    def change(model):
        kernel = next(one for one in model.graph.initializer if len(one.dims) == 4)
        values = onnx.numpy_helper.to_array(kernel).copy()
        values.flat[0] *= factor
        kernel.CopyFrom(onnx.numpy_helper.from_array(values, kernel.name))

    return change


def threshold(model):
    facts = json.loads(model.metadata_props[0].value)
    facts["calibration"]["threshold"] += 1
    model.metadata_props[0].value = json.dumps(facts)


def test_one_altered_weight_is_refused(model):
    with pytest.raises(InputError, match="graph or weights"):
        runtime.verify(altered(model[2], weights(1 + 1e-6)))


def test_altered_facts_are_refused(model):
    with pytest.raises(InputError, match="facts do not match"):
        runtime.verify(altered(model[2], threshold))


def test_other_scores_are_refused_even_where_the_checksums_fit(model):
    with pytest.raises(InputError, match="golden film"):
        runtime.verify(altered(model[2], weights(-30), seal=True))


def test_saved_again_by_onnx_it_is_the_same(model):
    assert runtime.verify(altered(model[2], lambda model: None))["films"] == 3


def test_truncated_and_foreign_files_are_refused(model, tmp_path):
    content = model[2].read_bytes()
    for number, part in enumerate((content[:-5], content[:100], b"", b"no model at all")):
        path = tmp_path / f"{number}.onnx"
        path.write_bytes(part)
        with pytest.raises(InputError):
            runtime.Exported.load(path)


def test_it_is_read_without_torch(model):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from selftaught.cli.main import main\n"
        f"sys.exit(main(['verify', {str(model[2])!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "3 golden films" in done.stdout


def test_another_score_or_flag_is_refused(model):
    detector, films, path = model
    exported = runtime.Exported.load(path)
    higher = Detector.load(path.with_name("model"), device="cpu")
    scores = higher.calibration.normal_scores
    higher.calibration = Calibration(scores[1], scores)
    with pytest.raises(InputError, match="flagged 0 in the file and 1"):
        check.compare(higher, exported, films)
    higher.calibration = Calibration(detector.calibration.threshold, scores[2:])
    with pytest.raises(InputError, match="percentile"):
        check.compare(higher, exported, films)
    parameter = next(higher.scorer.parameters())
    parameter.mul_(1.01)
    with pytest.raises(InputError, match="not exported: .* has model_score"):
        check.compare(higher, exported, films)


def test_films_that_need_preparation_or_masks_are_refused_without():
    prepared = {"known": True, "prepared": {"carrier": "always", "size": 512}}
    facts = {"preprocessing": prepared, "inputs": ["films", "bits", "masks"], "outputs": []}
    exported = runtime.Exported("f.onnx", facts, lambda films, bits, masks: {})
    film = np.eye(4, dtype=np.uint8)
    with pytest.raises(InputError, match="selftaught prepare --carrier always"):
        exported.score([film])
    with pytest.raises(InputError, match="masks: none are given"):
        exported.score([film], prepared=True)
    with pytest.raises(InputError, match="mask 0"):
        exported.score([film], [np.ones((3, 3), bool)], prepared=True)


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
