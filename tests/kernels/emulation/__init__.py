"""The CUDA kernels for tests: on a GPU, or on one that a host's C++ compiler emulates."""

import ctypes
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
import torch

from selftaught.kernels.cuda import build
from selftaught.kernels.cuda.library import Library, load
from selftaught.kernels.cuda.tiles import TILES

HERE = Path(__file__).parent
FLAGS = ("-std=c++17", "-O2", "-fPIC", "-shared", "-Wno-unknown-pragmas")


class EmulatedLibrary(Library):
    """A library whose GPU is the host: one multiprocessor, with the instructions of sm_90a."""

    def start(self, launch, device):
        return launch(None)

    def processors(self, device):
        return 1

    def capability(self, device):
        return (9, 0)


@cache
def compile_emulation(folder: Path) -> Path:
    """Builds the emulated library with g++, or skips the test where there is none.

    One process builds it for all that test side by side.
    """
    import fcntl

    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to compile the emulation of the CUDA kernels")
    library = folder / "emulated.so"
    folders = [f"-I{folder}" for folder in (HERE, build.SOURCE.parent)]
    made = library.with_suffix(".part")
    with (folder / "emulated.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            command = [compiler, *FLAGS, *folders, HERE / "library.cpp", "-o", made]
            subprocess.run(command, check=True)
            made.rename(library)
    return library


class Machine:
    """Where the kernels run: the library, the device, and what only the emulation can tell."""

    tiles = TILES

    def __init__(self, folder: Path | None) -> None:
        self.device = torch.device("cuda" if folder is None else "cpu")
        self.raw = None
        if folder is None:
            found = load()
            if isinstance(found, str):
                pytest.skip(found)
            self.library = found
        else:
            path = compile_emulation(folder)
            self.library, self.raw = EmulatedLibrary(path), ctypes.CDLL(str(path))

    def seed(self, seed: int) -> None:
        """Shuffles the order of threads and copies, where it can be chosen."""
        if self.raw is not None:
            self.raw.selftaught_seed(seed)

    def conflicts(self) -> int:
        """Bank conflicts so far."""
        return 0 if self.raw is None else self.raw.selftaught_conflicts()
