"""The 29 published MURA runs must come out digit for digit."""

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
def found(expected):
    """AUROC and AUPR of every row, from `evaluate`; its validation rows are called "valid"."""
    columns = {}
    with np.load(DATA / "scores.npz", allow_pickle=False) as arrays:
        for run, kind, replicate in expected[["run", "score", "rep"]].drop_duplicates().values:
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
            columns[run, kind, replicate, "valid"] = result["val"]
            columns[run, kind, replicate, "test"] = result["test"]
    return columns


def test_every_row_digit_for_digit(expected, found):
    assert len(expected) == len(found) == 106
    assert expected.groupby("run")["rep"].nunique().sum() == 29
    for row in expected.itertuples():
        block = found[row.run, row.score, row.rep, row.split]
        assert (block["n"], block["abnormal"]) == (row.n, row.n_pos)
        assert f"{block['auroc']:.6f}" == f"{row.auroc:.6f}"
        assert f"{block['aupr_abnormal']:.6f}" == f"{row.auprc:.6f}"
        assert block["auroc"] == row.stored_auc


@pytest.mark.parametrize("run", ROWS)
def test_replicate_rows(run, found):
    count, *texts = ROWS[run]
    for split, text in zip(("valid", "test"), texts, strict=True):
        values = [
            100 * block["auroc"]
            for (name, kind, _, part), block in found.items()
            if name == run and part == split and kind != "reconstruction"
        ]
        assert len(values) == count
        assert printed(values).startswith(text)


@pytest.mark.parametrize("text", LOGGED)
def test_logged_rows(text):
    assert printed(LOGGED[text]) == text
