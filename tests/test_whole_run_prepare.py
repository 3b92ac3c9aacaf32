"""From the MURA-v1.1 tree to a report in one command, killed as it prepares, and from a pack.

Its model prepares raw films as the run did: the run's own scores.
"""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from selftaught.cli.main import main
from selftaught.data.manifest import read_manifest
from selftaught.phantoms import write_set
from selftaught.training import folder
from tests.faults.injected import KillOnceThere
from tests.faults.ranks import start
from tests.tiny import options, write_images

pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("thin_encoder")]
RESULTS = (
    "prepared/manifest.csv",
    "prepared/pack/pack.json",
    "prepared/pack/index.csv",
    "split.csv",
    "model/weights.safetensors",
    "scores.csv",
    "embeddings.safetensors",
    "metrics.json",
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic MURA-v1.1 folder of 40 cluttered films, some of them inverted."""
    place = tmp_path_factory.mktemp("mura")
    return write_set(place, 40, seed=3, size=72, layout="mura", workers=1)


def arguments(tree: Path, out: Path, **more: object) -> list[str]:
    small = {"prepare.size": 64, "prepare.workers": 1, "prepare.sheets": 1}
    return options(tree, out, **(small | {"pretext.epochs": 1, "finetune.epochs": 1} | more))


def finish(place: Path, words: list[str], command: str = "run") -> str:
    """Run a command to its end in a process of its own; what it said."""
    process = start(place, words, 1, command=command)
    assert process.end() == [0], process.said(0)
    return process.said(0)


@pytest.fixture(scope="module")
def whole(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    place = tmp_path_factory.mktemp("whole")
    finish(place, arguments(tree, place / "run"))
    return place / "run"


def results(run: Path) -> dict[str, bytes]:
    shards = sorted((run / "prepared/pack/shards").iterdir())
    return {str(path.relative_to(run)): path.read_bytes() for path in shards} | {
        name: (run / name).read_bytes() for name in RESULTS
    }


def test_one_command_leads_from_the_tree_to_a_report(tree: Path, whole: Path) -> None:
    listed, scores = read_manifest(tree), pd.read_csv(whole / "scores.csv")
    packed = read_manifest(whole / "prepared")
    assert set(packed.table["source"]) <= set(listed.table["path"])
    assert len(packed.table) > 34 and packed.table["mask"].ne("").mean() > 0.5
    assert set(scores["path"]) <= set(packed.table["path"])
    assert scores["score"].notna().all() and scores["body_part"].nunique() > 1
    report = (whole / "report.html").read_text(encoding="utf-8")
    assert report.count("data:image/jpeg") > 8 and "cannot be shown" not in report
    assert (whole / "prepared/sheets/page_001.png").is_file()
    assert (whole / "prepared/quarantine.csv").is_file()


def test_raw_films_get_the_scores_of_the_run(tree: Path, whole: Path, tmp_path: Path) -> None:
    words = ["--data.manifest", str(tree), "--data.bad_files", "skip"]
    assert main(["score", str(whole), *words, "--out", str(tmp_path / "new.csv")]) == 0
    prepared = read_manifest(whole / "prepared").table
    assert prepared["inverted"].astype(str).isin(("1", "True", "true")).sum() > 1
    source = dict(zip(prepared["path"], prepared["source"], strict=True))
    run = pd.read_csv(whole / "scores.csv")
    run = run.set_index(run["path"].map(source))
    again = pd.read_csv(tmp_path / "new.csv").set_index("path").loc[run.index]
    assert len(run) > 25
    np.testing.assert_allclose(again["score"], run["score"], rtol=1e-6, atol=1e-6)
    assert again["flagged"].equals(run["flagged"])


def test_killed_while_it_prepares_it_ends_with_the_same_bits(
    tree: Path, whole: Path, tmp_path: Path
) -> None:
    """Of later parts tests/faults/test_kill.py tells."""
    run = tmp_path / "run"
    words = arguments(tree, run)
    kills = {
        "prepared/work": KillOnceThere(run / "prepared/work"),
        "prepared/work/00000.json": KillOnceThere(run / "prepared/work/00000.json"),
    }
    for number, (left, kill) in enumerate(kills.items()):
        workers = ["--prepare.workers", "2"] if number == 0 else []
        killed = start(tmp_path, words + workers, 1, kill)
        assert killed.end() == [-signal.SIGKILL], killed.said(0)
        assert (run / left).exists() and not (run / "model").exists()
    finish(tmp_path, words)
    found, expected = results(run), results(whole)
    assert found.keys() == expected.keys()
    for name, data in expected.items():
        assert found[name] == data, f"{name} differs"


def test_a_finished_run_goes_on_without_the_tree(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    before = (whole / "scores.csv").read_bytes()
    (tmp_path / "run" / "scores.csv").unlink()
    said = finish(tmp_path, [str(tmp_path / "run")], "score")
    assert (tmp_path / "run" / "scores.csv").read_bytes() == before
    assert "images prepared" not in said


def test_a_pack_is_used_again_and_refused_with_other_rules(
    tree: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack = whole / "prepared"
    before = (pack / "pack/pack.json").stat().st_mtime_ns
    again = {"data.pack": pack}
    assert main(["split", str(pack / "manifest.csv"), "--out", str(tmp_path / "s.csv")]) == 0
    assert main(["pretrain", *arguments(tree, tmp_path / "run", **again)]) == 0
    assert (pack / "pack/pack.json").stat().st_mtime_ns == before
    assert not (tmp_path / "run" / "prepared").exists()
    assert (tmp_path / "run/split.csv").read_bytes() == (whole / "split.csv").read_bytes()
    capsys.readouterr()
    other = again | {"prepare.carrier": "none"}
    assert main(["run", *arguments(tree, tmp_path / "other", **other)]) == 2
    assert "carrier 'default', now 'none'" in capsys.readouterr().err
    large = {"data.image_size": 96}
    assert main(["run", *arguments(tree, tmp_path / "large", **large)]) == 2
    assert "prepare.size is 64; allowed: data.image_size, which is 96" in capsys.readouterr().err


def test_prepare_is_left_out_when_asked(tree: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["pretrain", *arguments(tree, run, **{"data.prepare": "never"})]) == 0
    assert not (run / "prepared").exists()
    assert pd.read_csv(run / "split.csv")["path"].str.match("(train|valid)/XR_").all()


def test_without_a_pack_a_changed_image_is_named_and_not_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = write_images(tmp_path / "images")
    run, image = tmp_path / "run", tmp_path / "images" / "007.png"
    assert main(["pretrain", *options(manifest, run, **{"pretext.epochs": 1})]) == 0
    content, config = image.read_bytes(), (run / "config.yaml").read_bytes()
    os.utime(image)
    shutil.copy(manifest.parent / "008.png", image)
    for command in ("run", "finetune"):
        assert main([command, "--out", str(run)]) == 2
        assert "007.png has changed since this run began" in capsys.readouterr().err
    image.unlink()
    assert main(["run", "--out", str(run)]) == 2
    assert not (run / "model").exists() and (run / "config.yaml").read_bytes() == config
    image.write_bytes(content)
    assert main(["pretrain", "--out", str(run)]) == 0


def test_a_pack_that_was_made_again_is_noticed(
    tree: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    manifest = run / "prepared/manifest.csv"
    (run / "model/model.json").unlink()
    config = (run / "config.yaml").read_text().partition(folder.SEAL)[0]
    (run / "config.yaml").write_text(config.replace(str(whole), str(run)))
    kept = manifest.read_bytes()
    shutil.rmtree(run / "prepared")
    words = ["--size", "64", "--cutoff", "5", "--workers", "1"]
    assert main(["prepare", str(tree), "--out", str(run / "prepared"), *words]) == 0
    manifest.write_bytes(kept)  # even where no line of the list tells
    assert main(["finetune", "--out", str(run)]) == 2
    assert "pack/pack.json has changed since this run began" in capsys.readouterr().err
