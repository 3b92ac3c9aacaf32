"""Figures of a scored set: ROC, precision-recall, histograms, body parts."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from selftaught.evaluation.plot_style import (
    ABNORMAL,
    INK,
    MUTED,
    NORMAL,
    SPLIT_COLORS,
    UNKNOWN,
    Picture,
    plain,
    render,
    unit_axes,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = {"val": "validation", "test": "test"}
LABELS = (("normal", 0, NORMAL), ("abnormal", 1, ABNORMAL))
MOST_PARTS = 24


def usable_splits(scores: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Labelled rows of the validation and test set, where both labels occur.

    Args:
        scores: columns `split`, `label` (0, 1, NaN), `score`.
    """
    labelled = {}
    usable = scores["label"].notna() & np.isfinite(scores["score"])
    for split in SPLIT_COLORS:
        rows = scores[(scores["split"] == split) & usable]
        if rows["label"].nunique() == 2:
            labelled[split] = rows
    return labelled


def roc(scores: pd.DataFrame, metrics: dict[str, Any], threshold: float | None) -> Picture | None:
    """ROC curves of validation and test with chance and the stored threshold.

    Args:
        scores: columns `split`, `label` (0, 1, NaN), `score`.
        metrics: content of `metrics.json`, for the printed AUROC.
        threshold: images above it are flagged; None leaves the mark out.

    Returns:
        The figure; None when neither set has both labels.
    """
    from sklearn.metrics import roc_auc_score, roc_curve

    splits = usable_splits(scores)
    if not splits:
        return None

    def draw(figure: "Figure") -> None:
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=":", label="chance 0.500")
        for split, rows in splits.items():
            label, score = rows["label"].to_numpy(), rows["score"].to_numpy()
            fall, hit, _ = roc_curve(label, score)
            color, style = SPLIT_COLORS[split], "-" if split == "test" else "--"
            axes.plot(fall, hit, style, color=color, label=f"{NAMES[split]} {areas[split]:.3f}")
            if threshold is not None and split == "test":
                at = (score[label == 0] > threshold).mean(), (score[label == 1] > threshold).mean()
                axes.plot(*at, "o", color=ABNORMAL, markersize=7, label="stored threshold")
        axes.set(title="ROC", xlabel="1 - specificity", ylabel="sensitivity")
        unit_axes(axes)
        axes.legend(loc="lower right")

    areas = {
        split: metrics.get(split, {}).get("auroc") or roc_auc_score(rows["label"], rows["score"])
        for split, rows in splits.items()
    }
    words = ", ".join(f"{NAMES[split]} area {area:.3f}" for split, area in areas.items())
    return render(
        draw,
        alt=f"ROC curves: {words}; chance is 0.5.",
        caption="ROC: share of abnormal images found against share of normal images flagged, over "
        "all thresholds. The area under the curve is the AUROC.",
        size=(4.6, 4.5),
    )


def precision_recall(scores: pd.DataFrame) -> Picture | None:
    """Precision-recall curves of the abnormal class, with the share of abnormal images.

    Args:
        scores: columns `split`, `label` (0, 1, NaN), `score`.

    Returns:
        The figure; None when neither set has both labels.
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve

    splits = usable_splits(scores)
    if not splits:
        return None
    areas = {s: average_precision_score(r["label"], r["score"]) for s, r in splits.items()}

    def draw(figure: "Figure") -> None:
        axes = figure.add_subplot()
        for split, rows in splits.items():
            precision, recall, _ = precision_recall_curve(rows["label"], rows["score"])
            color, style = SPLIT_COLORS[split], "-" if split == "test" else "--"
            share = rows["label"].mean()
            axes.step(recall, precision, style, where="post", color=color,
                      label=f"{NAMES[split]} {areas[split]:.3f}")  # fmt: skip
            axes.axhline(share, color=color, linewidth=1, linestyle=":",
                         label=f"chance {share:.3f} ({NAMES[split]})")  # fmt: skip
        axes.set(title="Precision and recall", xlabel="recall (sensitivity)", ylabel="precision")
        unit_axes(axes)
        axes.legend(loc="lower left")

    words = ", ".join(f"{NAMES[split]} area {area:.3f}" for split, area in areas.items())
    return render(
        draw,
        alt=f"Precision-recall curves of the abnormal class: {words}.",
        caption="Precision-recall of the abnormal class. Chance is the share of abnormal images, "
        "so these areas cannot be compared between sets with different shares.",
        size=(4.6, 4.5),
    )


def histogram(scores: pd.DataFrame, split: str, threshold: float | None) -> Picture | None:
    """Histogram of the scores of one set, by label.

    Args:
        scores: columns `split`, `label` (0, 1, NaN), `score`.
        split: val or test.
        threshold: the stored threshold, or None.

    Returns:
        The figure; None when the set is empty.
    """
    rows = scores[(scores["split"] == split) & np.isfinite(scores["score"])]
    if rows.empty:
        return None
    low, high = np.percentile(rows["score"], [0.5, 99.5])
    if threshold is not None:
        low, high = min(low, threshold), max(high, threshold)
    if not high > low:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, int(np.clip(np.sqrt(len(rows)) * 1.5, 8, 48)) + 1).tolist()
    sets = [(name, rows.loc[rows["label"] == value], color) for name, value, color in LABELS]
    sets.append(("no label", rows.loc[rows["label"].isna()], UNKNOWN))
    sets = [(name, part, color) for name, part, color in sets if len(part)]

    def draw(figure: "Figure") -> None:
        axes = figure.add_subplot()
        for name, part, color in sets:
            values = np.clip(part["score"], low, high)
            weights = np.full(len(values), 100 / len(values))
            axes.hist(values, edges, weights=weights, color=color, alpha=0.3)
            axes.hist(values, edges, weights=weights, color=color, histtype="step",
                      linewidth=1.6, label=f"{name} ({len(part)})")  # fmt: skip
        if threshold is not None:
            axes.axvline(threshold, color=INK, linewidth=1.2, linestyle="--", label="threshold")
        axes.set(title=NAMES[split].capitalize(), xlabel="score", ylabel="% of images of the label")
        axes.grid(False, axis="x")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)

    words = "; ".join(f"{n}: {len(p)} images, median {p['score'].median():.4g}" for n, p, _ in sets)
    return render(
        draw,
        alt=f"Histogram of scores, {NAMES[split]} set. {words}.",
        caption="The first and last bar also hold the scores beyond them.",
        size=(5.2, 3.4),
    )


def body_parts(metrics: dict[str, Any]) -> Picture | None:
    """AUROC of the test set by body part, with its interval.

    Args:
        metrics: content of `metrics.json`.

    Returns:
        The figure; None when no body part of the test set has an AUROC.
    """
    blocks = (metrics.get("test") or {}).get("body_parts") or {}
    parts = [(name, block) for name, block in blocks.items() if block.get("auroc") is not None]
    parts.sort(key=lambda part: -part[1]["n"])
    parts = sorted(parts[:MOST_PARTS], key=lambda part: part[1]["auroc"])
    if not parts:
        return None
    overall = metrics["test"].get("auroc")

    def draw(figure: "Figure") -> None:
        axes = figure.add_subplot()
        axes.axvline(0.5, color=MUTED, linewidth=1, linestyle=":", label="chance")
        if overall is not None:
            axes.axvline(overall, color=ABNORMAL, linewidth=1, linestyle="--", label="all parts")
        for row, (_, block) in enumerate(parts):
            low, high = block.get("auroc_ci") or (block["auroc"], block["auroc"])
            axes.plot([low, high], [row, row], color=SPLIT_COLORS["test"], linewidth=7, alpha=0.28,
                      solid_capstyle="butt")  # fmt: skip
            axes.plot(block["auroc"], row, "o", color=SPLIT_COLORS["test"], markersize=7)
        names = [f"{plain(name)} ({block['n']})" for name, block in parts]
        axes.set_yticks(range(len(parts)), names)
        axes.set(xlabel="AUROC and 95 % interval", ylim=(-0.6, len(parts) - 0.4))
        axes.set_xlim(right=1.005)
        axes.grid(False, axis="y")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=2)

    words = "; ".join(f"{name} {block['auroc']:.3f}" for name, block in reversed(parts))
    return render(
        draw,
        alt=f"AUROC of the test set by body part: {words}.",
        caption="Number of test images in brackets. A long bar means few patients, not a worse "
        "model."
        + (f" The {MOST_PARTS} largest parts are drawn." if len(blocks) > len(parts) else ""),
        size=(6.0, 1.3 + 0.36 * len(parts)),
    )
