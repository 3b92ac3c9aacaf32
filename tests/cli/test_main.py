"""What a command raises, as a line and an exit code."""

import errno
import sys
import types

import pytest

from selftaught.cli.main import guarded


@pytest.mark.parametrize(
    "raised, line",
    [
        (FileNotFoundError(errno.ENOENT, "Gone", "/a/b"), "/a/b: Gone; allowed: a path"),
        (FileNotFoundError(errno.ENOENT, "No usable folder in ['/tmp']"), "No usable folder in"),
    ],
)
def test_a_path_that_cannot_be_used_is_named(monkeypatch, capsys, raised, line):
    def main(arguments):
        raise raised

    module = types.SimpleNamespace(main=main)
    monkeypatch.setitem(sys.modules, "selftaught.cli.toy", module)
    assert guarded("toy", []) == 2
    assert capsys.readouterr().err.startswith(f"selftaught: {line}")
