"""A made-up run behind a real server, in a thread of this process."""

import http.client
import json
import threading
from contextlib import contextmanager

import numpy as np
import pytest
from safetensors.numpy import save_file

from selftaught.data.reader_labels import LabelFile
from selftaught.web.films import films_of_run
from selftaught.web.look import Look
from selftaught.web.server import Guard, listen, server
from tests import tiny
from tests.evaluation.conftest import make_image, make_scores


@contextmanager
def served(app_of, token="secret"):
    """The port of a server; `app_of(guard)` gives what is behind the guard."""
    open_ = listen(0)
    port = open_.getsockname()[1]
    guard = Guard(None, port, token)
    guard.app = app_of(guard)
    running = server(guard)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [open_]})
    thread.start()
    try:
        yield port
    finally:
        running.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


class Client:
    """Asks as a program with the token does, unless headers say otherwise."""

    def __init__(self, port, look):
        self.port, self.look = port, look

    def ask(self, method, path, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        given = {"Authorization": "Bearer secret", **named}
        given = {name: text for name, text in given.items() if text is not None}
        try:
            connection.request(method, path, body, given)
            answer = connection.getresponse()
            return answer.status, answer.read(), answer.headers
        finally:
            connection.close()

    def json(self, method, path, body=None, **headers):
        data = body if body is None or isinstance(body, bytes) else json.dumps(body)
        status, text, _ = self.ask(method, path, data, **headers)
        return status, json.loads(text)


def write_run(folder, count=60, edit=lambda scores: scores, films=None):
    """A run folder as far as the page reads it, its films beside it in set/."""
    generator, root = np.random.default_rng(0), folder.parent / "set"
    folder.mkdir()
    scores = edit(make_scores(count, generator, ("WRIST",)))
    scores.assign(percentile=50.0, flagged=0).to_csv(folder / "scores.csv", index=False)
    h = generator.normal(size=(count, 8)).astype(np.float32)
    save_file({"h": h}, folder / "embeddings.safetensors")
    (folder / "metrics.json").write_text("{}")
    (folder / "config.yaml").write_text("seed: 1\n")
    (folder / "environment.json").write_text(json.dumps({"image_root": str(root)}))
    for path, label in list(zip(scores["path"], scores["label"], strict=True))[:films]:
        if ".." not in path:
            make_image(root / path, generator, label)
    tiny.write_model(folder / "model")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of 60 films; its labels go elsewhere."""
    return write_run(tmp_path_factory.mktemp("look") / "run")


@pytest.fixture
def labels(tmp_path):
    """Where the labels of this test go."""
    return tmp_path / "labels.csv"


@pytest.fixture
def open_look(labels):
    """Factory: `with open_look(run) as client`."""

    @contextmanager
    def opened(run):
        from selftaught.detector import Detector

        file = LabelFile(labels)
        look = Look(
            films_of_run(run), file, lambda: Detector.load(run / "model"),
            model="m" * 64, title="run", reader="eva",
        )  # fmt: skip

        def app_of(guard):
            look.secret = guard.secret
            return look.app()

        try:
            with served(app_of) as port:
                yield Client(port, look)
        finally:
            file.close()

    return opened
