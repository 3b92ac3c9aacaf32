"""Folders written in one step: killed anywhere, full disks, what is never replaced."""

import os
import stat

import pytest
import torch
from safetensors.torch import load_file, save_file

from selftaught import files
from selftaught.errors import InputError, MachineError
from selftaught.files import standing, write_atomic, write_folder

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


def replaced(path):
    """Write as libraries do that put another file in the place of the one they were given."""
    path.with_name("new").touch(0o600)
    path.with_name("new").rename(path)


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o002])
def test_the_umask_decides_who_may_read(tmp_path, mask):
    """safetensors alone makes files that only their owner may read."""
    tensors = {"h": torch.ones(2, 3)}
    contents = {
        "bytes": b"x",
        "text": "x",
        "table": lambda path: path.write_text("x"),
        "tensors": lambda path: save_file(tensors, path),
        "replaced": replaced,
    }
    before = os.umask(mask)
    try:
        write_folder(tmp_path / "folder", contents)
        (tmp_path / ".left.tmp").touch(0o600)  # by a process that was killed
        for name, content in {**contents, "left": "x"}.items():
            write_atomic(tmp_path / name, content)
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 11
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in files} == {
        path.name: 0o666 & ~mask for path in files
    }
    assert torch.equal(load_file(tmp_path / "tensors")["h"], tensors["h"])
