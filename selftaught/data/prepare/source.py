"""What is to be prepared: a manifest, the MURA tree, or any folder of images."""

from pathlib import Path

import numpy as np
import pandas as pd

from selftaught.data.manifest import Manifest, check, read_manifest
from selftaught.data.manifest.mura import is_mura
from selftaught.data.manifest.read import IMAGE_SUFFIXES, list_files
from selftaught.errors import InputError


def read_source(
    source: Path, *, allow_outside: bool, check_files: bool = False, missing: bool = False
) -> Manifest:
    """The images of a manifest or of any folder.

    Args:
        source: as for `read_manifest`, or a folder of images without any list: then all files
            with an image's suffix below it are taken, without labels.
        allow_outside: accept paths that leave the manifest's folder.
        check_files: look whether files are there and inside, as `read_manifest` does.
        missing: accept files that do not exist.

    Raises:
        InputError: there is no such source, or its list is wrong.
    """
    listed = ("manifest.csv", "normal")
    if not source.is_dir() or is_mura(source) or any((source / name).exists() for name in listed):
        return read_manifest(
            source, allow_outside=allow_outside, check_files=check_files, missing=missing
        )
    for tree in source.iterdir():
        if tree.is_dir() and is_mura(tree):
            raise InputError(f"{source}: holds the MURA tree {tree.name}; give {tree}")
    paths = [path for path in list_files(source, ".") if path.lower().endswith(IMAGE_SUFFIXES)]
    paths = sorted(path.removeprefix("./") for path in paths)
    if not paths:
        raise InputError(f"{source}: holds no image; allowed: {', '.join(IMAGE_SUFFIXES)}")
    paths = check.clean_paths(paths, "path", False, lambda row: source.name)
    if check_files:
        root = source.absolute()
        check.files_exist(root, paths, "path", allow_outside, lambda row: source.name, missing)
    blank = pd.Series("", index=range(len(paths)), dtype="str")
    table = pd.DataFrame({name: blank for name in check.COLUMNS})
    table["path"] = pd.Series(paths, dtype="str")
    for name in ("label", "semi_label"):
        table[name] = pd.Series(pd.array(np.zeros(len(paths), np.int8), "Int8")).mask(
            np.ones(len(paths), bool)
        )
    return Manifest(source.absolute(), table, source.name)


def check_apart(source: Path, out: Path) -> None:
    """Refuse to write among the files of a folder that is read without a list.

    Raises:
        InputError: `out` lies inside; its contact sheets would be films at the next start.
    """
    if not source.is_dir() or is_mura(source) or (source / "manifest.csv").exists():
        return
    if out.resolve().is_relative_to(source.resolve()):
        raise InputError(f"{out}: lies inside {source}, all of which is read; choose another --out")


def pack_names(paths: list[str]) -> list[str]:
    """Names inside the pack: the paths, made to stay inside and to be unique.

    Args:
        paths: (N) posix paths of a manifest.
    """
    names: list[str] = []
    taken: set[str] = set()
    for number, path in enumerate(paths):
        name = "/".join(step for step in path.split("/") if step not in ("", ".", ".."))
        name = name or f"{number:08d}"
        while name in taken:
            name = f"{number:08d}/{name}"
        taken.add(name)
        names.append(name)
    return names
