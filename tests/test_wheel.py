"""Wheels fit every Python and torch: their tags, what is in them, what the library asks for."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import venv
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest
from setuptools import Distribution

from selftaught.kernels import native

ROOT = Path(__file__).resolve().parents[1]
# Symbols of the C and C++ libraries carry a version; Python's and torch's have none.
SYSTEM = r"@(GLIBC|GLIBCXX|CXXABI|GCC)_|^(_ITM_\w+|__gmon_start__|__cxa_finalize)$"


def words_of_setup(monkeypatch):
    """What setup.py hands to setuptools."""
    words = {}
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("setuptools.setup", lambda **given: words.update(given))
    runpy.run_path(str(ROOT / "setup.py"))
    return words


def copied(place):
    """The source tree as .dockerignore lets it into the container's build."""
    lines = (ROOT / ".dockerignore").read_text().split()
    unbuilt = [one.removeprefix("**/") for one in lines if one.startswith("**/")]
    assert lines == ["*", *(one for one in lines if one[0] == "!"), *map("**/{}".format, unbuilt)]
    for name in (one[1:] for one in lines if one[0] == "!"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns(*unbuilt))
        else:
            shutil.copy(ROOT / name, place)
    return place


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return copied(tmp_path_factory.mktemp("source"))


def built(source, out, **environment):
    """The wheel that setup.py makes of a source tree."""
    words = [sys.executable, "setup.py", "-q", "bdist_wheel", "-d", str(out)]
    done = subprocess.run(
        words, cwd=source, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = out.glob("*.whl")
    return wheel


def test_a_wheel_with_the_library_is_of_the_platform_alone(monkeypatch):
    words = words_of_setup(monkeypatch)
    with_library = Distribution({"name": "selftaught", "ext_modules": words["ext_modules"]})
    command = words["cmdclass"]["bdist_wheel"](with_library)
    command.plat_name, command.plat_name_supplied = "linux_x86_64", True
    command.ensure_finalized()
    assert command.get_tag() == ("py3", "none", "linux_x86_64") and not command.root_is_pure


@pytest.mark.parametrize(
    "environment", [{"SELFTAUGHT_PURE": "1"}, {"CC": "/bin/false", "CXX": "/bin/false"}]
)
def test_a_wheel_without_the_library_is_pure_and_whole(source, tmp_path, environment):
    gone = source / "build" / "lib" / "selftaught" / "gone.py"
    gone.parent.mkdir(parents=True, exist_ok=True)
    gone.touch()  # deleted since an earlier wheel was built here
    wheel = built(source, tmp_path, **environment)
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if name.startswith("selftaught/")}
        tags = archive.read(next(n for n in archive.namelist() if n.endswith("/WHEEL"))).decode()
    there = {path.relative_to(source).as_posix() for path in (source / "selftaught").rglob("*.*")}
    assert names == there
    assert "Root-Is-Purelib: true" in tags and "Tag: py3-none-any" in tags


def test_the_container_is_built_of_files_it_is_given(source, monkeypatch):
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
    files = re.findall(r"^COPY (?!--from)(\S+)|--constraint (\S+)", text, re.M)
    assert len(files) > 2 and all((source / max(pair)).exists() for pair in files)
    words = words_of_setup(monkeypatch)
    # timm is needed for models of the presets `default` and `quick`.
    (extras,) = re.findall(r'"\.\[(.+)\]"', text)
    assert (
        {"train", "pretrained", "dicom"} <= set(extras.split(",")) <= set(words["extras_require"])
    )
    (native,) = words["ext_modules"]
    assert native.sources and native.depends
    assert all((source / name).is_file() for name in [*native.sources, *native.depends])


def test_every_file_of_the_package_is_packed(monkeypatch):
    patterns = words_of_setup(monkeypatch)["package_data"]["selftaught"]
    package = ROOT / "selftaught"
    files = {path.relative_to(package).as_posix() for path in package.rglob("*.*")}
    data = {name for name in files if not re.search(r"\.(py|pyc|so)$", name)}
    assert {name for name in data if not any(fnmatch(name, one) for one in patterns)} == set()


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
@pytest.mark.skipif(bool(native.reason()), reason="no native library")
def test_the_library_asks_for_nothing_of_python_or_torch():
    words = ["nm", "-D", "--undefined-only", str(native.LIBRARY)]
    listed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    symbols = [line.split()[-1] for line in listed.splitlines()]
    assert len(symbols) > 10
    assert [one for one in symbols if not re.search(SYSTEM, one)] == []


@pytest.mark.slow
def test_a_wheel_built_from_the_source_archive_runs_in_a_fresh_environment(tmp_path):
    """The packages' index is needed for setuptools; torch and numpy are those of this Python."""
    for folder in ("selftaught", "csrc", "docs", "tests", "benchmarks", "launch", "notebooks"):
        ignored = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / folder, tmp_path / "tree" / folder, ignore=ignored)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path / "tree")
    words = [sys.executable, "setup.py", "-q", "sdist", "-d", str(tmp_path)]
    subprocess.run(words, cwd=tmp_path / "tree", check=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    fresh = tmp_path / "venv"
    venv.create(fresh, with_pip=True)
    pip = [fresh / "bin" / "python", "-m", "pip", "--quiet"]
    words = [*pip, "wheel", "--no-deps", "-w", tmp_path / "wheels", archive]
    subprocess.run(words, check=True, cwd=tmp_path)
    (wheel,) = (tmp_path / "wheels").glob("selftaught-*.whl")
    kinds = (r"linux_\w+|macosx_\w+|win_\w+", "any")
    assert re.search(rf"-py3-none-({'|'.join(kinds)})\.whl$", wheel.name)
    subprocess.run([*pip, "install", "--no-deps", wheel], check=True, cwd=tmp_path)
    lent = next(path for path in sys.path if (Path(path) / "torch").is_dir())
    code = (
        f"import sys; sys.path.append({lent!r}); import torch, selftaught; "
        "from selftaught.losses import NTXentLoss; "
        f"assert selftaught.__file__.startswith({str(fresh)!r}); "
        "z = torch.randn(2, 64, 32, requires_grad=True); NTXentLoss()(*z).backward(); "
        "assert z.grad.abs().sum() > 0; from selftaught.kernels import native; "
        "print(native.reason() or 'native')"
    )
    words = [fresh / "bin" / "python", "-c", code]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env={"HOME": "/"})
    assert done.returncode == 0, done.stderr
    assert ("native" == done.stdout.strip()) == (not wheel.name.endswith("-any.whl"))
