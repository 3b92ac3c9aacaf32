"""The run folder: one run in it, locked while it runs, resumed only with the same settings."""

import hashlib
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import torch

from selftaught import __version__, distributed
from selftaught.errors import InputError, MachineError
from selftaught.files import hold, machine_errors, read_yaml, sha256, write_atomic
from selftaught.training.config import (
    Config,
    build,
    dump,
    resume_policies,
    settings,
)

LOCK = ".lock"
SEAL = "# SHA-256 of the above: "
# What a run killed before it wrote config.yaml may have left.
BEGUN = {
    name
    for file in (
        *("sources.csv", "bad_files.csv", "split_leakage.csv", "split.json"),
        *("split.csv", "split_table.txt", "environment.json", "config.yaml"),
    )
    for name in (file, f".{file}.tmp")
} | {LOCK, "prepared"}
PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "pandas",
    "opencv-python-headless",
    "faiss-gpu",
    "faiss-cpu",
    "scikit-learn",
    "safetensors",
    "nvidia-dali-cuda130",
    "deepspeed",
)


_held: dict[Path, IO[str]] = {}
_made: dict[Path, list[Path]] = {}


def lock(run: Path) -> IO[str]:
    """Hold the folder for this process; the lock goes with the process, however it ends.

    Raises:
        InputError: another process is running in it.
        MachineError: it cannot be made or written.
    """
    missing = [path for path in (run, *run.parents) if not path.exists()]
    with machine_errors(run):
        run.mkdir(parents=True, exist_ok=True)
        handle = (run / LOCK).open("a", encoding="utf-8")
    try:
        taken = "is in use by another run; choose another folder or wait for it to end"
        hold(handle, run, f"out: {run} {taken}")
    except BaseException:
        handle.close()
        raise
    _held[run.absolute()], _made[run.absolute()] = handle, missing
    return handle


def vacate(run: Path) -> None:
    """Leave no folder behind in which nothing began: one that holds this process's lock alone."""
    handle = _held[run.absolute()]
    try:
        ours = os.path.samestat(os.stat(run / LOCK), os.fstat(handle.fileno()))
        if ours and os.listdir(run) == [LOCK]:
            (run / LOCK).unlink()
            for path in _made[run.absolute()]:
                path.rmdir()
    except OSError:
        return  # Others moved it, or write there.


def check_held(path: Path) -> None:
    """Make sure that the locked run folder around `path` is still the one that was locked.

    Raises:
        MachineError: it was deleted or moved; what stands in its place may be another run's.
    """
    for run, handle in _held.items():
        if handle.closed or not path.absolute().is_relative_to(run):
            continue
        try:
            same = os.path.samestat(os.stat(run / LOCK), os.fstat(handle.fileno()))
        except OSError:
            same = False
        if not same:
            raise MachineError(
                f"{run}: the run folder was deleted, moved or replaced while the run went on; "
                "nothing more was written there"
            )


def _begun(names: set[str]) -> bool:
    """Whether a folder without config.yaml is empty or holds the beginning of a run."""
    return not names or (LOCK in names and names <= BEGUN)


def claim(config: Config) -> Path:
    """Make the run folder, or check that what is in it is this run.

    Raises:
        InputError: the folder holds other files, a run with other settings, or any run where
            `engine.resume` is never.
    """
    run = Path(config.out)
    if run.exists() and not run.is_dir():
        raise InputError(
            f"out: {run} is a file; allowed: a folder that is new, empty or this run's"
        )
    saved = run / "config.yaml"
    if saved.exists():
        check_seal(saved)
        if config.engine.resume == "never":
            raise InputError(
                f"out: {run} already holds a run and engine.resume is never; choose another folder"
            )
        # What a run from before a setting existed does not name has its default.
        try:
            there = settings(build({"out": config.out, **read_yaml(saved)}))
        except InputError as error:
            raise InputError(f"{saved}: holds no settings of a run: {error}") from error
        here = settings(config)
        begun = (run / "checkpoints" / "finetune").exists()
        policies = resume_policies(config)
        fixed = ("",) if not begun else ("", "late")
        other = [
            f"{name} is {there.get(name)!r} there and {here.get(name)!r} here"
            for name in {**there, **here}
            if policies.get(name, "") in fixed and there.get(name) != here.get(name)
        ]
        if other:
            raise InputError(
                f"out: {run} holds a run with other settings: {'; '.join(other[:3])}"
                "; choose another folder or the same settings"
            )
    elif run.exists() and not _begun({path.name for path in run.iterdir()}):
        raise InputError(f"out: {run} is not empty and holds no run; choose another folder")
    return run


def describe(run: Path, config: Config, image_root: Path, digest: str) -> None:
    """Write config.yaml and environment.json of a new run.

    No host name, user name or path but the images' folder is recorded.
    """
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    cuda = torch.cuda.is_available()
    facts = {
        "selftaught": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": versions,
        "device": torch.cuda.get_device_name(0) if cuda else "cpu",
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "world_size": distributed.world_size(),
        "image_root": str(image_root),
        "manifest_sha256": digest,
        "split_sha256": sha256(run / "split.csv"),
    }
    if config.data.labels:
        facts["labels_sha256"] = sha256(Path(config.data.labels))
    write_atomic(run / "environment.json", json.dumps(facts, indent=1) + "\n")
    write_settings(run, config)


def write_settings(run: Path, config: Config) -> None:
    """Write config.yaml, its checksum in a comment at its end."""
    write_atomic(run / "config.yaml", sealed(config))


def sealed(config: Config) -> str:
    """The settings as YAML, their checksum in a comment at its end."""
    text = dump(config)
    return f"{text}{SEAL}{_digest(text)}\n"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def check_seal(path: Path) -> None:
    """Refuse settings that were edited in the folder: what is compared would be what was edited.

    Raises:
        InputError: they are not as they were written.
    """
    text, seal, digest = path.read_text(encoding="utf-8", errors="replace").partition(SEAL)
    if seal and digest.strip() != _digest(text):
        raise InputError(
            f"{path}: was edited since it was written; allowed: that text, and changed settings "
            "as options of the command"
        )


def environment(run: Path) -> dict[str, Any]:
    """environment.json of a run.

    Raises:
        InputError: `run` is no run folder.
    """
    try:
        content: dict[str, Any] = json.loads((run / "environment.json").read_text("utf-8"))
        return content
    except (OSError, ValueError) as error:
        raise InputError(
            f"{run}: is no run folder: environment.json is missing or damaged"
        ) from error
