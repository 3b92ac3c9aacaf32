"""`selftaught score` of files: any folder, broken files under both policies, options that clash."""

import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from selftaught.cli.main import main
from tests.tiny import write_model

pytestmark = pytest.mark.usefixtures("thin_encoder")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("run") / "model")


@pytest.fixture
def films(tmp_path):
    """Six images in two folders; one of them is cut, one is no image."""
    folder = tmp_path / "films"
    for number in range(6):
        place = folder / ("a" if number < 4 else "b")
        place.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (40, 30)).astype(np.uint8)
        Image.fromarray(noise).save(place / f"{number}.png")
    cut = folder / "a" / "1.png"
    cut.write_bytes(cut.read_bytes()[:-50])
    (folder / "b" / "5.png").write_text("no image, just words")
    return folder


def score(capsys, model, source, out, *more):
    words = ["score", str(model), "--data.manifest", str(source), "--out", str(out), *more]
    code = main(words)
    return code, *capsys.readouterr()


def test_skip_names_counts_and_lists_what_has_no_score(model, films, tmp_path, capsys):
    out = tmp_path / "scores.csv"
    with pytest.warns(UserWarning) as warned:
        code, told, _ = score(capsys, model, films, out, "--data.bad_files", "skip")
    assert code == 0
    assert told.splitlines() == [
        "2 of 6 images cannot be read and were skipped: 2 unlabelled",
        str(out),
    ]
    lines = [str(one.message) for one in warned]
    assert len(lines) == 2
    assert "1.png: truncated PNG" in lines[0] and "5.png: is not an image" in lines[1]
    table = pd.read_csv(out, dtype=str, keep_default_na=False)
    assert set(table["center"]) <= {"", "0", "1", "2"} and set(table["flagged"]) <= {"", "0", "1"}
    assert table["path"].tolist() == [*(f"a/{i}.png" for i in range(4)), "b/4.png", "b/5.png"]
    bad = table["path"].isin(["a/1.png", "b/5.png"])
    for name in ("score", "center", "percentile", "flagged"):
        assert table[name].eq("").tolist() == bad.tolist(), name
    assert table["problem"].ne("").tolist() == bad.tolist()
    assert table["problem"][1].startswith("a/1.png: truncated PNG")


def test_counts_are_by_label_and_missing_files_count(model, films, tmp_path, capsys):
    lines = ["path,label", "a/0.png,0", "a/1.png,1", "a/gone.png,1", "b/5.png,0", "b/4.png,"]
    (films / "manifest.csv").write_text("\n".join(lines) + "\n")
    out = tmp_path / "scores.csv"
    with pytest.warns(UserWarning, match="gone.png: is missing"):
        code, told, _ = score(capsys, model, films, out, "--data.bad_files", "skip")
    assert code == 0
    counted = "3 of 5 images cannot be read and were skipped: 2 abnormal, 1 normal"
    assert told.splitlines()[0] == counted


@pytest.mark.parametrize("more", [[], ["--data.bad_files", "fail"]])
def test_fail_names_the_first_and_writes_nothing(model, films, tmp_path, capsys, more):
    out = tmp_path / "scores.csv"
    code, told, error = score(capsys, model, films, out, *more)
    assert (code, told, len(error.splitlines())) == (2, "", 1)
    assert "a/1.png: truncated PNG" in error and not out.exists()


def test_good_files_are_scored_alike_under_both_policies(model, films, tmp_path, capsys):
    (films / "a" / "1.png").unlink()
    (films / "b" / "5.png").unlink()
    found = []
    for policy in ("fail", "skip"):
        out = tmp_path / f"{policy}.csv"
        code, told, error = score(capsys, model, films, out, "--data.bad_files", policy)
        assert (code, told, error) == (0, f"{out}\n", "")
        found.append(pd.read_csv(out))
    assert found[1].pop("problem").isna().all()
    pd.testing.assert_frame_equal(*found)


def test_nothing_that_can_be_read_is_an_error(model, films, tmp_path, capsys):
    for path in films.rglob("*.png"):
        path.write_bytes(b"")
    out = tmp_path / "scores.csv"
    with pytest.warns(UserWarning, match="is empty"):
        code, _, error = score(capsys, model, films, out, "--data.bad_files", "skip")
    assert code == 2 and "none of 6 images can be read; the first: a/0.png: is empty" in error
    assert not out.exists()


def test_a_link_that_leads_out_of_a_folder_is_refused_under_both_policies(
    model, films, tmp_path, capsys
):
    Image.fromarray(np.eye(40, dtype=np.uint8) * 255).save(tmp_path / "secret.png")
    (films / "a" / "link.png").symlink_to(tmp_path / "secret.png")
    for policy in ("fail", "skip"):
        out = tmp_path / "scores.csv"
        code, _, error = score(capsys, model, films, out, "--data.bad_files", policy)
        assert code == 2 and "a/link.png" in error and not out.exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [("--out", "s.csv"), ("--data.pipeline", "dali"), ("--data.bad_files", "skip")],
)
def test_options_for_files_need_files(model, capsys, option, value):
    assert main(["score", str(model), option, value]) == 2
    assert f"{option[2:]} needs --data.manifest" in capsys.readouterr().err


def test_a_policy_that_is_none_is_refused(model, films, tmp_path, capsys):
    out = tmp_path / "scores.csv"
    code, _, error = score(capsys, model, films, out, "--data.bad_files", "drop")
    assert code == 2 and len(error.splitlines()) == 1 and "fail" in error and "skip" in error


def test_a_cd_is_scored_whatever_its_files_are_called(model, films, tmp_path, capsys):
    """Each film once; plan, directory and notes are counted in one line, thumbnails in none."""
    for name in ("a/1.png", "b/5.png"):
        (films / name).unlink()
    for name, source in (("IM000000", "CT_small.dcm"), ("PLAN", "rtplan.dcm")):
        shutil.copy(get_testdata_file(source), films / "a" / name)
    shutil.copy(get_testdata_file("DICOMDIR"), films / "DICOMDIR")
    (films / "notes.txt").write_text("left wrist")
    (films / "Thumbs.db").write_bytes(b"x")
    (films / "@eaDir").mkdir()
    shutil.copy(films / "a" / "0.png", films / "@eaDir" / "0.png")
    out = tmp_path / "scores.csv"
    with pytest.warns(UserWarning) as warned:
        assert score(capsys, model, films, out)[0] == 0
    assert [str(one.message) for one in warned] == [
        'films: left out, being no film: 1 .txt ("notes.txt"); 1 DICOM RT Plan ("a/PLAN"); '
        '1 DICOMDIR ("DICOMDIR")'
    ]
    table = pd.read_csv(out)
    assert table["path"].tolist() == ["a/0.png", "a/2.png", "a/3.png", "a/IM000000", "b/4.png"]
    assert table["score"].notna().all()
