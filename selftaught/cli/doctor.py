"""`selftaught doctor`: what this machine has, which backend each op takes, and why."""

import importlib.util
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from selftaught import __version__, distributed
from selftaught.errors import InputError
from selftaught.workers import available_cores

# Package, module, what it is for.
PARTS = (
    ("torch", "torch", "tensors and losses"),
    ("torchvision", "torchvision", "ResNet"),
    ("triton", "triton", "GPU kernels"),
    ("faiss-gpu", "faiss", "k-means and neighbours"),
    ("faiss-cpu", "faiss", "k-means and neighbours where faiss-gpu does not exist"),
    ("opencv-python-headless", "cv2", "decoding and augmentation"),
    ("nvidia-dali-cuda130", "nvidia.dali", "GPU decoding and augmentation"),
    ("deepspeed", "deepspeed", "ZeRO engine"),
    ("pydicom", "pydicom", "DICOM"),
    ("python-gdcm", "gdcm", "lossless JPEG and JPEG-LS in DICOM"),
    ("pandas", "pandas", "manifests"),
    ("scikit-learn", "sklearn", "metrics"),
    ("matplotlib", "matplotlib", "figures of the report"),
    ("tensorboard", "tensorboard", "optional logger"),
)


def installed(package: str, module: str) -> str:
    """A package's version, or that it is missing, without importing it."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    try:
        return version(package) if spec else "missing"
    except PackageNotFoundError:
        return "missing"


def topology() -> list[str]:
    """How the GPUs of this machine are joined, as nvidia-smi draws it; nothing without it."""
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        answer = subprocess.run(
            ["nvidia-smi", "topo", "-m"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ["nvidia-smi topo -m: no answer"]
    return [line for line in answer.stdout.splitlines() if line.strip()]


def fabric() -> list[str]:
    """What carries gradients between ranks here, and what a launcher has announced."""
    backend = distributed.best_backend()
    if not backend:
        return ["backend: none, this torch has no torch.distributed; one process only"]
    norms = "torch's" if backend == "nccl" else "selftaught's, as torch's needs NCCL"
    lines = [f"backend: {backend}; batch norm over ranks: {norms}"]
    lines.append(f"NCCL: {distributed.nccl()}")
    names = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_JOB_ID")
    settings = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
    settings += [
        f"{k}={v}" for k, v in sorted(os.environ.items()) if k.startswith(("NCCL_", "GLOO_"))
    ]
    lines.append("launcher: " + (", ".join(settings) or "none, one process"))
    return lines + topology()


def main(arguments: Sequence[str]) -> None:
    """Print versions, devices and backends."""
    # By hand: the parser's package is not among those that the losses alone bring.
    if any(word in ("-h", "--help") for word in arguments):
        print("usage: selftaught doctor [--dicom AET@host:port]\n")
        print(
            "What is here, which backend is taken, and why; or whether an archive answers C-ECHO."
        )
        raise SystemExit(0)
    if len(arguments) == 2 and arguments[0] == "--dicom":
        from selftaught.dicom.network import Address, echo

        print(echo(Address.of(arguments[1], "dicom"), "SELFTAUGHT"))
        return
    if arguments:
        allowed = "none, or --dicom AET@host:port"
        raise InputError(f"doctor: unknown option {arguments[0]!r}; allowed: {allowed}")
    import torch

    from selftaught.kernels.dispatch import backend_table, requested

    print(f"selftaught {__version__}, Python {platform.python_version()}, {platform.platform()}")
    print(f"device: cpu, {available_cores()} cores, {torch.get_num_threads()} threads")
    for number in range(torch.cuda.device_count()):
        print(f"device: cuda:{number}, {torch.cuda.get_device_name(number)}")
    if not torch.cuda.is_available():
        print(f"device: no CUDA device (torch {torch.__version__})")
    print("\npackages")
    for package, module, purpose in PARTS:
        print(f"  {package:<24} {installed(package, module):<12} {purpose}")
    print("\nfabric")
    for line in fabric():
        print(f"  {line}")
    print("\nkernels")
    for row in backend_table():
        mark = "*" if row.chosen else " "
        state = "available" if row.available else row.reason
        print(f"  {mark} {row.op:<15} {row.device:<5} {row.backend:<10} {state}")
    try:
        requested(None)
    except InputError as error:
        print(f"  none is taken: {error}")
    print("  * = taken; SELFTAUGHT_BACKEND or the argument `backend` chooses another")
