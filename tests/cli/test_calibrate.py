"""`selftaught calibrate` and `monitor` as commands: what they write, what they refuse."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from selftaught import Detector
from selftaught.cli.main import main
from selftaught.models import Calibration, Preprocessing, save_model
from selftaught.models.bank import Bank
from tests.tiny import spheres

FILMS = 44


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """44 films: 36 normal ones of 24 patients, 8 abnormal; a model that remembers 6 others."""
    from tests import thin

    with thin.patch():
        folder = tmp_path_factory.mktemp("site")
        generator = np.random.default_rng(0)
        for number in range(FILMS):
            film = generator.integers(0, 256, (6, 6)).astype(np.uint8)
            film = np.array(Image.fromarray(film).resize((40, 48), Image.Resampling.BICUBIC))
            if number >= 36:
                film[20:30, 10:30] = 255
            Image.fromarray(film).save(folder / f"{number}.png")
        task = spheres(3)
        films = Preprocessing(image_size=32)
        bare = Detector(spheres(3), films, Calibration())
        seen = bare.embed([folder / f"{number}.png" for number in range(6)])[0]
        bank = Bank.of(torch.cat([seen, seen + 3]), seen[:0])
        facts = {"films": {"body_part": {"knee": 30, "wrist": 30}}}
        save_model(folder / "model", task, films, Calibration(2.0, (1.0, 2.0)), facts, bank)
        yield folder


@pytest.fixture(autouse=True)
def thin(thin_encoder):
    pass


def listed(place, name, rows, label="", patient=None):
    """A list of the films `rows`, all of one label, or of their own for True."""
    table = pd.DataFrame({"path": [f"{number}.png" for number in rows]})
    table["label"] = [int(n >= 36) if label is True else label for n in rows]
    table["patient"] = ["" if patient is None else patient(n) for n in rows]
    table.to_csv(place / name, index=False)
    return str(place / name)


def calibrate(place, source, out, *more):
    return main(["calibrate", str(place / "model"), "--data.manifest", source,
                 "--out", str(out), *map(str, more)])  # fmt: skip


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_copy_differs_by_its_calibration_alone(place, tmp_path, capsys):
    before, out = content(place / "model"), tmp_path / "new"
    source = listed(place, "own.csv", range(6, 36))
    assert calibrate(place, source, out, "--false_alarms", 0.1) == 0
    told = capsys.readouterr().out
    assert "threshold" in told and "it was 2" in told and str(out) in told
    after = content(out)
    assert before == content(place / "model")
    assert {n: b for n, b in after.items() if n != "model.json"} == {
        n: b for n, b in before.items() if n != "model.json"
    }
    documents = [json.loads(one["model.json"]) for one in (before, after)]
    changed = {key for key in documents[0] if documents[0][key] != documents[1][key]}
    assert changed == {"calibration", "training", "sha256"}
    facts = documents[1]["training"]["calibrated"]
    assert facts["wished"] == {"false_alarms": 0.1} and facts["units"] == "films"
    old, new = Detector.load(place / "model"), Detector.load(out)
    paths = [place / f"{number}.png" for number in range(6, 36)]
    assert torch.equal(old.score(paths), new.score(paths))
    table = new.explain(paths)
    assert table["flagged"].sum() == 2  # k = 28 of 30: two lie above
    assert (table["flagged"] == (table["p_value"] <= 0.1)).all()
    np.testing.assert_allclose(sorted(table["percentile"]), 100 * np.arange(1, 31) / 30)


def test_patients_count_once(place, tmp_path, capsys):
    source = listed(place, "own.csv", range(6, 36), 0, lambda n: f"secret{n // 2}")
    assert calibrate(place, source, tmp_path / "new", "--false_alarms", 0.05) == 2
    assert (
        "needs 19 patients with normal films at least, and here are 15" in capsys.readouterr().err
    )
    assert calibrate(place, source, tmp_path / "new", "--false_alarms", 0.1) == 0
    assert "of 15 patients" in capsys.readouterr().out
    text = (tmp_path / "new" / "model.json").read_text()
    assert "secret" not in text and len(json.loads(text)["calibration"]["patients"]) == 30
    assert Detector.load(tmp_path / "new").calibration.weights.sum() == pytest.approx(15)


def test_sensitivity_takes_both_kinds(place, tmp_path, capsys):
    source = listed(place, "both.csv", range(6, FILMS), True)
    assert calibrate(place, source, tmp_path / "new", "--sensitivity", 0.8) == 0
    assert "8 abnormal films" in capsys.readouterr().out
    model = Detector.load(tmp_path / "new")
    flagged = model.explain([place / f"{n}.png" for n in range(36, FILMS)])["flagged"]
    assert flagged.sum() == 8  # k = floor(0.2 * 9) = 1: the smallest score is flagged too
    assert len(model.calibration.normal_scores) == 30


@pytest.mark.parametrize(
    ("rows", "label", "option", "message"),
    [
        (range(6, 20), "", ("--false_alarms", 0.05), "needs 19 normal films at least, and here a"),
        (range(6, 40), True, ("--false_alarms", 0.1), "4 of 34 films are labelled abnormal"),
        (range(6, 36), 0, ("--sensitivity", 0.8), "no film is labelled abnormal"),
        (range(36, 44), True, ("--sensitivity", 0.8), "no film is labelled normal"),
        (range(4, 36), "", ("--false_alarms", 0.1), "own.csv row 2: the model was trained on this"),
        (range(6, 36), "", (), "neither of false_alarms and sensitivity is given"),
        (range(6, 36), "", ("--false_alarms", 1), "false_alarms is 1; allowed: above 0, below 1"),
        (range(6, 36), "", ("--false_alarms", 0.1, "--sensitivity", 0.8), "both of"),
    ],
)
def test_what_has_no_place_is_refused_in_one_line(
    place, tmp_path, capsys, rows, label, option, message
):
    source = listed(place, "own.csv", rows, label)
    assert calibrate(place, source, tmp_path / "new", *option) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if "score " not in line[:6]]
    assert len(error) == 1 and message in error[0] and not (tmp_path / "new").exists()


def test_some_labels_and_some_blanks_are_refused(place, tmp_path, capsys):
    source = listed(place, "own.csv", range(6, 36), 0)
    table = pd.read_csv(source, dtype=str, keep_default_na=False)
    table.loc[3, "label"] = ""
    table.to_csv(source, index=False)
    assert calibrate(place, source, tmp_path / "new", "--false_alarms", 0.1) == 2
    assert "1 of 30 films have no label; allowed: 0 or 1 for each" in capsys.readouterr().err


def test_nothing_is_overwritten(place, tmp_path, capsys):
    source = listed(place, "own.csv", range(6, 36))
    (tmp_path / "there").mkdir()
    for out in (tmp_path / "there", place / "model", place / "model" / "new"):
        before = content(place / "model")
        assert calibrate(place, source, out, "--false_alarms", 0.1) == 2
        assert content(place / "model") == before
    assert "lies in the model's own folder" in capsys.readouterr().err


def test_films_that_cannot_be_read_are_left_out_where_wished(place, tmp_path, capsys):
    (place / "broken.png").write_bytes(b"no film")
    table = pd.DataFrame({"path": [*(f"{n}.png" for n in range(6, 36)), "broken.png"]})
    source = place / "some.csv"
    table.to_csv(source, index=False)
    assert calibrate(place, str(source), tmp_path / "new", "--false_alarms", 0.1) == 2
    assert "broken.png" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="broken.png"):
        more = ("--false_alarms", 0.1, "--data.bad_files", "skip")
        assert calibrate(place, str(source), tmp_path / "new", *more) == 0
    assert "1 of 31 images" in capsys.readouterr().out
    assert len(Detector.load(tmp_path / "new").calibration.normal_scores) == 30


def monitor(place, source, out, *more):
    return main(["monitor", str(place / "model"), "--data.manifest", source,
                 "--out", str(out), *map(str, more)])  # fmt: skip


def test_a_row_a_run_and_exit_code_4_for_an_alarm(place, tmp_path, capsys):
    out = tmp_path / "watch"
    usual = listed(place, "usual.csv", range(6, 24))
    week = listed(place, "week.csv", range(24, 36))
    assert monitor(place, week, out, "--data.reference", usual, "--alarm_rate", 0.05) == 0
    first = (out / "monitor.csv").read_text()
    deep = tmp_path / "deep"
    deep.mkdir()
    for number in range(24, 36):
        film = (np.array(Image.open(place / f"{number}.png")) / 255.0) ** 3  # another exposure
        Image.fromarray((film * 4095).astype(np.uint16)).save(deep / f"{number}.png")
    capsys.readouterr()
    assert monitor(place, str(deep), out, "--data.reference", usual, "--alarm_rate", 0.05) == 4
    said = capsys.readouterr()
    alarm = [line for line in said.err.splitlines() if line.startswith("selftaught: alarm")]
    assert len(alarm) == 1 and "brightness" in alarm[0] and "bits" in alarm[0]
    text = (out / "monitor.csv").read_text()
    assert text.startswith(first)
    runs = pd.read_csv(out / "monitor.csv", dtype=str, keep_default_na=False)
    assert runs["alarms"].eq("").tolist() == [True, False] and runs["films"].tolist() == ["12"] * 2
    page = (out / "monitor.html").read_text()
    assert "Ask first whether exposure" in page and "http" not in page.replace("http-equiv", "")
    shutil.rmtree(deep)


def test_labels_separate_the_share_of_abnormal_films_from_drift(place, tmp_path, capsys):
    usual = listed(place, "usual.csv", [*range(6, 21)], True)
    week = listed(place, "week.csv", [*range(21, FILMS)], True)
    assert monitor(place, week, tmp_path, "--data.reference", usual, "--alarm_rate", 0.2) == 4
    assert "alarm: abnormal share;" in capsys.readouterr().err
    page = (tmp_path / "monitor.html").read_text()
    assert "That is no fault of the model" in page and "films labelled normal" in page


def test_against_the_model_alone(place, tmp_path, capsys):
    """Two normal scores are too few; the films remembered have body parts, these have none."""
    code = monitor(place, listed(place, "week.csv", range(6, 36)), tmp_path / "a")
    page = (tmp_path / "a" / "monitor.html").read_text()
    assert code in (0, 4) and "known of 2 of the reference; 5 at least are needed" in page
    assert "--data.reference" in page
    capsys.readouterr()
    for out, message in ((tmp_path / "b", "not written by this command"), (None, "out is missing")):
        if out is not None:
            out.mkdir()
            (out / "monitor.csv").write_text("a,b\n1,2\n")
        assert monitor(place, str(place / "week.csv"), out or "") == 2
        assert message in capsys.readouterr().err
    assert monitor(place, str(place / "week.csv"), tmp_path, "--alarm_rate", 0) == 2
    assert "alarm_rate is 0; allowed: 0.001 to below 1" in capsys.readouterr().err
