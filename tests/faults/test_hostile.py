"""Hostile files, as a user may be handed them: refused by the command in one line, nothing runs.

What single readers refuse is in tests/models, tests/data and tests/evaluation; that no identifier
of a DICOM file comes out, in tests/test_whole_run_dicom.py.
"""

import hashlib
import json
import os
import pickle
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from selftaught.cli.main import main
from selftaught.models import files
from selftaught.training import checkpoint
from tests.faults.ranks import start
from tests.tiny import options, write_images, write_model

pytestmark = pytest.mark.usefixtures("thin_encoder")


class Payload:
    """Makes a folder where it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture
def trace(tmp_path):
    """What there would be if a payload ran, and checks that none did."""
    path = tmp_path / "it ran"
    yield path
    assert not path.exists()


def refused(capsys, words, *expected):
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("selftaught: ")
    for part in expected:
        assert part in line


def test_the_payload_runs_where_it_is_unpickled(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran")))
    assert (tmp_path / "ran").is_dir()


@pytest.mark.parametrize("name", ["weights.pt", "weights.pth", "weights.pkl"])
@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(
    pickle.dumps(value))], ids=["torch", "pickle"])  # fmt: skip
def test_weights_that_are_code(manifest, tmp_path, trace, capsys, name, write):
    write({"conv1.weight": Payload(trace)}, tmp_path / name)
    more = {"pretext.method": "imagenet", "model.weights": tmp_path / name}
    refused(capsys, ["run", *options(manifest, tmp_path / "run", **more)], name)


@pytest.mark.parametrize("tag", ["object/apply:os.mkdir", "object/new:os.mkdir", "name:os.mkdir"])
def test_settings_that_are_code(manifest, tmp_path, trace, capsys, tag):
    config = tmp_path / "config.yaml"
    config.write_text(f"seed: !!python/{tag} ['{trace}']\n")
    words = [*options(manifest, tmp_path / "run"), "--config", str(config)]
    refused(capsys, ["run", *words], "config.yaml")


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".pkl", ".npz"])
def test_a_list_of_images_that_is_code(tmp_path, trace, capsys, suffix):
    path = tmp_path / f"images{suffix}"
    path.write_bytes(pickle.dumps(Payload(trace)))
    refused(capsys, ["run", *options(path, tmp_path / "run")], path.name)


@pytest.mark.parametrize("kind", ["pickle", "objects"])
def test_an_image_that_is_code(tmp_path, trace, capsys, kind):
    manifest = write_images(tmp_path / "images")
    image = tmp_path / "images" / "007.png"
    if kind == "pickle":
        image.write_bytes(pickle.dumps(Payload(trace)))
    else:
        with image.open("wb") as handle:
            np.savez(handle, np.array([Payload(trace)], dtype=object))
    refused(capsys, ["run", *options(manifest, tmp_path / "run")], "007.png")


def test_a_model_that_is_code(manifest, tmp_path, trace, capsys):
    model = write_model(tmp_path / "model")
    content = pickle.dumps(Payload(trace))
    document = json.loads((model / "model.json").read_text())
    # As somebody who means harm would: with a checksum that fits.
    document["sha256"]["weights.safetensors"] = hashlib.sha256(content).hexdigest()
    (model / "weights.safetensors").write_bytes(content)
    (model / "model.json").write_text(json.dumps(document))
    words = ["--data.manifest", str(manifest), "--out", str(tmp_path / "scores.csv")]
    refused(capsys, ["score", str(model), *words], "weights.safetensors")


def test_a_model_whose_method_is_code_beside_it(manifest, tmp_path, trace, capsys, monkeypatch):
    """What lies beside a model or where the command is started is not on Python's path."""
    model = write_model(tmp_path / "model")
    for place in (tmp_path, model):
        (place / "mine_here.py").write_text(f"import os; os.mkdir({str(trace)!r})")
    document = json.loads((model / "model.json").read_text()) | {"method": "mine_here.Mine"}
    document["sha256"]["facts"] = files._digest(document)
    (model / "model.json").write_text(json.dumps(document))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    words = ["--data.manifest", str(manifest), "--out", str(tmp_path / "scores.csv")]
    refused(capsys, ["score", str(model), *words], "model.json", "mine_here.Mine")


def test_checkpoints_that_are_code(tmp_path, trace):
    for step in (1, 2):
        path = checkpoint.save(
            tmp_path, checkpoint.Checkpoint(step=step, weights={}, optimizer={}, figures={})
        )
    content = pickle.dumps(Payload(trace))
    (path / "optimizer.safetensors").write_bytes(content)
    state = json.loads((path / "state.json").read_text())
    state["sha256"]["optimizer.safetensors"] = hashlib.sha256(content).hexdigest()
    (path / "state.json").write_text(json.dumps(state))
    found, problems = checkpoint.newest(tmp_path)
    assert found.step == 1 and len(problems) == 1


@pytest.mark.parametrize(
    "cell", ["../secret.png", "/etc/passwd", "a/../../secret.png", "link.png", "a\\..\\..\\x.png"]
)
def test_a_list_that_leads_out_of_its_folder(tmp_path, capsys, cell):
    manifest = write_images(tmp_path / "images")
    (tmp_path / "images" / "000.png").rename(tmp_path / "secret.png")
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "secret.png")
    table = pd.read_csv(manifest)
    table.loc[0, "path"] = cell
    table.to_csv(manifest, index=False)
    refused(capsys, ["run", *options(manifest, tmp_path / "run")], "row 2")
    assert not (tmp_path / "run" / "split.csv").exists()


def test_names_that_are_html_are_only_text_in_the_report(tmp_path):
    manifest = write_images(tmp_path / "images")
    table = pd.read_csv(manifest)
    script = "<script>alert(1)<&script>.png"
    for row in range(24):
        old, new = manifest.parent / table.loc[row, "path"], f"{row}{script}"
        old.rename(manifest.parent / new)
        table.loc[row, "path"] = new
    table["body_part"] = '"><img src=x onerror=alert(1)>'
    table["study"] = "=cmd|'/c calc'!A1"
    table.to_csv(manifest, index=False)
    more = {"pretext.method": "none", "finetune.epochs": 1}
    started = start(tmp_path / "0", options(manifest, tmp_path / "run", **more), 1)
    assert started.end() == [0], started.said(0)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page and "<img src=x" not in page
    assert "&lt;script&gt;alert(1)" in page and "&lt;img src=x onerror=alert(1)&gt;" in page
