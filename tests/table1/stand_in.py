"""In place of `selftaught`: a run without torch that takes a moment and ends as it is ordered to.

`orders.json` beside the table says by cell what each attempt is: an exit code, "sleep" to go on
until a signal, or "slow": a first stage that is still trained while two other systems' begin.
`log.txt` gets a line at each start and end.
"""

import csv
import fcntl
import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path


def main():
    command, *words = sys.argv[1:]
    assert command == "run"
    options = dict(zip(words[::2], words[1::2], strict=True))
    run = Path(options["--out"])
    table = next(path for path in run.parents if (path / "plan.csv").exists())
    cell = str(run.relative_to(table / "cells"))
    run.mkdir(parents=True, exist_ok=True)
    with (run / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # two in one folder: a traceback
        work(run, table, cell)


def work(run, table, cell):
    signal.signal(signal.SIGTERM, lambda *_: stop(table, cell))
    taken = (run / "checkpoints" / "pretext").exists()
    begun = (run / "config.yaml").exists()
    attempt = write(table, f"start {cell} {'taken' if taken else 'own'}", cell)
    orders = json.loads((table.parent / "orders.json").read_text())
    order = ([*orders.get(cell, []), 0, 0, 0, 0, 0, 0, 0, 0])[attempt]
    if not begun:
        (run / "split.csv").write_text("path,split\na.png,test\n")
        digest = hashlib.sha256((run / "split.csv").read_bytes()).hexdigest()
        facts = {"split_sha256": digest, "manifest_sha256": "m", "image_root": "/"}
        (run / "environment.json").write_text(json.dumps(facts))
        (run / "config.yaml").write_text("seed: 1\n")
    end(order, "before the first stage", 12)
    if not taken:
        while order == "slow" and log(table).count("start supcon") < 2:
            time.sleep(0.05)
        time.sleep(3 if order == "slow" else 0.3)
        step = run / "checkpoints" / "pretext" / "step-00000001"
        step.mkdir(parents=True)
        (step / "weights.safetensors").write_text(cell)
        line = {"stage": "pretext", "kind": "epoch"}
        (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    (run / "checkpoints" / "finetune").mkdir(exist_ok=True)
    while order == "sleep":
        time.sleep(0.05)
    end(order, "in the second stage")
    time.sleep(0.2)
    with (run / "scores.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows([("path", "score"), ("a.png", cell)])
    digest = hashlib.sha256((run / "scores.csv").read_bytes()).hexdigest()
    (run / "metrics.json").write_text(json.dumps({"scores_sha256": digest}))
    (run / "report.html").touch()
    write(table, f"end {cell}", cell)


def end(order, where, early=0):
    """End with the code that was ordered; codes from 12 on are for before the first stage."""
    if order in (early + 2, early + 3):
        memory = "" if "MEMORY" not in os.environ else "out of memory: 1 GiB; "
        print(f"selftaught: {memory}ordered {where}", file=sys.stderr)
        raise SystemExit(order - early)


def stop(table, cell):
    write(table, f"stopped {cell}", cell)
    print("selftaught: stopped by a signal; saved", file=sys.stderr)
    raise SystemExit(143)


def log(table):
    return (table.parent / "log.txt").read_text()


def write(table, line, cell):
    """Append to the log; the number of starts of a cell before."""
    path = table.parent / "log.txt"
    with path.open("a+") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        handle.seek(0)
        before = sum(one.startswith(f"start {cell} ") for one in handle)
        handle.write(line + "\n")
    return before


main()
