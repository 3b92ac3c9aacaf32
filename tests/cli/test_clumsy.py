"""Clumsy use: nothing is overwritten, nothing is silent, no traceback."""

import pandas as pd
import pytest

from selftaught.cli.main import main
from tests.tiny import options, write_images

pytestmark = pytest.mark.usefixtures("thin_encoder")


@pytest.fixture
def manifest(tmp_path):
    return write_images(tmp_path / "images")


def fails(capsys, arguments, code, *words):
    assert main([str(word) for word in arguments]) == code
    lines = [e for e in capsys.readouterr().err.splitlines() if e.startswith("selftaught:")]
    assert len(lines) == 1
    for word in words:
        assert word in lines[0], lines[0]


def test_the_manifest_is_never_overwritten(manifest, tmp_path, capsys):
    before = manifest.read_bytes()
    fails(capsys, ["split", manifest, "--out", manifest], 2, "other than the manifest")
    score = ["score", tmp_path, "--data.manifest", manifest, "--out", manifest]
    fails(capsys, score, 2, "the manifest itself")
    assert manifest.read_bytes() == before


def test_split_wants_a_csv_and_an_existing_folder(manifest, tmp_path, capsys):
    fails(capsys, ["split", manifest, "--out", tmp_path / "s.txt"], 2, ".csv")
    fails(capsys, ["split", manifest, "--out", tmp_path / "no" / "s.csv"], 2, "no folder")


def test_a_stray_word_is_named(manifest, tmp_path, capsys):
    fails(capsys, ["run", manifest, "--out", tmp_path / "run"], 2, "manifest.csv")


def test_settings_the_split_decides_are_refused_before_anything_is_written(
    manifest, tmp_path, capsys
):
    for option, value in (("finetune.centers", 60), ("finetune.batch_size", 1)):
        arguments = options(manifest, tmp_path / "run", **{option: value})
        fails(capsys, ["run", *arguments], 2, option)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_diverging_training_stops_with_3_and_names_step_rank_and_files(manifest, tmp_path, capsys):
    arguments = options(manifest, tmp_path / "run", **{"pretext.lr": 1e30})
    fails(capsys, ["run", *arguments], 3, "step 1", "rank 0", ".png", "not finite")


def test_finetune_settings_may_change_until_the_centers_are_drawn(manifest, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["pretrain", *options(manifest, run, **{"pretext.epochs": 1})]) == 0
    more = {"pretext.epochs": 1, "finetune.centers": 3, "finetune.epochs": 1}
    assert main(["finetune", *options(manifest, run, **more)]) == 0
    more["finetune.centers"] = 5
    fails(capsys, ["finetune", *options(manifest, run, **more)], 2, "finetune.centers is 3 there")


def test_scores_without_a_split_count_as_test(tmp_path, capsys):
    table = pd.DataFrame({"path": list("abcdef"), "split": "", "label": [0, 1] * 3})
    table["score"] = range(6)
    table.to_csv(tmp_path / "s.csv", index=False)
    assert main(["evaluate", str(tmp_path / "s.csv")]) == 0
    out = capsys.readouterr().out
    assert "count as test" in out
    assert "test: AUROC 0.6667" in out


@pytest.mark.parametrize("content", [b"", b"\x00\xff\xfe\x80", b'path,"split\na,b'])
def test_a_scores_file_that_is_none(tmp_path, capsys, content):
    (tmp_path / "s.csv").write_bytes(content)
    fails(capsys, ["evaluate", tmp_path / "s.csv"], 2, "s.csv")


def test_allow_outside_has_a_short_form(manifest, tmp_path):
    table = pd.read_csv(manifest)
    table["path"] = "../images/" + table["path"]
    table.to_csv(manifest, index=False)
    out = str(tmp_path / "s.csv")
    assert main(["split", str(manifest), "--out", out]) == 2
    assert main(["split", str(manifest), "--out", out, "--allow-outside"]) == 0


def test_finetune_of_a_folder_that_is_no_run_leaves_nothing_there(tmp_path, capsys):
    fails(capsys, ["finetune", "--out", tmp_path / "typo"], 2, "typo holds no run")
    assert not (tmp_path / "typo").exists()


@pytest.mark.parametrize(
    ("row", "words"),
    [("b.png,1,3", '"b.png" appears twice'), ("c.png,2,3", "c.png: label is '2', allowed: 0, 1")],
)
def test_a_row_of_scores_that_cannot_be_counted(tmp_path, capsys, row, words):
    (tmp_path / "s.csv").write_text(f"path,label,score\na.png,0,1\nb.png,1,2\n{row}\n")
    fails(capsys, ["evaluate", tmp_path / "s.csv"], 2, words)
    assert not (tmp_path / "s_metrics.json").exists()


@pytest.mark.parametrize("other", ["./k\u00f6ln.png", "ko\u0308ln.png", "x/../k\u00f6ln.png"])
def test_an_image_that_is_scored_twice_in_other_spelling(tmp_path, capsys, other):
    text = f"path,label,score\nk\u00f6ln.png,0,1\nb.png,1,2\n{other},1,3\n"
    (tmp_path / "s.csv").write_text(text, encoding="utf-8")
    fails(capsys, ["evaluate", tmp_path / "s.csv"], 2, "appears twice")


def test_images_in_no_set_are_counted(tmp_path, capsys):
    names = ["Test", "test ", "TEST", "test", "holdout", ""]
    table = pd.DataFrame({"path": list("abcdef"), "split": names, "label": [0, 1] * 3})
    table.assign(score=range(6)).to_csv(tmp_path / "s.csv", index=False)
    assert main(["evaluate", str(tmp_path / "s.csv")]) == 0
    out = capsys.readouterr().out
    assert '2 images are in no set, such as "holdout", and do not count' in out
    assert "test: AUROC 0.7500" in out
