"""What a run tells: nothing beside its own lines where TensorBoard's file goes away."""

import shutil
import threading

import pytest

from selftaught.training.progress import Reporter


def test_the_board_loses_its_file_without_a_traceback(tmp_path, monkeypatch):
    heard = []
    before = lambda found: heard.append(found.exc_type)  # noqa: E731
    monkeypatch.setattr(threading, "excepthook", before)
    reporter = Reporter(tmp_path)
    writer = reporter.board.file_writer.event_writer._async_writer._worker
    with pytest.raises(FileNotFoundError), reporter:
        shutil.rmtree(tmp_path / "tensorboard")
        for step in range(1001):  # more than the queue holds
            reporter.board.add_scalar("loss", 1.0, step)
        reporter.board.flush()
    writer.join(60)
    assert isinstance(writer.exception, FileNotFoundError) and not heard
    assert threading.excepthook is before


def test_other_threads_still_tell(tmp_path, monkeypatch):
    heard = []
    monkeypatch.setattr(threading, "excepthook", lambda found: heard.append(found.exc_type))
    with Reporter(tmp_path):
        other = threading.Thread(target=open, args=(tmp_path / "nowhere",))
        other.start()
        other.join()
    assert heard == [FileNotFoundError]


def test_a_warning_that_each_start_says_is_logged_once(tmp_path, capsys):
    for _ in range(3):
        with Reporter(tmp_path) as reporter:
            reporter.warn("pretext", "few negatives", epoch=0, step=0)
            reporter.warn("pretext", "few negatives", epoch=1, step=0)
    assert [line["epoch"] for line in reporter.lines()] == [0, 1]
    assert capsys.readouterr().err.count("warning: pretext: few negatives") == 6
