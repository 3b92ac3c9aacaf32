"""Decode every image once before a long run, so that a bad file stops it in its first minute."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from selftaught.data.decode import BadImage, read_grey
from selftaught.errors import InputError


def check_images(
    paths: Sequence[Path],
    *,
    workers: int | Literal["auto"] = "auto",
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Read all files strictly.

    Args:
        paths: image or mask files.
        workers: threads; auto = one for each core.
        stop: asked before each file; once it is true the rest is left unread.

    Raises:
        InputError: names the first bad file with its reason and counts the others.
    """

    def problem(path: Path) -> str:
        if stop():
            return ""
        try:
            read_grey(path)
        except BadImage as error:
            return str(error)
        return ""

    threads = (os.cpu_count() or 1) if workers == "auto" else max(workers, 1)
    with ThreadPoolExecutor(threads) as pool:
        bad = [text for text in pool.map(problem, paths) if text]
    if bad:
        others = f" ({len(bad)} of {len(paths)} files cannot be read)" if len(bad) > 1 else ""
        raise InputError(bad[0] + others)
