"""Builds the CUDA library with nvcc: `python -m selftaught.kernels.cuda.build [nvcc options]`.

The result holds machine code for sm_80, sm_90a and sm_100, and intermediate code that drivers
translate for chips between and after them. nvcc is the one in CUDA_HOME, else the one on the path.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from selftaught.errors import InputError, MachineError
from selftaught.kernels.cuda.library import LIBRARY

ARCHITECTURES = ("80", "90a", "100")  # the oldest first
SOURCE = Path(__file__).parents[3] / "csrc" / "cuda" / "library.cu"
FLAGS = ("-std=c++17", "-O3", "-cudart", "static", "-Xcompiler", "-fPIC,-fvisibility=hidden")


def find_nvcc() -> str | None:
    """Path of nvcc, or None."""
    home = os.environ.get("CUDA_HOME")
    inside = shutil.which("nvcc", path=str(Path(home) / "bin")) if home else None
    return inside or shutil.which("nvcc")


def targets(architectures: Sequence[str] = ARCHITECTURES) -> list[str]:
    """Options of nvcc for machine code for each, and intermediate code for the first."""
    options = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
    first = architectures[0]
    return [*options, f"-gencode=arch=compute_{first},code=compute_{first}"]


def build(output: Path = LIBRARY, options: Sequence[str] = ()) -> str:
    """Builds the library.

    Args:
        output: the file to write; a library that is in use keeps working.
        options: further options for nvcc.

    Returns:
        What nvcc said.

    Raises:
        InputError: the sources or nvcc are not there.
        MachineError: nvcc failed.
    """
    if not SOURCE.is_file():
        raise InputError("the CUDA sources are not part of this installation; use a checkout")
    nvcc = find_nvcc()
    if nvcc is None:
        raise InputError("nvcc: not found in CUDA_HOME or on the path; install the CUDA toolkit")
    fresh = output.with_name(f".{output.name}.{os.getpid()}")
    command = [nvcc, *FLAGS, *targets(), "--threads", "0", "-shared", *options]
    try:
        done = subprocess.run(
            [*command, "-o", str(fresh), str(SOURCE)], capture_output=True, text=True, check=False
        )
        log = (done.stdout + done.stderr).strip()
        if done.returncode:
            raise MachineError(f"nvcc ended with {done.returncode}: {log}")
        fresh.replace(output)
    finally:
        fresh.unlink(missing_ok=True)
    return log


def main(arguments: Sequence[str]) -> int:
    """Builds where the package looks for it; 0, or the exit code of the error."""
    try:
        log = build(options=arguments)
    except (InputError, MachineError) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, InputError) else 3
    print(f"{log}\n{LIBRARY.name} built".strip())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
