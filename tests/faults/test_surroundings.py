"""What surrounds the process: launchers' variables, lost streams, early signals."""

import io
import os
import signal
import subprocess
import sys
import time

import pytest

from selftaught import distributed
from selftaught.cli.main import main
from selftaught.environment import number
from selftaught.errors import InputError
from tests.faults import ranks
from tests.tiny import options, write_images, write_model

COMMAND = [sys.executable, "-m", "selftaught"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("run") / "model")


@pytest.mark.parametrize("world", [None, "1"])
def test_a_rank_without_others_is_the_first(model, tmp_path, monkeypatch, world):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if world:
        monkeypatch.setenv("WORLD_SIZE", world)
    assert distributed.is_main()
    source, out = write_images(tmp_path / "images", 3), tmp_path / "scores.csv"
    assert main(["score", str(model), "--data.manifest", str(source), "--out", str(out)]) == 0
    assert out.exists()


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"WORLD_SIZE": "abc"}, "environment: WORLD_SIZE is 'abc'; allowed: a whole number"),
        ({"WORLD_SIZE": ""}, "environment: WORLD_SIZE is ''; allowed: a whole number"),
        ({"WORLD_SIZE": "2"}, "environment: WORLD_SIZE is 2, but Error initializing"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "h", "MASTER_PORT": "x"}, "MASTER_PORT"),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, "environment: RANK is '-1'"),
    ],
)
@pytest.mark.parametrize("command", ["score", "prepare"])
def test_what_no_launcher_sets_is_named(
    model, tmp_path, monkeypatch, capsys, command, variables, said
):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    source, out = write_images(tmp_path / "images", 3), str(tmp_path / "out")
    words = {
        "score": ["score", str(model), "--data.manifest", str(source), "--out", out],
        "prepare": ["prepare", str(source), "--out", out],
    }
    assert main(words[command]) == 2
    assert said in capsys.readouterr().err


def test_the_first_variable_that_is_set_counts(monkeypatch):
    for name in ("ONE", "OTHER"):
        monkeypatch.delenv(name, raising=False)
    assert number("ONE", "OTHER", default=7) == 7
    monkeypatch.setenv("OTHER", "3")
    assert number("ONE", "OTHER", default=7) == 3
    monkeypatch.setenv("ONE", "2,1")
    with pytest.raises(InputError, match="ONE is '2,1'"):
        number("ONE", "OTHER", default=7)


def test_deepspeed_needs_no_launcher(tmp_path):
    pytest.importorskip("deepspeed")
    more = {"pretext.epochs": 1, "engine.kind": "deepspeed"}
    arguments = options(write_images(tmp_path / "images"), tmp_path / "run", **more)
    job = ranks.start(tmp_path / "ranks", arguments, 1, command="pretrain")
    assert job.end() == [0], job.said(0)


def test_a_reader_that_goes_away_is_no_traceback():
    job = subprocess.Popen([*COMMAND, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    job.stdout.close()  # before python has started
    assert (job.wait(), b"Traceback" in job.stderr.read()) == (3, False)


def test_a_name_that_the_terminal_cannot_show_ends_nothing(model, tmp_path, monkeypatch):
    source, out = write_images(tmp_path / "images", 3), tmp_path / "R\u00f6ntgen.csv"
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, "ascii"))
    assert main(["score", str(model), "--data.manifest", str(source), "--out", str(out)]) == 0
    assert shown.getvalue().endswith(b"R\\xf6ntgen.csv\n") and out.exists()


@pytest.mark.slow
def test_a_run_goes_on_when_nobody_reads_its_progress(tmp_path):
    run, source = tmp_path / "run", write_images(tmp_path / "images")
    more = {"pretext.epochs": 1, "finetune.epochs": 1}
    job = subprocess.Popen(
        [*COMMAND, "run", *options(source, run, **more)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    job.stderr.close()
    assert job.wait(300) == 0
    assert (run / "report.html").exists()


def test_closed_streams_take_no_file_of_the_run(model, tmp_path):
    source, out = write_images(tmp_path / "images", 3), tmp_path / "scores.csv"
    words = ["score", str(model), "--data.manifest", str(source), "--out", str(out)]
    job = subprocess.run(
        ["sh", "-c", 'exec "$@" 0<&- 1>&- 2>&-', "sh", *COMMAND, *words], timeout=120
    )
    assert job.returncode == 0
    assert out.read_text().startswith("path,")


@pytest.mark.parametrize(("number", "code"), [("SIGUSR1", 143), ("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_while_torch_is_imported_is_one_line(tmp_path, number, code):
    (tmp_path / "torch.py").write_text("print('began', flush=True)\nimport time\ntime.sleep(60)\n")
    job = subprocess.Popen(
        [*COMMAND, "doctor"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), *sys.path[1:]))},
    )
    assert job.stdout.readline() == "began\n"
    time.sleep(0.1)
    job.send_signal(getattr(signal, number))
    _, said = job.communicate(timeout=60)
    assert (job.returncode, len(said.splitlines())) == (code, 1), said
