"""The 29 published MURA runs must come out digit for digit."""

import functools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from selftaught.evaluation import evaluate, summarise

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "published_scores"
pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"no published scores at {DATA}"),
]
# Mean and "+-" in percent, validation then test, as printed in the paper or its logs.
ROWS = {
    "JointDeepSAD_2020_03_20_19h20_milestone4080": (4, "74.70 0.35", "74.39 0.34"),
    "Joint_DeepSAD_Subspace_2020_03_26_11h44": (4, "54.87 3.08", "53.68 5.38"),
    "DROCC-LF_2020_04_04_08h49": (2, "51.66 3.02", "51.49 6.88"),
    "DeepSAD_2020_02_25_11h12": (4, "75.39 1.13", "75.16 1.21"),
    "DeepSVDD_2020_03_02_16h35": (4, "50.16", "49.93"),
}
# The SupCon variant of "ours": AUROC from its logs, not to more digits than these.
LOGGED = {
    "77.20 0.89": [77.963, 76.794, 77.106, 76.938],
    "77.61 0.66": [78.063, 77.668, 77.613, 77.114],
}


def printed(values):
    result = summarise(values)
    return f"{result.mean:.2f} {result.published_plus_minus:.2f}"


@pytest.fixture(scope="module")
def expected():
    return pd.read_csv(DATA / "expected.csv")


@pytest.fixture(scope="module")
def found():
    """(run, kind, replicate) -> figures by set, from `evaluate`; validation is called "valid"."""
    with np.load(DATA / "scores.npz", allow_pickle=False) as arrays:

        @functools.cache
        def figures(run, kind, replicate):
            parts = []
            for there, here in (("valid", "val"), ("test", "test")):
                key = f"{run}|{kind}|{replicate}|{there}|"
                parts.append(
                    pd.DataFrame(
                        {
                            "path": arrays[key + "id"].astype(str),
                            "split": here,
                            "label": arrays[key + "y"],
                            "score": arrays[key + "s"],
                        }
                    )
                )
            result = evaluate(pd.concat(parts), seed=0, resamples=1)
            return {"valid": result["val"], "test": result["test"]}

        yield figures


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_rows_digit_for_digit(expected, found, every):
    assert len(expected) == 106
    assert expected.groupby("run")["rep"].nunique().sum() == 29
    some = expected["run"].isin(list(ROWS)) & (expected["score"] != "reconstruction")
    for row in expected[every | some].itertuples():
        block = found(row.run, row.score, row.rep)[row.split]
        assert (block["n"], block["abnormal"]) == (row.n, row.n_pos)
        assert f"{block['auroc']:.6f}" == f"{row.auroc:.6f}"
        assert f"{block['aupr_abnormal']:.6f}" == f"{row.auprc:.6f}"
        assert block["auroc"] == row.stored_auc


@pytest.mark.parametrize("run", ROWS)
def test_replicate_rows(run, expected, found):
    count, *texts = ROWS[run]
    rows = expected[(expected["run"] == run) & (expected["score"] != "reconstruction")]
    for split, text in zip(("valid", "test"), texts, strict=True):
        of_split = rows[rows["split"] == split]
        values = [
            100 * found(run, row.score, row.rep)[split]["auroc"] for row in of_split.itertuples()
        ]
        assert len(values) == count
        assert printed(values).startswith(text)


@pytest.mark.parametrize("text", LOGGED)
def test_logged_rows(text):
    assert printed(LOGGED[text]) == text
