"""How many workers a job gets, and work that several processes share."""

import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context, parent_process, resource_tracker
from pathlib import Path
from typing import Any, Literal, TypeVar

from selftaught.errors import InputError, MachineError

Result = TypeVar("Result")


def available_cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def worker_count(workers: int | Literal["auto"]) -> int:
    """Number of threads for `data.workers`: auto = the cores this process may use.

    Raises:
        InputError: neither "auto" nor a number from 0 to 1024.
    """
    if workers == "auto":
        return available_cores()
    if isinstance(workers, bool) or not isinstance(workers, int) or not 0 <= workers <= 1024:
        raise InputError(f"data.workers {workers!r}: allowed: auto, or 0 (no threads) to 1024")
    return workers


def work_side_by_side(
    work: Callable[..., Result],
    tasks: Sequence[tuple[Any, ...]],
    *,
    workers: int,
    folder: Path,
    remedy: str,
) -> Generator[tuple[int, Result], None, None]:
    """Call `work(*task)` for every task, here where there is one worker, else in processes.

    Close the generator to stop early: processes that work on something are killed.

    Args:
        work: a function of a module, with arguments and result that can be pickled.
        tasks: arguments of each call.
        workers: number of processes.
        folder: what is written, for the message about a killed worker.
        remedy: what to do about it.

    Yields:
        The position of a finished task and its result, as they finish.

    Raises:
        MachineError: a worker was killed from outside; says where and what to do.
    """
    if workers <= 1 or len(tasks) < 2:
        for position, task in enumerate(tasks):
            yield position, work(*task)
        return
    others = set(active_children())
    _start_tracker()
    pool = ProcessPoolExecutor(
        min(workers, len(tasks)), mp_context=get_context("spawn"), initializer=_start_worker
    )
    try:
        waiting: dict[Future[Result], int] = {
            pool.submit(work, *task): position for position, task in enumerate(tasks)
        }
        while waiting:
            # A short wait lets a signal be answered.
            finished, _ = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in finished:
                yield waiting.pop(future), future.result()
    except BrokenProcessPool as error:
        raise MachineError(f"{folder}: a worker was killed (out of memory?); {remedy}") from error
    except BaseException:
        # Nobody waits for their results: what is not finished is done again.
        for worker in set(active_children()) - others:
            worker.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Set up a process: one thread, signals ignored, ended when its parent ends."""
    import cv2

    cv2.setNumThreads(1)
    # Ctrl-C and job schedulers reach all processes of a group; the parent alone decides.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    parent = parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _start_tracker() -> None:
    """Start Python's watcher over the resources of workers so that it ignores USR1.

    Python makes it ignore TERM and INT itself. USR1, sent to the whole process group, would end it
    with a traceback.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGUSR1"):
        return
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        resource_tracker.ensure_running()
    finally:
        signal.signal(signal.SIGUSR1, before)
