"""Bad files in whole runs: named and ended, or skipped, listed and counted; on one rank and two."""

import csv

import numpy as np
import pandas as pd
import pytest

from selftaught.data.manifest import read_manifest
from selftaught.data.pipeline import has_dali
from selftaught.data.split import SplitConfig, make_split
from tests.data.images.broken import break_file
from tests.faults.injected import At, KillIn
from tests.faults.ranks import start
from tests.tiny import options, write_images

SKIP = {
    "data.bad_files": "skip",
    "data.bad_limit": 0.2,
    "data.workers": 2,
    "pretext.epochs": 1,
    "finetune.epochs": 1,
}
RESULTS = (
    "model/weights.safetensors",
    "scores.csv",
    "embeddings.safetensors",
    "metrics.json",
    "bad_files.csv",
)
RANKS = pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.slow)])
NO_DALI = pytest.mark.skipif(not has_dali(), reason="NVIDIA DALI is not installed")
pytestmark = pytest.mark.timeout(900)


def break_some(folder, sets):
    """One of each kind; the first two train."""
    train = sets.index[sets == "train"].tolist()
    test = sets.index[sets == "test"].tolist()
    broken = dict(zip((train[3], train[9], test[1]), ("cut png", "missing", "text"), strict=True))
    for name, kind in broken.items():
        break_file(folder / name, kind)
    return broken


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """The set that each image of such a run comes into."""
    folder = tmp_path_factory.mktemp("films")
    manifest = write_images(folder / "images")
    given = dict(zip(*[iter(options(manifest, folder))] * 2, strict=True))
    shares = {name: float(given[f"--split.{name}"]) for name in ("known_normal", "known_abnormal")}
    return make_split(read_manifest(manifest), SplitConfig(**shares)).set_index("path")["split"]


@pytest.fixture(scope="module")
def broken(sets, tmp_path_factory):
    """The manifest with three broken files, and what an uninterrupted run of it gives."""
    folder = tmp_path_factory.mktemp("broken")
    manifest = write_images(folder / "images")
    bad = break_some(manifest.parent, sets)
    finish(folder / "0", options(manifest, folder / "run", **SKIP), 1)
    return manifest, bad, folder / "run"


def finish(folder, arguments, world, fault=None):
    started = start(folder, arguments, world, fault)
    assert started.end() == [0] * world, started.said(0)
    return started.said(0)


def assert_refused(started, words):
    """Rank 0 says so in one line; the others tell that it ended."""
    codes = started.end()
    assert set(codes) == {2} and words in started.said(0)
    assert not any("Traceback" in started.said(rank) for rank in range(len(codes)))


def listed(run):
    with (run / "bad_files.csv").open(newline="") as handle:
        return {row["path"]: row for row in csv.DictReader(handle)}


def test_a_skipped_image_is_listed_counted_and_has_no_score(broken):
    _, bad, run = broken
    rows = listed(run)
    assert rows.keys() == bad.keys()
    assert {(row["stage"], row["step"], row["rank"]) for row in rows.values()} == {
        ("check", "", "0")
    }
    scores = pd.read_csv(run / "scores.csv").set_index("path")
    assert scores["score"].isna().sum() == len(bad) == scores.loc[list(bad), "score"].isna().sum()
    assert scores.loc[list(bad), "problem"].notna().all()
    assert scores.drop(list(bad))["problem"].isna().all()
    page = (run / "report.html").read_text()
    assert "cannot be read and were skipped: 1 test" in page
    assert "2 train" in page or page.count("1 train") == 2


def test_a_killed_run_goes_on_to_the_same_bits(broken, tmp_path):
    manifest, _, expected = broken
    arguments = options(manifest, tmp_path / "run", **(SKIP | {"data.workers": 0}))
    for part in ("pretrain", "finetune"):
        assert start(tmp_path / "0", arguments, 1, KillIn(part, 0.3)).end() == [-9]
    finish(tmp_path / "0", arguments, 1)
    for name in RESULTS:
        assert (tmp_path / "run" / name).read_bytes() == (expected / name).read_bytes(), name


@pytest.mark.parametrize(
    "executor", ["opencv", pytest.param("dali", marks=[NO_DALI, pytest.mark.slow])]
)
def test_two_ranks_skip_the_same(broken, tmp_path, executor):
    manifest, bad, one = broken
    run = tmp_path / "run"
    finish(tmp_path / "0", options(manifest, run, **SKIP, **{"data.pipeline": executor}), 2)
    assert (run / "bad_files.csv").read_bytes() == (one / "bad_files.csv").read_bytes()
    scores = [
        pd.read_csv(folder / "scores.csv").set_index("path")["score"] for folder in (run, one)
    ]
    assert scores[0].index.tolist() == scores[1].index.tolist()
    assert np.array_equal(scores[0].isna(), scores[1].isna())


@RANKS
def test_a_file_that_breaks_while_the_run_goes_on(sets, tmp_path, world):
    manifest = write_images(tmp_path / "images")
    name = sets.index[sets == "train"][5]
    more = SKIP | {"data.cache_gib": 0, "pretext.epochs": 2}
    run, path = tmp_path / "run", manifest.parent / name
    said = finish(
        tmp_path / "0",
        options(manifest, run, **more),
        world,
        At(0, "pretext", 4, break_file, path, "cut png"),
    )
    (row,) = listed(run).values()
    assert (row["path"], row["split"]) == (name, "train") and "truncated PNG" in row["reason"]
    assert row["stage"] == "pretext" and said.count(f"{name} cannot be read and is skipped") == 1
    assert "1 of 40 images cannot be read and were skipped: 1 train" in said
    # Killed and begun again, the run knows the file; the one who does not skip is told.
    (run / "report.html").unlink()
    finish(tmp_path / "1", options(manifest, run, **more), world)
    fail = start(
        tmp_path / "2", options(manifest, run, **(more | {"data.bad_files": "fail"})), world
    )
    assert_refused(fail, f"{name} has changed since this run began")


@RANKS
def test_without_skipping_the_run_ends_with_the_name(sets, tmp_path, world):
    manifest = write_images(tmp_path / "images")
    name = sets.index[sets == "train"][5]
    more = SKIP | {"data.cache_gib": 0, "data.bad_files": "fail", "pretext.epochs": 4}
    fault = At(0, "pretext", 2, break_file, manifest.parent / name, "flipped png")
    started = start(tmp_path / "0", options(manifest, tmp_path / "run", **more), world, fault)
    assert set(started.end()) == {2}
    said = " ".join(started.said(rank) for rank in range(world))
    assert f"{name}: damaged PNG" in said and "Traceback" not in said


@RANKS
def test_too_many_end_the_run(sets, tmp_path, world):
    manifest = write_images(tmp_path / "images")
    break_some(manifest.parent, sets)
    arguments = options(manifest, tmp_path / "run", **(SKIP | {"data.bad_limit": 0.05}))
    started = start(tmp_path / "0", arguments, world)
    assert_refused(started, "data.bad_limit")
    (line,) = [x for x in started.said(0).splitlines() if "data.bad_limit" in x]
    assert "3 of 40 images cannot be read (7.5%)" in line and "bad_files.csv" in line
    assert len(listed(tmp_path / "run")) == 3
    # With the files restored, the run begins.
    write_images(tmp_path / "images")
    assert start(tmp_path / "0", arguments, world, command="pretrain").end() == [0] * world
    assert not listed(tmp_path / "run")
