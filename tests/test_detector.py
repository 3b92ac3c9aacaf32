"""Detector: scores against the formula, paths against tensors, batches, refusals, imports."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from selftaught import Detector
from selftaught.cli import score
from selftaught.data.pipeline import has_dali, open_pipeline
from selftaught.data.plan import PLAIN
from selftaught.errors import InputError
from selftaught.methods import Options, Task
from selftaught.models import Calibration, Network, Preprocessing, save_model
from tests import thin
from tests.ranks import run_ranks
from tests.tiny import spheres

pytestmark = pytest.mark.usefixtures("thin_encoder")
SIZE = 32
PLAIN_FILMS = Preprocessing(image_size=SIZE)
MASKED_FILMS = Preprocessing(image_size=SIZE, masked=True)
UNMASKED = Preprocessing(image_size=SIZE)
CALIBRATION = Calibration(0.2, (0.1, 0.2, 0.3))


@pytest.fixture(scope="module")
def task():
    made = spheres(4)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        made.embedder.train()
        for _ in range(20):
            made.embedder(torch.rand(16, 1, SIZE, SIZE, generator=generator))
        made.eval()
        x = torch.rand(4, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
        made.centers.copy_(made.embedder(x)[1])
    return made


@pytest.fixture(scope="module")
def embedder(task):
    return task.embedder


@pytest.fixture(scope="module")
def centers(task):
    return task.centers


@pytest.fixture(scope="module")
def folder(task, tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("run") / "model", task, PLAIN_FILMS, CALIBRATION)


@pytest.fixture(scope="module")
def detector(folder):
    return Detector.load(folder, device="cpu")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    place, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    found = []
    for i, (height, width) in enumerate([(40, 60), (64, 33), (32, 32), (50, 50), (90, 20)]):
        blobs = cv2.GaussianBlur(rng.random((height, width)).astype("f4"), (0, 0), 2)
        grey = cv2.normalize(blobs, None, 0, 255, cv2.NORM_MINMAX).astype("u1")
        found.append(place / f"{i}.png")
        cv2.imwrite(str(found[-1]), grey)
    return found


def wanted_scores(embedder, centers, x):
    """Eq. 2's distance to the nearest centre, in float64."""
    with torch.no_grad():
        z = embedder(x)[1].double()
    distance = (z[:, None] - centers.double()[None]).norm(dim=-1)
    return distance.min(1)


def test_scores_are_distances_to_the_nearest_centre(detector, embedder, centers):
    x = torch.rand(9, 1, SIZE, SIZE)
    wanted = wanted_scores(embedder, centers, x)
    scores = detector.score(x)
    assert scores.shape == (9,) and scores.dtype == torch.float32 and scores.device.type == "cpu"
    np.testing.assert_allclose(scores, wanted.values, rtol=1e-5)
    assert detector.explain(x)["center"].tolist() == wanted.indices.tolist()
    h, z = detector.embed(x)
    assert h.shape == (9, thin.WIDTH) and z.shape == (9, 128)
    torch.testing.assert_close((h, z), embedder(x), rtol=1e-4, atol=1e-6)


def test_the_whole_path_from_the_folder(folder, embedder, centers, paths):
    detector = Detector.load(str(folder))
    scores = detector.score([str(path) for path in paths], batch_size=2)
    with open_pipeline(
        "opencv", paths=paths, image_size=SIZE, augment=PLAIN, seed=9, stage="x"
    ) as pipeline:
        x = next(iter(pipeline.batches([(3, np.arange(5))]))).views[:, 0]
    np.testing.assert_allclose(scores, wanted_scores(embedder, centers, x).values, rtol=1e-4)
    np.testing.assert_allclose(scores, detector.score(x), rtol=1e-4)
    assert len(set(scores.tolist())) == 5
    torch.testing.assert_close(detector.score(paths[::-1]).flip(0), scores, rtol=1e-4, atol=0)
    assert torch.equal(detector.score(paths, batch_size=2), scores)


def test_masks_reach_the_network(task, paths, tmp_path):
    detector = Detector(task, MASKED_FILMS, CALIBRATION, device="cpu")
    half, body = tmp_path / "mask.png", np.zeros((40, 60), "u1")
    body[:, :30] = 255
    cv2.imwrite(str(half), body)
    masks = [half, None, None, None, None]
    scores, plain = (detector.score(paths, masks=one) for one in (masks, [None] * 5))
    torch.testing.assert_close(scores[1:], plain[1:], rtol=1e-4, atol=0)
    with open_pipeline(
        "opencv", paths=paths, masks=masks, image_size=SIZE, augment=PLAIN, seed=0, stage="x"
    ) as pipeline:
        x = next(iter(pipeline.batches([(0, np.arange(1))]))).views[:, 0]
    assert (x[..., 17:] == 0).all() and (x[..., :14] > 0).any()
    torch.testing.assert_close(scores[:1], detector.score(x), rtol=1e-4, atol=0)
    assert abs(scores[0] - plain[0]) > 1e-3 * plain[0]
    with pytest.raises(ValueError, match="masks: 1 for 5 images"):
        detector.score(paths, masks=[half])
    with pytest.raises(ValueError, match="masks: only with paths"):
        detector.score(torch.zeros(1, 1, SIZE, SIZE), masks=[half])


class Covered(Task):
    """Scores how much of the image is body, and how bright it is."""

    masks = True

    def scorer(self):
        return Cover()


class Cover(torch.nn.Module):
    def forward(self, images, masks):
        return {"score": masks.mean((1, 2, 3)), "light": (images * masks).mean((1, 2, 3))}


def test_a_scorer_that_looks_at_masks_is_given_them(paths, tmp_path):
    task = Covered(Options(method="tests.test_detector.Covered"), Network(image_size=SIZE))
    detector = Detector(task, MASKED_FILMS, CALIBRATION, device="cpu")
    half, body = tmp_path / "mask.png", np.zeros((40, 60), "u1")
    body[:, :30] = 255
    cv2.imwrite(str(half), body)
    scores = detector.score([paths[0]] * 2, masks=[half, None])
    # 60 x 40 pixels fill two thirds of the square, and half of them are body.
    np.testing.assert_allclose(scores, [1 / 3, 2 / 3], atol=0.04)

    x = torch.rand(3, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    masks = (torch.arange(SIZE) < 8).float().expand_as(x)
    assert detector.score(x, masks=masks).tolist() == [0.25] * 3
    assert detector.score(x).tolist() == [1.0] * 3
    assert detector.score(x[:0]).shape == (0,)
    for wrong, line in ((masks[:2], "must be a tensor"), (2 * masks, "outside"), ([half], "list")):
        with pytest.raises(ValueError, match=f"masks: .*{line}"):
            detector.score(x, masks=wrong)
    with pytest.raises(ValueError, match="beside paths"):
        detector.score(paths, masks=masks)


class Spy:
    """Notes which executor is asked for, and where."""

    def __init__(self, monkeypatch):
        from selftaught.data import pipeline

        self.real, self.asked = pipeline.open_pipeline, []
        monkeypatch.setattr(pipeline, "open_pipeline", self)

    def __call__(self, kind, *, device, **options):
        self.asked.append((kind, torch.device(device).type))
        return self.real(kind, device=device, **options)


@pytest.mark.parametrize("executor", ["auto", "opencv", "dali"])
def test_the_executor_is_chosen_as_in_training(task, paths, tmp_path, monkeypatch, executor):
    if executor == "dali":
        pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")
    half, body = tmp_path / "mask.png", np.zeros((64, 33), "u1")
    body[:12] = 255
    cv2.imwrite(str(half), body)
    masks = [None, half, None, None, None]
    folder = save_model(tmp_path / "model", task, MASKED_FILMS, CALIBRATION)
    detector = Detector.load(folder, device="cpu", pipeline="opencv")
    expected = detector.score(paths, masks=masks)
    spy = Spy(monkeypatch)
    found = Detector.load(folder, device="cpu", pipeline=executor).score(paths, masks=masks)
    assert spy.asked == [(executor, "cpu")]
    # Views of two executors differ by up to a grey level of 255, more along a mask's hard edge.
    torch.testing.assert_close(found, expected, rtol=0.03 if executor == "dali" else 0, atol=0)
    order = expected.argsort()
    apart = expected[order].diff() > 0.06 * expected[order][1:]
    assert (found[order].diff()[apart] > 0).all() and apart.any()
    without_mask = detector.score(paths[1:2], masks=[None])
    assert abs(without_mask - expected[1]) > 2 * abs(found[1] - expected[1])


def test_an_executor_that_is_none_is_refused(folder):
    with pytest.raises(InputError, match="data.pipeline 'pillow': allowed: auto, opencv, dali"):
        Detector.load(folder, device="cpu", pipeline="pillow")


def test_masks_are_used_as_in_training_or_refused(task, detector, paths):
    masked = Detector(task, MASKED_FILMS, CALIBRATION, device="cpu")
    with pytest.raises(InputError, match="masks: none are given, but the model was trained on im"):
        masked.score(paths[:1])
    with pytest.raises(ValueError, match="masks: the model was trained without masks"):
        detector.score(paths[:1], masks=[None])


@pytest.mark.parametrize("batch_size", [1, 2, 7, 100])
def test_batches_change_rounding_only(detector, batch_size):
    x = torch.rand(7, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        detector.score(x, batch_size=batch_size), detector.score(x), rtol=1e-5, atol=0
    )


def test_results_may_enter_other_computations(detector):
    h, z = detector.embed(torch.rand(2, 1, SIZE, SIZE))
    weight = torch.ones(thin.WIDTH, requires_grad=True)
    (h @ weight).sum().backward()
    assert torch.equal(weight.grad, h.sum(0)) and not z.is_inference()
    assert not detector.scorer.training
    assert not any(parameter.requires_grad for parameter in detector.scorer.parameters())


class Known(Task):
    """Gives rows of known columns, one after the other; no features."""

    Options = Options

    def __init__(self, options, network, columns):
        super().__init__(options, network)
        self.columns, self.at = columns, 0

    def scorer(self):
        return self

    def forward(self, images):
        rows = slice(self.at, self.at + len(images))
        self.at += len(images)
        return {name: torch.tensor(values[rows]) for name, values in self.columns.items()}


def known(calibration, **columns):
    made = Known(Options(method="known"), Network(), columns)
    return Detector(made, PLAIN_FILMS, calibration, device="cpu")


def test_explain_tells_what_a_score_means(paths):
    calibration = Calibration(2.0, (1.0, 2.0, 2.0, 5.0))
    detector = known(calibration, score=[0.5, 1, 2, 3, 9], center=list(range(5)))
    table = detector.explain(paths)
    first = ["path", "score", "center", "percentile", "flagged", "p_value", "model_score"]
    assert list(table.columns) == first
    assert table["path"].tolist() == [str(path) for path in paths]
    assert table["percentile"].tolist() == [0, 25, 75, 75, 100]
    assert table["flagged"].tolist() == [0, 0, 0, 1, 1]
    assert table["flagged"].dtype == "Int8" and table["center"].dtype == "int64"
    assert table["score"].dtype == "float32"


def test_columns_come_from_the_method(paths, tmp_path):
    columns = {"score": [1.0, 2, 3, 4, 5], "sure": [True, False] * 3, "error": [0.5] * 5}
    table = known(Calibration(), **columns).explain(paths)
    first = ["path", "score", "percentile", "flagged", "p_value", "model_score"]
    assert list(table.columns) == [*first, "sure", "error"]
    assert table["sure"].tolist() == [1, 0, 1, 0, 1] and table["error"].dtype == "float32"
    detector, given = known(Calibration(), **columns), [tmp_path / "gone.png", *paths[:2]]
    with pytest.warns(UserWarning, match="gone.png: is missing; it gets no score"):
        table = detector.explain(given, bad_files="skip")
    assert table["sure"].dtype == "Int64" and table["error"].isna().tolist() == [True, False, False]
    assert table["sure"].isna().tolist() == [True, False, False]
    with pytest.raises(InputError, match="method known has no features h; allowed: score"):
        known(Calibration(), **columns).embed(paths)


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        ({"score": [0.5] * 5, "label": [1] * 5}, "gave label; allowed: outputs of other names"),
        ({"score": [0.5] * 5, "row": [0.0] * 5}, "gave row; allowed: outputs of other names"),
        ({"score": [0.5] * 5, "percentile": [9.0] * 5}, "gave percentile"),
        ({"score": [0.5] * 5, "p_value": [0.1] * 5}, "gave p_value"),
        ({"score": [0.5] * 5, "ratio_score": [9.0] * 5}, "gave ratio_score"),
        ({"score": [[0.5]] * 5}, r"'score' gave \(5, 1\); allowed: \(B,\), here \(5,\)"),
        ({"score": [0.5] * 5, "other": [[1.0, 2.0]] * 5}, r"'other' gave \(5, 2\)"),
        ({"error": [0.5] * 5}, r"gave {'error': \(5,\)}; allowed: .*score"),
    ],
)
def test_a_scorer_cannot_replace_columns_of_ours(paths, columns, line):
    with pytest.raises(InputError, match=line):
        known(Calibration(), **columns).explain(paths)


def test_a_method_that_cannot_score_is_refused():
    class Mute(Task):
        Options = Options

    with pytest.raises(InputError, match="method mute cannot score"):
        Detector(Mute(Options(method="mute"), Network()), PLAIN_FILMS, Calibration())


def test_explain_without_calibration(task):
    detector = Detector(task, PLAIN_FILMS, Calibration(), device="cpu")
    table = detector.explain(torch.rand(2, 1, SIZE, SIZE))
    assert table["percentile"].isna().all() and table["flagged"].isna().all()
    assert table["path"].tolist() == ["", ""] and table["score"].notna().all()


def test_no_images(detector):
    for images in ([], torch.zeros(0, 1, SIZE, SIZE)):
        assert detector.score(images).shape == (0,)
        assert detector.embed(images)[0].shape == (0, thin.WIDTH)
        table = detector.explain(images)
        assert isinstance(table, pd.DataFrame) and len(table) == 0


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 1, SIZE, SIZE + 1), r"shape \(2, 1, 32, 33\), must be \(N, 1, 32, 32\)"),
        (torch.zeros(2, 3, SIZE, SIZE), r"shape \(2, 3, 32, 32\)"),
        (torch.zeros(1, SIZE, SIZE), r"shape \(1, 32, 32\)"),
        (torch.zeros(1, 1, SIZE, SIZE, dtype=torch.uint8), "torch.uint8, must be floating"),
        (torch.full((1, 1, SIZE, SIZE), 255.0), r"values from 255 to 255, must be within \[0, 1\]"),
        (torch.full((1, 1, SIZE, SIZE), -0.1), "values from -0.1"),
        (torch.full((1, 1, SIZE, SIZE), torch.nan), "values from nan"),
        ("image.png", "'image.png' is one path, must be a list"),
    ],
)
def test_wrong_images_are_named(detector, images, message):
    with pytest.raises(ValueError, match=message) as caught:
        detector.score(images)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="batch_size=0"):
        detector.score(images, batch_size=0)


def test_one_bad_pixel_in_a_later_image_is_seen(detector):
    x = torch.rand(50, 1, SIZE, SIZE)
    x[49, 0, 3, 3] = torch.nan
    with pytest.raises(ValueError, match="must be within"):
        detector.score(x)


def test_an_unreadable_image_is_named(detector, paths, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(paths[0].read_bytes()[:100])
    for path in (broken, tmp_path / "absent.png"):
        with pytest.raises(InputError, match=path.name):
            detector.score([*paths, path])


@pytest.mark.parametrize("executor", ["opencv", "dali"])
def test_an_unreadable_image_may_be_skipped(task, paths, tmp_path, executor):
    if executor == "dali" and not has_dali():
        pytest.skip("NVIDIA DALI is not installed")
    detector = Detector(task, MASKED_FILMS, CALIBRATION, device="cpu", pipeline=executor)
    broken, mask = tmp_path / "broken.png", tmp_path / "mask.png"
    broken.write_bytes(paths[0].read_bytes()[:100])
    given = [paths[0], broken, paths[1], tmp_path / "gone.png", paths[2], paths[3]]
    masks = [None] * 5 + [mask]
    good = [0, 2, 4]
    with pytest.warns(UserWarning) as told:
        table = detector.explain(given, masks=masks, batch_size=2, bad_files="skip")
    assert [str(one.message) for one in told] == [
        f"{broken}: {table['problem'][1].partition(': ')[2]}; it gets no score",
        f"{tmp_path / 'gone.png'}: is missing; it gets no score",
        f"{mask}: is missing; it gets no score",
    ]
    assert all(one.filename == __file__ for one in told)
    assert table["problem"].ne("").tolist() == [row not in good for row in range(6)]
    assert "truncated" in table["problem"][1]
    wanted = detector.explain([given[row] for row in good], masks=[None] * 3)
    for name in ("score", "center", "percentile", "flagged"):
        assert table[name].isna().tolist() == [row not in good for row in range(6)], name
        got = table.loc[good, name].to_numpy(float)
        np.testing.assert_allclose(got, wanted[name].to_numpy(float), rtol=1e-5)
    with pytest.warns(UserWarning):
        h, z = detector.embed(given, masks=masks, bad_files="skip")
        scores = detector.score(given, masks=masks, bad_files="skip")
        nothing = detector.explain([broken], masks=[None], bad_files="skip")
    assert torch.isfinite(h).all(1).tolist() == torch.isfinite(z).all(1).tolist()
    assert torch.isfinite(z).all(1).tolist() == scores.isfinite().tolist()
    assert scores.isfinite().tolist() == [row in good for row in range(6)]
    assert nothing["score"].isna().all() and nothing["problem"][0].startswith(str(broken))
    with pytest.raises(ValueError, match="bad_files='ignore': must be one of"):
        detector.score(given, bad_files="ignore")


@pytest.mark.parametrize("executor", ["opencv", "dali"])
@pytest.mark.parametrize(
    "kind", ["8 bits", "16 bits", "one pixel", "black", "JPEG", "TIFF", "clear"]
)
def test_an_image_on_which_nothing_can_be_seen_has_no_score(task, paths, tmp_path, executor, kind):
    if executor == "dali" and not has_dali():
        pytest.skip("NVIDIA DALI is not installed")
    path = tmp_path / {"JPEG": "a.jpg", "TIFF": "a.tif"}.get(kind, "a.png")
    side, level = (1, 77) if kind == "one pixel" else (48, 0 if kind == "black" else 77)
    grey = np.full((side, side), level, "u2" if kind == "16 bits" else "u1")
    grey = np.stack([grey, grey, grey, 0 * grey], -1) if kind == "clear" else grey
    level = 0 if kind == "clear" else level
    cv2.imwrite(str(path), grey)
    detector = Detector(task, UNMASKED, CALIBRATION, device="cpu", pipeline=executor)
    reason = f"shows nothing: {side} x {side} pixels, all of level {level}"
    with pytest.raises(InputError, match=f"{path.name}: {reason}"):
        detector.score([paths[0], path])
    with pytest.warns(UserWarning, match=f"{reason}; it gets no score"):
        scores = detector.score([paths[0], path], bad_files="skip")
    assert scores.isfinite().tolist() == [True, False]
    torch.testing.assert_close(scores[:1], detector.score(paths[:1]), rtol=1e-5, atol=0)


def test_a_range_that_the_files_cannot_have_is_refused(task, paths):
    films = Preprocessing(image_size=SIZE, input_range=(0.0, 255.0))
    detector = Detector(task, films, Calibration(), device="cpu")
    with pytest.raises(InputError, match="input_range"):
        detector.score(paths)
    assert detector.score(torch.full((1, 1, SIZE, SIZE), 255.0)).shape == (1,)
    scaled = Preprocessing(image_size=SIZE, input_range=(0.0, 255.0), mask_scale=255)
    assert Detector(task, scaled, Calibration(), device="cpu").score(paths).shape == (5,)


def test_a_loaded_detector_is_the_one_in_memory(folder, task):
    x = torch.rand(2, 1, SIZE, SIZE)
    before = torch.get_rng_state()
    loaded = Detector.load(folder, device="cpu")
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(
        loaded.score(x), Detector(task, PLAIN_FILMS, CALIBRATION, device="cpu").score(x)
    )
    assert (loaded.method, loaded.preprocessing, loaded.calibration, loaded.image_size) == (
        "spheres", PLAIN_FILMS, CALIBRATION, SIZE,
    )  # fmt: skip
    assert torch.equal(Detector.load(folder.parent, device="cpu").score(x), loaded.score(x))


def test_pruned_centres_stay_away(task, tmp_path):
    x = torch.rand(6, 1, SIZE, SIZE)
    nearest = Detector(task, PLAIN_FILMS, CALIBRATION, device="cpu").explain(x)["center"]
    task.active[int(nearest[0])] = False
    try:
        model = save_model(tmp_path / "model", task, PLAIN_FILMS, CALIBRATION)
    finally:
        task.active.fill_(True)
    found = Detector.load(model, device="cpu").score(x)
    left = [k for k in range(4) if k != int(nearest[0])]
    wanted = wanted_scores(task.embedder, task.centers[left], x)
    np.testing.assert_allclose(found, wanted.values, rtol=1e-5)


def test_a_wrong_folder_is_one_line(tmp_path):
    with pytest.raises(InputError, match="model.json: cannot be read"):
        Detector.load(tmp_path)


REAL = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"


@pytest.mark.real_data
@pytest.mark.skipif(not REAL.is_dir(), reason="no real radiographs beside the checkout")
def test_real_radiographs_get_scores_and_truncated_ones_are_named(detector):
    knees = sorted((REAL / "knee" / "images").iterdir())[:6]
    table = detector.explain(knees)
    assert np.isfinite(table["score"]).all() and table["score"].nunique() > 3
    limbs = pd.read_csv(REAL / "truncated" / "manifest.csv")
    limbs["path"] = [REAL / "truncated" / name for name in limbs["path"]]
    whole = limbs.loc[limbs["readable"] == 1, "path"].tolist()
    broken = limbs.loc[limbs["readable"] == 0, "path"].tolist()
    assert len(broken) == 6 and torch.isfinite(detector.score(whole)).all()
    for path in broken:
        with pytest.raises(InputError, match=path.name):
            detector.score([whole[0], path])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_gpu_gives_the_same_scores(folder, detector):
    x = torch.rand(40, 1, SIZE, SIZE)
    scores = Detector.load(folder).score(x)
    torch.testing.assert_close(scores, detector.score(x), rtol=2e-3, atol=1e-4)


def test_arrays_are_refused_in_one_line_and_any_iterable_of_paths_is_fine():
    from selftaught.detector import _listed

    with pytest.raises(ValueError, match="images: a NumPy array; allowed: a list of paths"):
        _listed(np.zeros((1, 1, 8, 8)))
    assert _listed(name for name in ("a", "b")) == ["a", "b"]
    assert not _listed(torch.zeros(1, requires_grad=True)).requires_grad


def score_all(folder, manifest, out, bad_files):
    words = [str(folder), "--data.manifest", str(manifest), "--out", str(out)]
    with thin.patch():
        score.main([*words, "--data.bad_files", bad_files])


@pytest.mark.parametrize(("images", "bad_files"), [(5, "skip"), (1, "fail")])
def test_ranks_share_the_images_of_a_manifest(images, bad_files, folder, detector, paths, tmp_path):
    manifest = paths[0].parent / f"{images}.csv"
    names = [path.name for path in paths[:images]]
    listed = ["gone.png", *names] if bad_files == "skip" else names
    pd.DataFrame({"path": listed, "label": ""}).to_csv(manifest, index=False)
    run_ranks(2, score_all, folder, manifest, tmp_path / "scores.csv", bad_files)
    written = pd.read_csv(tmp_path / "scores.csv")
    assert written["path"].tolist() == listed
    if bad_files == "skip":
        assert written["problem"].tolist()[0] == "gone.png: is missing"
        assert written.loc[0, ["score", "center", "percentile", "flagged"]].isna().all()
        written = written.iloc[1:]
        assert written["problem"].isna().all()
    wanted = detector.explain(paths[:images])
    np.testing.assert_allclose(written["score"], wanted["score"], rtol=1e-5)
    for name in ("center", "flagged"):
        assert written[name].tolist() == wanted[name].tolist()


def test_levels_are_those_of_the_networks_input(task, tmp_path):
    scaled = Preprocessing(image_size=SIZE, input_range=(0.0, 255.0), mask_scale=255)
    images = 255 * torch.rand(3, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(7))
    table, h, levels = Detector(task, scaled, CALIBRATION, device="cpu").describe(images)
    shares = images.double().flatten(1) / 255
    wanted = torch.stack([shares.mean(1), shares.var(1, unbiased=False).sqrt()], dim=1)
    torch.testing.assert_close(levels.double(), wanted, rtol=1e-5, atol=1e-6)
    assert "levels" not in table and h.shape == (3, 64)
    cv2.imwrite(str(tmp_path / "a.png"), np.arange(1200, dtype=np.uint8).reshape(40, 30))
    (tmp_path / "b.png").write_bytes(b"no film")
    detector = Detector(task, PLAIN_FILMS, CALIBRATION, device="cpu")
    with pytest.warns(UserWarning, match="b.png"):
        paths = [tmp_path / "b.png", tmp_path / "a.png"]
        levels = detector.describe(paths, bad_files="skip")[2]
    assert levels.isnan().all(dim=1).tolist() == [True, False]
