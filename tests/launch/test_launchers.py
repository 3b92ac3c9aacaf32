"""The launch scripts, run: torchrun on two machines that are one, DeepSpeed's launcher, SLURM's."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from selftaught.training import checkpoint
from tests.ranks import free_port
from tests.test_one_file import toy, toy_options
from tests.tiny import options, write_images

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
SCRIPTS = ("torchrun.sh", "deepspeed.sh", "slurm.sbatch")
PYTHON = f"exec {shlex.quote(sys.executable)}"
SHORT = {"pretext.epochs": 1, "finetune.epochs": 1, "engine.save_every": 0}


def environment(**more):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    return inherited | {"PATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | more


def start(script, arguments, before=(), **variables):
    return subprocess.Popen(
        [*before, "bash", str(LAUNCH / script), *arguments],
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def end(*processes, timeout=280):
    """What each printed; all must end with 0."""
    said = []
    try:
        for process in processes:
            said.append(process.communicate(timeout=timeout)[0])
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(said)
    return said


def assert_finished(run, ranks):
    assert pd.read_csv(run / "scores.csv")["score"].notna().all()
    assert (run / "report.html").exists()
    assert f'"world_size": {ranks}' in (run / "environment.json").read_text()


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("launch") / "images")


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_short_and_parse(name):
    assert len((LAUNCH / name).read_text().splitlines()) < 40
    subprocess.run(["bash", "-n", str(LAUNCH / name)], check=True)


def test_two_torchrun_agents_on_loopback_are_one_run(manifest, tmp_path):
    (tmp_path / "toy.py").write_text(toy())
    # That there is no GPU here needs no torch, whose import is most of what this test takes.
    (tmp_path / "python").write_text(f'#!/bin/sh\n[ "$1" = -c ] && exec echo 0\n{PYTHON} "$@"\n')
    (tmp_path / "python").chmod(0o755)
    run = tmp_path / "run"
    arguments = ["pretrain", *toy_options(manifest, run, **{"pretext.method": "toy.Toy"})]
    arguments += ["--pretext.epochs", "1", "--pretext.batch_size", "8"]
    meet = {"NODES": "2", "HEAD": f"127.0.0.1:{free_port()}", "RANKS": "1"}
    meet["PATH"] = os.pathsep.join([str(tmp_path), environment()["PATH"]])
    meet["PYTHONPATH"] = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    end(*[start("torchrun.sh", arguments, **meet) for _ in range(2)])
    assert '"world_size": 2' in (run / "environment.json").read_text()
    assert checkpoint.newest(run / "checkpoints" / "pretext")[0].step == 3


@pytest.mark.slow
def test_one_agent_of_a_range_begins_alone(manifest, tmp_path):
    arguments = ["run", *options(manifest, tmp_path / "run", **SHORT)]
    meet = {"NODES": "1:2", "HEAD": f"127.0.0.1:{free_port()}", "RANKS": "2"}
    end(start("torchrun.sh", arguments, **meet))
    assert_finished(tmp_path / "run", 2)


@pytest.fixture
def two_hosts():
    """Two network namespaces joined by a cable; their names and the first one's address."""
    if shutil.which("ip") is None:
        pytest.skip("two hosts need the command ip")
    names = [f"selftaught-{os.getpid()}-{side}" for side in "ab"]
    wires = [f"st{os.getpid() % 10**7}{side}" for side in "ab"]
    commands = [f"ip netns add {name}" for name in names]
    commands += [f"ip link add {wires[0]} type veth peer name {wires[1]}"]
    for number, (name, wire) in enumerate(zip(names, wires, strict=True), 1):
        commands += [
            f"ip link set {wire} netns {name}",
            f"ip -n {name} link set {wire} name wire",
            f"ip -n {name} addr add 10.77.0.{number}/24 dev wire",
            f"ip -n {name} link set wire up",
            f"ip -n {name} link set lo up",
        ]
    try:
        for command in commands:
            done = subprocess.run(command.split(), capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"two hosts need network namespaces: {command}: {done.stderr.strip()}")
        yield names, "10.77.0.1"
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
        subprocess.run(["ip", "link", "del", wires[0]], capture_output=True)


@pytest.mark.slow
def test_two_hosts_are_one_run(two_hosts, manifest, tmp_path):
    names, address = two_hosts
    arguments = ["run", *options(manifest, tmp_path / "run", **SHORT)]
    # Without a name server each host is told its address and the interface to the other.
    meet = {"NODES": "2", "HEAD": f"{address}:29400", "RANKS": "1", "GLOO_SOCKET_IFNAME": "wire"}
    hosts = []
    for number, name in enumerate(names):
        meet["PET_LOCAL_ADDR"] = f"10.77.0.{number + 1}"
        meet["PET_RDZV_CONF"] = f"is_host={int(number == 0)}"
        hosts.append(start("torchrun.sh", arguments, ("ip", "netns", "exec", name), **meet))
    end(*hosts)
    assert_finished(tmp_path / "run", 2)


def wait_for(pattern, folder, process, seconds=200):
    limit = time.monotonic() + seconds
    while not any(folder.glob(pattern)) and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.05)
    assert any(folder.glob(pattern)), process.communicate()[0] if process.poll() else pattern


@pytest.mark.slow
def test_torchrun_restarts_all_ranks_after_one_was_killed(manifest, tmp_path):
    run = tmp_path / "run"
    process = start("torchrun.sh", ["run", *options(manifest, run)], RANKS="2", RESTARTS="1")
    wait_for("checkpoints/pretext/step-*", run, process)
    listed = ["ps", "--ppid", str(process.pid), "-ww", "-o", "pid=,args="]
    workers = subprocess.run(listed, capture_output=True, text=True).stdout.splitlines()
    ranks = [line.split()[0] for line in workers if "-m selftaught run" in line]
    assert len(ranks) == 2, workers
    os.kill(int(ranks[1]), signal.SIGKILL)
    (said,) = end(process)
    assert "rank 1" in said
    assert_finished(run, 2)


@pytest.mark.slow
def test_deepspeeds_launcher(manifest, tmp_path):
    pytest.importorskip("deepspeed")
    arguments = ["run", *options(manifest, tmp_path / "run", **SHORT)]
    end(start("deepspeed.sh", arguments, RANKS="2", PORT=str(free_port())))
    assert_finished(tmp_path / "run", 2)
    assert "kind: deepspeed" in (tmp_path / "run" / "config.yaml").read_text()


@pytest.mark.slow
def test_score_under_deepspeeds_launcher(manifest, tmp_path):
    pytest.importorskip("deepspeed")
    run = tmp_path / "run"
    end(start("torchrun.sh", ["run", *options(manifest, run, **SHORT)], RANKS="1"))
    words = ["score", str(run / "model"), "--data.manifest", str(manifest), "--out"]
    end(start("deepspeed.sh", [*words, str(tmp_path / "a.csv")], RANKS="2", PORT=str(free_port())))
    assert len(pd.read_csv(tmp_path / "a.csv")) == 48


@pytest.mark.slow
def test_deepspeeds_launcher_with_a_host_file(manifest, tmp_path):
    pytest.importorskip("deepspeed")
    hosts = tmp_path / "my hosts"
    hosts.write_text("localhost slots=2\n")
    # It asks the first host for its name, this one too.
    (tmp_path / "ssh").write_text("#!/bin/sh\nexec hostname\n")
    (tmp_path / "ssh").chmod(0o755)
    path = os.pathsep.join([str(tmp_path), environment()["PATH"]])
    arguments = ["run", *options(manifest, tmp_path / "run", **SHORT)]
    end(start("deepspeed.sh", arguments, HOSTS=str(hosts), PATH=path))
    assert_finished(tmp_path / "run", 2)


SRUN = """#!/bin/bash
# As srun does: the tasks with their numbers, signals to all, the highest exit code.
while [[ $1 == --* ]]; do shift; done
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$task "$@" &
    echo $! >>"$TASKS"
done
highest=0
for task in $(jobs -p); do
    wait "$task"
    code=$?
    ((code > highest)) && highest=$code
done
exit $highest
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >>"$REQUEUED"; fi
"""


@pytest.fixture
def slurm(tmp_path):
    """A folder with srun and scontrol, and what SLURM tells a job of two tasks."""
    (tmp_path / "bin").mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    path = [str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
    return {
        "PATH": os.pathsep.join(path),
        "TASKS": str(tmp_path / "tasks"),
        "REQUEUED": str(tmp_path / "requeued"),
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NODELIST": "node[0-1]",
        "SLURM_NTASKS": "2",
        "SLURM_TASKS_PER_NODE": "2(x1)",
    }


@pytest.mark.parametrize(
    ("code", "restarts", "again"),
    [(0, 0, False), (2, 0, False), (143, 99, True), (3, 0, True), (137, 4, True), (137, 5, False)],
)
def test_slurm_job_queues_again_only_where_that_helps(slurm, tmp_path, code, restarts, again):
    fake = "#!/bin/bash\necho $RANK of $WORLD_SIZE, $LOCAL_RANK of $LOCAL_WORLD_SIZE, "
    fake += f"$MASTER_ADDR: $@ >>$REQUEUED.told\n[ $RANK = 0 ] || exit {code}\n"
    (tmp_path / "bin" / "python").write_text(fake)
    (tmp_path / "bin" / "python").chmod(0o755)
    slurm["SLURM_RESTART_COUNT"] = str(restarts)
    process = start("slurm.sbatch", ["run", "--out", "a b"], **slurm)
    process.communicate(timeout=60)
    assert process.returncode == (0 if again else code)
    told = Path(slurm["REQUEUED"] + ".told").read_text().splitlines()
    line = "{0} of 2, {0} of 2, 127.0.0.1: -m selftaught run --out a b"
    assert sorted(told) == [line.format(0), line.format(1)]
    requeued = Path(slurm["REQUEUED"])
    assert (requeued.read_text() if requeued.exists() else "") == (
        "requeue 4711\n" if again else ""
    )


@pytest.mark.slow
def test_slurm_job_that_is_preempted_goes_on(slurm, manifest, tmp_path):
    run = tmp_path / "run"
    arguments = ["run", *options(manifest, run)]
    slurm["MASTER_PORT"] = str(free_port())
    process = start("slurm.sbatch", arguments, **slurm)
    wait_for("checkpoints/pretext/step-*", run, process)
    for task in Path(slurm["TASKS"]).read_text().split():
        os.kill(int(task), signal.SIGTERM)
    (said,) = end(process)
    assert "the job queues again" in said
    assert Path(slurm["REQUEUED"]).read_text() == "requeue 4711\n"
    end(start("slurm.sbatch", arguments, **slurm))
    assert_finished(run, 2)
    assert Path(slurm["REQUEUED"]).read_text() == "requeue 4711\n"
