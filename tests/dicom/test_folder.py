"""`selftaught dicom`: which films are scored, what is written, and what is never told."""

import json

import pytest

from selftaught.cli.main import main
from selftaught.models.seen import judged
from tests import thin
from tests.dicom.films import NAME, PATIENT, SEEN, UID, film, save


@pytest.fixture
def folders(tmp_path):
    (tmp_path / "in" / NAME).mkdir(parents=True)
    return tmp_path / "in", tmp_path / "out"


def run(*arguments):
    with thin.patch():
        return main(["dicom", *map(str, arguments)])


def lines(out):
    return json.loads((out / "results.json").read_text())["films"]


def test_films_are_scored_or_refused_each_with_its_reason(model, folders, monkeypatch, capfd):
    source, out = folders
    several = film(9, NumberOfFrames=2)
    several.PixelData *= 2
    given = {
        "fine": film(1),
        "lateral": film(2, ViewPosition="LL"),
        "body part hand": film(3, BodyPartExamined="HAND"),
        "Mammography": film(4, SOPClassUID=UID("1.2.840.10008.5.1.4.1.1.1.2")),
        "CT Image": film(5, SOPClassUID=UID("1.2.840.10008.5.1.4.1.1.2")),
        "For Processing": film(6, SOPClassUID=UID("1.2.840.10008.5.1.4.1.1.1.1.1")),
        "2 frames": several,
        "StudyInstanceUID": film(8, StudyInstanceUID=None),
    }
    for number, one in enumerate(given.values()):
        save(source / NAME / f"{number}.dcm", one)
    (source / "x.dcm").write_bytes(b"no film")
    monkeypatch.setenv("MERCURE_IN_DIR", str(source))
    monkeypatch.setenv("HOLOSCAN_OUTPUT_PATH", str(out))
    assert run(model) == 0
    by_film = {line["film"]: line for line in lines(out)}
    scored = by_film.pop(given.pop("fine").SOPInstanceUID)
    assert scored["problem"] == "" and scored["percentile"] in (0, 100 / 3, 200 / 3, 100)
    assert {path.name for path in out.iterdir()} == {*scored["objects"], "results.json"}
    assert len(scored["objects"]) == 2
    problems = [line["problem"] for line in lines(out) if line["problem"]]
    for word in given:
        assert sum(word in one for one in problems) == 1, (word, problems)
    assert all("score" not in line for line in lines(out) if line["problem"])
    told = "".join(capfd.readouterr()) + "".join(path.name for path in out.iterdir())
    assert "1 of 9 films scored" in told
    assert PATIENT not in told and "Geheim" not in told.replace(str(source), "")


def test_the_same_command_keeps_what_is_there_and_nothing_else_is_replaced(model, folders):
    source, out = folders
    save(source / "a.dcm", film(1))
    assert run(model, source, out, "--no-captures") == 0
    (name,) = lines(out)[0]["objects"]
    before = (out / name).read_bytes()
    assert run(model, source, out) == 0
    assert (out / name).read_bytes() == before and len(lines(out)[0]["objects"]) == 2
    (out / "results.json").write_text('{"mine": 1}')
    assert run(model, source, out) == 2
    assert (out / "results.json").read_text() == '{"mine": 1}'


@pytest.mark.parametrize("out, words", [("in/out", "within"), ("", "MERCURE_OUT_DIR")])
def test_bad_folders_are_refused_in_one_line(model, folders, capsys, out, words):
    source, _ = folders
    save(source / "a.dcm", film(1))
    assert run(model, source, *([source.parent / out] if out else [])) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


@pytest.mark.parametrize(
    "facts, known, refused, remarks",
    [
        (("CR", "KNEE", "AP"), SEEN, False, 0),
        (("CR", "Knee joint", "AP"), SEEN, False, 0),
        (("DX", "KNEE", "AP"), SEEN, False, 1),
        (("CR", "HAND", "AP"), SEEN, True, 0),
        (("CR", "KNEE", "LATERAL"), SEEN, True, 0),
        (("CR", "", ""), SEEN, False, 2),
        (("CR", "HAND", "LL"), None, False, 3),
        (
            ("CR", "HAND", "RL"),
            {**SEEN, "body_part": {"knee": 3, "": 1}, "view": {"lateral": 4}},
            False,
            1,
        ),
    ],
)
def test_what_the_training_never_saw(facts, known, refused, remarks):
    named = dict(zip(("modality", "body_part", "view"), facts, strict=True))
    problem, notes = judged(named, known)
    assert (bool(problem), len(notes)) == (refused, remarks)
