"""A type checker sees the losses through an editable install, and a wrong keyword."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RIGHT = """\
import torch
from torch import Tensor

from selftaught import losses
from selftaught.losses import compat

z1, z2, y = torch.randn(4, 8), torch.randn(4, 8), torch.zeros(4, dtype=torch.int64)
values: list[Tensor] = [
    losses.ntxent_loss(z1, z2, 0.5, reduction="sum"),
    losses.supcon_loss(z1, z2, y, group="world"),
    losses.info_nce_loss(z1, z2, negatives=None, symmetric=True),
    losses.mad_loss(z1, z2, y, eta=1.0),
    losses.mad_loss_with_assignment(z1, z2, y).squared_distance,
    losses.nearest_center(z1, z2)[0],
    losses.NTXentLoss(0.5, check_values=False)(z1, z2),
    losses.SupConLoss(temperature=0.5).forward(z1, z2, y),
    losses.InfoNCELoss(in_batch=True).forward(z1, z2),
    losses.MADLoss(z2, eps=0.1).forward(z1, y),
    losses.DeepSADLoss(z2[0], reduction="none").forward(z1, y),
    losses.cached_backward(lambda x: x, [z1, z2], losses.NTXentLoss(), chunk_size=2),
    compat.NTXentLoss(0.5, memory_bank_size=(64, 8)).forward(out0=z1, out1=z2),
    compat.SupConLoss().forward(z1, y),
    compat.ClipLoss(local_loss=True)(z1, z2, torch.tensor(10.0)),
]
"""
WRONG = [
    "losses.InfoNCELoss(temprature=0.1)",
    'losses.NTXentLoss(0.5, reducton="sum")',
    'losses.SupConLoss(exchange="ring")',
    "losses.MADLoss(z2, active=y)",
    'losses.DeepSADLoss(z2[0], eta="large")',
    "losses.ntxent_loss(z1)",
    "losses.NTXentLoss().forward(z1)",
    "compat.NTXentLoss(memory_bank=64)",
    "compat.SupConLoss(0.1).forward(z1, y, 3, reference=z2)",
    "compat.ClipLoss().forward(z1, z2)",
]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A Python whose site-packages hold what `pip install -e` puts there, and no torch."""
    folder = tmp_path_factory.mktemp("editable")
    source = folder / "source"
    shutil.copytree(
        ROOT / "selftaught", source / "selftaught", ignore=shutil.ignore_patterns("*.so", "__py*")
    )
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    # As pip's backend does; without csrc the native library is left out.
    subprocess.run(
        [sys.executable, "setup.py", "-q", "editable_wheel", "--dist-dir", str(folder)],
        cwd=source, check=True, capture_output=True,
    )  # fmt: skip
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True
    )
    python = next((folder / "venv").glob("[bS]*/python*"))
    show = "import sysconfig; print(sysconfig.get_path('purelib'))"
    where = subprocess.run([python, "-c", show], check=True, capture_output=True, text=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(where.stdout.strip())
    return python


def check(python, tmp_path, text):
    file = tmp_path / "theirs.py"
    file.write_text(text)
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(python)]
    command += ["--cache-dir", str(python.parents[1] / "cache"), str(file)]
    command += ["--disable-error-code", "import-not-found", "--config-file", ""]
    outside = {name: value for name, value in os.environ.items() if "PYTHON" not in name}
    done = subprocess.run(command, cwd=tmp_path, env=outside, capture_output=True, text=True)
    assert not done.stderr
    return [line for line in done.stdout.splitlines() if ": error: " in line]


def test_the_types_of_an_editable_install(installed, tmp_path):
    pytest.importorskip("mypy")
    text = RIGHT + "".join(f"{line}\n" for line in WRONG)
    first = len(RIGHT.splitlines()) + 1
    wrong = check(installed, tmp_path, text)
    assert [int(line.split(":")[1]) for line in wrong] == list(range(first, first + len(WRONG)))
