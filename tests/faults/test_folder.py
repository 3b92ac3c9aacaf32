"""What a user owns outlives a run: foreign, shared, deleted, read-only and linked folders."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from selftaught.cli.main import main
from selftaught.training import checkpoint, folder
from tests.faults.injected import At
from tests.faults.ranks import start
from tests.tiny import options, write_images

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("thin_encoder")]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


def content(place):
    return {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "names",
    [("notes.txt",), ("split.csv",), ("config.yaml",), ("model/weights.safetensors", ".lock")],
)
def test_a_folder_with_foreign_files_is_refused_and_stays_as_it_is(
    manifest, tmp_path, capsys, names
):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine: 1\n")
    before = content(tmp_path)
    assert main(["run", *options(manifest, tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("selftaught: ")
    assert str(tmp_path) in line
    assert content(tmp_path) == before


def test_a_folder_in_use_is_refused_by_every_name_it_has(manifest, tmp_path, capsys):
    run, link = tmp_path / "run", tmp_path / "link"
    run.mkdir()
    link.symlink_to(run)
    with folder.lock(run):
        for out in (run, link):
            assert main(["run", *options(manifest, out)]) == 2
            assert "is in use by another run" in capsys.readouterr().err
    assert sorted(path.name for path in run.iterdir()) == [".lock"]


@pytest.fixture
def read_only(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_read_only_folder_is_said_in_one_line(manifest, read_only, capsys):
    for out in (read_only, read_only / "new"):
        assert main(["run", *options(manifest, out)]) == 3
        (line,) = capsys.readouterr().err.splitlines()
        assert "cannot be written: Read-only file system" in line


def test_a_link_to_nowhere_is_said_in_one_line(manifest, tmp_path, capsys):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert main(["run", *options(manifest, tmp_path / "link")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "link") in line


def replace_by_another(run, with_lock):
    shutil.rmtree(run, ignore_errors=True)
    if with_lock is not None:
        shutil.copytree(with_lock, run, dirs_exist_ok=True)


@pytest.mark.parametrize(
    ("loop", "replaced"),
    [
        ("pretext", False),
        pytest.param("pretext", True, marks=pytest.mark.slow),
        pytest.param("score", False, marks=pytest.mark.slow),
        ("score", True),
    ],
)
def test_a_run_folder_that_goes_away_ends_the_run(manifest, tmp_path, loop, replaced):
    run, other = tmp_path / "run", tmp_path / "other"
    other.mkdir()
    (other / ".lock").touch()
    (other / "scores.csv").write_text("another run's\n")
    more = {"pretext.epochs": 1, "finetune.epochs": 1, "engine.save_every": 2}
    fault = At(0, loop, 1, replace_by_another, run, other if replaced else None)
    started = start(tmp_path / "ranks", options(manifest, run, **more), 1, fault)
    assert started.end() == [3], started.said(0)
    lines = [one for one in started.said(0).splitlines() if one.startswith("selftaught: ")]
    assert len(lines) == 1 and "was deleted, moved or replaced" in lines[0], lines
    if replaced:
        found = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
        assert not {name for name in found if name.startswith(("checkpoints", "model"))}
        assert (run / "scores.csv").read_text() == "another run's\n"


def test_only_checkpoints_are_cleared_away(tmp_path):
    mine = [tmp_path / "step-00000001-before-the-change", tmp_path / "step-1", tmp_path / "kept"]
    for path in mine:
        path.mkdir()
        (path / "weights.safetensors").write_text("mine")
    (tmp_path / "step-00000002").symlink_to(mine[2])
    for step in (3, 4, 5, 6):
        state = checkpoint.Checkpoint(step=step, weights={}, optimizer={}, figures={})
        checkpoint.save(tmp_path, state)
    assert all((path / "weights.safetensors").read_text() == "mine" for path in mine)
    assert {path.name for path in tmp_path.iterdir()} == {
        *(path.name for path in mine),
        *("step-00000002", "step-00000005", "step-00000006"),
    }


def test_a_checkpoint_that_cannot_be_read_now_is_no_damaged_one(tmp_path, monkeypatch):
    state = checkpoint.Checkpoint(step=3, weights={}, optimizer={}, figures={})
    checkpoint.save(tmp_path, state)

    def too_many(*_):
        raise OSError(24, "Too many open files", str(tmp_path))

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "sha256", too_many)
        with pytest.raises(checkpoint.MachineError, match="cannot be read: Too many open files"):
            checkpoint.newest(tmp_path)
    assert checkpoint.newest(tmp_path)[0].step == 3


def test_a_damaged_checkpoint_is_put_aside_and_not_deleted(tmp_path):
    for step in (3, 4):
        state = checkpoint.Checkpoint(step=step, weights={}, optimizer={}, figures={})
        path = checkpoint.save(tmp_path, state)
    (path / "state.json").write_text("{")
    found, problems = checkpoint.newest(tmp_path)
    assert found.step == 3 and "using the one before" in problems[0]
    checkpoint.put_aside_after(tmp_path, found.step)
    assert {p.name for p in tmp_path.iterdir()} == {"step-00000003", "damaged-step-00000004"}
    assert (tmp_path / "damaged-step-00000004" / "state.json").read_text() == "{"


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def test_a_damaged_best_epoch_is_told_and_the_last_one_serves(manifest, tmp_path, capsys):
    run = tmp_path / "run"
    arguments = options(manifest, run, **{"pretext.epochs": 1, "finetune.epochs": 1})
    assert main(["pretrain", *arguments]) == 0
    assert main(["finetune", *arguments]) == 0
    weights = (run / "model-best" / "weights.safetensors").read_bytes()
    kept = run / "checkpoints" / "best"
    shutil.copytree(kept, tmp_path / "whole")
    for damage, file in (
        (flip, "weights.safetensors"), (Path.unlink, "weights.safetensors"), (cut, "best.json")
    ):  # fmt: skip
        for name in ("model", "model-best"):
            shutil.rmtree(run / name, ignore_errors=True)
        shutil.copytree(tmp_path / "whole", kept, dirs_exist_ok=True)
        damage(kept / file)
        capsys.readouterr()
        assert main(["finetune", *arguments]) == 0
        said = capsys.readouterr()
        assert "damaged file; model-best is not written" in said.out + said.err
        assert not (run / "model-best").exists()
        assert (run / "model" / "weights.safetensors").read_bytes() == weights, "one epoch only"


@pytest.fixture(scope="module")
def finished(manifest, tmp_path_factory):
    run = tmp_path_factory.mktemp("finished") / "run"
    arguments = options(manifest, run, **{"pretext.epochs": 1, "finetune.epochs": 2})
    assert main(["run", *arguments]) == 0
    return run


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def test_a_damaged_last_checkpoint_of_a_run_that_has_its_model_is_made_again(finished, copy):
    (copy / "scores.csv").unlink()
    newest = sorted((copy / "checkpoints" / "finetune").glob("step-*"))[-1]
    flip(newest / "weights.safetensors")
    assert main(["run", "--out", str(copy)]) == 0
    for name in ("scores.csv", "model/weights.safetensors", "model-best/weights.safetensors"):
        assert (copy / name).read_bytes() == (finished / name).read_bytes()


def test_a_model_outlives_its_checkpoints(copy):
    shutil.rmtree(copy / "checkpoints")
    before = content(copy)
    main(["finetune", "--out", str(copy)])
    assert {path: data for path, data in content(copy).items() if "model" in path.parts} == {
        path: data for path, data in before.items() if "model" in path.parts
    }


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("config.yaml", "seed: 3", "seed: 4", "config.yaml: was edited since it was written"),
        ("split.csv", "test", "train", "split.csv: was edited since this run began"),
    ],
)
def test_what_a_run_wrote_and_was_edited_is_refused(copy, capsys, file, old, new, said):
    path = copy / file
    whole = path.read_text()
    path.write_text(whole.replace(old, new, 1))
    assert main(["run", "--out", str(copy)]) == 2
    assert said in capsys.readouterr().err
    path.write_text(whole)
    assert main(["run", "--out", str(copy), "--data.cache_gib", "1"]) == 0
    assert main(["run", "--out", str(copy)]) == 0, "the seal follows a setting that may change"


def test_an_edited_copy_of_the_settings_serves_another_run(copy, manifest, tmp_path):
    other = tmp_path / "other.yaml"
    text = (copy / "config.yaml").read_text()
    other.write_text(text.replace("seed: 3", "seed: 4"))
    out = str(tmp_path / "second")
    assert main(["pretrain", "--config", str(other), "--out", out]) == 0


def test_the_best_epoch_is_what_was_kept_and_not_what_was_logged(copy):
    kept = copy / "checkpoints" / "best"
    facts = json.loads((kept / "best.json").read_text())

    def replaced_by(epoch, value):
        checkpoint.keep_best(kept, {"w": torch.ones(1)}, epoch, value)
        return json.loads((kept / "best.json").read_text()) != facts

    assert not replaced_by(facts["epoch"] + 1, facts["val_auroc"])
    flip(kept / "weights.safetensors")
    assert replaced_by(facts["epoch"] + 1, 0.0), "a damaged one is no best epoch"
    facts = json.loads((kept / "best.json").read_text())
    assert replaced_by(facts["epoch"], -1.0), "of steps that are done again"


def test_no_decision_depends_on_the_clock():
    package = Path(checkpoint.__file__).parents[1]
    # The date of a week's row and of a label, which people read and nothing goes by.
    dated = {package / "cli" / "monitor.py", package / "data" / "reader_labels.py"}
    for path in {*package.rglob("*.py")} - dated:
        text = path.read_text(encoding="utf-8")
        for word in ("time.time(", "datetime.now", "utcnow"):
            assert word not in text, f"{path.name} asks the clock, which may be set: {word}"
