"""Heat maps: where they are hot, on what scale, where on the film, and what the commands write."""

import json

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from selftaught import Detector
from selftaught.cli.main import main
from selftaught.data.pipeline import open_pipeline
from selftaught.data.plan import PLAIN
from selftaught.errors import InputError
from selftaught.maps import METHODS, Scale, film_of, on_film, overlay
from selftaught.maps.folder import TABLE
from selftaught.maps.heat import frame, raw_heat
from selftaught.models import EncoderConfig, Preprocessing
from selftaught.models.encoder import Encoder
from tests.tiny import write_model

SIZE = 32
PLACE = slice(4, 8), slice(20, 24)  # rows and columns, away from all symmetries


class Knowing(nn.Module):
    """Scores by what one place shows beyond its surroundings; with an encoder of one channel."""

    def __init__(self):
        super().__init__()
        self.encoder = Encoder(EncoderConfig())
        self.encoder.layers = nn.Sequential(nn.ReLU())

    def forward(self, images):
        places = self.encoder.feature_map(images)[:, 0, PLACE[0], PLACE[1]]
        return {"score": places.mean((1, 2)).square()}


def score_of(scorer, sign=1.0):
    return lambda images, masks: sign * scorer(images)["score"]


def spot(value=1.0):
    """A grey picture with a spot at the place that counts, and one at its mirror image."""
    images = torch.full((2, 1, SIZE, SIZE), 0.3)
    images[:, 0, PLACE[0], PLACE[1]] = value
    images[:, 0, PLACE[0], 8:12] = value
    return images


@pytest.mark.parametrize("method", METHODS)
def test_heat_lies_where_the_score_comes_from(method):
    scorer = Knowing().requires_grad_(False)
    heat = raw_heat(method, scorer, score_of(scorer), spot(), batch=7)
    assert heat.shape == (2, SIZE, SIZE) and heat.min() >= 0
    y, x = np.unravel_index(int(heat[1].argmax()), (SIZE, SIZE))
    assert y in range(4, 8) and x in range(20, 24)
    near = heat[0, 2:10, 18:26].sum()
    assert near > 0.9 * heat[0].sum()


class OneSided(nn.Module):
    """Keeps one place of a picture alone."""

    def forward(self, images):
        kept = torch.zeros_like(images[:1])
        kept[..., PLACE[0], PLACE[1]] = 1
        return torch.relu(images * kept)


@pytest.mark.parametrize("method", METHODS)
def test_what_a_mirror_image_shows_is_hot_where_the_picture_has_it(method):
    scorer = Knowing().requires_grad_(False).eval()
    scorer.encoder.config = EncoderConfig(mirror=True)
    scorer.encoder.layers = nn.Sequential(OneSided())
    images = torch.full((1, 1, SIZE, SIZE), 0.3)
    images[:, 0, PLACE[0], 8:12] = 1.0
    heat = raw_heat(method, scorer, lambda one, _: scorer.encoder(one).mean(1), images, batch=7)
    assert heat[0, 2:10, 6:14].sum() > 0.7 * heat.sum() > 0


@pytest.mark.parametrize("method", ["occlusion", "gradient"])
def test_what_lowers_the_score_is_cold(method):
    scorer = Knowing().requires_grad_(False)
    heat = raw_heat(method, scorer, score_of(scorer, -1.0), spot(), batch=64)
    assert heat[:, PLACE[0], PLACE[1]].max() < 1e-3


def test_integrated_gradients_are_complete():
    """Without the smoothing that follows they add up to the score less that of the local mean."""
    from selftaught.maps import heat as module

    scorer = Knowing().requires_grad_(False)
    images = spot()
    score = score_of(scorer)
    fill = module.local_mean(images, SIZE * module.PATCH)
    with torch.no_grad():
        wanted = score(images, None) - score(fill, None)
    heat = module.gradient(score, images, None, 64)
    torch.testing.assert_close(heat.sum((1, 2)), wanted, rtol=1e-3, atol=0)


def test_padding_is_no_picture():
    images = torch.zeros(1, 1, SIZE, SIZE)
    images[0, 0, :, 10:20] = torch.rand(SIZE, 10) + 0.1
    wanted = torch.zeros_like(images)
    wanted[..., 10:20] = 1
    assert torch.equal(frame(images), wanted)
    # A score of the padding alone has nothing to explain: hiding never changes it.
    heat = raw_heat("occlusion", nn.Identity(), lambda x, _: 1 - x[..., :9].sum((1, 2, 3)), images)
    assert heat.max() == 0


def test_a_score_without_gradient_is_refused_in_one_line():
    def score(images, masks):
        return images.detach().sum((1, 2, 3))

    for method in ("gradient", "cam"):
        with pytest.raises(InputError, match="allowed: (method )?occlusion"):
            raw_heat(method, Knowing(), score, spot())
    with pytest.raises(InputError, match="no encoder with places"):
        raw_heat("cam", nn.Identity(), lambda x, _: x.sum((1, 2, 3)), spot())


def test_scale_is_that_of_normal_films():
    raw = torch.rand(40, 6, 6, generator=torch.Generator().manual_seed(0))
    raw *= torch.linspace(0.1, 2, 40)[:, None, None]
    scale = Scale.from_normals("occlusion", raw)
    peaks = np.sort(raw.flatten(1).amax(1).double().numpy())
    assert scale.high == peaks[37] and scale.films == 40  # 38 of 40 are not above it
    assert scale.low == pytest.approx(np.median(peaks))
    middle = (scale.low + scale.high) / 2
    heat = scale(torch.tensor([[0.0, scale.low, middle, scale.high, 9.0]]))
    assert heat[0].tolist() == pytest.approx([0, 0, 0.5, 1, 1])
    with pytest.raises(InputError, match="none has any heat"):
        Scale.from_normals("occlusion", torch.zeros(3, 6, 6))
    with pytest.raises(InputError, match="0 normal films"):
        Scale.from_normals("occlusion", torch.zeros(0, 6, 6))


def blob(height, width, y, x, sigma=4.0):
    rows, columns = np.mgrid[:height, :width]
    return np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * sigma**2))


def center_of(picture):
    rows, columns = np.mgrid[: picture.shape[0], : picture.shape[1]]
    return np.array([(picture * rows).sum(), (picture * columns).sum()]) / picture.sum()


@pytest.mark.parametrize("shape", [(90, 61), (61, 90), (40, 33), (128, 128)])
@pytest.mark.parametrize("order", ["composed", "published"])
def test_a_view_comes_back_to_the_pixels_it_was_made_of(tmp_path, shape, order):
    """The view itself serves as heat: its blob has to lie where the film has it."""
    import dataclasses

    at = np.array([0.3 * shape[0], 0.65 * shape[1]])
    film = np.rint(255 * blob(*shape, *at)).astype(np.uint8)
    path = tmp_path / "film.png"
    cv2.imwrite(str(path), film)
    augment = dataclasses.replace(PLAIN, order=order, autocontrast=0.0)
    with open_pipeline(
        "opencv", paths=[path], image_size=SIZE, augment=augment, seed=0, stage="x"
    ) as pipeline:
        view = next(iter(pipeline.batches([(0, [0])]))).views[0, 0, 0].numpy()
    placed = on_film(view, shape)
    assert placed.shape == shape
    # A quarter of a pixel of the view: half a cell off would be seen.
    assert np.abs(center_of(placed) - center_of(film / 255)).max() < 0.25 * max(shape) / SIZE


def test_overlay_leaves_calm_films_alone():
    film = np.random.default_rng(0).integers(0, 256, (50, 30)).astype(np.uint8)
    calm = overlay(film, np.zeros((SIZE, SIZE)))
    assert calm.dtype == np.uint8 and np.array_equal(calm, np.repeat(film[..., None], 3, 2))
    heat = np.zeros((SIZE, SIZE), np.float32)
    heat[8, 20] = 1
    shown = overlay(film.astype(np.uint16) * 100, heat)
    changed = np.abs(shown.astype(int) - overlay(film.astype(np.uint16) * 100, 0 * heat)).sum(2)
    y, x = np.unravel_index(int(changed.argmax()), changed.shape)
    left = (SIZE - round(30 * SIZE / 50)) // 2
    assert abs(y - 8.5 * 50 / SIZE) < 1.6 and abs(x - (20.5 - left) * 50 / SIZE) < 1.6
    assert shown[y, x, 0] > shown[y, x, 2]  # red, green, blue
    with pytest.raises(ValueError, match="must be"):
        overlay(film, heat[0])
    with pytest.raises(ValueError, match="must be"):
        overlay(np.zeros((4, 4, 3)), heat)


def test_heat_of_a_prepared_film_lies_in_its_carrier(tmp_path):
    """A raw page with a turned film: the view's blob has to lie where the page has it."""
    film = np.full((220, 160), 40, np.uint8)
    cv2.rectangle(film, (50, 20), (110, 200), 120, -1)
    cv2.circle(film, (75, 60), 12, 250, -1)
    turn = cv2.getRotationMatrix2D((80, 110), 8, 1.0)
    turn[:, 2] += (60, 40)
    page = np.full((320, 300), 255, np.uint8)
    inside = cv2.warpAffine(np.full_like(film, 255), turn, (300, 320)) > 127
    page[inside] = cv2.warpAffine(film, turn, (300, 320))[inside]
    path = tmp_path / "page.png"
    cv2.imwrite(str(path), page)
    from dataclasses import asdict

    from selftaught.data.prepare.claim import shaping
    from selftaught.data.prepare.config import PrepareConfig
    from selftaught.data.prepare.film import prepare_film

    config = PrepareConfig(size=96, mask="none")
    made = prepare_film(path, None, "", config)
    assert made.carrier == "cropped", "the test wants a film that is cut out"
    films = Preprocessing(image_size=SIZE, prepared=shaping(config))
    pixels, cut = film_of(path, films)
    assert np.array_equal(pixels, page) and cut is not None
    packed = tmp_path / "prepared.png"
    cv2.imwrite(str(packed), made.image)
    with open_pipeline(
        "opencv", paths=[packed], image_size=SIZE, augment=PLAIN, seed=0, stage="x"
    ) as pipeline:
        view = next(iter(pipeline.batches([(0, [0])]))).views[0, 0, 0].numpy()
    placed = on_film((view > 0.85).astype(np.float32), page.shape, cut)
    wanted = turn @ (75, 60, 1)
    assert np.abs(center_of(placed)[::-1] - wanted).max() < 0.5 * 220 / SIZE
    assert placed[~inside].max() < 0.5
    assert asdict(config)["size"] == cut.longest


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Eight films of blurred noise, the last two abnormal; returns their manifest."""
    folder, rng = tmp_path_factory.mktemp("films"), np.random.default_rng(1)
    rows = []
    for number in range(8):
        image = cv2.GaussianBlur(rng.random((48, 40)).astype("f4"), (0, 0), 3)
        image = cv2.normalize(image, None, 0, 200, cv2.NORM_MINMAX).astype(np.uint8)
        if number > 5:
            image[20:26, 8:32] = 255
        cv2.imwrite(str(folder / f"{number}.png"), image)
        rows.append({"path": f"{number}.png", "label": int(number > 5)})
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    return folder / "manifest.csv"


@pytest.fixture
def model(tmp_path, thin_encoder):
    return write_model(tmp_path / "run" / "model")


def test_the_command_fixes_a_scale_once_and_keeps_it(model, films, tmp_path, capsys):
    words = ["maps", str(model), "--data.manifest", str(films), "--out"]
    assert main([*words, str(tmp_path / "none")]) == 2
    told = capsys.readouterr().err
    assert "no colour scale" in told and "--data.normals" in told and told.count("\n") == 1
    out = tmp_path / "out"
    assert main([*words, str(out), "--data.normals", str(films)]) == 0
    table = pd.read_csv(out / TABLE)
    assert table["path"].tolist() == [f"{n}.png" for n in range(8)]
    detector = Detector.load(model)
    scale = detector.scales["cam"]  # the default, as the network has places
    assert scale.films == 6  # the normal ones
    paths = [films.parent / path for path in table["path"]]
    raw = detector.maps(paths, scaled=False)
    wanted = Scale.from_normals("cam", raw[:6])
    assert (scale.low, scale.high) == pytest.approx((wanted.low, wanted.high), rel=1e-3)
    peaks = (raw.flatten(1).amax(1) - scale.low) / (scale.high - scale.low)
    np.testing.assert_allclose(table["heat"], peaks, rtol=1e-2, atol=1e-3)
    np.testing.assert_allclose(table["score"], detector.score(paths), rtol=1e-4)
    heat = detector.maps(paths)
    picture = cv2.imread(str(out / "000007.png"))[..., ::-1]
    film = cv2.imread(str(paths[7]), cv2.IMREAD_GRAYSCALE)
    assert np.abs(picture.astype(int) - overlay(film, heat[7])).max() <= 2
    y, x = table["y"][7], table["x"][7]
    placed = on_film(raw[7].numpy(), film.shape)
    assert placed[y, x] == pytest.approx(placed.max(), rel=1e-2)
    # Without its neighbours a film has the same heat: nothing is scaled by the image.
    torch.testing.assert_close(detector.maps(paths[3:4])[0], heat[3], rtol=0, atol=1e-3)
    # Kept: no normal films are needed any more, and the same command goes on.
    assert main([*words, str(out)]) == 0
    capsys.readouterr()
    fewer = films.with_name("fewer.csv")
    fewer.write_text("path\n0.png\n")
    assert main(["maps", str(model), "--data.manifest", str(fewer), "--out", str(out)]) == 2
    assert "choose another folder" in capsys.readouterr().err
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    assert main([*words, str(other)]) == 2
    assert "choose another folder" in capsys.readouterr().err
    assert [path.name for path in other.iterdir()] == ["mine.txt"]


def test_a_scale_is_of_one_model(model, films, recwarn):
    detector = Detector.load(model)
    paths = [films.parent / f"{n}.png" for n in range(3)]
    from selftaught.maps.scale import write_scale

    write_scale(model, Scale.from_normals("cam", detector.maps(paths, method="cam", scaled=False)))
    assert set(Detector.load(model).scales) == {"cam"}
    kept = (model / "maps.json").read_text()
    document = json.loads(kept)
    document["sha256"]["weights.safetensors"] = "0" * 64
    (model / "maps.json").write_text(json.dumps(document))
    assert Detector.load(model).scales == {}
    (model / "maps.json").write_text(kept.replace('"low"', '"lo"'))
    with pytest.warns(UserWarning, match="damaged"):
        damaged = Detector.load(model)
    assert damaged.score(paths).shape == (3,)
    with pytest.raises(InputError, match="no colour scale"):
        damaged.maps(paths)
    write_model(model)  # replaces the model, and the scale with it
    assert not (model / "maps.json").exists()


def test_what_has_no_gradient_is_explained_by_occlusion(model):
    detector = Detector.load(model)
    detector.by = "knn"
    assert detector.map_method == "occlusion"
    with pytest.raises(InputError, match="allowed: occlusion"):
        detector.maps(torch.rand(1, 1, SIZE, SIZE), method="cam", scaled=False)
    other = Detector.load(model)
    assert other.map_method == "cam"
    other.scales["occlusion"] = Scale(method="occlusion", low=0.0, high=1.0, films=1)
    assert other.map_method == "occlusion"  # the only one that can be shown


def test_score_writes_maps_beside_scores(model, films, tmp_path, capsys):
    main(["maps", str(model), "--data.manifest", str(films), "--data.normals", str(films),
          "--out", str(tmp_path / "a")])  # fmt: skip
    bad = tmp_path / "bad"
    bad.mkdir()
    for number in range(3):
        (bad / f"{number}.png").write_bytes((films.parent / f"{number}.png").read_bytes())
    (bad / "1.png").write_bytes(b"no image")
    out, folder = tmp_path / "scores.csv", tmp_path / "maps"
    words = ["score", str(model), "--data.manifest", str(bad), "--out", str(out)]
    with pytest.warns(UserWarning):
        assert main([*words, "--maps", str(folder), "--data.bad_files", "skip"]) == 0
    table = pd.read_csv(folder / TABLE)
    assert table["map"].fillna("").tolist() == ["000000.png", "", "000002.png"]
    assert sorted(path.name for path in folder.glob("*.png")) == ["000000.png", "000002.png"]
    assert table["heat"].isna().tolist() == [False, True, False]
    scores = pd.read_csv(out)["score"]
    np.testing.assert_allclose(table["score"], scores, rtol=1e-4)
    capsys.readouterr()
    assert main(["score", str(tmp_path / "run"), "--maps", "x"]) == 2
    assert "maps needs --data.manifest" in capsys.readouterr().err
