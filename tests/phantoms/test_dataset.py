"""Writing a set: lists, files, refusals, workers."""

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from selftaught.errors import InputError
from selftaught.files import sha256
from selftaught.phantoms import FORMATS, radiograph, write_set


def content(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_manifest_truth_and_files_agree(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    manifest = write_set(
        tmp_path / "set",
        24,
        size=64,
        formats=tuple(FORMATS),
        workers=1,
        progress=lambda done, total: seen.append((done, total)),
    )
    root = manifest.parent
    table = pd.read_csv(manifest, keep_default_na=False)
    truth = json.loads((root / "truth.json").read_text())
    assert seen[-1] == (24, 24)
    assert sorted(seen) == seen
    assert table.columns[:6].tolist() == [
        "path", "label", "patient", "study", "body_part", "mask",
    ]  # fmt: skip
    assert len(table) == len(truth["images"]) == 24
    assert set(table["label"]) == {0, 1}
    assert truth["settings"]["seed"] == 1
    for row, record in zip(table.itertuples(), truth["images"], strict=True):
        assert row.path == record["path"]
        assert (root / row.path).stat().st_size > 100
        mask = cv2.imread(str(root / row.mask), cv2.IMREAD_UNCHANGED)
        assert mask is not None
        assert mask.shape == (record["height"], record["width"])
        assert set(np.unique(mask)) == {0, 255}
        assert (row.kind == "none") == (row.label == 0) == (record["boxes"] == [])
        assert ("anomaly_mask" in record) == bool(row.label)
    listed = {record[key] for record in truth["images"] for key in record if "mask" in key}
    listed |= set(table["path"]) | {"manifest.csv", "truth.json", "synthetic.json"}
    assert set(content(root)) == listed


def test_pictures_are_those_of_radiograph(tmp_path: Path) -> None:
    write_set(tmp_path / "set", 3, size=64, formats=("png16",), workers=1, clutter=False)
    record = json.loads((tmp_path / "set/truth.json").read_text())["images"][2]
    stored = cv2.imread(str(tmp_path / "set" / record["path"]), cv2.IMREAD_UNCHANGED)
    assert stored is not None
    patient = int(record["patient"].removeprefix("patient"))
    drawn = [
        radiograph(
            1, 2, size=64, body_part=record["body_part"], kind=record["kind"], clutter=False,
            patient=patient, study=study,
        )
        for study in range(3)
    ]  # fmt: skip
    assert any(np.array_equal(stored, one.image) for one in drawn)


def test_files_do_not_depend_on_workers(tmp_path: Path) -> None:
    for name, workers in (("one", 1), ("two", 2)):
        write_set(tmp_path / name, 20, size=64, workers=workers, formats=("png8", "dicom_rle"))
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_seed_changes_the_set(tmp_path: Path) -> None:
    write_set(tmp_path / "a", 4, size=64, seed=1, workers=1)
    write_set(tmp_path / "b", 4, size=64, seed=2, workers=1)
    assert content(tmp_path / "a") != content(tmp_path / "b")


def test_a_set_is_not_replaced_by_another(tmp_path: Path) -> None:
    write_set(tmp_path / "set", 3, size=64, workers=1)
    before = content(tmp_path)
    for options, words in (({"images": 2}, "images 3, now 2"), ({"seed": 5}, "seed 1, now 5")):
        with pytest.raises(InputError, match=f"was begun with {words}"):
            write_set(tmp_path / "set", **({"images": 3, "size": 64} | options), workers=1)
    assert content(tmp_path) == before


@pytest.mark.parametrize("layout", ["manifest", "mura"])
def test_a_complete_set_is_left_alone_and_one_that_was_begun_is_finished(
    tmp_path: Path, layout: str
) -> None:
    made = write_set(tmp_path, 3, size=64, layout=layout, workers=1)
    whole = content(tmp_path)
    last = made if layout == "manifest" else made / "valid_labeled_studies.csv"
    last.write_text("edited")
    assert write_set(tmp_path, 3, size=64, layout=layout, workers=1) == made
    assert last.read_text() == "edited"
    last.unlink()
    write_set(tmp_path, 3, size=64, layout=layout, workers=1)
    assert content(tmp_path) == whole


def test_foreign_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not a synthetic set"):
        write_set(tmp_path, 2, size=64)
    with pytest.raises(InputError, match="is a file"):
        write_set(tmp_path / "notes.txt", 2, size=64)
    assert content(tmp_path).keys() == {"notes.txt"}


def test_mura_layout(tmp_path: Path) -> None:
    root = write_set(tmp_path, 40, size=48, layout="mura", workers=1)
    assert root == tmp_path / "MURA-v1.1"
    listed = []
    for part in ("train", "valid"):
        paths = (root / f"{part}_image_paths.csv").read_text().split()
        studies = dict(
            line.split(",") for line in (root / f"{part}_labeled_studies.csv").read_text().split()
        )
        listed += paths
        for path in paths:
            pieces = path.split("/")
            assert pieces[:2] == ["MURA-v1.1", part]
            assert pieces[2].startswith("XR_")
            folder = path.rpartition("/")[0] + "/"
            assert studies[folder] == ("1" if folder.endswith("_positive/") else "0")
            assert (tmp_path / path).is_file()
    assert len(listed) == len(set(listed)) == 40
    assert len({path.split("/")[1] for path in listed}) == 2


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("images", 0),
        ("size", 5),
        ("abnormal_fraction", 1.2),
        ("severity", -0.1),
        ("formats", ("gif",)),
        ("formats", ()),
        ("body_parts", ("knee",)),
        ("kinds", ("rust",)),
        ("layout", "tree"),
    ],
)
def test_bad_options_are_named_in_one_line(tmp_path: Path, option: str, value: object) -> None:
    options = {"images": 2, option: value}
    with pytest.raises(InputError, match=option) as caught:
        write_set(tmp_path / "set", **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "set").exists()


def test_mura_layout_takes_png_only(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="formats: jpeg"):
        write_set(tmp_path / "set", 2, layout="mura", formats=("jpeg",))


def test_kinds_can_be_chosen(tmp_path: Path) -> None:
    manifest = write_set(
        tmp_path, 6, size=48, kinds=("cast",), abnormal_fraction=1.0, workers=1, clutter=False
    )
    assert set(pd.read_csv(manifest)["kind"]) == {"cast"}


def test_a_mark_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "synthetic.json").write_text('{"images": 3}')
    with pytest.raises(InputError, match="delete the folder"):
        write_set(tmp_path, 2, size=64)
