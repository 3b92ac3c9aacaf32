"""All figures of one GPU in twelve minutes: phases with a time limit, one CSV, gates.

python -m benchmarks.gpu_suite --out DIR [--phases build,tests,...] [--rehearse]

Needs torch, numpy and triton; nvcc, pytest, compute-sanitizer, ncu, FAISS and other libraries are
taken where they are. Every phase is a process, so that a kernel that hangs costs its phase only,
and every row is in DIR/gpu.csv as soon as it is measured. `--rehearse` takes every step on a CPU,
in Triton's interpreter at sizes that mean nothing. Phases may be run one after the other into the
same DIR. The exit code is 1 where a phase failed or a gate was missed.
"""

import argparse
import contextlib
import csv
import importlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from pathlib import Path

from benchmarks.gpu_gates import GATES, Table

# Seconds that a phase may take, in the order that lets the most important come first.
LIMITS = {
    "build": 60,
    "tests": 150,
    "wgmma": 40,
    "ntxent": 200,
    "mad": 60,
    "million": 20,
    "sanitizer": 80,
    "ncu": 80,
    "search": 30,
    "shapes": 200,
}
NO_DEVICE, NO_GPU = 3, "no CUDA device here; --rehearse takes every step on a CPU"
BY_NAME_ONLY = ("shapes",)  # for the second visit; the others are twelve minutes at most
COLUMNS = (
    *("phase", "kernel", "provider", "mode", "shape", "dtype"),
    *("ms_median", "ms_p20", "ms_p80", "graph", "launches", "host_ms", "extra_mb"),
    *("loss_error", "gradient_error", "gradient_error_small_loss", "rate", "ceiling", "share"),
    "note",
)


def _phase(name: str, out: Path, rehearse: bool) -> None:
    """What a phase's process does; its output goes to the log."""
    os.setpgid(0, 0)  # one group to end, in the session of whoever started the suite
    log = (out / "log.txt").open("a", buffering=1)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    sys.stdout = sys.stderr = log
    print(f"== {name}", flush=True)
    try:
        import torch
        import triton

        if not rehearse and not torch.cuda.is_available():
            os._exit(NO_DEVICE)
        from benchmarks import gpu_phases, gpu_tools, peers
        from benchmarks.record import Rows

        if rehearse:
            peers.Compiled.backend = "eager"
        rows = Rows(out / "gpu.csv", COLUMNS, triton=triton.__version__)
        run = gpu_tools.Run(out, rows, torch.device("cpu" if rehearse else "cuda"))
        module = gpu_phases if hasattr(gpu_phases, name) else gpu_tools
        getattr(module, name)(run)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def run_phase(name: str, out: Path, rehearse: bool, limit: float) -> str:
    """Run a phase to its end or limit; "ok", or how it failed."""
    # Forked from here, where CUDA was never begun: torch is loaded once, not once a phase.
    process = multiprocessing.get_context("fork").Process(
        target=_phase, args=(name, out, rehearse), daemon=False
    )
    process.start()
    try:
        process.join(limit)
        if process.exitcode == 0:
            return "ok"
        if process.exitcode == NO_DEVICE:
            return NO_GPU
        if process.exitcode is None:
            return f"ran past its limit of {limit:.0f} s"
    finally:
        # Whatever it started goes too.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.join(10)
    return f"failed with {process.exitcode}, see log.txt"


def judge(out: Path) -> tuple[list[str], bool]:
    """A line for each gate, then for what failed of ours; whether none was missed or failed."""
    path, rows = out / "gpu.csv", []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as handle:
            rows = list(csv.DictReader(handle))
    table, lines, good = Table(rows), [], True
    for gate in GATES:
        value = gate.value(table)
        passed = value is not None and gate.passes(value)
        word = "not measured" if value is None else "pass" if passed else "FAIL"
        good &= value is None or passed
        shown = "" if value is None else f": {value:.3g} {gate.unit}".rstrip()
        bound = f"{'at least' if gate.least else 'at most'} {gate.bound:g}"
        lines.append(f"{word:12} {gate.name}{shown} (gate {bound} {gate.unit})".replace(" )", ")"))
    for row in rows:
        if row["note"].startswith("failed") and row["provider"].startswith("selftaught"):
            good = False
            lines.append(f"FAIL {row['phase']}, {row['provider']}, {row['shape']}: {row['note']}")
    return lines, good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--phases", help=f"some of {','.join(LIMITS)}")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, at sizes of no meaning")
    chosen = parser.parse_args()
    names = chosen.phases.split(",") if chosen.phases else [
        name for name in LIMITS if chosen.rehearse or name not in BY_NAME_ONLY
    ]  # fmt: skip
    for name in names:
        if name not in LIMITS:
            parser.error(f"--phases: got {name!r}, allowed are {', '.join(LIMITS)}")
    chosen.out.mkdir(parents=True, exist_ok=True)
    if chosen.rehearse:
        os.environ |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    # Loaded once for all phases; nothing here may begin CUDA, as the rest might.
    for name in ("torch", "torch._dynamo", "benchmarks.gpu_phases")[: 3 if chosen.rehearse else 1]:
        importlib.import_module(name)
    states = {}
    for name in names:
        start = time.monotonic()
        limit = LIMITS[name] * (5 if chosen.rehearse else 1)  # a CPU may be busy
        states[name] = run_phase(name, chosen.out, chosen.rehearse, limit)
        print(f"{name}: {states[name]}, {time.monotonic() - start:.0f} s", flush=True)
        if states[name] == NO_GPU:
            return 2
    gates, good = judge(chosen.out)
    if chosen.rehearse:
        gates = ["a rehearsal: no figure means anything", *gates]
    failed = [name for name, state in states.items() if state != "ok"]
    summary = [*gates, f"phases that failed: {', '.join(failed) or 'none'}"]
    (chosen.out / "gates.txt").write_text("\n".join(summary) + "\n")
    print("\n".join(summary))
    return int(bool(failed) or not good)


if __name__ == "__main__":
    sys.exit(main())
