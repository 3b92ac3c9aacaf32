"""What trackers are sent of a run: curves, figures, settings; no path, and nothing twice."""

import contextlib
import importlib.machinery
import json
import sys
import types

import pytest

from selftaught.cli.main import main
from selftaught.evaluation.trackers import curves, mirror


@pytest.fixture
def wandb(monkeypatch):
    """Stands in for the client: one run by id, which remembers its step as the server does."""
    module, runs = types.ModuleType("wandb"), {}
    module.__spec__ = importlib.machinery.ModuleSpec("wandb", None)

    @contextlib.contextmanager
    def init(*, project, id, name, config, resume):
        run = runs.setdefault(id, types.SimpleNamespace(step=0, url="", points=[], saved=[]))
        run.summary = getattr(run, "summary", {})
        run.config, run.project = config, project

        def log(values, step):
            run.points.append((step, values))
            run.step = step + 1

        run.log = log
        run.save = lambda path, **_: run.saved.append(path)
        yield run

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return runs


def test_positions_rise_over_both_stages(make_run):
    run = make_run(images=False, full=True)
    points = list(curves(run))
    assert [position for position, _ in points] == list(range(12))
    assert points[0][1]["pretext/epoch_loss"] == 3 and points[0][1]["pretext/step"] == 0
    assert points[11][1]["finetune/epoch_val_auroc"] == pytest.approx(0.75)


def test_a_second_mirror_sends_what_is_new(make_run, wandb):
    run = make_run(images=False, full=True)
    log = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text("\n".join(log.splitlines()[:4]))
    assert "4 points" in mirror(run, "wandb", "knees")
    (run / "metrics.jsonl").write_text(log)
    assert "12 points" in mirror(run, "wandb", "knees")
    (tracked,) = wandb.values()
    assert [step for step, _ in tracked.points] == list(range(12))
    test = json.loads((run / "metrics.json").read_text())["test"]
    assert tracked.summary["test/auroc"] == test["auroc"]
    assert tracked.summary["test/auroc_ci/low"] == test["auroc_ci"][0]
    assert not any("body_parts" in name for name in tracked.summary)
    assert tracked.project == "knees" and tracked.config["finetune.epochs"] == "6"
    assert str(run.parent) not in json.dumps([tracked.config, tracked.summary, tracked.points])


def test_a_tracker_that_is_not_there_and_a_folder_that_is_no_run(make_run, wandb, tmp_path, capsys):
    run = make_run(images=False)
    if importlib.util.find_spec("mlflow") is None:
        assert main(["log", str(run), "--to", "mlflow"]) == 2
        assert "pip install mlflow-skinny" in capsys.readouterr().err
    assert main(["log", str(tmp_path), "--to", "wandb"]) == 2
    assert "is no run folder" in capsys.readouterr().err


def test_mlflow_itself_holds_the_figures(make_run, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow-skinny")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run = make_run(images=False, full=True)
    for _ in range(2):
        mirror(run, "mlflow", "knees")
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("knees").experiment_id
    (tracked,) = client.search_runs([experiment])
    history = client.get_metric_history(tracked.info.run_id, "finetune/epoch_loss")
    assert [point.step for point in history] == list(range(6, 12))
    test = json.loads((run / "metrics.json").read_text())["test"]
    assert tracked.data.metrics["test/auroc"] == test["auroc"]
