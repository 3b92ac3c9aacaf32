"""The settings in launch/configs: read as --config reads them, and divisible over their ranks."""

from pathlib import Path

import pytest

from selftaught.cli.options import read_config
from selftaught.files import read_yaml

FOLDER = Path(__file__).resolve().parents[2] / "launch" / "configs"
CONFIGS = sorted(path for path in FOLDER.glob("*.yaml") if path.name != "ablation.yaml")  # rows
RANKS = {"eq2-laptop.yaml": 1, "gpu.yaml": 8, "cluster.yaml": 64}


def test_each_says_for_how_many_ranks_it_is():
    assert {path.name for path in CONFIGS} == set(RANKS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_config_is_accepted_and_divides(path, tmp_path):
    words = ["--config", str(path), "--data.manifest", "images.csv", "--out", str(tmp_path / "run")]
    config = read_config("run", "", words)
    ranks = RANKS[path.name]
    for stage in (config.pretext, config.finetune):
        assert stage.batch_size % (ranks * config.engine.accumulate) == 0
    assert config.preset == read_yaml(path)["preset"]


def test_large_batches_take_the_rate_that_the_options_name():
    (path,) = (path for path in CONFIGS if path.name == "cluster.yaml")
    pretext = read_yaml(path)["pretext"]
    assert pretext["optimizer"] == "lars"
    assert pretext["lr"] == pytest.approx(0.3 * pretext["batch_size"] / 256)


@pytest.mark.parametrize("kind", ["ddp", "deepspeed"])
def test_the_cluster_config_with_zero(kind, tmp_path):
    (path,) = (path for path in CONFIGS if path.name == "cluster.yaml")
    words = ["--config", str(path), "--data.manifest", "images.csv", "--out", str(tmp_path / "run")]
    words += ["--engine.kind", kind, "--engine.zero_stage", "2", "--pretext.optimizer", "adam"]
    assert read_config("run", "", words).engine.kind == kind
