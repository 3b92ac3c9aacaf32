"""Folders written in one step: killed anywhere, full disks, what is never replaced."""

import os

import pytest

from selftaught import files
from selftaught.errors import InputError, MachineError
from selftaught.files import standing, write_folder

OLD, NEW = {"a": "old", "b": b"old"}, {"a": "new", "b": b"new"}


def content(folder):
    return {path.name: path.read_text() for path in standing(folder).iterdir()}


def test_written_in_order_so_that_one_file_may_describe_another(tmp_path):
    def size(path):
        path.write_text(str((path.parent / "a").stat().st_size))

    assert write_folder(tmp_path / "x", {"a": "four", "b": size}) == tmp_path / "x"
    assert content(tmp_path / "x") == {"a": "four", "b": "4"}
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.mark.parametrize("at", range(1, 8))
def test_killed_at_any_operation_a_whole_folder_remains(tmp_path, monkeypatch, at):
    """Stop before the at-th fsync or rename, without any clean-up, then go on."""
    folder, calls = write_folder(tmp_path / "x", OLD), 0

    def counted(original):
        def function(*arguments):
            nonlocal calls
            calls += 1
            if calls == at:
                raise Killed
            return original(*arguments)

        return function

    with monkeypatch.context() as patch:
        for name in ("fsync_file", "fsync_folder"):
            patch.setattr(files, name, counted(getattr(files, name)))
        patch.setattr(files.os, "replace", counted(os.replace))
        remove = files.shutil.rmtree
        # A killed process does not clean up.
        patch.setattr(
            files.shutil, "rmtree", lambda *a, **k: None if calls >= at else remove(*a, **k)
        )
        try:
            write_folder(folder, NEW)
        except Killed:
            assert calls == at
        else:
            assert calls == 6 < at, "a kill was swallowed"
    assert set(content(folder).values()) in ({"old"}, {"new"}) and len(content(folder)) == 2
    assert set(content(write_folder(folder, NEW)).values()) == {"new"}
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_full_disk_keeps_what_was_there(tmp_path, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    folder = write_folder(tmp_path / "x", OLD)
    with monkeypatch.context() as patch:
        patch.setattr(files, "fsync_file", full)
        with pytest.raises(MachineError, match="disk full .* bytes needed"):
            write_folder(folder, NEW, size=10**6)
    assert set(content(folder).values()) == {"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_folder_with_other_things_is_never_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    with pytest.raises(InputError, match="'chapter1.txt'; allowed: a folder with nothing but a, b"):
        write_folder(tmp_path / "thesis", NEW)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        write_folder(tmp_path / "file", NEW)
    assert (tmp_path / "thesis" / "chapter1.txt").read_text() == "years of work"
    write_folder(tmp_path / "thesis", NEW, replaces=("chapter1.txt",))
    assert set(content(tmp_path / "thesis")) == {"a", "b"}
