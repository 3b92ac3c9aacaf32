"""From a table of scores to the content of `metrics.json`."""

import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from selftaught.arguments import whole
from selftaught.data.manifest.check import SETS
from selftaught.data.manifest.spelling import NAMES, identity, one_spelling
from selftaught.errors import InputError
from selftaught.evaluation.bootstrap import auroc_interval

SPLITS = ("val", "test")
LEVELS = (0.80, 0.90, 0.95)
ABLATIONS = ("model_score", "ratio_score", "normality_score", "knn_score", "pretext_knn_score")
TRUE, FALSE = ("true", "1", "1.0"), ("false", "0", "0.0")
# A study name such as "study1" repeats from patient to patient (MURA), so these complete it.
STUDY_KEYS = ("patient", "group", "body_part")


def evaluate(scores: pd.DataFrame, *, seed: int, resamples: int = 1000) -> dict[str, Any]:
    """Figures of a scored set, per split.

    Args:
        scores: one row an image: `path`, `split`, `label` (0 normal, 1 abnormal, blank unknown:
            left out), `score` (higher = more abnormal); optional `flagged` (above the stored
            threshold), `group` (resampled as a whole; without it every image is its own group),
            `body_part`, `study` (completed by `patient`, `group`, `body_part`), each in one
            spelling (`data.manifest.spelling`); other scores (`ABLATIONS`); `problem`: why an
            image could not be read and has no score, which leaves it out and counts it.
        seed: seed of the bootstrap.
        resamples: bootstrap draws behind every interval.

    Returns:
        JSON-ready `{"val": {...}, "test": {...}, "seed": ..., "resamples": ...}`. Rates lie in
        [0, 1]. A figure that cannot be computed is None, and `reasons` of the same block says why.

    Raises:
        InputError: a column is missing, a score is not finite, a label or flag is neither 0 nor 1;
            the message names the image.
        ValueError: seed or resamples is no whole number.
    """
    seed, resamples = whole("seed", seed, -math.inf), whole("resamples", resamples)
    table = scored_images(scores)
    result: dict[str, Any] = {
        split: _split_metrics(table[table["split"] == split], split, seed, resamples)
        for split in SPLITS
    }
    if len(table) < len(scores):
        sets = set_names(scores["split"])
        for split in SPLITS:
            unread = (sets == split).sum() - (table["split"] == split).sum()
            result[split]["unread"] = int(unread)
    return result | {"seed": seed, "resamples": resamples}


def auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve: how often an abnormal image scores above a normal one.

    Args:
        labels: (N,) 0 normal, 1 abnormal; both have to occur.
        scores: (N,) finite, higher = more abnormal; ties count half.

    Returns:
        In [0, 1].

    Raises:
        ValueError: only one label, or a score that is not finite.
    """
    from sklearn.metrics import roc_auc_score

    why = _why_not(np.asarray(labels))
    if why:
        raise ValueError(f"labels: {why}")
    return float(roc_auc_score(labels, scores))


def _numbers(table: pd.DataFrame, column: str) -> pd.Series:
    """`column` as float64; what is not a number becomes NaN."""
    values = pd.to_numeric(table[column], errors="coerce")
    return values.astype("Float64").astype("float64")


def _finite(table: pd.DataFrame, column: str) -> pd.Series:
    """`column` as finite float64.

    Raises:
        InputError: a value is not a finite number; the message names the image.
    """
    values = _numbers(table, column)
    bad = np.flatnonzero(~np.isfinite(values.to_numpy()))
    if len(bad):
        row = table.iloc[bad[0]]
        raise InputError(
            f"{row['path']}: {column} is {row[column]} ({len(bad)} of {len(table)} images), "
            "allowed: a finite number"
        )
    return values


def _binary(table: pd.DataFrame, column: str) -> pd.Series:
    """`column` as float64 0, 1 or NaN for blank.

    Raises:
        InputError: another value; the message names the image.
    """
    text = table[column].astype("string").str.strip().str.lower()
    blank = table[column].isna() | text.isin(("", "nan", "<na>", "none"))
    values = pd.Series(np.nan, index=table.index)
    values[text.isin(TRUE).fillna(False)] = 1.0
    values[text.isin(FALSE).fillna(False)] = 0.0
    bad = np.flatnonzero((values.isna() & ~blank).to_numpy())
    if len(bad):
        row = table.iloc[bad[0]]
        raise InputError(f"{row['path']}: {column} is {str(row[column])!r}, allowed: 0, 1 or blank")
    return values


def _text(table: pd.DataFrame, column: str) -> pd.Series:
    """`column` as str, "" where absent or blank."""
    if column not in table:
        return pd.Series("", index=table.index, dtype=object)
    return table[column].astype(object).where(table[column].notna(), "").map(str)


def set_names(cells: pd.Series) -> pd.Series:
    """Sets by their own names, "Test " as test; other names as they are, "" where blank."""
    names = cells.astype(object).where(cells.notna(), "").map(str)
    return names.map(lambda name: one if (one := identity(name)) in ("", *SETS) else name)


def check_columns(scores: pd.DataFrame, columns: Sequence[str], where: object) -> None:
    """Raise `InputError`, beginning with `where`, for the first of the columns that is missing."""
    for column in columns:
        if column not in scores:
            raise InputError(f"{where}: column {column} is missing, found: {list(scores.columns)}")


def scored_images(scores: pd.DataFrame) -> pd.DataFrame:
    """The images that could be read, in the columns that the figures need, with one type each.

    Args:
        scores: as for `evaluate`.

    Returns:
        `path`, `split`, `body_part`, `group` (str; one of its own where blank), `score`, `label`
        and `flagged` (float64, NaN where blank), and what there is of the optional columns.

    Raises:
        InputError: as `evaluate`.
    """
    check_columns(scores, ("path", "split", "label", "score"), "scores")
    unread = (_text(scores, "problem") != "") & (_text(scores, "score") == "")
    scores = scores.assign(split=set_names(scores["split"]))[~unread].reset_index(drop=True)
    named = {name: one_spelling(_text(scores, name).tolist(), name, "scores") for name in NAMES}
    scores = scores.assign(**{name: cells for name, cells in named.items() if name in scores})
    table = pd.DataFrame({name: _text(scores, name) for name in ("path", "split", "body_part")})
    table["score"] = _finite(scores, "score")
    table["label"] = _binary(scores, "label")
    flagged = "flagged" in scores
    table["flagged"] = _binary(scores, "flagged") if flagged else np.nan
    for column in ABLATIONS:
        if column in scores and _numbers(scores, column).notna().any():
            table[column] = _finite(scores, column)
    group = _text(scores, "group")
    # The row number, so that a blank group is a group of one image.
    table["group"] = [name or f"\x1f{row}" for row, name in enumerate(group)]
    if "study" in scores:
        table["study"] = _study(scores)
    return table


def labelled_images(scores: pd.DataFrame) -> pd.DataFrame:
    """`scored_images` with a label; one without a group is one of its own, named alike in all runs.

    Args:
        scores: as for `evaluate`.
    """
    table = scored_images(scores)
    table = table[table["label"].notna()]
    alone = table["group"].str.startswith("\x1f")
    return table.assign(group=table["group"].where(~alone, "\x1f" + table["path"]))


def _study(scores: pd.DataFrame) -> pd.Series:
    """One name a study over the whole table; "" where the image has none."""
    study = _text(scores, "study")
    name = study.copy()
    for column in STUDY_KEYS:
        name = name + "\0" + _text(scores, column)
    return name.where(study != "", "")


def _why_not(labels: np.ndarray) -> str | None:
    """Why no AUROC exists for these labels; None when one does."""
    if not len(labels):
        return "no labelled image"
    if not (labels == 1).any():
        return "no abnormal image: both labels are needed"
    if not (labels == 0).any():
        return "no normal image: both labels are needed"
    return None


def _generator_key(seed: int, *names: str) -> list[int]:
    """Seed of one interval, so that it does not depend on which others are computed."""
    return [seed % 2**32, zlib.crc32("\0".join(names).encode())]


def _auroc_block(rows: pd.DataFrame, column: str, seed: list[int], resamples: int) -> dict:
    """Counts, AUROC and interval of one column of scores."""
    labels, values = rows["label"].to_numpy(), rows[column].to_numpy()
    block: dict[str, Any] = {"n": len(rows), "abnormal": int((labels == 1).sum())}
    reasons: dict[str, str] = {}
    why = _why_not(labels)
    block["auroc"] = None if why else auroc(labels, values)
    groups = rows["group"].to_numpy()
    interval = (
        None if why else auroc_interval(labels, values, groups, seed=seed, resamples=resamples)
    )
    block["auroc_ci"] = list(interval) if interval else None
    if why:
        reasons = {"auroc": why, "auroc_ci": why}
    elif interval is None:
        reasons = {"auroc_ci": "fewer than two groups with each label"}
    return block | {"reasons": reasons}


def _operating_points(labels: np.ndarray, scores: np.ndarray) -> dict[str, dict[str, float]]:
    """Best sensitivity at given specificities, and the reverse.

    An image counts as called abnormal when its score reaches the threshold; only thresholds that
    some image has are considered, without interpolation.
    """
    cuts = np.unique(scores)
    normal, abnormal = np.sort(scores[labels == 0]), np.sort(scores[labels == 1])
    # Counts at every threshold, and at one above all scores (nothing called abnormal).
    true = np.append(len(abnormal) - np.searchsorted(abnormal, cuts), 0)
    false = np.append(len(normal) - np.searchsorted(normal, cuts), 0)
    sensitivity: dict[str, float] = {}
    specificity: dict[str, float] = {}
    for level in LEVELS:
        # In counts, because 1 - 0.9 < 0.1 in floats would lose the point exactly at the level.
        allowed = false <= (1 - level) * len(normal) + 1e-9
        reached = true >= level * len(abnormal) - 1e-9
        sensitivity[f"{level:.2f}"] = float(true[allowed].max() / len(abnormal))
        specificity[f"{level:.2f}"] = float(1 - false[reached].min() / len(normal))
    return {
        "sensitivity_at_specificity": sensitivity,
        "specificity_at_sensitivity": specificity,
    }


def _threshold_block(rows: pd.DataFrame) -> dict[str, Any]:
    """Sensitivity, specificity and their mean at the stored threshold (column `flagged`)."""
    labels, flags = rows["label"].to_numpy(), rows["flagged"].to_numpy()
    names = ("threshold_sensitivity", "threshold_specificity", "balanced_accuracy")
    why = _why_not(labels) or ("no stored threshold" if np.isnan(flags).any() else None)
    if why:
        return dict.fromkeys(names) | {"reasons": dict.fromkeys(names, why)}
    sensitivity = float(flags[labels == 1].mean())
    specificity = float(1 - flags[labels == 0].mean())
    values = (sensitivity, specificity, (sensitivity + specificity) / 2)
    return dict(zip(names, values, strict=True)) | {"reasons": {}}


def _study_blocks(rows: pd.DataFrame) -> dict[str, Any]:
    """AUROC over studies, whose score is the largest or the mean score of their images.

    A study is abnormal when one of its images is; images without a study are left out.
    """
    studies = (
        rows[rows["study"] != ""]
        .groupby("study")
        .agg(label=("label", "max"), max=("score", "max"), mean=("score", "mean"))
    )
    labels = studies["label"].to_numpy()
    why = _why_not(labels)
    return {
        "n": len(studies),
        "abnormal": int((labels == 1).sum()),
        "auroc_max": None if why else auroc(labels, studies["max"].to_numpy()),
        "auroc_mean": None if why else auroc(labels, studies["mean"].to_numpy()),
        "reasons": dict.fromkeys(("auroc_max", "auroc_mean"), why) if why else {},
    }


def _split_metrics(rows: pd.DataFrame, split: str, seed: int, resamples: int) -> dict[str, Any]:
    """All figures of one split."""
    from sklearn.metrics import average_precision_score

    labelled = rows[rows["label"].notna()]
    labels, scores = labelled["label"].to_numpy(), labelled["score"].to_numpy()
    result = _auroc_block(labelled, "score", _generator_key(seed, split, "all"), resamples)
    reasons: dict[str, str] = result.pop("reasons")
    result |= {"unlabelled": len(rows) - len(labelled), "groups": labelled["group"].nunique()}
    names = (
        "aupr_abnormal",
        "aupr_normal",
        "sensitivity_at_specificity",
        "specificity_at_sensitivity",
    )
    why = _why_not(labels)
    if why:
        result |= dict.fromkeys(names)
        reasons |= dict.fromkeys(names, why)
    else:
        result["aupr_abnormal"] = float(average_precision_score(labels, scores))
        result["aupr_normal"] = float(average_precision_score(1 - labels, -scores))
        result |= _operating_points(labels, scores)
    threshold = _threshold_block(labelled)
    reasons |= threshold.pop("reasons")
    result |= threshold
    result["body_parts"] = {
        part: _auroc_block(
            group, "score", _generator_key(seed, split, "part", str(part)), resamples
        )
        for part, group in labelled[labelled["body_part"] != ""].groupby("body_part")
    }
    if "study" in labelled and (labelled["study"] != "").any():
        result["studies"] = _study_blocks(labelled)
    for column in ABLATIONS:
        if column in labelled:
            key = _generator_key(seed, split, "all")
            result[column] = _auroc_block(labelled, column, key, resamples)
    return result | {"reasons": reasons}
