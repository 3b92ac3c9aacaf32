"""Patients and near-duplicates in two sets of a split: found, counted, listed; no false alarms."""

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from selftaught.cli.main import main
from selftaught.data.images.decode import read_grey
from selftaught.data.split.duplicates import NEAR, mirror, near_duplicates, perceptual_hash
from selftaught.data.split.leakage import find_leakage, without_leaks
from selftaught.data.survey import survey

KNEES = Path(__file__).resolve().parents[3] / ".." / "shared" / "data" / "knee"
SETS = ("train", "val", "test")


def picture(number: int, shape: tuple[int, int] = (90, 70)) -> np.ndarray:
    generator = np.random.default_rng(number)
    coarse = generator.random((12, 9)).astype(np.float32)
    smooth = cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)
    return np.rint(255 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8)


def distance(first: np.ndarray | None, second: np.ndarray | None) -> int:
    assert first is not None and second is not None
    return int(np.unpackbits(first ^ second).sum())


COPIES = {
    "smaller": lambda a: cv2.resize(a, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA),
    "16 bits": lambda a: a.astype(np.uint16) * 257,
    "darker, flatter": lambda a: (30 + 0.4 * a).astype(np.uint8),
    "jpeg": lambda a: cv2.imdecode(cv2.imencode(".jpg", a, [1, 60])[1], 0),
    "blurred": lambda a: cv2.GaussianBlur(a, (0, 0), 1.0),
    "noise": lambda a: np.clip(a + np.random.default_rng(0).normal(0, 4, a.shape), 0, 255).astype(
        np.uint8
    ),
}


@pytest.mark.parametrize("name", COPIES)
def test_copies_are_near_and_others_are_not(name: str) -> None:
    for number in range(5):
        image = picture(number)
        own = perceptual_hash(image)
        assert distance(own, perceptual_hash(COPIES[name](image))) <= NEAR
        assert distance(own, perceptual_hash(COPIES[name](picture(number + 50)))) > 2 * NEAR


def test_the_mirror_image_has_the_mirrored_hash() -> None:
    for number in range(5):
        image = picture(number)
        own, turned = perceptual_hash(image), perceptual_hash(image[:, ::-1])
        assert own is not None and distance(mirror(own), turned) <= 1
        assert distance(own, turned) > 2 * NEAR


def test_an_image_of_one_level_has_no_hash() -> None:
    assert perceptual_hash(np.full((40, 30), 7, np.uint8)) is None


def test_pairs_equal_those_of_a_direct_comparison() -> None:
    generator = np.random.default_rng(0)
    first = generator.integers(0, 256, (60, 32), dtype=np.uint8)
    second = generator.integers(0, 256, (40, 32), dtype=np.uint8)
    second[5], second[9] = first[7] ^ np.uint8(1), mirror(first[3])
    bits = [np.unpackbits(one, axis=1).astype(int) for one in (first, second, mirror(second))]
    plain, turned = (np.abs(bits[0][:, None] - other[None]).sum(-1) for other in bits[1:])
    most = 110  # near enough for random hashes to have some pairs
    expected = {
        (i, j, d, m)
        for m, t in ((False, plain), (True, turned))
        for (i, j), d in np.ndenumerate(t)
        if d <= most
    }
    found = set()
    for block in near_duplicates(first, second, most):
        found |= set(zip(*(column.tolist() for column in block), strict=True))
    assert found == expected and len(found) > 10
    near = [set(zip(b.first, b.second, strict=True)) for b in near_duplicates(first, second)]
    assert near == [set(), {(3, 9)}] or near == [{(7, 5)}, {(3, 9)}]


def write_set(folder: Path) -> Path:
    """16 patients of two images; 00 again as 18 and mirrored as 24; three patients in two sets."""
    rows = []
    for number in range(32):
        name, image = f"{number:02d}.png", picture(number)
        if number == 18:
            image = COPIES["smaller"](picture(0))
        if number == 24:
            image = picture(0)[:, ::-1]
        cv2.imwrite(str(folder / name), image)
        part = {7: "test", 18: "val", 24: "test"}.get(number, SETS[(number // 2) % 3])
        label = int(part != "train" and number % 4 == 1)
        rows.append((name, label, f"p{number // 2}", f"s{number}", part))
    columns = ["path", "label", "patient", "study", "split"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "manifest.csv", index=False)
    return folder / "manifest.csv"


def test_split_says_writes_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest, out = write_set(tmp_path), tmp_path / "made.csv"
    arguments = ["split", str(manifest), "--out", str(out), "--split.group", "study"]
    with pytest.warns(UserWarning, match="3 of 16 patients .* in more than one set") as caught:
        assert main(arguments) == 0
    said = " ".join(str(one.message) for one in caught)
    assert "(6 images)" in said
    table = pd.read_csv(tmp_path / "made_leakage.csv", dtype=str)
    pairs = {(row.path, row.other_path): row for row in table.itertuples()}
    assert set(pairs) == {("00.png", "18.png"), ("00.png", "24.png"), ("18.png", "24.png")}
    assert pairs["00.png", "18.png"].mirrored == "0" and pairs["00.png", "24.png"].mirrored == "1"
    assert (pairs["00.png", "18.png"].patient, pairs["00.png", "18.png"].other_patient) == (
        "p0",
        "p9",
    )
    facts = json.loads((tmp_path / "made.json").read_text())["leakage"]
    assert facts["policy"] == "warn" and facts["near_duplicates"]["pairs"] == 3
    out.unlink()
    assert main([*arguments, "--split.leakage", "fail"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "split.leakage is fail: 3 of 16 patients" in error and not out.exists()
    assert main([*arguments, "--split.leakage", "off"]) == 0
    assert json.loads((tmp_path / "made.json").read_text()) == {"leakage": {"policy": "off"}}
    assert not (tmp_path / "made_leakage.csv").exists()


def test_drop_leaves_nothing_that_crosses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, out = write_set(tmp_path), tmp_path / "made.csv"
    arguments = ["split", str(manifest), "--out", str(out), "--split.group", "study"]
    assert main([*arguments, "--split.leakage", "off"]) == 0
    before = pd.read_csv(out, dtype=str).set_index("path")
    assert main([*arguments, "--split.leakage", "drop"]) == 0
    after = pd.read_csv(out, dtype=str).set_index("path")
    # 24 and 7 stay in test: their like 0 and 18, and their patients' images 25 and 6, go.
    changed = after.index[after["split"] != before["split"]]
    assert set(changed) == {"00.png", "06.png", "18.png", "25.png"}
    assert set(after.loc[changed, "split"]) == {"unused"}
    assert set(after.loc[changed, "semi_label"]) == {"0"}
    told = json.loads((tmp_path / "made.json").read_text())["leakage"]
    assert told["policy"] == "drop" and told["dropped"] == {"train": 3, "val": 1}
    assert "3 train and 1 val images are unused, so that nothing" in capsys.readouterr().out
    assert main([*arguments[:1], str(out), *arguments[2:3], str(tmp_path / "again.csv")]) == 0
    assert "no patient and no near-duplicate image is in two" in capsys.readouterr().out


def test_drop_keeps_test_whole_and_val_where_test_allows() -> None:
    """Train is near val, val is near test: where val goes, train may stay."""
    hashes = np.random.default_rng(0).integers(0, 256, (6, 32), dtype=np.uint8)
    hashes[5], hashes[0] = hashes[4], hashes[1]
    hashes[0, :2] ^= np.uint8(255)  # 16 bits from val, 40 from test
    hashes[2] = hashes[1]
    hashes[2, 2:5] ^= np.uint8(255)
    frame = pd.DataFrame(
        {
            "path": [f"{i}.png" for i in range(6)],
            "split": ["train", "val", "test", "train", "train", "val"],
            "semi_label": np.array([1, 0, 0, 1, -1, 0], np.int8),
            "patient": ["", "", "p", "p", "", ""],
            "label": pd.array([0] * 6, dtype="Int8"),
        }
    )
    found = find_leakage(frame, hashes, np.ones(6, bool))
    assert found.excess.tolist() == [False, True, False, True, True, False]
    apart = without_leaks(frame, found.excess)
    assert apart["split"].tolist() == ["train", "unused", "test", "unused", "unused", "val"]
    assert apart["semi_label"].tolist() == [1, 0, 0, 0, 0, 0]
    assert not find_leakage(apart, hashes, np.ones(6, bool)).excess.any()
    assert frame["split"].tolist()[3] == "train"


def test_counts_and_list() -> None:
    images = [picture(n) for n in (0, 1, 2)]
    images += [COPIES["jpeg"](images[0]), images[1][:, ::-1], picture(9), picture(10)]
    hashes = np.stack([perceptual_hash(image) for image in images])  # type: ignore[arg-type]
    frame = pd.DataFrame(
        {
            "path": [f"{i}.png" for i in range(7)],
            "split": ["train", "train", "train", "test", "val", "val", "test"],
            "patient": ["a", "b", "c", "d", "b", "", "e"],
            "label": pd.array([0, 1, None, 0, 1, 0, 1], dtype="Int8"),
        }
    )
    found = find_leakage(frame, hashes, np.array([True] * 6 + [False]))
    assert found.facts["patients"] == {"named": 5, "crossing": 1, "images": 2}
    near = found.facts["near_duplicates"]
    assert (near["compared"], near["not_compared"], near["pairs"], near["mirrored"]) == (6, 1, 2, 1)
    assert near["images"] == {"train": 2, "val": 1, "test": 1}
    rows = found.pairs.set_index("path")
    assert rows.loc["1.png", ["other_path", "other_set", "mirrored"]].tolist() == [
        "4.png",
        "val",
        1,
    ]
    assert rows.loc["0.png", ["other_path", "patient", "mirrored"]].tolist() == ["3.png", "a", 0]


@pytest.mark.skipif(not KNEES.is_dir(), reason="the real radiographs are not beside the repo")
@pytest.mark.real_data
def test_real_knees() -> None:
    """Clusters of the same knee are found; what else is near looks like the same knee too."""
    table = pd.read_csv(KNEES / "manifest.csv", dtype=str)
    checked = survey([KNEES / path for path in table["path"]], hashes=True)
    assert checked.hashed.all() and not checked.problems
    cluster = table["patient"].to_numpy(object)
    found: dict[tuple[int, int], int] = {}
    for block in near_duplicates(checked.hashes, checked.hashes):
        for i, j, d, turned in zip(*(column.tolist() for column in block), strict=True):
            if i < j and not turned:
                found[i, j] = d
    pairs = {
        (i, j)
        for i in range(len(cluster))
        for j in range(i + 1, len(cluster))
        if cluster[i] == cluster[j]
    }
    assert len(pairs & found.keys()) > 0.85 * len(pairs)
    assert len(found.keys() - pairs) < 50  # of 1.3 million


def test_bad_images_are_not_compared(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), picture(0))
    (tmp_path / "b.png").write_bytes(b"no image")
    cv2.imwrite(str(tmp_path / "c.png"), np.full((30, 30), 9, np.uint8))
    done: list[int] = []
    files = [tmp_path / f"{name}.png" for name in "abcd"]
    checked = survey(files, hashes=True, workers=1, done=done.append)
    assert checked.hashed.tolist() == [True, False, False, False] and done == [1, 2, 3, 4]
    assert [one.sample for one in checked.problems] == [1, 3]
    assert np.array_equal(checked.hashes[0], perceptual_hash(read_grey(files[0])))


@pytest.mark.parametrize("blank", [("val",), ("train", "val"), SETS])
def test_sets_without_an_image_that_can_be_compared(tmp_path: Path, blank: tuple[str, ...]) -> None:
    names, sets = [], []
    for number in range(9):
        name, own = f"{number}.png", SETS[number % 3]
        image = np.zeros((40, 30), np.uint8) if own in blank else picture(number)
        cv2.imwrite(str(tmp_path / name), image)
        names.append(name)
        sets.append(own)
    frame = pd.DataFrame({"path": names, "split": sets, "patient": "", "label": 0})
    checked = survey([tmp_path / name for name in names], hashes=True)
    found = find_leakage(frame, checked.hashes, checked.hashed).facts["near_duplicates"]
    assert found["pairs"] == 0
    assert found["not_compared"] == 3 * len(blank)
