"""The float32 table of the losses again, on the Triton kernels in Triton's interpreter.

In a process of its own: the interpreter is chosen when triton is first imported.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)
TABLE = Path(__file__).with_name("test_contrastive.py")


def run(chosen: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-W", "ignore", str(TABLE), "-k", chosen],
        cwd=TABLE.parents[2],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "skipped" not in done.stdout


def test_some_regimes():
    run("float32_error and (17 or cold or images) or unchecked and 5")


@pytest.mark.slow
def test_every_regime():
    run("float32_error or half_precision or autocast or zero_row")
