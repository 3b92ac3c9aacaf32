"""What somebody new does in the first hour, and the line that answers."""

import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import torch

from selftaught.cli import doctor
from selftaught.cli.main import main
from selftaught.detector import Detector
from selftaught.errors import InputError
from selftaught.models.weights import load_encoder_weights
from tests.tiny import options, write_images, write_model

pytestmark = pytest.mark.usefixtures("thin_encoder")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("run") / "model")


@pytest.fixture
def manifest(tmp_path):
    return write_images(tmp_path / "images", 48)


def test_a_pipe_among_the_films_is_put_aside(tmp_path, manifest):
    films = tmp_path / "films"
    shutil.copytree(manifest.parent, films)
    (films / "manifest.csv").unlink()
    os.mkfifo(films / "pipe.png")
    out = tmp_path / "set"
    words = ["prepare", str(films), "--out", str(out), "--carrier", "none", "--workers", "1"]
    assert main([*words, "--size", "64"]) == 0
    (row,) = pd.read_csv(out / "quarantine.csv").itertuples()
    assert row.path == "pipe.png" and "not a regular file" in row.reason


@pytest.mark.parametrize(
    "more",
    [
        {"data.pipeline": "dali", "pretext.augment.order": "published"},
        {"pretext.method": "imagenet", "model.weights": "README.md"},
    ],
)
def test_what_is_refused_leaves_the_folder_to_the_corrected_command(tmp_path, manifest, more):
    run = tmp_path / "run"
    assert main(["run", *options(manifest, run, **more)]) == 2
    assert not (run / "config.yaml").exists()
    assert main(["pretrain", *options(manifest, run, **{"pretext.epochs": 1})]) == 0


def test_a_file_that_holds_no_weights_is_no_advice_to_run_it(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"w": print}, path)
    with pytest.raises(InputError) as refused:
        load(path)
    said = str(refused.value)
    assert "neither safetensors nor a plain torch state dict: Weights only load failed" in said
    assert "arbitrary code" not in said and "weights_only" not in said


def load(path):
    from selftaught.models import EncoderConfig, build_embedder

    load_encoder_weights(build_embedder(EncoderConfig(), 0).encoder, path)


def test_the_demo_leaves_other_peoples_folders_alone(tmp_path, capsys):
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "mine.png").write_text("mine")
    assert main(["demo", "--out", str(tmp_path / "films")]) == 2
    assert "holds other files, such as mine.png" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "films").iterdir()] == ["mine.png"]


def test_a_truth_that_is_not_there_is_told_before_the_work(tmp_path, manifest, capsys):
    out = tmp_path / "set"
    assert main(["prepare", str(manifest), "--out", str(out), "--check", "nowhere.json"]) == 2
    assert "check: nowhere.json: no such file" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("column", ["path", "label", "score"])
def test_scores_without_a_column_are_named_with_what_they_hold(tmp_path, capsys, column):
    path = tmp_path / "mine.csv"
    table = pd.DataFrame({"path": ["a", "b"], "label": [0, 1], "score": [0.1, 0.2]})
    table.drop(columns=column).to_csv(path, index=False)
    assert main(["evaluate", str(path)]) == 2
    said = capsys.readouterr().err
    assert f"mine.csv: column {column} is missing" in said and "split" not in said


def test_doctor_needs_no_package_that_the_losses_do_not_bring(tmp_path):
    hidden = ("jsonargparse", "yaml", "pandas", "cv2", "sklearn", "matplotlib", "rich")
    for name in hidden:
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('no', name={name!r})")
    path = os.pathsep.join((str(tmp_path), *filter(None, sys.path)))

    code = "from selftaught.cli.main import main; print('ended with', main(['doctor'])); "
    job = subprocess.run(
        [sys.executable, "-c", code + "import selftaught; selftaught.Detector"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "kernels" in job.stdout and job.stdout.endswith("ended with 0\n"), job.stderr
    assert "install it by: pip install selftaught[train]" in job.stderr


def test_doctor_sees_a_backend_that_is_none(monkeypatch, capsys):
    monkeypatch.setenv("SELFTAUGHT_BACKEND", "ccp")
    doctor.main([])
    assert "none is taken: SELFTAUGHT_BACKEND: got 'ccp'" in capsys.readouterr().out
    with pytest.raises(InputError, match="unknown option '--all'; allowed: none"):
        doctor.main(["--all"])


def test_a_detector_takes_the_run_folder(model):
    x = torch.rand(2, 1, 32, 32)
    assert torch.equal(Detector.load(model.parent).score(x), Detector.load(model).score(x))
