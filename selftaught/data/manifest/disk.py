"""The files that a list names, as the disk has them: names spelled otherwise, links, gaps."""

import os
import unicodedata
from collections import defaultdict
from pathlib import Path

from selftaught.data.images.pack import locate
from selftaught.data.manifest.check import Where, show
from selftaught.data.manifest.spelling import identity, warn
from selftaught.errors import InputError

MISSING = "was not found"


class Spelling:
    """Finds the names of a disk that a list writes with other characters for the same letters.

    A list from a Mac may spell an umlaut in two characters (NFD) where the disk has one (NFC), and
    the other way round. Folders are listed once; names in ASCII are never looked up.

    Args:
        root: folder that the paths start from.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._names: dict[str, dict[str, list[str]]] = {}
        self._folders: dict[str, str] = {}

    def of(self, path: str) -> str:
        """The path as the disk spells it; as it is where there is no such file, or are several."""
        if path.isascii():
            return path
        folder, slash, name = path.rpartition("/")
        if folder and folder not in self._folders:
            self._folders[folder] = self.of(folder)
        folder = self._folders.get(folder, folder)
        names = self._listed(folder + slash)
        alike = names.get(unicodedata.normalize("NFC", name), [])
        return folder + slash + (alike[0] if len(alike) == 1 else name)

    def _listed(self, folder: str) -> dict[str, list[str]]:
        if folder not in self._names:
            names: dict[str, list[str]] = defaultdict(list)
            try:
                for name in os.listdir(self.root / folder):
                    names[unicodedata.normalize("NFC", name)].append(name)
            except OSError:
                pass
            self._names[folder] = names
        return self._names[folder]


def files_exist(
    root: Path,
    paths: list[str],
    column: str,
    allow_outside: bool,
    where: Where,
    missing: bool = False,
) -> None:
    """Refuse paths that are no file, unless `missing`, or that a link leads out of `root`.

    Each folder is listed once; only names missing there and links are looked at one by one.

    Raises:
        InputError: names the first such row.
    """
    by_folder: dict[str, list[int]] = defaultdict(list)
    for index, path in enumerate(paths):
        if path:
            by_folder[_folder(path)].append(index)
    real_root = os.path.realpath(root)
    homes = {folder: os.path.realpath(root / folder) for folder in by_folder}
    doubtful: list[int] = []
    for folder, indices in by_folder.items():
        inside = allow_outside or _inside(homes[folder], real_root)
        plain = _plain_files(homes[folder]) if inside else set()
        doubtful += [index for index in indices if paths[index].rpartition("/")[2] not in plain]
    for index in sorted(doubtful):
        fault = _file_fault(root / paths[index], real_root, allow_outside)
        if fault == MISSING and missing:
            continue
        if fault:
            near = _near(root / paths[index]) if fault == MISSING else ""
            raise InputError(f"{where(index)}: {column} {show(paths[index])} {fault}{near}")
    if column == "path" and (doubtful or len(set(homes.values())) < len(homes)):
        _warn_of_second_names(root, paths, homes, doubtful, where)


def _folder(path: str) -> str:
    folder, slash, _ = path.rpartition("/")
    return folder or slash or "."


def _near(path: Path) -> str:
    """A hint at a name beside a missing one that differs in case, blanks or width only."""
    try:
        names = sorted(os.listdir(path.parent))
    except OSError:
        return ""
    if path.name in names:
        return "; it is a link to nothing"
    alike = [name for name in names if identity(name) == identity(path.name)]
    return f"; the disk has {show(alike[0])}" if alike else ""


def _warn_of_second_names(
    root: Path, paths: list[str], homes: dict[str, str], doubtful: list[int], where: Where
) -> None:
    """Say which images are one file: by a link, or on a disk that ignores case."""
    looked_up = {
        index: _own_name(os.path.realpath(root / paths[index]))
        for index in doubtful
        if os.path.isfile(root / paths[index])
    }
    first: dict[str, int] = {}
    twice: list[tuple[int, int]] = []
    for index, path in enumerate(paths):
        name = path.rpartition("/")[2]
        real = looked_up.get(index) or os.path.join(homes[_folder(path)], name)
        if first.setdefault(real, index) != index:
            twice.append((index, first[real]))
    if twice:
        index, other = twice[0]
        more = f", and {len(twice) - 1} more images likewise" if len(twice) > 1 else ""
        warn(
            f"{where(index)}: path {show(paths[index])} is the file of {where(other)}, "
            f"{show(paths[other])}, under another name{more}; each counts as an image of its own"
        )


def _own_name(real: str) -> str:
    """A file's path with its name in the case that the disk has it in."""
    folder, name = os.path.split(real)
    names = os.listdir(folder)
    alike = [one for one in names if one.casefold() == name.casefold()]
    return real if name in names or not alike else os.path.join(folder, alike[0])


def _plain_files(folder: str) -> set[str]:
    """Names in `folder` that are certainly ordinary files."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}
    except OSError:
        return set()


def _file_fault(path: Path, real_root: str, allow_outside: bool) -> str:
    try:
        real = os.path.realpath(path)
        if not allow_outside and not _inside(real, real_root):
            return f"leads out of the manifest's folder to {show(real)}; allowed: --allow-outside"
        if os.path.isfile(real):
            return ""
        if locate(Path(real)) is not None:
            return ""
        if os.path.exists(real):
            return "is not a file"
    except OSError as error:
        return f"cannot be looked up: {error.strerror}"
    return MISSING


def _inside(real: str, real_root: str) -> bool:
    return real == real_root or real.startswith(real_root.rstrip("/") + "/")
