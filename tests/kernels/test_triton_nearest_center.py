"""Runs triton_nearest_center_cases.py in Triton's interpreter, and on the GPU if there is one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[2]
CASES = Path(__file__).with_name("triton_nearest_center_cases.py")


SHORT = "collapse or ties or inactive or does_not_depend or wrong_rows or gradients"


def run(*options: str, **variables: str) -> None:
    # Triton reads the variable when a kernel is defined: every mode needs a process of its own.
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "--timeout=250",
            "-p",
            "no:cacheprovider",
            CASES,
            *options,
        ],
        cwd=ROOT,
        env=kept | variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_some_in_the_interpreter():
    run("-k", SHORT, TRITON_INTERPRET="1", OMP_NUM_THREADS="1")


@pytest.mark.slow
def test_all_in_the_interpreter():
    run(TRITON_INTERPRET="1", OMP_NUM_THREADS="1")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_on_the_gpu():
    run()
