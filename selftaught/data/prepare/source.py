"""Where a set may be written, and what its images are called in the pack."""

from pathlib import Path

from selftaught.data.manifest.films import is_directory
from selftaught.data.manifest.folder import own_list
from selftaught.data.manifest.mura import is_mura
from selftaught.errors import InputError


def check_apart(source: Path, out: Path) -> None:
    """Refuse to write among the files of a folder that is read without a list.

    Raises:
        InputError: `out` lies inside; its contact sheets would be films at the next start.
    """
    source = source.parent if is_directory(source) else source
    if not source.is_dir() or is_mura(source) or own_list(source) is not None:
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
