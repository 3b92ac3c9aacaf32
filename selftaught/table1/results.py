"""What the run folders named by plan.csv give, from their scores alone."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from selftaught.errors import InputError
from selftaught.evaluation.bootstrap import auroc_resamples, percentile_interval
from selftaught.evaluation.metrics import ABLATIONS, SPLITS, evaluate, labelled_images, set_names
from selftaught.evaluation.plots_training import epochs_of
from selftaught.evaluation.run_files import read_log, read_mapping, read_table
from selftaught.files import read_yaml, sha256
from selftaught.methods import System
from selftaught.table1 import own_rows
from selftaught.table1.plan import (
    DONE,
    KINDS,
    PLAN,
    RUNNING,
    WAITING,
    Cell,
    other_settings,
    read_plan,
    settings_of,
    settings_path,
)
from selftaught.training.config import build

RESAMPLES, BOOTSTRAP_SEED = 2000, 0
NEEDED = ("scores.csv", "metrics.json", "config.yaml", "split.csv")
NOT_DONE = {WAITING: "not run yet", RUNNING: "still running"}
PLATEAU = 0.95
# Facts that the cells of a column share, and the settings by which a system may differ.
ALIKE = {
    "preset": ("preset", "the preset"),
    "evaluation_views": ("data.evaluation_views", "data.evaluation_views"),
    "image_size": ("data.image_size", "data.image_size"),
    "split_sha256": ("split", "the SHA-256 of split.csv"),
    "images_sha256": ("", "the list of scored validation and test images"),
}
BY_SPLIT_SEED = ("split_sha256", "images_sha256")


@dataclass(frozen=True, kw_only=True)
class Result(Cell):
    """A cell of the plan and what its run gave; `problem` also says why it gave nothing.

    Attributes:
        figures: columns of cells.csv; empty where there is a problem.
        resamples: AUROCs (2,000,) of patient-clustered resamples by set, in percent, where there
            are enough patients; the same resamples for all cells of a column with one split.
        curve: validation AUROC in percent by epoch, counted from 1, of the stage that scores.
        config, environment: of the run.
    """

    figures: dict[str, Any] = field(default_factory=dict)
    resamples: dict[str, np.ndarray] = field(default_factory=dict)
    curve: dict[int, float] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Whether the cell has figures."""
        return bool(self.figures)

    @property
    def column(self) -> tuple[float, float]:
        """Cells are compared where they share these: known abnormal share, pollution."""
        return self.known_abnormal, self.pollution

    @property
    def replicate(self) -> tuple[int, int]:
        """Seed and draw; with folds, several cells are one replicate."""
        return self.seed, self.split_seed


def read_results(out: Path) -> list[Result]:
    """All cells of a plan, with figures where the run is done.

    Args:
        out: folder of the table.

    Raises:
        InputError: no plan.csv, one that is not as it should be, or cells of a column that cannot
            be compared; the message names both.
    """
    planned = read_plan(out)
    if not planned:
        raise InputError(f"{out}: holds no {PLAN} with cells; `selftaught table1` writes it")
    # Rows that differ in their score alone share a run; the same run and score is read once.
    read: dict[tuple[str, str], dict[str, Any]] = {}
    cells = []
    for cell in planned:
        key = cell.run, cell.score
        if key not in read:
            try:
                read[key] = _read_run(out, cell) | {"problem": ""}
            except InputError as error:
                read[key] = {"problem": str(error)}
        cells.append(Result(**vars(cell) | read[key]))
    _check_alike([cell for cell in cells if cell.done], own_rows.systems(out))
    return cells


def _read_run(out: Path, cell: Cell) -> dict[str, Any]:
    """What `Result` has beside a cell, from its run folder.

    Raises:
        InputError: the run is not done, or its files give no figure.
    """
    run = out / cell.run
    if missing := [name for name in NEEDED if not (run / name).is_file()]:
        lacks = NOT_DONE.get(cell.state, f"{cell.run} holds no {missing[0]}")
        raise InputError(cell.problem or lacks)
    problems: list[str] = []
    config = read_mapping(run / "config.yaml", problems)
    metrics = read_mapping(run / "metrics.json", problems)
    if problems:
        raise InputError(f"{cell.run}: {problems[0]}")
    # Runs from before metrics.json named its scores are as good.
    if metrics.get("scores_sha256") not in (None, sha256(run / "scores.csv")):
        raise InputError(
            f"{cell.run}: metrics.json is of other scores than scores.csv holds; run the cell again"
        )
    if settings_path(out, cell).is_file():
        ran = build({"out": cell.run, **read_yaml(run / "config.yaml")})
        if other := other_settings(settings_of(out, cell), ran):
            raise InputError(f"{cell.run}: is of another run: planned with {other[0]}")
    data = config.get("data") or {}
    scored, resamples, images = _score_figures(run / "scores.csv", cell)
    logs = [
        epochs_of(list(read_log(out / name / "metrics.jsonl")))
        for name in (cell.run, cell.donor)
        if name
    ]
    trained, curve = _training_figures(cell, config, logs)
    facts = {
        "preset": config.get("preset"),
        "image_size": data.get("image_size"),
        "evaluation_views": data.get("evaluation_views"),
        "split_sha256": sha256(run / "split.csv"),
        "images_sha256": images,
    }
    return {
        "figures": facts | scored | trained,
        "resamples": resamples,
        "curve": curve,
        "config": config,
        "environment": read_mapping(run / "environment.json", []),
    }


def _score_figures(path: Path, cell: Cell) -> tuple[dict[str, Any], dict[str, np.ndarray], str]:
    """Percentages of a set of scores, their resamples, and the digest of the scored images."""
    scores = read_table(path)
    if cell.score not in scores:
        raise InputError(f"{cell.run}: scores.csv has no column {cell.score}, this row's score")
    unused = [name for name in ABLATIONS if name in scores and name != cell.score]
    scores = scores.assign(score=scores[cell.score]).drop(columns=unused)
    scores = scores[set_names(scores["split"]).isin(SPLITS)]
    table = labelled_images(scores)
    # Intervals come from the resamples below; one draw here is as good as none.
    metrics = evaluate(scores, seed=BOOTSTRAP_SEED, resamples=1)
    if metrics[cell.measured]["auroc"] is None:
        why = metrics[cell.measured]["reasons"]["auroc"]
        raise InputError(f"{cell.run}: no {cell.measured} AUROC: {why}")
    figures: dict[str, Any] = {}
    resampled: dict[str, np.ndarray] = {}
    for split in SPLITS:
        rows = table[table["split"] == split]
        resamples = auroc_resamples(
            *(rows[name].to_numpy() for name in ("label", "score", "group")),
            seed=BOOTSTRAP_SEED,
            resamples=RESAMPLES,
        )
        low = high = None
        if resamples is not None:
            resampled[split] = 100 * resamples
            low, high = percentile_interval(100 * resamples)
        block = metrics[split]
        parts = block["body_parts"].items()
        shares = {
            "auroc": block["auroc"],
            "abnormal_share": block["abnormal"] / block["n"] if block["n"] else None,
            "aupr_abnormal": block["aupr_abnormal"],
            "aupr_normal": block["aupr_normal"],
            **{
                f"sensitivity_at_{level}": (block["sensitivity_at_specificity"] or {}).get(key)
                for level, key in ((90, "0.90"), (95, "0.95"))
            },
            **{f"auroc_{part}": figure["auroc"] for part, figure in parts},
        }
        figures |= {f"{split}_n": block["n"]}
        figures |= {f"{split}_auroc_low": low, f"{split}_auroc_high": high}
        for name, share in shares.items():
            figures[f"{split}_{name}"] = None if share is None else 100 * share
    listed = table[["split", "path", "label", "group"]].astype(str).sort_values(["split", "path"])
    return figures, resampled, hashlib.sha256(listed.to_csv(index=False).encode()).hexdigest()


def _training_figures(
    cell: Cell, config: Mapping[str, Any], logs: Sequence[Mapping]
) -> tuple[dict[str, Any], dict[int, float]]:
    """Cost of each stage as if nothing were shared, and the rise of the validation AUROC.

    Args:
        cell: of the plan.
        config: of its run.
        logs: epochs by stage of its run, and of the one that its first stage is from.
    """
    # Neighbours of the first stage's features need no second stage.
    of_pretext = cell.score.startswith("pretext_")
    figures: dict[str, Any] = {}
    for stage in ("pretext",) if of_pretext else ("pretext", "finetune"):
        # A stage taken from another run is logged there, and perhaps here.
        epochs = max(
            (log.get(stage, {}) for log in logs[: 2 if stage == "pretext" else 1]), key=len
        )
        batch = (config.get(stage) or {}).get("batch_size")
        figures |= {f"{stage}_{name}": value for name, value in _cost(epochs, batch).items()}
    validated = f"{(config.get('score') or {}).get('by', 'model')}_score"
    curve = {
        epoch + 1: 100 * entry["val_auroc"]
        for epoch, entry in logs[0].get("finetune", {}).items()
        if cell.score in ("score", validated) and isinstance(entry.get("val_auroc"), float)
    }
    figures["val_auroc_after_epoch_1"] = curve.get(1)
    figures["epochs_to_plateau"] = None
    if curve:
        values = list(curve.values())
        plateau = PLATEAU * np.mean(values[-max(1, len(values) // 10) :])
        figures["epochs_to_plateau"] = next(e for e, v in curve.items() if v >= plateau)
    seconds = [value for name, value in figures.items() if name.endswith("_seconds")]
    steps = [value for name, value in figures.items() if name.endswith("_steps")]
    figures["hours"] = None if None in seconds else sum(seconds) / 3600
    figures["steps"] = sum(steps)
    return figures, curve


def _cost(epochs: Mapping[int, Mapping[str, Any]], batch: Any) -> dict[str, Any]:
    """Epochs, optimizer steps, seconds and peak memory of a stage; 0 where it trained nothing."""
    entries = list(epochs.values())
    steps = [int(entry["step"]) for entry in entries]
    speeds = [entry.get("images_per_s") for entry in entries]
    seconds: float | None = None
    if all(isinstance(speed, float) and speed > 0 for speed in speeds) and batch:
        each = zip(np.diff([0, *steps]), speeds, strict=True)
        seconds = float(sum(done * batch / speed for done, speed in each))
    peaks = [peak for entry in entries if (peak := entry.get("peak_memory_gib")) is not None]
    return {
        "epochs": len(entries),
        "steps": steps[-1] if steps else 0,
        "seconds": seconds,
        "peak_gib": max(peaks, default=None),
    }


def _check_alike(cells: Iterable[Result], systems: Mapping[str, System]) -> None:
    """Refuse a column whose cells differ in more than method and seed."""
    first: dict[tuple, Result] = {}
    for cell in cells:
        changes = systems[cell.row].changes if cell.row in systems else {}
        for fact, (setting, words) in ALIKE.items():
            if setting and any(f"{name}.".startswith(f"{setting}.") for name in changes):
                continue  # the system's own, such as the image size of a GAN
            seed = (cell.split_seed, cell.fold) if fact in BY_SPLIT_SEED else ()
            other = first.setdefault((fact, cell.column, *seed), cell)
            mine, its = cell.figures[fact], other.figures[fact]
            if mine != its:
                raise InputError(
                    f"{cell.run}: {words} is {mine}, but {its} in {other.run} of the same column; "
                    "allowed: alike in all runs of a column; run one of them again, or collect "
                    "them in tables of their own"
                )


def cell_lines(cells: Iterable[Result]) -> pd.DataFrame:
    """cells.csv: a line for every cell of the plan, with figures as far as there are."""
    return pd.DataFrame(
        {name: getattr(cell, name) for name in KINDS}
        | {"state": DONE if cell.done else cell.state}
        | cell.figures
        for cell in cells
    )
