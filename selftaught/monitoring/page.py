"""monitor.html: the last run of `selftaught monitor` and all before it, complete in itself."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from selftaught.evaluation.plot_style import ABNORMAL, INK, NORMAL, UNKNOWN, Picture, render
from selftaught.evaluation.report import template
from selftaught.files import write_atomic
from selftaught.monitoring.drift import Test
from selftaught.monitoring.observed import SCORES, Observed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from selftaught.detector import Detector

TEMPLATE = Path(__file__).with_name("monitor_template.html")
BINS = 30
RUNS = 52


def write_page(
    path: Path,
    facts: Mapping[str, Any],
    tests: Sequence[Test],
    sentences: Sequence[str],
    sets: tuple[Observed, Observed],
    detector: "Detector",
    runs: pd.DataFrame,
) -> None:
    """Write the page.

    Args:
        path: of the page.
        facts: of this run, as in monitor.csv.
        tests: of this run.
        sentences: what alarms may mean.
        sets: the films, and what they were compared with.
        detector: the model.
        runs: all of monitor.csv.
    """
    calibrated = detector.training.get("calibrated")
    text = template(TEMPLATE).render(
        name=path.absolute().parent.name,
        facts=facts,
        tests=tests,
        alarms=[test.name for test in tests if test.alarm],
        sentences=sentences,
        pictures=[one for one in (_scores(sets, detector), _course(runs)) if one],
        wished=_wished(calibrated),
        runs=runs.iloc[::-1].head(RUNS).to_dict("records"),
        number=len(runs),
    )
    write_atomic(path, text)


def _wished(calibrated: Any) -> str:
    """What the threshold promises of normal films."""
    if not isinstance(calibrated, dict):
        return "the model's own threshold: about 5 % of its normal validation films are flagged"
    option, value = next(iter(calibrated["wished"].items()))
    low, high = (100 * end for end in calibrated["false_alarms"]["interval"])
    what = "false alarms" if option == "false_alarms" else "sensitivity"
    return (
        f"calibrated for {100 * value:g} % {what}: of normal films {low:.1f} to {high:.1f} % are "
        "flagged in the long run"
    )


def _scores(sets: tuple[Observed, Observed], detector: "Detector") -> Picture | None:
    """Scores of both sets as shares of their films."""
    drawn = [one[SCORES].values.astype(float) for one in sets if SCORES in one]
    if len(drawn) < 2 or not all(map(len, drawn)):
        return None
    low, high = np.quantile(np.concatenate(drawn), [0.005, 0.995])
    edges = np.linspace(low, high, BINS + 1).tolist()
    if not edges[0] < edges[-1]:
        return None

    def draw(figure: "Figure") -> None:
        axes = figure.add_subplot()
        for values, color, label in zip(
            drawn, (ABNORMAL, NORMAL), ("these films", "reference"), strict=True
        ):
            inside = np.clip(values, edges[0], edges[-1])
            weights = np.full(len(values), 100 / len(values))
            axes.hist(inside, edges, weights=weights, color=color, alpha=0.3)
            axes.hist(inside, edges, weights=weights, color=color, histtype="step",
                      linewidth=1.6, label=f"{label} ({len(values)})")  # fmt: skip
        if detector.calibration.threshold is not None:
            at = detector.calibration.threshold
            axes.axvline(at, color=INK, linewidth=1.2, linestyle="--", label="threshold")
        axes.set(title="Scores", xlabel="score", ylabel="% of the films")
        axes.grid(False, axis="x")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)

    medians = [f"{np.median(values):.4g}" for values in drawn]
    return render(
        draw,
        alt=f"Histogram of scores: median {medians[0]} here, {medians[1]} in the reference.",
        caption="The first and last bar also hold the scores beyond them.",
        size=(5.2, 3.6),
    )


def _course(runs: pd.DataFrame) -> Picture | None:
    """Share of flagged films over the runs, runs with an alarm marked."""
    last = runs.tail(RUNS)
    flagged = 100 * pd.to_numeric(last["flagged"], errors="coerce").to_numpy()
    if len(last) < 2 or not np.isfinite(flagged).any():
        return None
    alarm = (last["alarms"] != "").to_numpy()
    place = np.arange(len(runs) - len(last), len(runs)) + 1

    def draw(figure: "Figure") -> None:
        axes = figure.add_subplot()
        axes.plot(place, flagged, color=UNKNOWN, linewidth=1.4)
        for rows, color, label in ((~alarm, NORMAL, "no alarm"), (alarm, ABNORMAL, "alarm")):
            axes.plot(place[rows], flagged[rows], "o", color=color, label=label, clip_on=False)
        axes.set(title="Flagged films", xlabel="run", ylabel="% of the films")
        axes.locator_params(axis="x", integer=True)
        axes.set_ylim(bottom=0)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)

    return render(
        draw,
        alt=f"Share of flagged films in {len(last)} runs; {alarm.sum()} of them with an alarm.",
        caption="Of all films of a run, normal and abnormal alike.",
        size=(5.2, 3.6),
    )
