from pathlib import Path

import pandas as pd
import pytest

from selftaught.data.manifest import read_manifest
from selftaught.data.manifest.mura import is_mura
from selftaught.data.manifest.spelling import ManifestWarning
from selftaught.errors import InputError

IMAGES = [
    "train/XR_HAND/patient00001/study1_positive/image1.png",
    "train/XR_HAND/patient00001/study1_positive/image2.png",
    "train/XR_HAND/patient00001/study10_negative/image1.png",
    "train/XR_WRIST/patient00001/study1_negative/image1.png",
    "valid/XR_SHOULDER/patient11185/study12_positive/image1.png",
]
EXPECTED = [
    (IMAGES[0], 1, "patient00001", "patient00001/hand/study1", "hand"),
    (IMAGES[1], 1, "patient00001", "patient00001/hand/study1", "hand"),
    (IMAGES[2], 0, "patient00001", "patient00001/hand/study10", "hand"),
    (IMAGES[3], 0, "patient00001", "patient00001/wrist/study1", "wrist"),
    (IMAGES[4], 1, "patient11185", "patient11185/shoulder/study12", "shoulder"),
]


def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "MURA-v1.1"
    for name in IMAGES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    (folder / IMAGES[0]).with_name("._image1.png").write_bytes(b"")
    return folder


def lists(folder: Path, header: str, prefix: str) -> None:
    for part in ("train", "valid"):
        lines = [prefix + name for name in IMAGES if name.startswith(part)]
        (folder / f"{part}_image_paths.csv").write_text(header + "\n".join(lines) + "\n")


def rows(table: pd.DataFrame) -> list[tuple]:
    return list(
        table[["path", "label", "patient", "study", "body_part"]].itertuples(index=False, name=None)
    )


@pytest.mark.parametrize("header", ["", "Img_Path\n", "\ufeffImg_Path\n"])
@pytest.mark.parametrize("prefix", ["MURA-v1.1/", "copy of MURA/", ""])
def test_lists_with_and_without_header(tmp_path, header, prefix):
    folder = tree(tmp_path)
    lists(folder, header, prefix)
    manifest = read_manifest(folder)
    assert rows(manifest.table) == EXPECTED
    assert manifest.root == folder
    assert (manifest.table["split"] == "").all()


def test_the_tree_itself_where_lists_are_missing(tmp_path):
    folder = tree(tmp_path)
    assert sorted(rows(read_manifest(folder).table)) == sorted(EXPECTED)
    lists(folder, "", "MURA-v1.1/")
    (folder / "valid_image_paths.csv").unlink()
    assert sorted(rows(read_manifest(folder).table)) == sorted(EXPECTED)


def test_a_listed_image_must_exist(tmp_path):
    folder = tree(tmp_path)
    lists(folder, "", "MURA-v1.1/")
    (folder / IMAGES[3]).unlink()
    with pytest.raises(InputError, match=f'path "{IMAGES[3]}" was not found'):
        read_manifest(folder)


@pytest.mark.parametrize(
    "line",
    [
        "MURA-v1.1/train/XR_HAND/patient00001/study1/image1.png",
        "MURA-v1.1/train/XR_HAND/patient00001/study1_positive/../../x.png",
        "MURA-v1.1/train/HAND/patient00001/study1_positive/image1.png",
        "/etc/passwd",
        "../MURA-v1.1/train/XR_HAND/patient00001/study1_positive/image1.png",
    ],
)
def test_foreign_lines_are_named(tmp_path, line):
    folder = tree(tmp_path)
    lists(folder, "Img_Path\n", "MURA-v1.1/")
    with (folder / "train_image_paths.csv").open("a") as handle:
        handle.write(line + "\n")
    with pytest.raises(
        InputError, match=r"^train_image_paths.csv row 6: path is .*; allowed: train"
    ):
        read_manifest(folder)


def test_an_empty_tree(tmp_path):
    (tmp_path / "train_image_paths.csv").write_text("Img_Path\n")
    with pytest.raises(InputError, match="no image is listed"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("change", [str.upper, str.lower, str.title])
def test_a_tree_whose_names_went_through_another_system(tmp_path, change):
    folder = tmp_path / "copy"
    for name in IMAGES:
        (folder / change(name)).parent.mkdir(parents=True, exist_ok=True)
        (folder / change(name)).write_bytes(b"")
    assert is_mura(folder)
    expected = sorted((change(path), *cells) for path, *cells in EXPECTED)
    assert sorted(rows(read_manifest(folder).table)) == expected


def test_what_a_tree_holds_beside_its_images(tmp_path):
    folder = tree(tmp_path)
    study = (folder / IMAGES[0]).parent
    for path in (study / "Thumbs.db", study / "@eaDir" / "image1.png"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    (study / "notes.txt").write_text("left")
    (folder / "train" / "XR_HAND" / "overview.png").write_bytes(b"")
    with pytest.warns(ManifestWarning) as caught:
        assert sorted(rows(read_manifest(folder).table)) == sorted(EXPECTED)
    (line,) = {str(one.message) for one in caught}
    assert f'1 .txt ("{study.relative_to(folder)}/notes.txt")' in line
    assert '1 outside the folders of studies ("train/XR_HAND/overview.png")' in line


@pytest.mark.parametrize("digit", ["\u0661", "\uff11", "\u00b9"])
def test_a_number_in_other_digits_is_no_patient(tmp_path, digit):
    folder = tree(tmp_path)
    name = IMAGES[0].replace("patient00001", f"patient0000{digit}")
    (folder / "train_image_paths.csv").write_text(name + "\n", encoding="utf-8")
    with pytest.raises(InputError, match="row 1: path is .*; allowed: train/XR_PART"):
        read_manifest(folder)
