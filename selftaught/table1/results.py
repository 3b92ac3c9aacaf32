"""What the run folders named by plan.csv give, from their scores alone."""

import csv
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from selftaught import methods
from selftaught.errors import InputError
from selftaught.evaluation.bootstrap import auroc_resamples, percentile_interval
from selftaught.evaluation.metrics import ABLATIONS, SPLITS, evaluate, scored_images, set_names
from selftaught.evaluation.plots_training import epochs_of
from selftaught.evaluation.run_files import read_log, read_mapping, read_table
from selftaught.files import sha256

PLAN = "plan.csv"
TEXT = ("row", "title", "run", "score", "state", "digest", "donor", "problem")
NUMBERS = {
    "known_abnormal": float,
    "pollution": float,
    "seed": int,
    "split_seed": int,
    "extra": int,
}
RESAMPLES, BOOTSTRAP_SEED = 2000, 0
NEEDED = ("scores.csv", "metrics.json", "config.yaml", "split.csv")
NOT_DONE = {"waiting": "not run yet", "running": "still running"}
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


@dataclass(kw_only=True)
class Result:
    """A cell of the plan: a row's run with one seed, and what it gave.

    Attributes:
        row, title, run, score, state, digest, donor, problem: as in plan.csv; `problem` also says
            why a run that should be there gives no figure.
        known_abnormal, pollution: shares.
        seed, split_seed: of training, and of the label draw.
        extra: whether the row is not in the paper's table.
        figures: columns of cells.csv; empty where there is a problem.
        resamples: AUROCs (2,000,) of patient-clustered resamples by set, in percent, where there
            are enough patients; the same resamples for all cells of a column with one split.
        curve: validation AUROC in percent by epoch, counted from 1, of the stage that scores.
        config, environment: of the run.
    """

    row: str
    title: str
    run: str
    score: str
    state: str
    digest: str
    donor: str
    problem: str
    known_abnormal: float
    pollution: float
    seed: int
    split_seed: int
    extra: bool
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


def read_results(out: Path) -> list[Result]:
    """All cells of a plan, with figures where the run is done.

    Args:
        out: folder of the table.

    Raises:
        InputError: no plan.csv, one that is not as it should be, or cells of a column that cannot
            be compared; the message names both.
    """
    cells = list(_planned(out))
    known: dict[tuple[str, str], Result] = {}
    for cell in cells:
        twin = known.setdefault((cell.run, cell.score), cell)
        if twin is not cell:
            cell.figures, cell.resamples, cell.curve = twin.figures, twin.resamples, twin.curve
            cell.config, cell.environment = twin.config, twin.environment
            cell.problem = cell.problem or twin.problem
            continue
        try:
            _read_run(out, cell)
        except InputError as error:
            cell.figures, cell.problem = {}, str(error)
    _check_alike([cell for cell in cells if cell.done])
    return cells


def _planned(out: Path) -> Iterator[Result]:
    path = out / PLAN
    if not path.is_file():
        raise InputError(f"{out}: holds no {PLAN}; `selftaught table1` writes it")
    with path.open(encoding="utf-8", newline="") as lines:
        entries = csv.DictReader(lines)
        for name in (*TEXT, *NUMBERS):
            if name not in (entries.fieldnames or ()):
                raise InputError(f"{path}: column {name} is missing")
        table = list(entries)
    for line, entry in enumerate(table, start=2):
        values = {name: entry[name] or "" for name in TEXT}
        try:
            numbers = {name: kind(entry[name]) for name, kind in NUMBERS.items()}
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}: line {line}: {error}") from error
        yield Result(**values, **numbers | {"extra": bool(numbers["extra"])})


def _read_run(out: Path, cell: Result) -> None:
    """Fill a cell from its run folder.

    Raises:
        InputError: the run is not done, or its files give no figure.
    """
    run = out / cell.run
    if missing := [name for name in NEEDED if not (run / name).is_file()]:
        why = cell.problem or NOT_DONE.get(cell.state, f"{cell.run} holds no {missing[0]}")
        raise InputError(why)
    cell.problem = ""
    problems: list[str] = []
    cell.config = read_mapping(run / "config.yaml", problems)
    cell.environment = read_mapping(run / "environment.json", problems)
    if problems and not cell.config:
        raise InputError(f"{cell.run}: {problems[0]}")
    metrics = read_mapping(run / "metrics.json", problems)
    # Runs from before metrics.json named its scores are as good.
    if metrics.get("scores_sha256") not in (None, sha256(run / "scores.csv")):
        raise InputError(
            f"{cell.run}: metrics.json is of other scores than scores.csv holds; run the cell again"
        )
    figures, images = _score_figures(run / "scores.csv", cell)
    data = cell.config.get("data") or {}
    log, donor = epochs_of(list(read_log(run / "metrics.jsonl"))), {}
    if cell.donor:
        donor = epochs_of(list(read_log(out / cell.donor / "metrics.jsonl")))
    cell.figures = {
        "preset": cell.config.get("preset"),
        "image_size": data.get("image_size"),
        "evaluation_views": data.get("evaluation_views"),
        "split_sha256": sha256(run / "split.csv"),
        "images_sha256": images,
        **figures,
        **_training_figures(cell, log, donor),
    }


def _score_figures(path: Path, cell: Result) -> tuple[dict[str, Any], str]:
    """Figures of a set of scores, percentages; and the digest of the images that have them."""
    scores = read_table(path)
    if cell.score not in scores:
        raise InputError(f"{cell.run}: scores.csv has no column {cell.score}, this row's score")
    unused = [name for name in ABLATIONS if name in scores and name != cell.score]
    scores = scores.assign(score=scores[cell.score]).drop(columns=unused)
    scores = scores[set_names(scores["split"]).isin(SPLITS)]
    table = scored_images(scores)
    table = table[table["label"].notna()]
    # An image without a group is one of its own, by a name that all runs give it.
    alone = table["group"].str.startswith("\x1f")
    table["group"] = table["group"].where(~alone, "\x1f" + table["path"])
    # Intervals come from the resamples below; one draw here is as good as none.
    metrics = evaluate(scores, seed=BOOTSTRAP_SEED, resamples=1)
    if metrics["test"]["auroc"] is None:
        raise InputError(f"{cell.run}: no test AUROC: {metrics['test']['reasons']['auroc']}")
    figures: dict[str, Any] = {}
    for split in SPLITS:
        rows = table[table["split"] == split]
        resamples = auroc_resamples(
            *(rows[name].to_numpy() for name in ("label", "score", "group")),
            seed=BOOTSTRAP_SEED,
            resamples=RESAMPLES,
        )
        low = high = None
        if resamples is not None:
            cell.resamples[split] = 100 * resamples
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
    return figures, hashlib.sha256(listed.to_csv(index=False).encode()).hexdigest()


def _training_figures(cell: Result, log: Mapping, donor: Mapping) -> dict[str, Any]:
    """Cost of each stage as if nothing were shared, and how fast the validation AUROC rises."""
    # Neighbours of the first stage's features need no second stage.
    of_pretext = cell.score.startswith("pretext_")
    figures: dict[str, Any] = {}
    for stage in ("pretext",) if of_pretext else ("pretext", "finetune"):
        # A stage taken from another run is logged there, and perhaps here.
        logs = (log, donor) if stage == "pretext" else (log,)
        epochs = max((one.get(stage, {}) for one in logs), key=len)
        batch = (cell.config.get(stage) or {}).get("batch_size")
        figures |= {f"{stage}_{name}": value for name, value in _cost(epochs, batch).items()}
    curve = {} if of_pretext or cell.score != "score" else log.get("finetune", {})
    cell.curve = {
        epoch + 1: 100 * entry["val_auroc"]
        for epoch, entry in curve.items()
        if isinstance(entry.get("val_auroc"), float)
    }
    figures["val_auroc_after_epoch_1"] = cell.curve.get(1)
    figures["epochs_to_plateau"] = None
    if cell.curve:
        values = list(cell.curve.values())
        plateau = PLATEAU * np.mean(values[-max(1, len(values) // 10) :])
        figures["epochs_to_plateau"] = next(e for e, v in cell.curve.items() if v >= plateau)
    seconds = [value for name, value in figures.items() if name.endswith("_seconds")]
    steps = [value for name, value in figures.items() if name.endswith("_steps")]
    figures["hours"] = None if None in seconds else sum(seconds) / 3600
    figures["steps"] = sum(steps)
    return figures


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


def _check_alike(cells: Iterable[Result]) -> None:
    """Refuse a column whose cells differ in more than method and seed."""
    first: dict[tuple, Result] = {}
    systems = methods.systems()
    for cell in cells:
        changes = systems[cell.row].changes if cell.row in systems else {}
        for fact, (setting, words) in ALIKE.items():
            if setting and any(f"{name}.".startswith(f"{setting}.") for name in changes):
                continue  # the system's own, such as the image size of a GAN
            seed = (cell.split_seed,) if fact in BY_SPLIT_SEED else ()
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
    lines = []
    for cell in cells:
        head = {name: getattr(cell, name) for name in (*TEXT, *NUMBERS) if name != "problem"}
        head |= {"state": "done" if cell.done else cell.state, "extra": int(cell.extra)}
        lines.append(head | {"problem": cell.problem, **cell.figures})
    return pd.DataFrame(lines)
