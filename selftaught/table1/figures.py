"""Figures 7, 8 and 9 of the paper, each as PNG, SVG and the CSV it is drawn from."""

import textwrap
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from selftaught.errors import InputError
from selftaught.evaluation.plot_style import (
    ABNORMAL,
    CYCLE,
    INK,
    MUTED,
    NORMAL,
    UNKNOWN,
    Picture,
    encode,
    picture,
    plain,
)
from selftaught.evaluation.run_files import read_run
from selftaught.evaluation.statistics import holm, stars, welch_test
from selftaught.evaluation.tsne import project
from selftaught.files import write_atomic
from selftaught.table1.results import Result
from selftaught.table1.rows import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BARS = ("ours", "uni-modal", "ruff", "multi-modal-ae")
CURVES = ("ours", "ruff")
MOST_POINTS, MAP_SEED = 3000, 0
MAPS = (("h", "pretext_h", "after pre-training: h"), ("z", "z", "after fine-tuning: z"))
LABELS = (("no label", None, UNKNOWN), ("normal", 0, NORMAL), ("abnormal", 1, ABNORMAL))
STARS = "ns above 0.1, . to 0.1, * to 0.05, ** to 0.01, *** to 0.001"


def write_figures(out: Path, rows: Sequence[Row]) -> tuple[list[Picture], list[str]]:
    """Write fig7, fig7_raw, fig8 and fig9 into `out`, as far as there are runs for them.

    Args:
        out: folder of the table, where the runs lie too.
        rows: of the table; those of the first block count.

    Returns:
        The pictures, and a sentence for each that cannot be drawn.
    """
    if any(row.cells[0].folds for row in rows):
        return [], [
            "Figures 7 to 9 are of single runs and of the test set: there are none of folds."
        ]
    done = {row.name: row for row in rows if row.block == 0 and row.done}
    made = [
        _bars(out, [done[name] for name in BARS if name in done], adjusted=True),
        _bars(out, [done[name] for name in BARS if name in done], adjusted=False),
        _curves(out, [done[name] for name in CURVES if name in done]),
        _maps(out, [done[name] for name in CURVES if name in done]),
    ]
    pictures = [one for one in made if isinstance(one, Picture)]
    return pictures, [one for one in made if isinstance(one, str)]


def _save(
    out: Path, name: str, table: pd.DataFrame, draw: Any, words: tuple[str, str], size: tuple
) -> Picture:
    """Write NAME.csv, NAME.png and NAME.svg; `words` are text alternative and caption."""
    write_atomic(out / f"{name}.csv", table.to_csv(index=False))
    encoded = encode(draw, size=size)
    for kind, content in encoded.items():
        write_atomic(out / f"{name}.{kind}", content)
    # Thousands of points are lighter as pixels.
    kind = "png" if len(encoded["svg"]) > len(encoded["png"]) else "svg"
    return picture(encoded[kind], kind, *words, size)


def _remove(out: Path, name: str) -> None:
    """What an earlier collect wrote and no run supports any more."""
    for kind in ("csv", "png", "svg"):
        (out / f"{name}.{kind}").unlink(missing_ok=True)


def _links(rows: Sequence[Row]) -> pd.DataFrame:
    """Welch's test of every pair of bars that has one; the family of Holm are the pairs drawn."""
    lines = []
    for (i, first), (j, second) in combinations(enumerate(rows), 2):
        values = [[cell.figures["test_auroc"] for cell in row.done] for row in (first, second)]
        if min(map(len, values)) > 1 and not (first.identical or second.identical):
            test = welch_test(*values)
            lines.append({"first": i, "second": j, "system": first.name, "other": second.name,
                          "difference": test.difference, "p": test.p})  # fmt: skip
    table = pd.DataFrame(lines, columns=["first", "second", "system", "other", "difference", "p"])
    table["p_holm"] = holm(table["p"].tolist())
    return table


def _bars(out: Path, rows: Sequence[Row], *, adjusted: bool) -> Picture | str:
    """Fig. 7: mean test AUROC, whiskers of 1.96 x population SD, links with significance marks."""
    name = "fig7" if adjusted else "fig7_raw"
    if len(rows) < 2:
        _remove(out, name)
        return f"{name} needs two of {', '.join(BARS)} with a finished run."
    means = np.array([row.spread["test"].mean for row in rows if row.spread["test"]])
    whiskers = np.array([s.published_plus_minus for row in rows if (s := row.spread["test"])])
    links = _links(rows)
    column = "p_holm" if adjusted else "p"
    links["mark"] = links[column].map(stars)
    span = max((means + whiskers).max() - (means - whiskers).min(), 1.0)
    bottom, step = max(0.0, (means - whiskers).min() - 0.35 * span), 0.13 * span

    def draw(figure: "Figure") -> None:
        axes = figure.add_subplot()
        places = np.arange(len(rows))
        axes.bar(places, means - bottom, bottom=bottom, width=0.62, color=CYCLE[: len(rows)])
        several = np.array([len(row.done) > 1 for row in rows])
        axes.errorbar(places[several], means[several], whiskers[several], fmt="none", ecolor=INK,
                      capsize=5, linewidth=1.3)  # fmt: skip
        height = (means + whiskers).max() + step
        order = links.assign(width=links["second"] - links["first"]).sort_values(
            ["width", "first"], kind="stable"
        )
        for link in order.itertuples():
            x = [link.first, link.first, link.second, link.second]
            y = [height, height + step / 4, height + step / 4, height]
            axes.plot(x, y, color=MUTED, linewidth=1)
            axes.text((link.first + link.second) / 2, height + step / 4, link.mark, ha="center",
                      va="bottom", fontsize=9, color=INK)  # fmt: skip
            height += step
        for place, row in zip(places, rows, strict=True):
            words = f"{means[place]:.1f}\nn = {len(row.done)}"
            axes.text(float(place), bottom + 0.03 * span, words, ha="center", va="bottom",
                      color="white", fontsize=9)  # fmt: skip
        axes.set_xticks(places, [textwrap.fill(plain(row.title, 50), 16) for row in rows])
        axes.set(ylim=(bottom, height + step / 2), ylabel="test AUROC, %")
        axes.set_yticks([tick for tick in axes.get_yticks() if bottom <= tick <= 100])
        axes.grid(axis="x", visible=False)
        if bottom > 0:
            axes.set_title(f"The axis begins at {bottom:.0f} %, not at 0", color=MUTED, fontsize=9,
                           fontweight="normal")  # fmt: skip

    bars = pd.DataFrame({"kind": "bar", "system": [row.name for row in rows], "mean": means,
                         "plus_minus": whiskers, "n": [len(row.done) for row in rows]})  # fmt: skip
    table = pd.concat([bars, links.drop(columns=["first", "second"]).assign(kind="link")])
    how = f"adjusted by Holm over the {len(links)} pairs drawn" if adjusted else "not adjusted"
    words = ", ".join(f"{row.title} {mean:.2f}" for row, mean in zip(rows, means, strict=True))
    return _save(
        out, name, table, draw,
        (f"Mean test AUROC in percent: {words}.",
         f"Fig. 7{'' if adjusted else ', raw p'}. Mean test AUROC, whiskers 1.96 x population SD "
         f"over replicates. Links: Welch's t-test, {how}; {STARS}."),
        (5.6, 4.4),
    )  # fmt: skip


def _curve(row: Row) -> pd.DataFrame:
    """Validation AUROC by epoch: mean and 1.96 x population SD, as far as all runs go."""
    curves = [cell.curve for cell in row.done if cell.curve]
    epochs = sorted(set.intersection(*map(set, curves))) if curves else []
    values = np.array([[curve[epoch] for epoch in epochs] for curve in curves])
    return pd.DataFrame({
        "system": row.name, "epoch": epochs, "n": len(curves),
        "mean": values.mean(axis=0) if epochs else [],
        "plus_minus": 1.96 * values.std(axis=0) if epochs and len(curves) > 1 else np.nan,
    })  # fmt: skip


def _curves(out: Path, rows: Sequence[Row]) -> Picture | str:
    """Fig. 8: validation AUROC by epoch of fine-tuning."""
    curves = {row.title: curve for row in rows if len(curve := _curve(row))}
    if not curves:
        _remove(out, "fig8")
        return f"fig8 needs validation AUROCs of {' or '.join(CURVES)} in metrics.jsonl."

    def draw(figure: "Figure") -> None:
        from matplotlib.ticker import MaxNLocator

        axes = figure.add_subplot()
        for color, (title, curve) in zip((NORMAL, ABNORMAL), curves.items(), strict=False):
            x, mean, half = (curve[name] for name in ("epoch", "mean", "plus_minus"))
            axes.plot(x, mean, color=color, marker="o" if len(x) < 15 else None, markersize=4,
                      label=f"{plain(title, 40)} (n = {curve['n'].iloc[0]})")  # fmt: skip
            axes.fill_between(x, mean - half, mean + half, color=color, alpha=0.18, linewidth=0)
        axes.set(xlabel="epoch of fine-tuning", ylabel="validation AUROC, %")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.legend(loc="best")

    words = "; ".join(
        f"{title} {curve['mean'].iloc[0]:.1f} after epoch {curve['epoch'].iloc[0]}, "
        f"{curve['mean'].iloc[-1]:.1f} after epoch {curve['epoch'].iloc[-1]}"
        for title, curve in curves.items()
    )
    return _save(
        out, "fig8", pd.concat(curves.values()), draw,
        (f"Validation AUROC in percent: {words}.",
         "Fig. 8. Validation AUROC by epoch: mean and, from two runs on, a band of 1.96 x "
         "population SD; it ends where the shortest run does."),
        (5.6, 4.4),
    )  # fmt: skip


def _median_cell(row: Row) -> Result:
    """The run whose test AUROC is the median (of two, the lower)."""
    order = sorted(row.done, key=lambda cell: (cell.figures["test_auroc"], cell.seed))
    return order[(len(order) - 1) // 2]


def _stratified(labels: np.ndarray) -> np.ndarray:
    """At most 3,000 positions, each label (0, 1, NaN) in its own share."""
    if len(labels) <= MOST_POINTS:
        return np.arange(len(labels))
    generator, chosen = np.random.default_rng(MAP_SEED), []
    for members in (np.isnan(labels), labels == 0, labels == 1):
        places = np.flatnonzero(members)
        count = MOST_POINTS * len(places) // len(labels)
        chosen.append(generator.choice(places, count, replace=False))
    return np.sort(np.concatenate(chosen))


def _points(out: Path, row: Row) -> pd.DataFrame:
    """Validation images of the median run: label, score, and their places in both maps."""
    cell = _median_cell(row)
    run = read_run(out / cell.run)
    rows = np.flatnonzero((run.scores["split"] == "val").to_numpy())
    rows = rows[_stratified(run.scores["label"].to_numpy()[rows])]
    table = run.scores.iloc[rows][["path", "label"]].reset_index(drop=True)
    table["score"] = pd.to_numeric(run.scores[cell.score].iloc[rows]).to_numpy()
    table.insert(0, "system", row.name)
    table.insert(1, "seed", cell.seed)
    for name, tensor, _ in MAPS:
        places = None
        if tensor in run.embeddings:
            places = project(run.embeddings[tensor][rows], MAP_SEED)
        for axis, letter in enumerate("xy"):
            table[f"{name}_{letter}"] = np.nan if places is None else places[:, axis]
    return table


def _draw_map(axes: "Axes", points: pd.DataFrame, name: str) -> None:
    axes.set(xticks=[], yticks=[])
    axes.set_facecolor("#f7f9fa")
    if points[f"{name}_x"].isna().all():
        axes.text(0.5, 0.5, "no embedding of its own", ha="center", transform=axes.transAxes)
        return
    size = float(np.clip(3000 / max(len(points), 1), 3, 30))
    for label, value, color in LABELS:
        rows = points[points["label"].isna() if value is None else points["label"] == value]
        if len(rows):
            axes.scatter(rows[f"{name}_x"], rows[f"{name}_y"], s=size, color=color, linewidths=0,
                         alpha=0.7, label=label)  # fmt: skip


def _draw_histogram(axes: "Axes", points: pd.DataFrame) -> None:
    # Scores have long tails; the last percent goes into the last bin.
    low, high = np.percentile(points["score"], [0, 99])
    span = (low, high) if high > low else None
    for label, value, color in LABELS[1:]:
        scores = points["score"][points["label"] == value]
        if len(scores):
            share = np.full(len(scores), 1 / len(scores))
            axes.hist(np.clip(scores, low, high), bins=30, range=span, weights=share,
                      color=color, alpha=0.55, label=label)  # fmt: skip
    axes.set(xlabel="score", ylabel="share of the label's images")


def _maps(out: Path, rows: Sequence[Row]) -> Picture | str:
    """Fig. 9: where the validation images lie after each stage, and their scores."""
    try:
        points = {row.title: _points(out, row) for row in rows}
    except InputError as error:
        points, why = {}, str(error)
    else:
        why = f"it shows {' and '.join(CURVES)}, of which no run is finished"
    points = {title: table for title, table in points.items() if len(table)}
    if not points:
        _remove(out, "fig9")
        return f"fig9 is missing: {why}."

    def draw(figure: "Figure") -> None:
        axes = figure.subplots(3, len(points), squeeze=False)
        for place, (title, table) in enumerate(points.items()):
            axes[0, place].set_title(f"{plain(title)}, seed {table['seed'].iloc[0]}")
            for line, (name, _, _) in enumerate(MAPS):
                _draw_map(axes[line, place], table, name)
            _draw_histogram(axes[2, place], table)
        for line, (_, _, words) in enumerate(MAPS):
            axes[line, 0].set_ylabel(words)
        axes[2, 0].legend(loc="upper right")

    counts = ", ".join(f"{len(table)} of {title}" for title, table in points.items())
    return _save(
        out, "fig9", pd.concat(points.values()), draw,
        (f"t-SNE maps before and after fine-tuning and histograms of scores of validation images: "
         f"{counts}.",
         "Fig. 9. Validation images of the run with the median test AUROC: t-SNE (started from "
         "principal components, perplexity 30) of h after pre-training and of z after fine-tuning, "
         f"and the scores by label; the last bin holds the highest percent. Images: {counts}."),
        (3.7 * len(points) + 0.4, 9.0),
    )  # fmt: skip
