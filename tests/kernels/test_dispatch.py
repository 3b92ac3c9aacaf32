"""Choice of backend: argument, then environment, then the best that is there."""

import logging

import pytest
import torch

from selftaught.errors import InputError
from selftaught.kernels import backend_table, dispatch
from selftaught.kernels.backend import Backend

REQUEST = dispatch.Request(op="ntxent", device=torch.device("cpu"), dtype=torch.float32, width=128)


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """No backend but the reference, and nobody asking for one."""
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    present = {"reference": dispatch.load("reference")}
    monkeypatch.setattr(dispatch, "load", lambda name: present.get(name, dispatch.ABSENT))
    dispatch._say_fallback.cache_clear()
    return present


def backend(reason=""):
    return Backend(tiles=None, losses=None, spheres=None, refusal=lambda request: reason)


def test_the_best_that_is_there(clean):
    assert dispatch.choose(REQUEST) == "reference"
    clean["cpp"] = backend()
    assert dispatch.choose(REQUEST) == "cpp"
    assert dispatch.implementation(REQUEST) is clean["cpp"]


def test_argument_beats_environment_beats_auto(clean, monkeypatch):
    clean["cpp"] = clean["triton"] = backend()
    monkeypatch.setenv(dispatch.VARIABLE, "triton")
    assert dispatch.choose(REQUEST) == "triton"
    assert dispatch.choose(REQUEST, "reference") == "reference"
    assert dispatch.choose(REQUEST, "auto") == "cpp"


def test_forced_and_missing_says_why_and_what_is_there(clean):
    clean["triton"] = "cannot be imported: no module named triton"
    with pytest.raises(InputError) as caught:
        dispatch.choose(REQUEST, "triton")
    assert str(caught.value) == (
        "backend: 'triton' cannot run ntxent on cpu (cannot be imported: no module named triton); "
        "available are reference"
    )


def test_forced_by_environment_and_unknown(monkeypatch):
    monkeypatch.setenv(dispatch.VARIABLE, "gpu")
    with pytest.raises(InputError, match="SELFTAUGHT_BACKEND: got 'gpu', allowed are auto"):
        dispatch.choose(REQUEST)


def test_only_auto_falls_back_and_says_so_once(clean, caplog):
    clean["cpp"] = backend("width 128 is above 64")
    with caplog.at_level(logging.WARNING):
        assert dispatch.choose(REQUEST) == "reference"
        assert dispatch.choose(REQUEST) == "reference"
    assert caplog.messages == [
        "ntxent on cpu runs on backend 'reference' because cpp: width 128 is above 64"
    ]
    with pytest.raises(InputError, match="width 128 is above 64"):
        dispatch.choose(REQUEST, "cpp")


def test_absent_backends_are_no_news(caplog):
    with caplog.at_level(logging.WARNING):
        dispatch.choose(REQUEST)
    assert not caplog.messages


def test_table(clean):
    clean["cpp"] = backend()
    rows = [row for row in backend_table() if row.device == "cpu"]
    assert len(rows) == len(dispatch.OPS) * len(dispatch.BACKENDS)
    assert {row.backend for row in rows if row.chosen} == {"cpp"}
    assert all(row.available == (row.reason == "") for row in rows)
    assert {row.backend for row in rows if not row.available} == {"triton", "cuda"}


def test_table_where_the_environment_asks_for_the_impossible(monkeypatch):
    monkeypatch.setenv(dispatch.VARIABLE, "cuda")
    assert not any(row.chosen for row in backend_table() if row.device == "cpu")


def test_a_module_that_fails_to_import_is_a_reason(monkeypatch):
    monkeypatch.undo()

    def fail(name):
        raise ImportError("libcuda.so.1: cannot open")

    monkeypatch.setattr(dispatch.importlib, "import_module", fail)
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: object())
    assert dispatch.load.__wrapped__("cuda") == "cannot be imported: libcuda.so.1: cannot open"
