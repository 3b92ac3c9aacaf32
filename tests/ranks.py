"""Runs a function on several gloo ranks of this machine and gives back what each returned.

Ranks are forked from one process that has imported what takes seconds to import.
"""

import multiprocessing
import os
import pickle
import socket
import tempfile
import traceback
from pathlib import Path

import torch

from selftaught import distributed, methods

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "tests.faults.no_gpu",
        "pytest",
        "tests.faults.ranks",
        "tests.faults.injected",
        "tests.thin",
        "selftaught.cli.run",
        "selftaught.training.run",
        "selftaught.data.prepare.job",
        # Imported by a run when it comes to need them, seconds in all.
        "selftaught.data.pipeline.opencv",
        "selftaught.kernels.cpp",
        *(f"selftaught.methods.{name}" for name in methods.names()),
        "deepspeed",
        "deepspeed.module_inject.auto_ep_layer",
        "deepspeed.ops.op_builder.all_ops",
        "deepspeed.runtime.zero.stage_1_and_2",
        "torch._inductor.compile_fx",
        "torch.utils.cpp_extension",
        "torch.utils.tensorboard",
        "torch.utils.flop_counter",
        "attrs",
        "docstring_parser",
        "jinja2.loaders",
        "jsonargparse",
        "faiss",
        "matplotlib.pyplot",
        "narwhals._pandas_like.namespace",
        "pyarrow.pandas_compat",
        "sklearn.metrics",
        "sklearn.manifold",
        "scipy.stats",
    ]
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _work(rank, world, port, folder, function, arguments):
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "CUDA_VISIBLE_DEVICES": "",
    }
    torch.set_num_threads(1)
    try:
        distributed.start(timeout_seconds=120)
        result = function(*arguments)
        distributed.finish()
        (Path(folder) / f"{rank}.pickle").write_bytes(pickle.dumps(result))
    except BaseException:
        (Path(folder) / f"{rank}.error").write_text(traceback.format_exc())
        raise SystemExit(1) from None


def start_ranks(world, function, *arguments):
    """Processes that run `function(*arguments)`, and where they leave what it returns."""
    folder, port = tempfile.mkdtemp(), free_port()
    processes = [
        CONTEXT.Process(
            target=_work, args=(rank, world, port, folder, function, arguments), daemon=True
        )
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    return processes, Path(folder)


def results_of(processes, folder, timeout=240):
    """What each rank returned, in rank order; fails with the first rank's traceback."""
    for process in processes:
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
    errors = sorted(folder.glob("*.error"))
    assert not errors, "\n".join(path.read_text() for path in errors)
    return [
        pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(len(processes))
    ]


def run_ranks(world, function, *arguments):
    """`function(*arguments)` on `world` ranks; what each returned, in rank order."""
    return results_of(*start_ranks(world, function, *arguments))
