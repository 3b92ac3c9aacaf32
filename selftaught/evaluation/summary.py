"""The words of a report: verdict, headline, warnings, tables."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from selftaught.data.images import bad_files
from selftaught.data.split import leakage
from selftaught.evaluation.run_files import RunFiles
from selftaught.semi_labels import KNOWN_ABNORMAL, KNOWN_NORMAL

SPLITS = ("val", "test")
FIGURES = (
    ("auroc", "AUROC", ""),
    ("auroc_ci", "95 % interval of the AUROC", "groups resampled"),
    ("aupr_abnormal", "Average precision, abnormal class", "chance = share of abnormal images"),
    ("aupr_normal", "Average precision, normal class", "chance = share of normal images"),
    ("balanced_accuracy", "Balanced accuracy at the stored threshold", "chance 0.5"),
    ("threshold_sensitivity", "Sensitivity at the stored threshold", "abnormal images flagged"),
    ("threshold_specificity", "Specificity at the stored threshold", "normal images not flagged"),
)
LEVELS = (
    ("sensitivity_at_specificity", "Sensitivity at specificity"),
    ("specificity_at_sensitivity", "Specificity at sensitivity"),
)
FEW_GROUPS = 10


def percent(share: float) -> str:
    """A share as whole percent, kept on one line."""
    return f"{100 * share:.0f}\N{NO-BREAK SPACE}%"


def number(value: Any, digits: int = 3) -> str:
    """A figure for people: a dash for none, an interval for a pair."""
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, list | tuple):
        return " to ".join(number(part, digits) for part in value)
    return f"{value:.{digits}f}"


def verdict(block: dict[str, Any]) -> tuple[str, str]:
    """Kind (good, doubtful, bad, none) and sentence that place a test AUROC against guessing.

    Args:
        block: the `test` part of `metrics.json`.
    """
    auroc, interval = block.get("auroc"), block.get("auroc_ci")
    if auroc is None:
        reason = (block.get("reasons") or {}).get("auroc", "it was not computed")
        return "none", f"No test AUROC: {reason}."
    if interval is None:
        return "doubtful", "Without an interval nobody can tell this figure from guessing (0.5)."
    low, high = interval
    if low > 0.5:
        return "good", "The whole interval lies above guessing (0.5)."
    if high < 0.5:
        return "bad", (
            "Below guessing (0.5): abnormal images look more normal to the model than normal ones. "
            "Do not turn the sign; look for the cause."
        )
    return "doubtful", "Not told apart from guessing (0.5): the interval holds it."


def in_words(block: dict[str, Any]) -> list[str]:
    """Sentences that say what the test figures mean.

    Args:
        block: the `test` part of `metrics.json`.
    """
    sentences = []
    auroc, interval = block.get("auroc"), block.get("auroc_ci")
    if auroc is not None:
        between = ""
        if interval:
            low, high = (round(100 * end) for end in interval)
            between = f" ({percent(0.95)} interval: {low} to {high} times)"
        sentences.append(
            "Take one abnormal and one normal test image at random: the model gives the abnormal "
            f"one the higher score {round(100 * auroc)} times in 100{between}. "
            "Guessing gives 50."
        )
    hits, passes = block.get("threshold_sensitivity"), block.get("threshold_specificity")
    if hits is not None and passes is not None:
        sentences.append(
            f"At the stored threshold {percent(hits)} of the abnormal test images are "
            f"flagged, and {percent(1 - passes)} of the normal ones."
        )
    level = (block.get("sensitivity_at_specificity") or {}).get("0.90")
    if level is not None:
        sentences.append(
            f"If one normal image in ten may be flagged, {percent(level)} of the abnormal "
            "ones can be found."
        )
    return sentences


def warnings(run: RunFiles) -> list[str]:
    """What a reader must know before trusting the figures: guards of the training and of the data.

    Args:
        run: the run folder.
    """
    counts = Counter(
        (str(entry.get("stage", "")), str(entry.get("message", "")))
        for entry in run.log
        if entry.get("kind") == "warning"
    )
    messages = [
        (f"{stage}: " if stage else "") + message + (f" (said {n} times)" if n > 1 else "")
        for (stage, message), n in counts.items()
    ]
    return messages + of_data(run)


def of_data(run: RunFiles) -> list[str]:
    """What of the sets themselves weakens the figures: skipped images, leaks, few patients.

    Args:
        run: the run folder.
    """
    return _skipped(run) + _leaks(run) + _small_sets(run)


def _skipped(run: RunFiles) -> list[str]:
    """Images that could not be read, by set and label."""
    if run.bad_files is None or not len(run.bad_files):
        return []
    table = run.split if run.split is not None else run.scores
    text = bad_files.in_words(run.bad_files, int((table["split"] != "unused").sum()))
    return [
        f"{text}. Others took their place in training; none has a score. bad_files.csv names them."
    ]


def _leaks(run: RunFiles) -> list[str]:
    """Groups, patients and near-duplicate images that are in several sets."""
    return _shared_groups(run) + _crossing(run)


def _crossing(run: RunFiles) -> list[str]:
    """What the search for leaks found."""
    try:
        return [f"{text}." for text in leakage.in_words(run.leakage)]
    except (KeyError, TypeError):
        return []  # not looked for, or a file from elsewhere


def _shared_groups(run: RunFiles) -> list[str]:
    """Groups that are in several sets."""
    table = run.split if run.split is not None else run.scores
    if "group" not in table:
        return []
    used = table[table["split"].isin(("train", "val", "test")) & (table["group"] != "")]
    sets = used.groupby("group")["split"].nunique()
    shared = int((sets > 1).sum())
    if not shared:
        return []
    return [
        f"{shared} of {len(sets)} groups (patients) are in more than one set: the figures are too "
        "good to be true."
    ]


def _small_sets(run: RunFiles) -> list[str]:
    """Test sets too small for the interval."""
    test = run.scores[(run.scores["split"] == "test") & run.scores["label"].notna()]
    sentences = []
    for value, name in ((0, "normal"), (1, "abnormal")):
        rows = test[test["label"] == value]
        groups = rows["group"].nunique() if "group" in rows else len(rows)
        if 0 < groups < FEW_GROUPS:
            sentences.append(
                f"Only {groups} groups (patients) hold the {len(rows)} {name} test images: "
                "the intervals are rough."
            )
    return sentences


def figure_table(metrics: dict[str, Any]) -> list[tuple[str, str, list[str]]]:
    """Rows of the table of figures: name, hint, text for validation and test.

    Args:
        metrics: content of `metrics.json`.
    """
    blocks = [metrics.get(split) or {} for split in SPLITS]
    rows = [(name, hint, [number(b.get(key)) for b in blocks]) for key, name, hint in FIGURES]
    for key, name in LEVELS:
        tables = [block.get(key) or {} for block in blocks]
        rows += [
            (f"{name} {level}", "", [number(table.get(level)) for table in tables])
            for level in sorted(set().union(*tables))
        ]
    studies = [block.get("studies") or {} for block in blocks]
    if any(studies):
        for key, rule in (("auroc_max", "largest"), ("auroc_mean", "mean")):
            counts = ", ".join(str(study.get("n", 0)) for study in studies)
            rows.append(
                (
                    f"AUROC over studies, {rule} score of the images",
                    f"studies: {counts}",
                    [number(study.get(key)) for study in studies],
                )
            )
    return rows


def ablation_table(metrics: dict[str, Any], score: str, by: str) -> list[tuple[str, list[str]]]:
    """Rows that compare the score with the other ones; empty without those.

    Args:
        metrics: content of `metrics.json`.
        score: what the score is.
        by: which of `score.by` it is: its own column is left out.
    """
    blocks = [metrics.get(split) or {} for split in SPLITS]
    names = (
        ("model_score", "The method's own score"),
        ("ratio_score", "Nearest normal less nearest known abnormal training images"),
        ("normality_score", "Mahalanobis distance from the normal training images"),
        ("knn_score", "Distance to the nearest normal training images"),
        ("pretext_knn_score", "The same with the encoder before fine-tuning"),
    )
    rows = [
        (name, [_with_interval(block.get(key) or {}) for block in blocks])
        for key, name in names
        if key != f"{by}_score" and any(block.get(key) for block in blocks)
    ]
    if not rows:
        return []
    return [
        (f"{score[:1].upper()}{score[1:]} (the score)", [_with_interval(b) for b in blocks]),
        *rows,
    ]


def _with_interval(block: dict[str, Any]) -> str:
    """An AUROC and its interval."""
    interval = block.get("auroc_ci")
    return number(block.get("auroc")) + (f" ({number(interval)})" if interval else "")


def part_table(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a body part: name, then images, abnormal ones, AUROC and interval by split.

    Args:
        metrics: content of `metrics.json`.
    """
    blocks = {split: (metrics.get(split) or {}).get("body_parts") or {} for split in SPLITS}
    names = sorted(set().union(*blocks.values()))
    return [
        {
            "name": name,
            "cells": [
                (block.get("n", 0), block.get("abnormal", 0), _with_interval(block))
                for block in (blocks[split].get(name, {}) for split in SPLITS)
            ],
        }
        for name in names
    ]


def split_rows(table: pd.DataFrame) -> list[tuple[str, list[str]]]:
    """Counts of images and groups in each set.

    Args:
        table: columns `split`, `label`; optional `group`, `semi_label`.

    Returns:
        Name of the set and the cells: images, groups, normal, abnormal, no label, known normal,
        known abnormal.
    """
    order: Sequence[str] = ("train", "val", "test", "unused")
    names = [name for name in order if (table["split"] == name).any()]
    rows, codes = [], (KNOWN_NORMAL, KNOWN_ABNORMAL)
    for name in names:
        part = table[table["split"] == name]
        label = part["label"].to_numpy()
        known = part["semi_label"].to_numpy() if "semi_label" in part else np.zeros(len(part))
        groups = f"{part['group'].nunique():,}" if "group" in part else number(None)
        counts = [(label == 0).sum(), (label == 1).sum(), np.isnan(label).sum()]
        counts += [(known == code).sum() for code in codes] if name == "train" else []
        cells = [f"{len(part):,}", groups, *(f"{count:,}" for count in counts)]
        rows.append((name, cells + [number(None)] * (7 - len(cells))))
    return rows
