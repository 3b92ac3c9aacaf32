"""A method is one file, and that file may be a user's: run, killed, resumed, scored, reported."""

import signal
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from selftaught.training import checkpoint
from tests.faults.injected import At, send
from tests.faults.ranks import start
from tests.tiny import options, write_images

GUIDE = Path(__file__).resolve().parents[1] / "CONTRIBUTING.md"


def toy():
    """The example of CONTRIBUTING.md, word for word."""
    text = GUIDE.read_text(encoding="utf-8")
    return text.split("```python\n", 1)[1].split("```", 1)[0]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    (folder / "toy.py").write_text(toy())
    write_images(folder / "images", 48)
    return folder


class OnThePath:
    """A fault in a process whose PYTHONPATH names a folder."""

    def __init__(self, folder, fault):
        self.folder, self.fault = str(folder), fault

    def __call__(self, rank):
        sys.path.insert(0, self.folder)
        return self.fault and self.fault(rank)


def toy_options(manifest, out, **more):
    """Arguments of `selftaught run` for the tiny job with the toy."""
    given = {"pretext.method": "none", "finetune.method": "toy.Toy", "finetune.width": 4}
    words = options(manifest, out, **(given | more))
    for name in ("pretext.epochs", "pretext.batch_size", "finetune.centers"):
        at = words.index(f"--{name}")
        del words[at : at + 2]
    return words


def run(place, out, fault=None, code=0, **more):
    """`selftaught run` with the toy, to its end; what it said."""
    words = toy_options(place / "images" / "manifest.csv", place / out, **more)
    process = start(place / f"{out} said", words, 1, OnThePath(place, fault))
    assert process.end() == [code], process.said(0)
    return process.said(0)


def last(place, out):
    return checkpoint.newest(place / out / "checkpoints" / "finetune")[0]


def test_the_example_is_short():
    lines = [line for line in toy().splitlines() if line.strip()]
    assert len(lines) <= 40


def test_a_toy_method_runs_is_killed_goes_on_and_scores(place):
    run(place, "whole")
    run(place, "killed", At(0, "finetune", 5, send, signal.SIGKILL), code=-signal.SIGKILL)
    assert 0 < last(place, "killed").step < last(place, "whole").step
    run(place, "killed")
    for kind in ("weights", "optimizer"):
        whole, again = (getattr(last(place, out), kind) for out in ("whole", "killed"))
        assert all((whole[key] == again[key]).all() for key in whole)

    table = pd.read_csv(place / "whole" / "scores.csv")
    assert (place / "whole" / "report.html").stat().st_size > 10_000
    assert table["brightness"].between(0, 1).all(), "a column of the method's own"
    words = [str(place / "whole"), "--data.manifest", str(place / "images" / "manifest.csv")]
    words += ["--out", str(place / "new.csv")]
    process = start(place / "score said", words, 1, OnThePath(place, None), command="score")
    assert process.end() == [0], process.said(0)
    scores = pd.read_csv(place / "new.csv").set_index("path").loc[table["path"], "score"]
    np.testing.assert_allclose(scores, table["score"], rtol=1e-6)


def test_its_options_are_checked_like_all_others(place):
    said = run(place, "refused", code=2, **{"finetune.width": 0})
    assert "finetune.width is 0; allowed: 1 or more" in said
    assert not (place / "refused").exists()
