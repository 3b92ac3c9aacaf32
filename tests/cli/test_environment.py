"""Commands in a bare environment: no HOME, no user, no network, no UTF-8 locale."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.tiny import options, write_images, write_model

ROOT = Path(__file__).resolve().parents[2]
# Python reads it at its start: users are unknown, as in a container, and other hosts out of reach.
SITE = """
import pwd, sys
def unknown(*_):
    raise KeyError("uid not found")
pwd.getpwuid = unknown
def look(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        place = arguments[event == "socket.connect"]
        host = place[0] if isinstance(place, tuple) else place
        if host not in (None, "localhost", "127.0.0.1", "::1"):
            sys.stderr.write(f"network: {place}\\n")
            raise OSError(101, "Network is unreachable")
sys.addaudithook(look)
"""
# Python makes its own UTF-8 of the first; the second is ASCII, as an old terminal's or a job's.
C = {"LC_ALL": "C"}
ASCII = C | {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
NAMES = ["Röntgen 1.png", "Ärmel/手首.png", "рука.png"]


@pytest.fixture
def images(tmp_path):
    """A manifest with names that are no ASCII."""
    manifest = write_images(tmp_path / "Bilder", 24)
    table = pd.read_csv(manifest)
    for row, name in enumerate(NAMES):
        (manifest.parent / name).parent.mkdir(exist_ok=True)
        (manifest.parent / table.loc[row, "path"]).rename(manifest.parent / name)
        table.loc[row, "path"] = name
    table.to_csv(manifest, index=False)
    return manifest


@pytest.fixture
def bare(tmp_path):
    """Runs a command, or another module; its exit code and what it said on standard error."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)

    def run(words, locale=C, module="selftaught"):
        path = os.pathsep.join([str(ROOT), str(tmp_path / "site")])
        given = {"PATH": "/usr/bin:/bin", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-m", module, *map(str, words)],
            env=given | locale | {"CUDA_VISIBLE_DEVICES": ""},
            cwd=tmp_path,
            capture_output=True,
        )
        return done.returncode, done.stderr.decode()

    return run


def succeed(result):
    code, said = result
    assert code == 0 and "Traceback" not in said and "network: " not in said, said
    return said


@pytest.mark.parametrize(("locale", "encoding"), [(C, "utf-8"), (ASCII, "ascii")])
def test_the_environment_is_bare(bare, tmp_path, locale, encoding):
    (tmp_path / "looks.py").write_text(
        "import os, pwd, socket, sys\n"
        "assert not {'HOME', 'USER', 'LANG'} & set(os.environ)\n"
        f"assert sys.getfilesystemencoding() == {encoding!r}\n"
        "assert os.path.expanduser('~') == '~'\n"
        "socket.create_connection(('192.0.2.1', 80), 1)\n"
    )
    code, said = bare([], locale, "looks")
    assert code == 1 and "network: 192.0.2.1" in said
    assert said.splitlines()[-1] == "OSError: [Errno 101] Network is unreachable"


def prepare_words(images, out):
    words = ["--size", "48", "--workers", "2", "--sheets", "1", "--carrier", "none"]
    return ["prepare", images, "--out", out, *words]


@pytest.fixture
def score_words(images, tmp_path):
    model = write_model(tmp_path / "model")
    return ["score", model, "--data.manifest", images, "--out", tmp_path / "ä.csv"]


def test_prepare(bare, images, tmp_path):
    assert succeed(bare(prepare_words(images, tmp_path / "Müller"))) == ""
    table = pd.read_csv(tmp_path / "Müller" / "manifest.csv")
    assert set(NAMES) <= set(table["source"]) and len(table) == 24


def test_score(bare, score_words, tmp_path):
    succeed(bare(score_words))
    table = pd.read_csv(tmp_path / "ä.csv")
    assert set(NAMES) <= set(table["path"]) and table["score"].notna().all()


@pytest.mark.slow
def test_run(bare, images, tmp_path):
    run, short = tmp_path / "Lauf ß", {"pretext.epochs": 1, "finetune.epochs": 1}
    more = {"data.prepare": "always", "prepare.size": 48, "finetune.centers": 3}
    succeed(bare(["run", *options(images, run, **short, **more)]))
    assert pd.read_csv(run / "scores.csv")["score"].notna().all()
    source = pd.read_csv(run / "prepared" / "manifest.csv")["source"]
    assert set(NAMES) <= set(source) and (run / "report.html").exists()


@pytest.mark.parametrize("command", ["prepare", pytest.param("score", marks=pytest.mark.slow)])
def test_names_that_the_locale_cannot_write(bare, images, score_words, tmp_path, command):
    given = {"prepare": prepare_words(images, tmp_path / "out"), "score": score_words}
    code, said = bare(given[command], ASCII)
    assert "Traceback" not in said
    assert code in (0, 2) and len(said.splitlines()) <= 1
