"""A method is one file, and that file may be a user's: run, killed, resumed, scored, reported."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from selftaught.training import checkpoint
from tests.tiny import options, write_images

GUIDE = Path(__file__).resolve().parents[1] / "CONTRIBUTING.md"
SCORE = """
import sys, torch
from selftaught import Detector
scores = Detector.load(sys.argv[1]).score(sys.argv[2:])
print(" ".join(f"{score:.9g}" for score in scores.tolist()))
"""


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


def command(place, *words):
    path = os.pathsep.join([str(place), *filter(None, sys.path)])
    return subprocess.Popen(
        [sys.executable, *words],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(place, out, **more):
    given = {
        "pretext.method": "none",
        "finetune.method": "toy.Toy",
        "finetune.width": 4,
        "finetune.epochs": 15,
        "engine.save_every": 1,
        **more,
    }
    words = options(place / "images" / "manifest.csv", place / out, **given)
    words = [word for word in words]
    for name in ("pretext.epochs", "pretext.batch_size", "finetune.centers"):
        at = words.index(f"--{name}")
        del words[at : at + 2]
    return command(place, "-m", "selftaught", "run", *words)


def finish(process):
    out, error = process.communicate(timeout=240)
    assert process.returncode == 0, error
    return out


def last(place, out):
    return checkpoint.newest(place / out / "checkpoints" / "finetune")[0]


def test_the_example_is_short():
    lines = [line for line in toy().splitlines() if line.strip()]
    assert len(lines) <= 40


def test_a_toy_method_runs_is_killed_goes_on_and_scores(place):
    finish(run(place, "whole"))
    killed = run(place, "killed")
    steps = place / "killed" / "checkpoints" / "finetune"
    while not list(steps.glob("step-0000000[3-9]")):
        assert killed.poll() is None, killed.communicate()[1]
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert last(place, "killed").step < last(place, "whole").step
    finish(run(place, "killed"))
    for kind in ("weights", "optimizer"):
        whole, again = (getattr(last(place, out), kind) for out in ("whole", "killed"))
        assert all((whole[key] == again[key]).all() for key in whole)

    table = pd.read_csv(place / "whole" / "scores.csv")
    assert (place / "whole" / "report.html").stat().st_size > 10_000
    assert table["brightness"].between(0, 1).all(), "a column of the method's own"
    paths = [str(place / "images" / name) for name in table["path"]]
    text = finish(command(place, "-c", SCORE, str(place / "whole"), *paths))
    np.testing.assert_allclose([float(one) for one in text.split()], table["score"], rtol=1e-6)


def test_its_options_are_checked_like_all_others(place):
    process = run(place, "refused", **{"finetune.width": 0})
    assert process.wait(timeout=120) == 2
    error = process.stderr.read()
    assert "finetune.width is 0; allowed: 1 or more" in error
    assert not (place / "refused").exists()
