"""constraints.txt has one version of each requirement, in its range, on every supported Python."""

import re
import runpy
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
MACHINES = {
    "linux": {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"},
    "arm": {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "aarch64"},
    "mac": {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"},
}


def pinned(machine, python):
    """The versions of every package there: {name: set of versions}."""
    where = MACHINES[machine] | {"python_version": python, "python_full_version": f"{python}.0"}
    versions = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            if pin.marker is None or pin.marker.evaluate(where):
                versions.setdefault(canonicalize_name(pin.name), set()).add(str(pin.specifier)[2:])
    return versions


def requirements(monkeypatch):
    """What setup.py and the build ask for, and the Pythons it allows."""
    words = {}
    monkeypatch.setattr("setuptools.setup", lambda **given: words.update(given))
    runpy.run_path(str(ROOT / "setup.py"))
    build = re.search(r'^requires = \["(.+)"\]$', (ROOT / "pyproject.toml").read_text(), re.M)
    asked = words["install_requires"] + words["extras_require"]["all"] + [build[1]]
    return [Requirement(line) for line in asked], SpecifierSet(words["python_requires"])


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("python", PYTHONS)
def test_one_version_in_range(machine, python, monkeypatch):
    where = MACHINES[machine] | {"python_version": python, "python_full_version": f"{python}.0"}
    versions = pinned(machine, python)
    assert all(len(one) == 1 for one in versions.values())
    asked, pythons = requirements(monkeypatch)
    assert python in pythons
    for requirement in asked:
        if requirement.marker is None or requirement.marker.evaluate(where):
            (version,) = versions[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), f"{requirement}: pinned to {version}"
