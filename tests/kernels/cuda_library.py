"""The CUDA kernels for tests: on a host compiler's emulation, or on a GPU."""

import ctypes
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
import torch

from selftaught.kernels.cuda import build
from selftaught.kernels.cuda.library import Library, load
from selftaught.kernels.cuda.tiles import CudaTiles

FLAGS = ("-std=c++17", "-O2", "-fPIC", "-shared", "-Wno-unknown-pragmas", "-x", "c++")


def compile_emulation(folder: Path, *options: str, source: Path = build.SOURCE) -> Path:
    """Builds the emulated library with g++, or skips the test where there is none."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to compile the emulation of the CUDA kernels")
    library = folder / "emulated.so"
    command = [compiler, *FLAGS, *options, str(source), "-o", str(library)]
    subprocess.run(command, check=True)
    return library


@cache
def _emulated(folder: Path) -> tuple[Library, ctypes.CDLL]:
    path = compile_emulation(folder)
    return Library(path), ctypes.CDLL(str(path))


class Machine:
    """Where the kernels run: the tiles, the device, and what only the emulation can tell."""

    def __init__(self, folder: Path | None) -> None:
        self.device = torch.device("cuda" if folder is None else "cpu")
        if folder is None:
            found = load()
            if isinstance(found, str):
                pytest.skip(found)
            self.library, self.raw = found, None
        else:
            self.library, self.raw = _emulated(folder)
        self.tiles = CudaTiles(lambda: self.library)

    def seed(self, seed: int) -> None:
        """Shuffles the order of threads and copies, where it can be chosen."""
        if self.raw is not None:
            self.raw.selftaught_seed(seed)

    def conflicts(self) -> int:
        """Bank conflicts so far."""
        return 0 if self.raw is None else self.raw.selftaught_conflicts()
