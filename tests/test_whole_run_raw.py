"""A run that prepares its own films gives a model that prepares raw ones: the run's own scores."""

import numpy as np
import pandas as pd
import pytest

from selftaught.cli.main import main
from selftaught.data.manifest import read_manifest
from selftaught.phantoms import write_set
from tests.tiny import options

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("thin_encoder")]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Cluttered films, some of them inverted, and a run on them."""
    folder = tmp_path_factory.mktemp("raw")
    write_set(folder / "films", 40, seed=8, size=96, workers=1)
    words = options(
        folder / "films" / "manifest.csv",
        folder / "run",
        **{
            "data.prepare": "always",
            "prepare.size": 64,
            "prepare.workers": 1,
            "prepare.sheets": 0,
            "prepare.given_mask": "false",
            "pretext.method": "none",
            "finetune.epochs": 1,
        },
    )
    for name in ("pretext.epochs", "pretext.batch_size"):
        del words[words.index(f"--{name}") : words.index(f"--{name}") + 2]
    assert main(["run", *words]) == 0
    return folder


def test_raw_films_get_the_scores_of_the_run(place):
    out = place / "new.csv"
    raw = place / "films" / "manifest.csv"
    words = ["--data.manifest", str(raw), "--out", str(out), "--data.bad_files", "skip"]
    assert main(["score", str(place / "run"), *words]) == 0
    run, new = pd.read_csv(place / "run" / "scores.csv"), pd.read_csv(out)
    prepared = read_manifest(place / "run" / "prepared").table
    assert prepared["mask"].ne("").mean() > 0.5
    assert prepared["inverted"].astype(str).isin(("1", "True", "true")).sum() > 1
    source = dict(zip(prepared["path"], prepared["source"], strict=True))
    own = run.set_index(run["path"].map(source))["score"]
    again = new.set_index("path")["score"].loc[own.index]
    assert len(own) > 25
    np.testing.assert_allclose(again, own, rtol=1e-6, atol=1e-6)
    flags = run.set_index(run["path"].map(source))["flagged"]
    assert new.set_index("path")["flagged"].loc[own.index].equals(flags)
