"""`selftaught doctor` says what this machine has."""

import os
import stat

import pytest
import torch

from selftaught.cli import doctor
from selftaught.cli.main import main


def test_the_fabric_is_printed(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "\nfabric\n" in text
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    assert f"backend: {backend}" in text
    assert "NCCL: " in text
    assert "WORLD_SIZE=4" in text and "NCCL_DEBUG=INFO" in text


def test_topology_is_nvidia_smis_own_table(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\n[ \"$1 $2\" = 'topo -m' ] && printf '\\tGPU0\\tGPU1\\nGPU0\\t X \\tNV18\\n'\n"
    )
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert doctor.topology() == ["\tGPU0\tGPU1", "GPU0\t X \tNV18"]


def test_no_tool_no_topology(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.topology() == []


@pytest.mark.gpu
def test_nccl_has_a_version_on_a_gpu():
    assert any(line.startswith("NCCL: 2.") for line in doctor.fabric())
