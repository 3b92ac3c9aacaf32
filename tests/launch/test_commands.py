"""The command lines that the launch scripts put together, told by launchers that only tell them."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from selftaught.cli.main import main

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
# Answers how many GPUs there are; else tells its arguments, one a line, and what it inherits.
FAKE = """#!/bin/bash
if [ "$1" = -c ]; then echo "$GPUS"; exit; fi
echo "$(basename "$0")"
printf '%s\\n' "$@"
env | grep -E '^(OMP_NUM_THREADS|DS_ACCELERATOR|TORCH_)' | sort >&2
exit 7
"""


@pytest.fixture
def told(tmp_path):
    """What a script's launcher was given, and its part of the environment."""
    for name in ("python", "deepspeed"):
        (tmp_path / name).write_text(FAKE)
        (tmp_path / name).chmod(0o755)

    def tell(script, words, code=7, **variables):
        given = {"PATH": f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin", "GPUS": "0"}
        done = subprocess.run(
            ["bash", str(LAUNCH / script), *words],
            env=given | variables,
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stderr
        return done.stdout.splitlines(), done.stderr.splitlines()

    return tell


RUN = ["run", "--data.manifest", "my images.csv", "--out", "a run"]
TAIL = ["-m", "selftaught", *RUN]


def torchrun(*meet, nodes="1", ranks="1", restarts="3"):
    each = ["--nnodes", nodes, "--nproc-per-node", ranks, "--max-restarts", restarts]
    return ["python", "-m", "torch.distributed.run", *meet, *each, *TAIL]


def test_torchrun_on_this_machine_alone(told):
    assert told("torchrun.sh", RUN)[0] == torchrun("--standalone")
    assert told("torchrun.sh", RUN, GPUS="8")[0] == torchrun("--standalone", ranks="8")
    given = {"GPUS": "8", "RANKS": "2", "RESTARTS": "0"}
    expected = torchrun("--standalone", ranks="2", restarts="0")
    assert told("torchrun.sh", RUN, **given)[0] == expected


@pytest.mark.parametrize("nodes", ["4", "2:4", "1:2"])
def test_torchrun_on_several_machines(told, nodes):
    meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "node0:29400", "--rdzv-id"]
    given = {"NODES": nodes, "HEAD": "node0:29400", "GPUS": "8"}
    words, variables = told("torchrun.sh", RUN, **given)
    assert words == torchrun(*meet, "selftaught", nodes=nodes, ranks="8")
    words, _ = told("torchrun.sh", RUN, **given, JOB="other")
    assert words == torchrun(*meet, "other", nodes=nodes, ranks="8")
    assert variables == [
        "OMP_NUM_THREADS=1",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=240",
    ]


def test_torchrun_on_several_machines_needs_a_place_to_meet(told):
    words, said = told("torchrun.sh", RUN, code=1, NODES="2:4")
    assert words == []
    (line,) = said
    assert "HEAD: the machine and port where all meet" in line


def deepspeed(*where):
    command = ["--module", "selftaught", "run", "--engine.kind", "deepspeed", *RUN[1:]]
    return ["deepspeed", *where, *command]


def test_deepspeed_on_this_machine_alone(told):
    words, variables = told("deepspeed.sh", RUN)
    assert words == deepspeed("--num_gpus", "1", "--master_port", "29500")
    assert variables == ["DS_ACCELERATOR=cpu", "OMP_NUM_THREADS=1"]
    words, variables = told("deepspeed.sh", RUN, GPUS="8", PORT="29611", OMP_NUM_THREADS="4")
    assert words == deepspeed("--num_gpus", "8", "--master_port", "29611")
    assert variables == ["OMP_NUM_THREADS=4"]


def test_deepspeed_on_the_machines_of_a_host_file(told):
    words, variables = told("deepspeed.sh", RUN, GPUS="8", HOSTS="my hosts", RANKS="2")
    assert words == deepspeed("--hostfile", "my hosts", "--master_port", "29500")
    assert variables == ["OMP_NUM_THREADS=1"]


@pytest.mark.parametrize("command", ["run", "pretrain", "finetune", "score", "prepare"])
def test_deepspeed_sh_names_the_engine_to_commands_that_have_one(told, command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    has_engine = "--engine.kind" in capsys.readouterr().out
    assert has_engine == (command in ("run", "pretrain", "finetune"))
    words, _ = told("deepspeed.sh", [command, "--out", "a b"], RANKS="2", PORT="29501")
    engine = ["--engine.kind", "deepspeed"] if has_engine else []
    begin = ["deepspeed", "--num_gpus", "2", "--master_port", "29501", "--module", "selftaught"]
    assert words == [*begin, command, *engine, "--out", "a b"]


def test_deepspeed_sh_without_a_command_says_so(told):
    words, said = told("deepspeed.sh", [], code=1)
    assert words == [] and "a command of selftaught" in said[-1]


@pytest.mark.parametrize("script", ["torchrun.sh", "deepspeed.sh"])
def test_a_machine_whose_python_is_called_python3(told, tmp_path, script):
    """As without an active environment on Debian and Ubuntu."""
    expected = told(script, RUN)[0]
    path = bare_path(tmp_path)
    (tmp_path / "python").rename(tmp_path / "python3")
    assert told(script, RUN, PATH=path)[0] == [
        expected[0] + "3" * (script == "torchrun.sh"),
        *expected[1:],
    ]


@pytest.mark.parametrize("script", ["torchrun.sh", "deepspeed.sh"])
@pytest.mark.parametrize("fake", ["", "exit 1", "echo no torch >&2; exit 1"])
def test_a_python_without_torch_is_said_in_one_line(told, tmp_path, script, fake):
    path = bare_path(tmp_path)
    (tmp_path / "python").unlink()
    if fake:
        (tmp_path / "python3").write_text(f"#!/bin/bash\n{fake}\n")
        (tmp_path / "python3").chmod(0o755)
    words, said = told(script, RUN, code=2, PATH=path)
    (line,) = said
    assert words == [] and "has no torch; activate the environment of selftaught" in line


def test_slurm_without_a_python_ends_and_does_not_queue_again(told, tmp_path):
    path = bare_path(tmp_path)
    (tmp_path / "python").unlink()
    given = {"SLURM_JOB_ID": "1", "MASTER_ADDR": "here", "PATH": path}
    words, said = told("slurm.sbatch", RUN, code=2, **given)
    assert words == [] and len(said) == 1 and "no python here; activate" in said[0]


def bare_path(tmp_path):
    """The programs that scripts need, without those of this machine that are called python."""
    (tmp_path / "bin").mkdir()
    for name in ("bash", "env", "grep", "sort", "basename", "head", "printf"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name))
    return f"{tmp_path}{os.pathsep}{tmp_path / 'bin'}"
