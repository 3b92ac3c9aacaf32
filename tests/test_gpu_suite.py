"""What runs on a GPU, rehearsed without one; what its gates and its honest peers do."""

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from benchmarks import gpu_phases, gpu_suite, gpu_tools, peers
from benchmarks.gpu_gates import GATES
from benchmarks.ntxent import inputs, sampled_truth, truth
from benchmarks.record import Rows

ROOT = Path(__file__).parents[1]
# A GPU machine's own Python has torch, numpy and triton; nothing else may be needed.
ABSENT = """
import sys
ABSENT = {"pandas", "jsonargparse", "nvidia.dali", "faiss", "sklearn", "scipy", "matplotlib", "cv2",
          "torchvision", "pydicom", "rich", "safetensors", "PIL", "pytest", "tensorboard"}
class Present:
    def find_spec(self, name, path=None, target=None):
        return None if name in ABSENT else files.find_spec(name, path, target)
files = sys.meta_path[-1]
sys.meta_path[-1] = Present()
"""


def rows_of(folder):
    with (folder / "gpu.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


@pytest.mark.timeout(900)
def test_every_phase_on_torch_numpy_and_triton_alone(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(ABSENT)
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_suite", "--rehearse", "--out", out],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    log = (out / "log.txt").read_text()
    assert done.returncode == 0, done.stdout + done.stderr + log[-3000:]
    rows = rows_of(out)
    assert {row["phase"] for row in rows} == set(gpu_suite.LIMITS)
    assert not [row for row in rows if "failed" in row["note"]]
    assert [row["note"] for row in rows if row["phase"] == "tests"] == [
        "skipped: pytest is not installed"
    ]
    measured = [row for row in rows if row["phase"] == "ntxent" and row["mode"]]
    names = {"selftaught triton fp16", "eager", "torch.compile"}
    assert {(row["provider"], row["mode"]) for row in measured} == {
        (name, mode) for name in names for mode in ("forward", "backward", "full")
    }
    assert all(float(row["gradient_error"]) < 5e-3 for row in measured)
    assert all(row["device"] == row["host"] != "" and row["triton"] for row in rows)
    assert (out / "gates.txt").read_text() in done.stdout


def hang(run):
    run.rows.add(phase="build", note="before")
    gpu_tools.command(run, ["sleep", "300"], 200, "sleep")


def fail(run):
    run.rows.add(phase="build", note="before")
    raise RuntimeError("as planned")


@pytest.mark.parametrize("work, word", [(hang, "limit of 2 s"), (fail, "failed with 1")])
def test_a_phase_that_hangs_or_fails_leaves_its_rows_and_no_process(
    tmp_path, monkeypatch, work, word
):
    monkeypatch.setattr(gpu_tools, "build", work)
    before = time.monotonic()
    assert word in gpu_suite.run_phase("build", tmp_path, True, 2)
    assert time.monotonic() - before < 30
    assert [row["note"] for row in rows_of(tmp_path)] == ["before"]
    if work is fail:
        assert "as planned" in (tmp_path / "log.txt").read_text()
    left = subprocess.run(["pgrep", "-f", "^sleep 300$"], capture_output=True, text=True).stdout
    assert not left


def suite_rows(path, *rows):
    table = Rows(path / "gpu.csv", gpu_suite.COLUMNS, triton="3.6.0")
    for row in rows:
        table.add(**row)


def test_gates_are_told_from_the_rows_they_are_about(tmp_path):
    assert not any(line.startswith(("pass", "FAIL")) for line in gpu_suite.judge(tmp_path)[0])
    full = {"phase": "ntxent", "kernel": "ntxent", "mode": "full", "extra_mb": 100.0}
    rows = [
        full | {"provider": f"selftaught triton {tier}", "shape": f"{size}x128", "ms_median": ms,
                "share": share, "dtype": tier}
        for size in (16_384, 32_768, 65_536)
        for tier, ms, share in (("fp16", 1.0, 0.6), ("fp32", 4.0, 0.2))
    ]  # fmt: skip
    rows += [
        full | {"provider": name, "shape": "16384x128", "ms_median": ms}
        for name, ms in (("eager", 19.0), ("eager bf16 autocast", 13.0))
    ]
    for dtype, share in (("bfloat16", 0.71), ("float32", 0.69)):
        rows.append(
            {"phase": "mad", "provider": "selftaught cuda", "mode": "full", "ms_median": 1.0,
             "shape": "1000000x100x128", "dtype": dtype, "share": share}
        )  # fmt: skip
    suite_rows(tmp_path, *rows)
    lines, good = gpu_suite.judge(tmp_path)
    told = {gate.name: line.split()[0] for gate, line in zip(GATES, lines, strict=True)}
    assert not good
    assert {name: word for name, word in told.items() if word != "not"} == {
        "NT-Xent forward+backward, Triton, 16,384 rows and more": "pass",
        "NT-Xent, 16,384 rows, over eager fp32": "FAIL",
        "NT-Xent, 16,384 rows, over eager bf16": "pass",
        "memory at 65,536 rows beside the gradient": "FAIL",
        "MAD loss, 1e6 x 100 x 128, bf16": "pass",
        "MAD loss, 1e6 x 100 x 128, fp32": "FAIL",
    }
    suite_rows(tmp_path, {"phase": "mad", "provider": "selftaught cuda", "note": "failed: why"})
    assert gpu_suite.judge(tmp_path)[0][-1] == "FAIL mad, selftaught cuda, : failed: why"
    # What was measured last counts.
    suite_rows(tmp_path, *(row | {"share": 0.5} for row in rows if row["shape"] == "32768x128"))
    assert "FAIL" in gpu_suite.judge(tmp_path)[0][1]


def test_warpgroups_are_timed_only_where_they_were_right(tmp_path):
    begun, right, end = (
        {"phase": "wgmma", "note": note} for note in ("begun", "right", gpu_phases.ALL_RIGHT)
    )
    run = gpu_tools.Run(
        tmp_path, Rows(tmp_path / "gpu.csv", gpu_suite.COLUMNS), torch.device("cpu")
    )
    assert not gpu_phases._wgmma_is_right(run)
    suite_rows(tmp_path, begun, right)  # then it hung
    assert not gpu_phases._wgmma_is_right(run)
    suite_rows(tmp_path, begun, right, end)
    assert gpu_phases._wgmma_is_right(run)
    suite_rows(tmp_path, begun)
    assert not gpu_phases._wgmma_is_right(run)


def test_without_a_gpu_one_line_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu_suite", "--out", str(tmp_path)])
    assert gpu_suite.main() == 2
    assert "build: no CUDA device here; --rehearse" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["gpu_suite", "--out", str(tmp_path), "--phases", "tests,mat"])
    with pytest.raises(SystemExit):
        gpu_suite.main()
    assert "got 'mat', allowed are build, tests" in capsys.readouterr().err


@pytest.mark.parametrize("noise, tau", [(1.0, 0.5), (0.25, 0.07)])
def test_sampled_truth_is_that_of_the_whole_matrix(noise, tau):
    views = inputs(90, 17, torch.device("cpu"), noise)
    value, gradient = truth("ntxent", views, tau)
    chosen = torch.tensor([0, 44, 45, 89, 7])
    some = sampled_truth(views, tau, chosen)
    assert some[0] == pytest.approx(value, rel=1e-12)
    torch.testing.assert_close(some[1], gradient[chosen], rtol=1e-9, atol=1e-15)


def test_what_is_called_compiled_is_compiled(monkeypatch):
    monkeypatch.setattr(peers.Compiled, "backend", "eager")
    # Not monkeypatch, which cannot undo it on this kind of module.
    with torch._dynamo.config.patch(recompile_limit=3):
        called_once_a_shape()


def called_once_a_shape():
    twice = peers.Compiled(lambda x: 2 * x)
    peers.new_shape()
    for size in (2, 3, 4):
        assert twice(torch.ones(size)).sum() == 2 * size
    assert peers.graphs() == 3
    with pytest.raises(Exception, match="fullgraph"):  # torch.compile alone goes on in eager mode
        twice(torch.ones(5))
    peers.new_shape()
    assert peers.graphs() == 0 and twice(torch.ones(5)).sum() == 10 and peers.graphs() == 1
