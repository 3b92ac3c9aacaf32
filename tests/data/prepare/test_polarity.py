"""Which way round a film is: what it states, what it shows, and what is flagged."""

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest

from selftaught.data.images.decode import read_grey
from selftaught.data.images.pack import Pack
from selftaught.data.prepare.config import PrepareConfig
from selftaught.data.prepare.film import prepare_film
from selftaught.data.prepare.job import prepare
from selftaught.data.prepare.polarity import invert, is_inverted_published, judge
from selftaught.phantoms.export import FORMATS, encode
from selftaught.phantoms.radiograph import radiograph

REAL = Path(__file__).resolve().parents[3] / ".." / "shared" / "data"
real = pytest.mark.skipif(not REAL.is_dir(), reason="the real radiographs are not beside the repo")
CONFIG = PrepareConfig(carrier="none", mask="none", workers=1, sheets=1)


def limb() -> np.ndarray:
    """(256, h) uint8: a positive whose background can be seen."""
    image = radiograph(3, 1, size=256, body_part="forearm", clutter=False).image
    return (image >> 8).astype(np.uint8)


def filled(seed: int = 0) -> np.ndarray:
    """(200, 200) uint8: tissue from edge to edge, without background or fine structure."""
    soft = cv2.GaussianBlur(np.random.default_rng(seed).normal(0, 60, (200, 200)), (0, 0), 3)
    ramp = 1 - np.abs(np.linspace(-0.5, 0.5, 200))
    return np.clip(np.clip(soft * 3 + 150, 0, 255) * ramp + 20, 0, 255).astype(np.uint8)


def trabeculae() -> np.ndarray:
    """(200, 200) uint8: thin bright lines on even tissue that fills the film."""
    grey = np.full((200, 200), 150.0)
    grey[::7] = grey[:, ::9] = 190
    return np.clip(grey + np.random.default_rng(1).normal(0, 3, grey.shape), 0, 255).astype(
        np.uint8
    )


@pytest.mark.parametrize("deep", [False, True])
def test_a_background_tells_negatives_from_positives(deep: bool) -> None:
    grey = limb().astype(np.uint16) * 257 if deep else limb()
    assert judge(grey) == "positive" and judge(invert(grey)) == "negative"
    assert is_inverted_published(invert(grey)) and not is_inverted_published(grey)
    np.testing.assert_array_equal(invert(invert(grey)), grey)


def test_white_that_collimation_left_beside_a_positive_is_no_negatives_background() -> None:
    grey = np.full((200, 300), 6, np.uint8)
    grey[:, 110:190] = trabeculae()[:, :80]
    grey[:, :90] = grey[:, 210:] = 255
    assert is_inverted_published(grey)
    assert judge(grey) == "unsure" == judge(invert(grey))


def test_a_film_that_the_body_fills_is_unsure_though_the_published_rule_turns_it() -> None:
    assert filled().mean() > 125 and is_inverted_published(filled())
    assert judge(filled()) == "unsure" == judge(invert(filled()))


def test_fine_structure_confirms_but_never_turns() -> None:
    assert judge(trabeculae()) == "positive" and judge(invert(trabeculae())) == "unsure"
    tiny = cv2.resize(trabeculae(), (60, 60), interpolation=cv2.INTER_NEAREST)
    assert judge(tiny) == "unsure"


def test_a_bright_chest_is_not_turned() -> None:
    """Shoulders and belly as bright as the middle, and darker lungs beside it."""
    y, x = np.mgrid[:240, :240] / 240
    lungs = np.exp(-(((np.abs(x - 0.5) - 0.27) / 0.08) ** 2) - ((y - 0.42) / 0.2) ** 2)
    grey = 200 - 130 * lungs + np.random.default_rng(2).normal(0, 2, x.shape)
    grey = np.clip(cv2.GaussianBlur(grey, (0, 0), 1.5), 0, 255).astype(np.uint8)
    assert is_inverted_published(grey) and judge(grey) != "negative"


def test_two_bright_limbs_with_a_dark_gap_are_no_negative() -> None:
    random = np.random.default_rng(6)
    spongy = cv2.GaussianBlur(random.normal(0, 1, (160, 640)), (0, 0), 1.5)
    x = np.arange(640)
    grey = np.full((160, 640), 25.0)
    for middle in (160, 480):
        limb = np.abs(x - middle) < 145
        grey[:, limb] = 190 + 60 * spongy[:, limb]
    grey = np.clip(cv2.GaussianBlur(grey, (0, 0), 1), 0, 255).astype(np.uint8)
    assert grey.mean() > 125 and judge(grey) != "negative"


@pytest.mark.parametrize("name", [name for name in FORMATS if name.startswith("dicom")])
def test_what_dicom_states_is_not_overruled_but_flagged(tmp_path: Path, name: str) -> None:
    for number, grey in enumerate((limb(), invert(limb()))):
        master = grey.astype(np.uint16) * 257
        (tmp_path / "a.dcm").write_bytes(encode(master, name))
        (tmp_path / "a.png").write_bytes(encode(master, "png16"))
        stated = prepare_film(tmp_path / "a.dcm", None, "", CONFIG)
        np.testing.assert_array_equal(stated.image, read_grey(tmp_path / "a.dcm"))
        assert (stated.inverted, stated.polarity) == (False, ("stated", "unsure")[number])
        shown = prepare_film(tmp_path / "a.png", None, "", CONFIG)
        assert (shown.inverted, shown.polarity) == (bool(number), "found")
        np.testing.assert_array_equal(shown.image, limb().astype(np.uint16) * 257)


def test_unsure_films_are_listed_counted_and_shown(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    cv2.imwrite(str(tmp_path / "raw" / "0.png"), limb())
    cv2.imwrite(str(tmp_path / "raw" / "1.png"), filled())
    cv2.imwrite(str(tmp_path / "raw" / "2.png"), invert(limb()))
    summary = prepare(tmp_path / "raw", tmp_path / "out", CONFIG)
    assert summary.counts["polarity unsure"] == 1 == summary.counts["inverted"]
    assert "polarity unsure    1" in str(summary)
    with (tmp_path / "out" / "manifest.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["polarity"] for row in rows] == ["found", "unsure", "found"]
    assert [row["inverted"] for row in rows] == ["0", "0", "1"]
    pack = Pack(tmp_path / "out" / "pack")
    np.testing.assert_array_equal(pack.image(2), pack.image(0))
    sheets = tmp_path / "out" / "sheets"
    assert {path.name for path in sheets.iterdir()} == {"page_001.png", "unsure_001.png"}
    page, unsure = (read_grey(sheets / f"{name}_001.png") for name in ("page", "unsure"))
    # The unsure film alone, in the first place, and its mark in the caption on both.
    width = page.shape[1] // 5
    np.testing.assert_array_equal(unsure[:, :width][:160], page[:, width : 2 * width][:160])
    captions = [page[160:176, i * width : (i + 1) * width] > 128 for i in range(3)]
    assert captions[1].sum() > captions[0].sum() + 50


@pytest.mark.parametrize(
    ("rule", "inverted", "polarity"), [("none", False, "none"), ("paper", True, "found")]
)
def test_other_rules_ask_nobody_else(
    tmp_path: Path, rule: str, inverted: bool, polarity: str
) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(encode(invert(limb()).astype(np.uint16) * 257, "dicom"))
    film = prepare_film(path, None, "", PrepareConfig(**{**vars(CONFIG), "polarity": rule}))
    assert (film.inverted, film.polarity) == (inverted, polarity)
    np.testing.assert_array_equal(film.image, read_grey(path))


@real
@pytest.mark.real_data
def test_real_chests_stay_as_their_files_state() -> None:
    for name in ("RG1_J2KI.dcm", "Fake_MONOHR1.dcm"):
        film = prepare_film(REAL / "dicom" / name, None, "", PrepareConfig(mask="none"))
        # A real positive that looks bright, and a real negative that states to be none.
        assert (film.inverted, film.polarity) == (False, "unsure")


@real
@pytest.mark.real_data
def test_real_limbs_and_knees_are_not_turned() -> None:
    limbs = [path for path in sorted((REAL / "truncated" / "images").iterdir()) if whole(path)]
    assert len(limbs) == 12
    for path in limbs:
        assert judge(read_grey(path)) == "positive", path
        assert judge(invert(read_grey(path))) == "negative", path
    knees = [read_grey(path) for path in sorted((REAL / "knee" / "images").iterdir())[::20]]
    found = [judge(grey) for grey in knees]
    assert "negative" not in found and found.count("unsure") < 0.2 * len(found)
    missed = [judge(invert(grey)) for grey in knees].count("positive")
    assert missed < 0.05 * len(knees)


def whole(path: Path) -> bool:
    try:
        return read_grey(path).size > 0
    except ValueError:
        return False
