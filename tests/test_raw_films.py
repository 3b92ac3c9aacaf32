"""Raw films through a model that was trained on prepared ones: its own scores, or one line."""

import dataclasses
import json
import shutil
import subprocess
import sys
import warnings

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from selftaught import Detector
from selftaught.cli.main import main
from selftaught.data.augment import Augment
from selftaught.data.prepare.config import PrepareConfig
from selftaught.data.prepare.job import prepare
from selftaught.errors import InputError
from selftaught.export.runtime import Exported
from selftaught.models import Calibration, Preprocessing, save_model
from selftaught.phantoms import write_set
from selftaught.web.exported import scorer_of
from tests.data.prepare.films import chest
from tests.tiny import spheres

pytestmark = pytest.mark.usefixtures("thin_encoder")
SIZE = 64
SETTINGS = PrepareConfig(size=96, workers=1, sheets=0, bad_limit=1.0)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A folder of cluttered films: carriers, negatives, 8 and 16 bits, one flat, some masks."""
    folder = tmp_path_factory.mktemp("films") / "raw"
    formats = ("png8", "png16", "jpeg", "dicom")
    write_set(folder, 12, seed=5, size=160, clutter=True, formats=formats, workers=1)
    table = pd.read_csv(folder / "manifest.csv", dtype=str, keep_default_na=False)
    table.loc[table.index % 3 == 0, "mask"] = ""
    cv2.imwrite(str(folder / "flat.png"), np.full((150, 120), 90, np.uint8))
    flat = {**dict.fromkeys(table.columns, ""), "path": "flat.png", "label": "0"}
    pd.concat([table, pd.DataFrame([flat])]).to_csv(folder / "manifest.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def task():
    """Untrained, but with the batch statistics of some noise, so that scores differ."""
    made = spheres(3, head=(16, 8), image_size=SIZE, stem="small")
    with torch.no_grad():
        for _ in range(5):
            made.embedder.train()(torch.rand(8, 1, SIZE, SIZE))
    return made


def prepared(raw, folder, **settings):
    """Prepare the films; the manifest of the set."""
    return prepare(raw, folder, dataclasses.replace(SETTINGS, **settings)).manifest


def model_of(manifest, task, *, masked=True, **augment):
    """What a training on a manifest saves."""
    films = Preprocessing.of(Augment(**augment), SIZE, masked, manifest)
    folder = manifest.parent / ("model" if masked else "unmasked")
    return save_model(folder, task, films, Calibration.from_normals([1.0, 2.0]))


@pytest.fixture(scope="module")
def set_(raw, tmp_path_factory):
    return prepared(raw, tmp_path_factory.mktemp("set") / "prepared")


@pytest.fixture(scope="module")
def model(set_, task):
    return model_of(set_, task)


def scores(model, source, out, *more):
    words = ["score", str(model), "--data.manifest", str(source), "--out", str(out), *more]
    assert main(words) == 0
    return pd.read_csv(out)


def both(model, manifest, raw, folder, *more):
    """Scores of the prepared set, and of the same films raw, as the set names them."""
    own = scores(model, manifest, folder / "own.csv", *more)
    found = scores(model, raw, folder / "raw.csv", "--data.bad_files", "skip", *more)
    assert found["problem"].notna().sum() == len(found) - len(own)
    return own, found.set_index("path").loc[own["source"]].reset_index()


def check_equal(own, found):
    for name in ("score", "percentile"):
        np.testing.assert_allclose(found[name], own[name], rtol=0, atol=1e-6)
    assert found["center"].tolist() == own["center"].tolist()
    assert found["flagged"].tolist() == own["flagged"].tolist()
    assert own["score"].nunique() > 8


def test_raw_films_get_the_scores_of_the_prepared_ones(raw, set_, model, tmp_path):
    with pytest.warns(UserWarning, match="flat.png: low contrast: .* it gets no score"):
        own, found = both(model, set_, raw, tmp_path)
    # What the films are to differ in: else the test would say little.
    assert "cropped" in set(own["carrier"]) and own["inverted"].any()
    assert set(own["mask_from"]) >= {"given", "found"} and set(own["bits"]) == {8, 16}
    check_equal(own, found)
    assert "body_part" in found and found["mask"].isna().sum() > 2


WITHOUT_TORCH = """
import json, sys
from pathlib import Path
sys.modules.update(dict.fromkeys(("torch", "torchvision", "pandas", "sklearn")))
from selftaught.errors import InputError
from selftaught.export.runtime import Exported
from selftaught.web.exported import scorer_of
score = scorer_of(Exported.load(sys.argv[1]))
for path in map(Path, sys.argv[2:]):
    try:
        print(json.dumps(score(path)))
    except InputError as error:
        print(json.dumps({"problem": str(error)}))
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)  # an export traces the network
def test_an_exported_file_gives_raw_films_the_same_without_torch(
    raw, set_, task, tmp_path, monkeypatch
):
    films = Preprocessing.of(Augment(), SIZE, True, set_)
    names = pd.read_csv(raw / "manifest.csv")["path"]
    paths = [str(raw / name) for name in names]
    bare = Detector(task, films, Calibration(), device="cpu")
    normals = bare.score(paths[:5]).tolist()
    calibration = dataclasses.replace(
        Calibration.from_normals(normals, 0.5), patients=(0, 1, 1, 2, 2)
    )
    model = save_model(tmp_path / "model", task, films, calibration)
    out = tmp_path / "model.onnx"
    with pytest.warns(UserWarning, match="flat.png: low contrast"):
        words = ["export", str(model), "--data.manifest", str(raw), "--out", str(out)]
        assert main(words) == 0
        wanted = Detector.load(model, device="cpu").explain(paths, bad_files="skip")
    command = [sys.executable, "-c", WITHOUT_TORCH, str(out), *paths]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made = pd.DataFrame([json.loads(line) for line in done.stdout.splitlines()])
    assert made["problem"].fillna("").tolist() == wanted["problem"].tolist()
    for name in ("score", "percentile", "p_value", "flagged", "center"):
        numbers = [one[name].astype(float) for one in (made, wanted)]
        np.testing.assert_allclose(*numbers, rtol=1e-5)
    assert set(wanted["flagged"].dropna()) == {0, 1} and wanted["p_value"].nunique() > 2
    monkeypatch.setitem(sys.modules, "skimage.filters", None)
    with pytest.raises(InputError, match="pip install scikit-image"):
        scorer_of(Exported.load(out))


@pytest.mark.parametrize(
    ("settings", "augment"),
    [
        ({"bits": "8", "given_mask": False}, {"autocontrast": 3.0}),
        ({"carrier": "paper", "polarity": "paper", "mask": "paper"}, {"order": "published"}),
        ({"carrier": "none", "mask": "none", "polarity": "none"}, {"mask_scale": 255}),
    ],
)
def test_under_other_settings_too(raw, task, tmp_path, settings, augment):
    manifest = prepared(raw, tmp_path / "set", **settings)
    masked = settings["mask"] != "none" if "mask" in settings else True
    model = model_of(manifest, task, masked=masked, **augment)
    with pytest.warns(UserWarning, match="low contrast"):
        check_equal(*both(model, manifest, raw, tmp_path))


def test_without_masks_where_training_had_none(raw, set_, task, tmp_path):
    model = model_of(set_, task, masked=False)
    with pytest.warns(UserWarning, match="low contrast"):
        own, found = both(model, set_, raw, tmp_path)
    check_equal(own, found)
    paths = [set_.parent / name for name in own["path"]]
    masks = [set_.parent / name for name in own["mask"].dropna()][:1]
    with pytest.raises(ValueError, match="masks: the model was trained without masks"):
        Detector.load(model, device="cpu").score(paths[:1], masks=masks)


def test_films_that_only_their_set_tells_of(task, tmp_path):
    """Chests of no body part, some inverted: alone none could be turned."""
    films = tmp_path / "films"
    films.mkdir()
    for number in range(24):
        film = chest(number)
        cv2.imwrite(str(films / f"{number:02d}.png"), film if number % 6 else 255 - film)
    manifest = prepared(films, tmp_path / "set", carrier="none")
    own = pd.read_csv(manifest)
    assert own["inverted"].tolist() == [int(number % 6 == 0) for number in range(24)]
    assert (own["polarity"][own["inverted"] == 1] == "set").all()
    model = model_of(manifest, task)
    check_equal(*both(model, manifest, films, tmp_path))
    facts = json.loads((model / "model.json").read_text())
    assert len(facts["preprocessing"]["reference"]) == 24 * 144 * 4 / 3
    # One new film, as hospitals send them.
    cv2.imwrite(str(tmp_path / "new.png"), chest(50))
    cv2.imwrite(str(tmp_path / "negative.png"), 255 - chest(50))
    detector = Detector.load(model, device="cpu")
    first, second = detector.score([tmp_path / "new.png", tmp_path / "negative.png"]).tolist()
    assert first == pytest.approx(second, abs=1e-6)


def test_by_dali(raw, set_, model, tmp_path):
    pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")
    with pytest.warns(UserWarning, match="low contrast"):
        check_equal(*both(model, set_, raw, tmp_path, "--data.pipeline", "dali"))


def test_the_detector_takes_raw_and_prepared_films_together(raw, set_, model):
    table = pd.read_csv(set_, dtype=str, keep_default_na=False)
    paths, origin = [set_.parent / name for name in table["path"]], raw / table["source"][1]
    given = pd.read_csv(raw / "manifest.csv", index_col="path", dtype=str)["mask"]
    mask = raw / given[table["source"][1]] if isinstance(given[table["source"][1]], str) else None
    detector = Detector.load(model, device="cpu")
    # A set brings its masks; without one of its own, a raw film has it found.
    own = detector.score(paths)
    mixed = detector.score([paths[0], origin, paths[2]], masks=[
        raw.parent / set_.parent / table["mask"][0], mask, set_.parent / table["mask"][2]
    ])  # fmt: skip
    torch.testing.assert_close(mixed, own[:3], rtol=0, atol=1e-6)
    assert detector.score([paths[0], origin]).isfinite().all()


def test_a_film_of_low_contrast_is_named(raw, model, tmp_path, capsys):
    words = ["score", str(model), "--data.manifest", str(raw), "--out", str(tmp_path / "s.csv")]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "flat.png: low contrast" in line and not (tmp_path / "s.csv").exists()


@pytest.mark.parametrize("name", ["size", "carrier", "polarity", "mask", "bits", "given_mask"])
def test_a_set_of_other_settings_is_refused(set_, model, tmp_path, name):
    other = {"size": 80, "bits": "8", "given_mask": False}.get(name, "none")
    folder = shutil.copytree(set_.parent, tmp_path / "other")
    claim = json.loads((folder / "prepare.json").read_text())
    claim["settings"][name] = other
    (folder / "prepare.json").write_text(json.dumps(claim))
    path = folder / pd.read_csv(set_)["path"][0]
    detector = Detector.load(model, device="cpu")
    with pytest.raises(InputError, match=f"prepared with {name} {other!r}, the model's films"):
        detector.score([path])
    claim["settings"][name] = "nonsense"
    (folder / "prepare.json").write_text(json.dumps(claim))
    with pytest.raises(InputError, match="nonsense|prepare.json"):
        detector.score([path])
    (folder / "prepare.json").write_text("{")
    with pytest.raises(InputError, match="prepare.json: is damaged"):
        detector.score([path])
    (folder / "prepare.json").unlink()
    with pytest.raises(InputError, match="does not say how it was prepared"):
        detector.score([path])


def test_how_a_set_was_made_but_not_what_it_holds_may_differ(raw, set_, model, tmp_path):
    claim = json.loads((set_.parent / "prepare.json").read_text())
    folder = shutil.copytree(set_.parent, tmp_path / "other")
    claim["settings"]["allow_outside"] = True
    (folder / "prepare.json").write_text(json.dumps(claim))
    path = folder / pd.read_csv(set_)["path"][0]
    assert Detector.load(model, device="cpu").score([path]).isfinite().all()


def test_a_model_of_films_as_they_came(raw, set_, task, tmp_path, capsys):
    films = Preprocessing.of(Augment(), SIZE, False, raw)
    assert films.prepared is None and films.known
    model = save_model(tmp_path / "plain", task, films, Calibration())
    table = pd.read_csv(raw / "manifest.csv", dtype=str, keep_default_na=False)
    shown = raw / "shown.csv"
    table[table["path"] != "flat.png"].to_csv(shown, index=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores(model, shown, tmp_path / "scores.csv")
    with pytest.warns(UserWarning, match="flat.png: shows nothing: 120 x 150 pixels, all of level"):
        scores(model, raw, tmp_path / "scores.csv", "--data.bad_files", "skip")
    words = ["score", str(model), "--data.manifest", str(set_), "--out", str(tmp_path / "s.csv")]
    assert main(words) == 2
    assert "trained on films as they came; allowed: the raw films" in capsys.readouterr().err
    masked = save_model(
        tmp_path / "masked", task, dataclasses.replace(films, masked=True), Calibration()
    )
    (bare := raw.parent / "bare.csv").write_text("path\nraw/flat.png\n")
    words = ["score", str(masked), "--data.manifest", str(bare), "--out", str(tmp_path / "s.csv")]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "masks: none are given, but the model was trained on images multiplied by masks" in line
    assert "column mask" in line


def test_a_pack_that_does_not_say_how_it_was_prepared(raw, set_, task, tmp_path):
    shutil.copytree(set_.parent / "pack", tmp_path / "alone" / "pack")
    film = tmp_path / "alone" / pd.read_csv(set_)["path"].iloc[0]
    trained_raw = model_of(raw / "manifest.csv", task, masked=False)
    with pytest.raises(InputError, match="is in a pack that does not say how it was prepared"):
        Detector.load(trained_raw).score([film])
    pd.DataFrame({"path": [str(film)]}).to_csv(tmp_path / "alone.csv", index=False)
    films = Preprocessing.of(Augment(), SIZE, False, tmp_path / "alone.csv")
    assert not films.known and films.prepared is None


def test_a_list_of_raw_films_beside_a_set_has_not_its_settings(raw, set_, tmp_path):
    shutil.copytree(set_.parent, tmp_path / "set")
    listed = tmp_path / "set" / "mine.csv"
    path = raw / pd.read_csv(raw / "manifest.csv")["path"].iloc[0]
    pd.DataFrame({"path": [str(path)]}).to_csv(listed, index=False)
    films = Preprocessing.of(Augment(), SIZE, False, listed)
    assert films.known and films.prepared is None


def test_the_published_carrier_asks_for_body_parts(raw, set_, task):
    films = Preprocessing.of(Augment(), SIZE, True, set_)
    films = dataclasses.replace(films, prepared={**films.prepared, "carrier": "paper"})
    detector = Detector(task, films, Calibration(), device="cpu")
    paths = [raw / name for name in pd.read_csv(set_)["source"][:2]]
    with pytest.raises(InputError, match="body_parts: none are given"):
        detector.score(paths)
    assert detector.score(paths, body_parts=["Wrist", ""]).isfinite().all()
    with pytest.raises(ValueError, match="body_parts: 1 for 2 images"):
        detector.score(paths, body_parts=["wrist"])


def test_a_list_of_films_in_a_set_has_its_settings(raw, set_, tmp_path):
    """A split table, or a part of a set's manifest, may lie elsewhere."""
    table = pd.read_csv(set_, dtype=str, keep_default_na=False)
    names = [f"prepared/{name}" for name in table["path"]]
    listed = set_.parent.parent / "some.csv"
    listed.write_text("\n".join(["path", *names]) + "\n")
    wanted = Preprocessing.of(Augment(), SIZE, True, set_)
    assert wanted.prepared["size"] == 96 and "workers" not in wanted.prepared
    assert Preprocessing.of(Augment(), SIZE, True, listed) == wanted
    assert Preprocessing.of(Augment(), SIZE, True, set_.parent) == wanted
    listed.write_text("\n".join(["path", names[0], str(raw / "flat.png")]) + "\n")
    mixed = Preprocessing.of(Augment(), SIZE, True, listed)
    assert mixed.prepared is None and not mixed.known
