"""Mirrors a run folder into MLflow or Weights & Biases, whenever and as often as asked.

Training knows nothing of trackers: all that they are given stands in the folder. A second mirror of
the same folder goes on where the first ended, in the same run of the tracker.
"""

import hashlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selftaught.errors import InputError
from selftaught.evaluation.run_files import flatten, read_log, read_mapping

# What a viewer of curves does not plot.
NO_CURVE = ("stage", "kind", "epoch", "step", "ranks")
# No list of images and no score of one: they may name patients.
PAGES = ("MODEL_CARD.md",)
TAG = "selftaught_run"
SETTINGS_LEFT_OUT = ("out", "data.manifest", "data.pack", "data.features", "model.weights")
LONGEST = 500  # characters of a setting that MLflow takes


@dataclass(frozen=True, kw_only=True)
class Content:
    """What is sent: names, settings, curves (position, figures), figures of the sets, pages."""

    name: str
    key: str
    project: str
    settings: dict[str, str]
    points: list[tuple[int, dict[str, float]]]
    figures: dict[str, float]
    pages: list[Path]


def mirror(run: Path, to: str, project: str) -> str:
    """Send settings, curves, figures and the model card of a run.

    Args:
        run: the run folder, finished or not.
        to: mlflow or wandb.
        project: MLflow's experiment, or W&B's project.

    Returns:
        A line for the person who asked: where it is, and how many points are there.

    Raises:
        InputError: `run` is no run folder, or the tracker is not installed.
    """
    if importlib.util.find_spec(to) is None:
        package = {"mlflow": "mlflow-skinny"}.get(to, to)
        raise InputError(f"to is {to}, which is not installed: pip install {package}")
    for name in ("config.yaml", "split.csv"):
        if not (run / name).is_file():
            raise InputError(f"{run}: is no run folder: {name} is missing")
    settings = flatten(read_mapping(run / "config.yaml", []))
    content = Content(
        name=run.resolve().name,
        key=identity(run),
        project=project,
        settings={k: text[:LONGEST] for k, text in settings if k not in SETTINGS_LEFT_OUT},
        points=list(curves(run)),
        figures=dict(_figures(read_mapping(run / "metrics.json", []))),
        pages=[run / name for name in PAGES if (run / name).is_file()],
    )
    where = {"mlflow": _to_mlflow, "wandb": _to_wandb}[to](content)
    return f"{where}: {len(content.points)} points of curves, {len(content.figures)} figures"


def identity(run: Path) -> str:
    """16 characters by which a tracker knows the run again, wherever the folder lies."""
    parts = (run / "config.yaml").read_bytes(), (run / "split.csv").read_bytes()
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def curves(run: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Position and figures, named STAGE/FIGURE, of each line of metrics.jsonl; positions rise.

    The position is the number of the line among those with figures: steps of the second stage
    begin at 0 again, which trackers refuse.
    """
    position = 0
    for entry in read_log(run / "metrics.jsonl"):
        stage = entry.get("stage")
        figures = {
            f"{stage}/{'epoch_' if entry['kind'] == 'epoch' else ''}{name}": float(value)
            for name, value in entry.items()
            if name not in NO_CURVE and isinstance(value, int | float)
        }
        if figures and entry.get("kind") in ("step", "epoch"):
            figures |= {f"{stage}/{name}": float(entry[name]) for name in ("epoch", "step")}
            yield position, figures
            position += 1


def _figures(metrics: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Figures of the sets as SET/FIGURE, ends of intervals as FIGURE/low and FIGURE/high."""
    for name, value in metrics.items():
        if name in ("body_parts", "reasons", "seed", "resamples"):
            continue
        if isinstance(value, list) and name.endswith("_ci"):
            value = dict(zip(("low", "high"), value, strict=True))
        if isinstance(value, dict):
            yield from _figures(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}", float(value)


def _to_mlflow(content: Content) -> str:
    import mlflow
    from mlflow.entities import Metric
    from mlflow.utils.time import get_current_time_millis

    client = mlflow.MlflowClient()
    known = client.get_experiment_by_name(content.project)
    experiment = known.experiment_id if known else client.create_experiment(content.project)
    earlier = client.search_runs([experiment], f"tags.{TAG} = '{content.key}'", max_results=1)
    run = earlier[0] if earlier else client.create_run(experiment, run_name=content.name)
    number, sent = run.info.run_id, int(run.data.tags.get(f"{TAG}_points", 0))
    if not earlier:
        client.set_tag(number, TAG, content.key)
        for setting, text in content.settings.items():
            client.log_param(number, setting, text)
    now = get_current_time_millis()
    for position, values in [*content.points[sent:], (0, content.figures)]:
        metrics = [Metric(name, value, now, position) for name, value in values.items()]
        client.log_batch(number, metrics=metrics)
    client.set_tag(number, f"{TAG}_points", str(len(content.points)))
    for page in content.pages:
        client.log_artifact(number, str(page))
    if content.figures:
        client.set_terminated(number)
    return f"{mlflow.get_tracking_uri()}, experiment {content.project}, run {number}"


def _to_wandb(content: Content) -> str:
    import wandb

    named = {"project": content.project, "id": content.key, "name": content.name}
    with wandb.init(**named, config=content.settings, resume="allow") as run:
        for position, values in content.points:
            if position >= run.step:
                run.log(values, step=position)
        run.summary.update(content.figures)
        for page in content.pages:
            run.save(str(page), base_path=str(page.parent), policy="now")
        return f"W&B project {content.project}, run {run.url or f'{content.key}, offline'}"
