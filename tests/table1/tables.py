"""Tables whose runs are stand-ins, and workers that carry them out."""

import json
import multiprocessing
import os
import sys
from pathlib import Path

from selftaught import methods
from selftaught.methods import System
from selftaught.table1 import plan
from selftaught.table1.plan import Planned, claim_table, extend
from selftaught.table1.worker import Means, Worker
from selftaught.training.config import build
from selftaught.training.stop import Stopper, StopRun

STAND_IN = (sys.executable, str(Path(__file__).with_name("stand_in.py")))
FORK = multiprocessing.get_context("fork")


def rows(names=("ours", "uni-modal", "supcon"), budgets=(0.05,), **values):
    """Rows of systems, with settings by section in `values`."""
    found = {}
    for name in names:
        system: System = methods.systems()[name]
        sections = {"pretext": {"method": system.pretext}, "finetune": {"method": system.finetune}}
        for option, value in system.changes.items():
            stage, _, inner = option.partition(".")
            sections[stage][inner] = value
        for section, given in values.items():
            sections[section] = {**sections.get(section, {}), **given}
        config = build({"out": "x", "data": {"manifest": "m.csv"}, **sections})
        found[name] = Planned(system=system, config=config, budgets=budgets)
    return found


def make(folder, names=("ours", "uni-modal", "supcon"), seeds=(1, 11), orders=None, **more):
    """A planned table in a folder, whose runs end as ordered; its path and cells."""
    out = folder / "table"
    (folder / "orders.json").write_text(json.dumps(orders or {}))
    made = rows(names, **more)
    claim_table(out, next(iter(made.values())).config, "m")
    return out, extend(out, made, seeds=seeds, label_draws=1, manifest="m")


def carry_out(out, only="", **means):
    """Work as a worker does, in this process; the plan afterwards."""
    stopper = Stopper()
    return Worker(out, plan.read_plan(out), Means(command=STAND_IN, **means), stopper).work(only)


def start(out, **means):
    """A worker as a process of its own, in a process group of its own."""
    process = FORK.Process(target=_work, args=(out, means))
    process.start()
    return process


def _work(out, means):
    os.setpgrp()
    stopper, code = Stopper().install(), 1
    try:
        Worker(out, plan.read_plan(out), Means(command=STAND_IN, **means), stopper).work()
        code = 0
    except StopRun as stop:
        code = stop.code
    finally:
        os._exit(code)


def lines(out, word):
    """Cells in the log after a word, in order."""
    text = (out.parent / "log.txt").read_text() if (out.parent / "log.txt").exists() else ""
    return [line.split()[1] for line in text.splitlines() if line.startswith(f"{word} ")]


def table(out):
    """What a table is made of: the plan, and the scores of its runs."""
    cells = plan.read_plan(out)
    scores = {cell.run: out / cell.run / "scores.csv" for cell in cells}
    return cells, {run: path.read_bytes() if path.exists() else b"" for run, path in scores.items()}
