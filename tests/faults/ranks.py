"""Ranks of `selftaught run` as a launcher starts them.

Unless they are to be `whole`, their encoder is a thin one and their report has empty pictures:
everything else, from the first option to the exit code, is what a user starts.
"""

import functools
import os
import time
import traceback
from pathlib import Path

from tests.ranks import CONTEXT, free_port


class Started:
    """The ranks of one run."""

    def __init__(self, processes, folder):
        self.processes, self.folder = processes, folder

    def end(self, timeout=400):
        """Exit codes, in rank order."""
        limit = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(0.0, limit - time.monotonic()))
            if process.exitcode is None:
                process.kill()
                process.join()
        return [process.exitcode for process in self.processes]

    def said(self, rank):
        """What a rank wrote to stdout and stderr."""
        return (self.folder / f"{rank}.err").read_text()


def start(folder, arguments, world, fault=None, port=None, whole=False, command="run"):
    """`selftaught run` on `world` ranks.

    `fault(rank)` is called in each of them first; what it returns hears the run's events.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    faults = [one for one in (None if whole else be_lean, fault) if one]
    words = [command, *arguments]
    processes = [
        CONTEXT.Process(target=_rank, args=(rank, world, port, folder, words, faults))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    return Started(processes, Path(folder))


def _rank(rank, world, port, folder, words, faults):
    handle = os.open(folder / f"{rank}.err", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    if world > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    import torch

    from selftaught.cli.main import main

    torch.set_num_threads(1)
    try:
        listeners = [listener for fault in faults if (listener := fault(rank))]
        if listeners:
            listen(listeners)
        code = main(words)
    except BaseException:
        traceback.print_exc()
        code = 1
    # What interpreters do at their end, without this one's test framework.
    os._exit(code)


def listen(listeners):
    """Let the commands' runs tell `listeners` their events."""
    from selftaught.training import run

    def tell(event, **facts):
        for listener in listeners:
            listener(event, **facts)

    run.run = functools.partial(run.run, on_event=tell)


def be_lean(rank):
    """A thin encoder, and pictures that nobody draws."""
    from tests import thin

    thin.start()
