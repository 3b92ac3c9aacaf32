"""`selftaught score MODEL` on one and two ranks: signals, uneven shares, a full device."""

import importlib
import os
import signal

import pandas as pd
import pytest
import torch

from selftaught.cli import score as score_command
from selftaught.cli.main import main
from tests.faults import ranks
from tests.tiny import write_images, write_model

pytestmark = pytest.mark.usefixtures("thin_encoder")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("run") / "model")


class SmallBatches:
    """Batches of `size`; at batch `at` of rank `rank` the signal `number`, or none."""

    def __init__(self, size, rank=-1, at=0, number=0):
        self.size, self.rank, self.at, self.number = size, rank, at, number

    def __call__(self, rank):
        module = importlib.import_module("selftaught.cli.score")
        module.BATCH = self.size
        watched, batch = module._Watched, module._Watched.batch

        def signalled(self_, count=0):
            if rank == self.rank and self_.number == self.at:
                os.kill(os.getpid(), self.number)
            batch(self_, count)

        watched.batch = signalled


def started(model, folder, count, world, fault):
    source = write_images(folder / "images", count)
    words = [str(model), "--data.manifest", str(source), "--out", str(folder / "scores.csv")]
    return ranks.start(folder / "ranks", words, world, fault, command="score")


@pytest.mark.parametrize(
    ("number", "code", "world", "rank"),
    [("SIGINT", 130, 1, 0), ("SIGTERM", 143, 2, 1), ("SIGUSR1", 143, 2, 0)],
)
def test_a_signal_on_any_rank_ends_all_in_one_line(model, tmp_path, number, code, world, rank):
    fault = SmallBatches(4, rank, 2, getattr(signal, number))
    job = started(model, tmp_path, 48, world, fault)
    assert job.end(120) == [code] * world, job.said(0)
    for one in range(world):
        assert job.said(one).splitlines() == [
            "selftaught: stopped by a signal; no score was written, the same command begins anew"
        ]
    assert not (tmp_path / "scores.csv").exists()


@pytest.mark.parametrize("count", [2, 9])
def test_uneven_shares_are_scored_once_each(model, tmp_path, count):
    # 9 in batches of 4: one rank has a batch more than the other.
    job = started(model, tmp_path, count, 2, SmallBatches(4))
    assert job.end(120) == [0, 0], job.said(0) + job.said(1)
    out = tmp_path / "alone.csv"
    words = ["score", str(model), "--data.manifest", str(tmp_path / "images" / "manifest.csv")]
    assert main([*words, "--out", str(out)]) == 0
    both, alone = pd.read_csv(tmp_path / "scores.csv"), pd.read_csv(out)
    assert both["path"].tolist() == alone["path"].tolist()
    assert both["score"].to_numpy() == pytest.approx(alone["score"].to_numpy(), rel=1e-5)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB.\nmore"), "CUDA out of memory."),
        (torch.AcceleratorError("CUDA error: ECC\nmore", 2), "the device failed: CUDA error: ECC"),
        (RuntimeError("[x] DefaultCPUAllocator: can't allocate memory: 9 bytes"), "can't allocate"),
        (MemoryError(), "out of memory: no more memory"),
    ],
)
def test_memory_and_devices_that_fail_end_with_3(model, tmp_path, monkeypatch, capsys, error, said):
    def fails(*_):
        raise error

    monkeypatch.setattr(score_command._Watched, "batch", fails)
    source, out = write_images(tmp_path / "images", 3), tmp_path / "scores.csv"
    assert main(["score", str(model), "--data.manifest", str(source), "--out", str(out)]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line and "more" not in line.removesuffix("there").replace("no more", "")
    assert "what was saved is intact, the same command goes on from there" in line


def test_other_runtime_errors_are_faults_of_the_program(model, tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError("sizes do not match")

    monkeypatch.setattr(score_command._Watched, "batch", fails)
    source, out = write_images(tmp_path / "images", 3), tmp_path / "scores.csv"
    with pytest.raises(RuntimeError, match="sizes do not match"):
        main(["score", str(model), "--data.manifest", str(source), "--out", str(out)])
