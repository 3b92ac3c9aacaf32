"""Bad input ends in one line and exit code 2: what, where, what is allowed."""

import shutil
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from selftaught.cli.main import main
from selftaught.training.folder import lock
from tests.tiny import options, write_images

pytestmark = pytest.mark.usefixtures("thin_encoder")
SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"


@pytest.fixture
def manifest(tmp_path):
    return write_images(tmp_path / "images")


def refused(capsys, arguments, *words, command="run"):
    code = main([command, *arguments])
    errors = capsys.readouterr().err
    lines = [line for line in errors.splitlines() if line.startswith("selftaught:")]
    assert code == 2, errors
    assert len(lines) == 1
    assert "Traceback" not in errors
    for word in words:
        assert word in lines[0], lines[0]


def edit(manifest, row, column, value):
    table = pd.read_csv(manifest, dtype=str)
    table.loc[row, column] = value
    table.to_csv(manifest, index=False)


def one_bit_png(path, side):
    """A PNG bomb: side x side pixels of one bit, a few kilobytes."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((side // 8 + 2) * side), 9)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def test_missing_manifest(tmp_path, capsys):
    refused(capsys, options(tmp_path / "none.csv", tmp_path / "run"), "none.csv")


def test_no_manifest_given(tmp_path, capsys):
    refused(capsys, ["--out", str(tmp_path / "run")], "data.manifest")


def test_missing_image_names_the_row(manifest, tmp_path, capsys):
    (manifest.parent / "007.png").unlink()
    refused(capsys, options(manifest, tmp_path / "run"), "row 9", "007.png")


def test_text_renamed_png(manifest, tmp_path, capsys):
    (manifest.parent / "007.png").write_text("this is no image")
    refused(capsys, options(manifest, tmp_path / "run"), "007.png")


def test_empty_file(manifest, tmp_path, capsys):
    (manifest.parent / "007.png").write_bytes(b"")
    refused(capsys, options(manifest, tmp_path / "run"), "007.png")


@pytest.mark.real_data
def test_truncated_jpegs(tmp_path, capsys):
    source = SHARED / "truncated"
    if not source.exists():
        pytest.skip("the truncated JPEGs are not beside the checkout")
    shutil.copytree(source, tmp_path / "t")
    listed = pd.read_csv(tmp_path / "t" / "manifest.csv")
    listed["split"] = (["train", "val", "test"] * len(listed))[: len(listed)]
    listed["patient"] = [f"p{i}" for i in range(len(listed))]
    listed.to_csv(tmp_path / "t" / "manifest.csv", index=False)
    refused(
        capsys, options(tmp_path / "t" / "manifest.csv", tmp_path / "run"), ".jpg", "cannot be read"
    )


def test_label_two_names_the_row(manifest, tmp_path, capsys):
    edit(manifest, 4, "label", "2")
    refused(capsys, options(manifest, tmp_path / "run"), "row 6", '"2"', "0, 1")


def test_path_leaving_the_folder(manifest, tmp_path, capsys):
    edit(manifest, 4, "path", "../secret.png")
    refused(capsys, options(manifest, tmp_path / "run"), "row 6", "../secret.png")


def test_empty_manifest(tmp_path, capsys):
    (tmp_path / "m.csv").write_text("path,label\n")
    refused(capsys, options(tmp_path / "m.csv", tmp_path / "run"), "m.csv")


def test_only_abnormal_images(manifest, tmp_path, capsys):
    table = pd.read_csv(manifest)
    table["label"] = 1
    table.to_csv(manifest, index=False)
    refused(capsys, options(manifest, tmp_path / "run"), "normal")


def test_split_without_test(manifest, tmp_path, capsys):
    table = pd.read_csv(manifest)
    table["split"] = "train"
    table.to_csv(manifest, index=False)
    refused(capsys, options(manifest, tmp_path / "run"), "test")


def test_fewer_normals_than_centers(manifest, tmp_path, capsys):
    arguments = options(manifest, tmp_path / "run", **{"finetune.centers": 60, "pretext.epochs": 1})
    refused(capsys, arguments, "finetune.centers is 60", "allowed: 1 to")


def test_png_bomb(manifest, tmp_path, capsys):
    one_bit_png(manifest.parent / "007.png", 13_000)
    refused(capsys, options(manifest, tmp_path / "run"), "007.png", "13000")


def test_unknown_option_suggests_the_nearest(manifest, tmp_path, capsys):
    arguments = [*options(manifest, tmp_path / "run"), "--pretext.epoch", "3"]
    refused(capsys, arguments, "--pretext.epoch", "pretext.epochs")


def test_unknown_key_in_a_file(manifest, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("pretext:\n  epochz: 3\n")
    arguments = ["--config", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "run")]
    refused(capsys, arguments, "epochz")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("pretext.epochs", "-1"),
        ("pretext.validate_every", "-1"),
        ("finetune.method", "none.such"),
        ("pretext.lr", "-1"),
        ("finetune.centers", "0"),
        ("finetune.gamma", "2"),
        ("split.known_normal", "1.5"),
        ("data.image_size", "3"),
        ("pretext.temperature", "0"),
        ("seed", "-1"),
        ("engine.timeout", "1000000000.0"),
        ("data.cache_gib", "1e+300"),
        ("data.cache_gib", "nan"),
        ("model.head", "[99999999999]"),
        ("pretext.method", "moco2"),
        ("pretext.epochs", "many"),
        ("preset", "fast"),
    ],
)
def test_values_out_of_range_name_the_option(manifest, tmp_path, capsys, option, value):
    refused(capsys, options(manifest, tmp_path / "run", **{option: value}), option, value)
    assert not (tmp_path / "run").exists()


def test_occupied_folder(manifest, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    refused(capsys, options(manifest, tmp_path / "run"), "not empty")
    assert (tmp_path / "run" / "thesis.txt").read_text() == "mine"


def test_unknown_command(capsys):
    assert main(["fly"]) == 2
    assert "unknown command 'fly'" in capsys.readouterr().err


def test_colour_and_grey_images_are_both_fine(manifest, tmp_path):
    grey = cv2.imread(str(manifest.parent / "001.png"), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(manifest.parent / "001.png"), np.stack([grey] * 3, axis=2))
    code = main(["split", str(manifest), "--out", str(tmp_path / "split.csv")])
    assert code == 0
    assert (tmp_path / "split.csv").exists()


@pytest.mark.parametrize(
    ("fault", "out"),
    [
        *(("missing", "run"), ("label", "new/deep/run"), ("image", "empty"), ("cut", "run")),
        *(("abnormal", "new/deep/run"), ("kind", "empty"), ("same", "run"), ("same", "empty")),
    ],
)
def test_a_refused_list_leaves_no_folder_behind(manifest, tmp_path, capsys, fault, out):
    (tmp_path / "empty").mkdir()
    before = sorted(path.name for path in tmp_path.iterdir())
    if fault == "missing":
        manifest = manifest.with_name("none.csv")
    elif fault == "label":
        edit(manifest, 4, "label", "2")
    elif fault == "image":
        (manifest.parent / "007.png").unlink()
    elif fault == "cut":
        path = manifest.parent / "007.png"
        path.write_bytes(path.read_bytes()[:-30])
    elif fault == "abnormal":
        table = pd.read_csv(manifest)
        table.assign(label=1).to_csv(manifest, index=False)
    elif fault == "kind":
        manifest = manifest.rename(manifest.with_suffix(".txt"))
    else:
        edit(manifest, 4, "path", "003.png")
    for command in ("run", "pretrain"):
        refused(capsys, options(manifest, tmp_path / out), command=command)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert not list((tmp_path / "empty").iterdir())


def test_a_refused_list_leaves_another_run_alone(manifest, tmp_path, capsys):
    """Its lock is all that is there yet."""
    with lock(tmp_path / "run"):
        refused(capsys, options(tmp_path / "none.csv", tmp_path / "run"), "in use by another run")
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
