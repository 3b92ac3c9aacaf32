"""Runs beside each other: figures of the same test images, and paired differences of AUROC.

Both runs of a difference are judged on the same resamples of patients (`evaluation.bootstrap`), so
that what is hard about a patient counts for both and cancels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from selftaught.errors import InputError
from selftaught.evaluation.bootstrap import auroc_resamples, percentile_interval
from selftaught.evaluation.metrics import evaluate, labelled_images
from selftaught.evaluation.report import template
from selftaught.evaluation.run_files import RunFiles, flatten
from selftaught.evaluation.statistics import holm, stars

TEMPLATE = Path(__file__).with_name("compare_template.html")
RESAMPLES, SEED = 2000, 1
SET = "test"
# What differs in every run, or says where it lies.
ALWAYS_OTHER = ("out",)


def compare(runs: Sequence[RunFiles], names: Sequence[str]) -> pd.DataFrame:
    """A row for each run; differences are from the first.

    Args:
        runs: two or more that were tested on the same images.
        names: of the runs, each another.

    Returns:
        `run`, `method`, `seed`, `images`, `abnormal`, `groups`, `auroc` and the ends of its 95 %
        interval `auroc_low`, `auroc_high`, `aupr_abnormal`, `sensitivity_at_90` (specificity),
        `threshold_sensitivity`, `threshold_specificity` (at the stored threshold); `difference` of
        the AUROC from the first run's, the ends of its interval, two-sided `p` of no difference
        and `p_holm`, adjusted over the rows. NaN where a figure cannot be had.

    Raises:
        InputError: fewer than two runs, one twice, or test images that are not the same.
    """
    if len(runs) < 2:
        raise InputError(f"{len(runs)} run to compare; allowed: two or more run folders")
    if twice := [one for one in runs if sum(one.folder.samefile(x.folder) for x in runs) > 1]:
        raise InputError(f"{twice[0].folder} is given twice; allowed: each run once")
    tables = [_test_images(run, name) for run, name in zip(runs, names, strict=True)]
    for table, name in zip(tables[1:], names[1:], strict=True):
        check_same_images(tables[0], table, names[0], name)
    rows, resampled = [], []
    for run, name, table in zip(runs, names, tables, strict=True):
        row, resamples = _row(run, name, table)
        rows.append(row)
        resampled.append(resamples)
    first, base = rows[0], resampled[0]
    for row, resamples in zip(rows[1:], resampled[1:], strict=True):
        row["difference"] = row["auroc"] - first["auroc"]
        if base is not None and resamples is not None:
            row |= _difference(resamples - base)
    for row, p in zip(rows, holm([row.get("p") for row in rows]), strict=True):
        row["p_holm"] = np.nan if p is None else p
    return pd.DataFrame(rows)


def _test_images(run: RunFiles, name: str) -> pd.DataFrame:
    """`score`, `label` and `group` of the labelled test images, by path in order of the paths."""
    try:
        table = labelled_images(run.scores[run.scores["split"] == SET])
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    if twice := table["path"][table["path"].duplicated()].tolist():
        raise InputError(f"{name}: {len(twice)} test images appear twice; allowed: each once")
    return table.set_index("path")[["score", "label", "group"]].sort_index()


def check_same_images(a: pd.DataFrame, b: pd.DataFrame, first: str, second: str) -> None:
    """Refuse runs that were not tested on the same images of the same patients.

    Args:
        a: `label` and `group` of the test images of a run, by path.
        b: of another.
        first: name of the one.
        second: name of the other.

    Raises:
        InputError: with the counts of what differs.
    """
    here, there = len(b.index.difference(a.index)), len(a.index.difference(b.index))
    allowed = "allowed: runs with the same split, as by split.seed and data.manifest"
    if here or there:
        raise InputError(
            f"{second}: its {len(b)} labelled test images are not the {len(a)} of {first}: {here} "
            f"are in {second} alone, {there} in {first} alone; {allowed}"
        )
    for column, words in (("label", "label"), ("group", "group (patient)")):
        if other := int((a[column] != b[column]).sum()):
            raise InputError(
                f"{second}: {other} of {len(a)} test images have another {words} than in {first}; "
                f"{allowed}"
            )


def _row(run: RunFiles, name: str, table: pd.DataFrame) -> tuple[dict[str, Any], Any]:
    """Figures of one run, and the AUROC of each resample; None where there are none."""
    # Intervals are of the resamples that all runs share; one draw here is as good as none.
    block = evaluate(run.scores[run.scores["split"] == SET], seed=SEED, resamples=1)[SET]
    if block["auroc"] is None:
        raise InputError(f"{name}: no {SET} AUROC: {block['reasons']['auroc']}")
    columns = (table[column].to_numpy() for column in ("label", "score", "group"))
    resamples = auroc_resamples(*columns, seed=SEED, resamples=RESAMPLES)
    low, high = (np.nan, np.nan) if resamples is None else percentile_interval(resamples)
    sensitivity = block["sensitivity_at_specificity"]["0.90"]
    row = {
        "run": name,
        "method": run.model.get("method") or (run.config.get("finetune") or {}).get("method"),
        "seed": run.config.get("seed"),
        **{name: block[name] for name in ("n", "abnormal", "groups", "auroc")},
        "auroc_low": low,
        "auroc_high": high,
        "aupr_abnormal": block["aupr_abnormal"],
        "sensitivity_at_90": sensitivity,
        "threshold_sensitivity": block["threshold_sensitivity"],
        "threshold_specificity": block["threshold_specificity"],
        **dict.fromkeys(("difference", "difference_low", "difference_high", "p"), None),
    }
    return {"images" if key == "n" else key: value for key, value in row.items()}, resamples


def _difference(differences: np.ndarray) -> dict[str, float]:
    """Interval of paired differences, and how rarely their sign is the other one."""
    known = differences[np.isfinite(differences)]
    low, high = percentile_interval(known)
    rarer = min((known <= 0).sum(), (known >= 0).sum())
    p = min(1.0, 2 * (rarer + 1) / (len(known) + 1))  # no p of 0 from finitely many draws
    return {"difference_low": low, "difference_high": high, "p": float(p)}


def other_settings(runs: Sequence[RunFiles]) -> list[tuple[str, list[str]]]:
    """Settings that are not the same in all runs: the name, and what it is in each."""
    each = [dict(flatten(run.config)) for run in runs]
    names = dict.fromkeys(name for settings in each for name in settings)
    rows = [(name, [settings.get(name, "") for settings in each]) for name in names]
    return [row for row in rows if row[0] not in ALWAYS_OTHER and len(set(row[1])) > 1]


def render_page(table: pd.DataFrame, runs: Sequence[RunFiles]) -> str:
    """The HTML of a comparison, complete in itself; foreign text is escaped.

    Args:
        table: as `compare` gives it.
        runs: the runs of its rows.
    """
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return template(TEMPLATE).render(
        name="Comparison of runs",
        rows=rows,
        first=rows[0]["run"],
        verdicts=[_verdict(row, rows[0]["run"]) for row in rows[1:]],
        # Half the width of the rulers: the furthest end of an interval, in round steps.
        reach=max(0.01, *(_reach(row) for row in rows)),
        settings=other_settings(runs),
        resamples=RESAMPLES,
        stars=[stars(row["p_holm"]) if row["p_holm"] is not None else "" for row in rows],
    )


def _reach(row: dict[str, Any]) -> float:
    ends = [row[name] for name in ("difference", "difference_low", "difference_high")]
    return max((abs(end) for end in ends if end is not None), default=0.0)


def _verdict(row: dict[str, Any], first: str) -> str:
    """What a difference means, in a sentence."""
    low, high = row["difference_low"], row["difference_high"]
    if low is None:
        return f"{row['run']}: too few patients for an interval of the difference."
    if low <= 0 <= high:
        return f"{row['run']} is not told apart from {first}: the interval holds 0."
    way = "better" if low > 0 else "worse"
    return f"{row['run']} is {way} than {first}: the whole interval lies on one side of 0."
