"""A whole run as a user starts it, and what can be done with its folder afterwards."""

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from selftaught.cli.main import main
from selftaught.cli.options import read_config
from selftaught.data.augment import Preset
from selftaught.detector import Detector
from selftaught.training.config import build, dump, settings
from selftaught.training.presets import preset_methods, preset_overrides
from selftaught.training.run import run
from tests.tiny import options, write_images

pytestmark = pytest.mark.usefixtures("thin_encoder")
PROMISED = {
    "config.yaml", "environment.json", "split.csv", "split_table.txt", "metrics.jsonl",
    "checkpoints", "model", "scores.csv", "embeddings.safetensors", "metrics.json", "report.html",
    "MODEL_CARD.md",
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    manifest = write_images(folder / "images")
    assert main(["run", *options(manifest, folder / "run")]) == 0
    return manifest, folder / "run"


def test_everything_promised_is_there(finished):
    _, run = finished
    assert {path.name for path in run.iterdir()} >= PROMISED
    scores = pd.read_csv(run / "scores.csv")
    first = ["path", "split", "label", "semi_label", "score", "center", "percentile", "flagged"]
    assert list(scores.columns[:8]) == first
    features = load_file(run / "embeddings.safetensors")
    assert {name: len(rows) for name, rows in features.items()} == dict.fromkeys(
        ("h", "z", "pretext_h"), len(scores)
    )
    assert not np.allclose(features["pretext_h"], features["h"])
    assert json.loads((run / "metrics.json").read_text())["test"]["n"] == 8


def test_the_umask_decides_who_may_read_every_file(finished, tmp_path):
    _, run = finished
    (tmp_path / "new").touch()
    wanted = (tmp_path / "new").stat().st_mode
    files = [path for path in run.rglob("*") if path.is_file()]
    assert {path.name for path in files if path.stat().st_mode != wanted} == set()
    assert {"state.safetensors", "weights.safetensors"} & {path.name for path in files}


def test_a_run_within_a_program_with_settings_gives_the_same_bits(finished, tmp_path):
    manifest, plain = finished
    config = read_config("run", "", options(manifest, tmp_path / "run"))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.autocast("cpu", torch.bfloat16), torch.inference_mode(), torch.device("meta"):
            run(config)
    finally:
        torch.set_default_dtype(before)
    for name in ("scores.csv", "embeddings.safetensors", "model/weights.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (plain / name).read_bytes()


def test_no_test_or_validation_label_reaches_training(finished):
    _, run = finished
    split = pd.read_csv(run / "split.csv")
    known = split[split["semi_label"] != 0]
    assert set(known["split"]) == {"train"}
    assert (known["label"] == (known["semi_label"] == -1)).all()


def test_threshold_and_percentile_come_from_normal_validation_images(finished):
    _, run = finished
    scores = pd.read_csv(run / "scores.csv")
    normal = scores[(scores["split"] == "val") & (scores["label"] == 0)]["score"].to_numpy()
    expected = [(normal <= value).mean() * 100 for value in scores["score"]]
    assert scores["percentile"].to_numpy() == pytest.approx(np.array(expected))
    facts = json.loads((run / "model" / "model.json").read_text())
    assert sorted(facts["calibration"]["normal_scores"]) == pytest.approx(sorted(normal), rel=1e-6)


def test_a_finished_run_started_again_changes_nothing(finished):
    manifest, run = finished
    before = {n: (run / n).read_bytes() for n in ("scores.csv", "model/weights.safetensors")}
    assert main(["run", *options(manifest, run)]) == 0
    assert main(["run", "--out", str(run)]) == 0
    assert before == {name: (run / name).read_bytes() for name in before}


def test_other_settings_in_the_folder_are_refused(finished, capsys):
    manifest, run = finished
    assert main(["run", *options(manifest, run, **{"finetune.eta": 2.0})]) == 2
    assert "finetune.eta is 1.0 there and 2.0 here" in capsys.readouterr().err
    assert main(["run", *options(manifest, run, **{"engine.resume": "never"})]) == 2


def test_scoring_files_with_the_model_gives_the_runs_scores(finished, tmp_path):
    manifest, run = finished
    out = tmp_path / "s.csv"
    assert main(["score", str(run), "--data.manifest", str(manifest), "--out", str(out)]) == 0
    ours = pd.read_csv(out).set_index("path")["score"]
    theirs = pd.read_csv(run / "scores.csv").set_index("path")["score"]
    assert ours[theirs.index].to_numpy() == pytest.approx(theirs.to_numpy(), rel=1e-4)
    paths = [manifest.parent / name for name in theirs.index[:5]]
    scores = Detector.load(run / "model").score(paths)
    assert scores.numpy() == pytest.approx(theirs.to_numpy()[:5], rel=1e-4)


def test_evaluate_and_report_work_from_files(finished, tmp_path, capsys):
    _, run = finished
    out = tmp_path / "m.json"
    assert main(["evaluate", str(run / "scores.csv"), "--seed", "3", "--out", str(out)]) == 0
    assert json.loads(out.read_text()) == json.loads((run / "metrics.json").read_text())
    assert main(["report", str(run)]) == 0
    assert main(["report", str(tmp_path)]) == 2
    assert "is no run folder" in capsys.readouterr().err


def test_stages_out_of_order_say_what_comes_first(finished, tmp_path, capsys):
    manifest, _ = finished
    arguments = options(manifest, tmp_path / "other")
    assert main(["finetune", *arguments]) == 2
    assert "run `selftaught pretrain` first" in capsys.readouterr().err


@pytest.mark.parametrize("preset", get_args(Preset))
def test_presets_name_real_options_and_survive_a_file(preset, tmp_path, capsys):
    chosen = preset_methods(preset)
    known = build({"out": "r", **{stage: {"method": name} for stage, name in chosen.items()}})
    assert set(preset_overrides(preset, chosen)) <= set(settings(known))
    with pytest.raises(SystemExit) as end:
        main(["run", "--preset", preset, "--out", "r", "--print_config"])
    assert end.value.code == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    config = read_config("run", "", ["--config", str(printed), "--out", "r"])
    assert config == read_config("run", "", ["--preset", preset, "--out", "r"])
    again = tmp_path / "dumped.yaml"
    again.write_text(dump(config))
    assert read_config("run", "", ["--config", str(again)]) == config


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for path in (Path(__file__).parents[1] / "selftaught" / "cli").glob("*.py"):
        if path.stem != "main" and "\ndef main(" in path.read_text(encoding="utf-8"):
            assert f"  {path.stem}" in text
            with pytest.raises(SystemExit) as end:
                main([path.stem, "--help"])
            assert end.value.code == 0
