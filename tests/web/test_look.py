"""The page's server over HTTP: who is let in, what is sent, what is kept."""

import os
import socket
from unittest import mock

import numpy as np
import pandas as pd
import pytest

from selftaught.data.reader_labels import current, read_rows
from selftaught.detector import Detector
from selftaught.errors import InputError
from selftaught.web import films as films_module
from selftaught.web import server as server_module
from selftaught.web.films import far_from, films_of_run
from selftaught.web.server import listen
from tests.web.conftest import write_run

PATHS = ["/", "/films?set=test&order=score", "/film/0", "/small/0", "/large/0", "/normal/0"]
PATHS += ["/static/page.js", "/healthz", "/metrics"]


def test_only_this_machines_user_is_let_in(run, open_look, labels):
    with open_look(run) as client:
        own = f"127.0.0.1:{client.port}"
        for path in PATHS:
            assert client.ask("GET", path, Authorization=None)[0] == 403, path
            assert client.ask("GET", path, Authorization="Bearer wrong")[0] == 403
            # A name of somebody else's that was pointed here, with the token and without.
            for host in (f"evil.example:{client.port}", "127.0.0.1:1", "evil.example"):
                assert client.ask("GET", path, Host=host)[0] == 421, path
            status, body, headers = client.ask("GET", path)
            assert status == 200, (path, body)
            assert headers["content-security-policy"].startswith("default-src 'self'")
            assert headers["cache-control"] == "no-store"
        assert client.ask("GET", f"/?token=wrong&token={'x' * 9}", Authorization=None)[0] == 403
        status, _, headers = client.ask("GET", "/?token=secret", Authorization=None)
        assert (status, headers["location"]) == (303, "/")
        cookie = headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=strict" in cookie
        kept = {"Authorization": None, "Cookie": cookie.split(";")[0]}
        assert client.ask("GET", "/", **kept)[0] == 200
        label = {"film": 0, "label": "normal", "who": "eva"}
        secret = client.look.secret
        post = {**kept, "x_page_secret": secret, "Origin": f"http://{own}"}
        assert client.json("POST", "/label", label, **post)[0] == 200
        for wrong in (
            {"x_page_secret": None},
            {"x_page_secret": "0" * 64},
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
            {"Cookie": "selftaught-1=secret"},
        ):
            status, _, _ = client.ask("POST", "/label", "{}", **{**post, **wrong})
            assert status == 403, wrong
        assert client.ask("POST", "/label", "{}", Origin="http://evil.example")[0] == 403
    assert len(read_rows(labels)) == 1


def test_bodies_are_neither_large_nor_slow(run, open_look, monkeypatch):
    monkeypatch.setattr(server_module, "SMALL_BYTES", 1000)
    monkeypatch.setattr(server_module, "BODY_SECONDS", 0.5)
    monkeypatch.setattr(server_module, "HEADER_SECONDS", 0.5)
    with open_look(run) as client:
        assert client.ask("POST", "/label", b"x" * 1001)[0] == 413
        chunks = (b"x" * 400 for _ in range(3))
        assert client.ask("POST", "/label", chunks)[0] == 413
        head = f"POST /label HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\n"
        head += "Authorization: Bearer secret\r\nContent-Length: 9\r\n\r\n{"
        whole = f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\n\r\n"
        for sent, expected in (
            (head, b"HTTP/1.1 408"),
            ("GET / HT", b""),
            (whole + "GET / HT", b"HTTP/1.1 403"),
        ):
            with socket.create_connection(("127.0.0.1", client.port), timeout=60) as slow:
                slow.sendall(sent.encode())
                assert slow.recv(12) == expected
                while slow.recv(1 << 16):  # until it is closed
                    pass
        assert client.ask("GET", "/healthz")[0] == 200


def test_a_hidden_score_is_in_nothing_that_is_sent(run, open_look, labels):
    with open_look(run) as client:
        _, shown = client.json("GET", "/films?set=test&order=score&hidden=0")
        assert shown["score"] == sorted(shown["score"], reverse=True) and len(shown["score"]) > 9
        for order in ("score", "mixed"):
            _, hidden = client.json("GET", f"/films?set=test&order={order}&hidden=1")
            assert sorted(hidden["number"]) == sorted(shown["number"])
            assert hidden["score"] == hidden["given"] == []
            places = {number: place for place, number in enumerate(shown["number"])}
            ranks = [places[number] for number in hidden["number"]]
            assert abs(np.corrcoef(ranks, range(len(ranks)))[0, 1]) < 0.7
        _, film = client.json("GET", f"/film/{shown['number'][0]}?hidden=1")
        assert not film  # a path may tell a label
        client.json("POST", "/label", {"film": 0, "label": "normal", "who": "a", "hidden": True})
        client.json("POST", "/label", {"film": 0, "label": "normal", "who": "a", "hidden": False})
    assert [row.score for row in read_rows(labels)] == ["hidden", "shown"]


def test_the_mixed_order_offers_three_kinds_by_turns():
    score = np.arange(12.0)
    features = np.zeros((12, 2), np.float32)
    features[5] = (9, 0)
    features[7] = (0, 5)
    table = pd.DataFrame({"path": list("abcdefghijkl"), "split": "", "score": score})
    films = films_module.Films(table=table, root=None, features=features, threshold=2.1)
    assert films.order("", "mixed", False, [0]).tolist()[:6] == [11, 2, 5, 10, 3, 7]
    assert sorted(films.order("", "mixed", False, [0])) == list(range(12))
    table.loc[5, "score"] = np.nan  # unlike all, but it could not be read
    assert films.order("", "mixed", False, [0])[-1] == 5
    generator = np.random.default_rng(0)
    points, known = generator.normal(size=(2, 300, 5))
    order = far_from(points, known[:7])
    assert sorted(order) == list(range(300))
    for place in (0, 1, 9):
        before = np.concatenate([known[:7], points[order[:place]]])
        distances = np.linalg.norm(points[:, None] - before, axis=2).min(axis=1)
        assert distances[order[place]] == pytest.approx(distances.max())


def test_the_nearest_normal_films_are_those_of_the_run(run, open_look):
    films = films_of_run(run)
    normal = (films.table["split"] == "train") & (films.table["label"] == 0)
    with open_look(run) as client:
        for number in (3, int(np.flatnonzero(normal)[0])):
            _, film = client.json("GET", f"/film/{number}")
            distances = np.linalg.norm(films.features - films.features[number], axis=1)
            distances[~normal.to_numpy()] = np.inf
            distances[number] = np.inf
            nearest = np.argsort(distances)[:3]
            paths = [films.normals.paths[one["number"]] for one in film["like"]]
            assert paths == films.table["path"].iloc[nearest].tolist()
            assert [one["distance"] for one in film["like"]] == pytest.approx(distances[nearest])


def test_a_label_is_on_the_disk_before_it_is_answered(run, open_look, labels):
    path, synced = labels, []
    whole = os.fsync

    def fsync(handle):
        whole(handle)
        synced.append(path.read_text())

    with open_look(run) as client, mock.patch("os.fsync", fsync):
        label = {"film": 4, "label": "abnormal", "who": "eva", "hidden": False}
        assert client.json("POST", "/label", label) == (200, {"film": 4, "label": "abnormal"})
        assert synced and "images/0004.png,abnormal,eva," in synced[-1]
        path_4, model = "images/0004.png", "m" * 64
        row = read_rows(path)[-1]
        assert (row.path, row.label, row.model, row.score) == (path_4, "abnormal", model, "shown")
        # A full disk: it is not kept, the page is told, and the next one is.
        with mock.patch("os.fsync", side_effect=OSError(28, "No space left on device")):
            status, answer = client.json("POST", "/label", {**label, "film": 5})
            assert status == 507 and "disk full" in answer["error"]
        assert client.json("POST", "/label", {**label, "film": 6})[0] == 200
    assert [row.path for row in read_rows(path)] == [path_4, "images/0006.png"]


def test_undo_takes_back_the_readers_own_last_label(run, open_look, labels):
    with open_look(run) as client:
        for film, label, who in (
            (1, "normal", "eva"),
            (2, "normal", "eva"),
            (1, "abnormal", "eva"),
            (3, "unsure", "tom"),
        ):
            client.json("POST", "/label", {"film": film, "label": label, "who": who})
        undone = [client.json("POST", "/undo", {"who": "eva"})[1] for _ in range(4)]
        assert undone == [
            {"film": 1, "label": "normal"},
            {"film": 2, "label": ""},
            {"film": 1, "label": ""},
            {"film": None, "label": ""},
        ]
        _, listed = client.json("GET", "/films?set=all&order=list")
        assert listed["label"][:5] == ["", "", "", "unsure", ""]
    rows = read_rows(labels)
    assert len(rows) == 7 and current(rows) == {"images/0003.png": "unsure"}
    with open_look(run) as client:  # started again
        assert client.json("POST", "/undo", {"who": "tom"})[1] == {"film": 3, "label": ""}


@pytest.mark.parametrize(
    "body",
    [
        {"film": 60, "label": "normal", "who": "a"},
        {"film": -1, "label": "normal", "who": "a"},
        {"film": True, "label": "normal", "who": "a"},
        {"film": 1, "label": "undo", "who": "a"},
        {"film": 1, "label": "normal", "who": "=cmd()"},
        {"film": 1, "label": "normal", "who": "a\nb"},
        {"film": 1, "label": "normal"},
        ["film"],
    ],
)
def test_wrong_labels_are_refused(body, run, open_look, labels):
    with open_look(run) as client:
        assert client.json("POST", "/label", body)[0] == 422
        for path in ("/film/60", "/small/60", "/films?set=x&order=score", "/films?order=score"):
            assert client.ask("GET", path)[0] in (200, 422)
        assert client.ask("GET", "/film/images%2F0001.png")[0] == 404
        assert client.ask("GET", "/static/look.py")[0] == 404
        assert client.ask("GET", "/static/..%2Flook.py")[0] == 404
    assert not read_rows(labels)


def test_films_outside_the_folder_are_not_sent(open_look, tmp_path):
    (tmp_path / "other.png").write_bytes(b"secret")

    def edit(scores):
        scores.loc[0, "path"] = "../other.png"
        return scores

    run = write_run(tmp_path / "run", 12, edit)
    with open_look(run) as client:
        status, answer = client.json("GET", "/large/0")
        assert status == 422 and "outside" in answer["error"]


def test_a_film_is_scored_as_the_detector_does(run, open_look):
    film = run.parent / "set" / "images" / "0001.png"
    image, expected = film.read_bytes(), Detector.load(run / "model").explain([film])
    with open_look(run) as client:
        status, answer = client.json("POST", "/score", image)
        assert status == 200 and answer["model"] == "m" * 64
        for name in ("score", "percentile", "flagged", "center", "model_score"):
            assert answer[name] == expected[name].iloc[0], name
        status, answer = client.json("POST", "/score", image[:300])
        assert status == 422 and "the film" in answer["error"] and "/tmp" not in answer["error"]
        assert client.json("POST", "/score", b"--boundary")[0] == 422
        lines = client.ask("GET", "/metrics")[1].decode().splitlines()
        assert "selftaught_films_scored_total 1" in lines
        assert "selftaught_films_refused_total 2" in lines
        assert client.json("GET", "/healthz")[1]["status"] == "ok"


def test_a_taken_port_is_one_line():
    with listen(0) as open_:
        port = open_.getsockname()[1]
        with pytest.raises(InputError, match=f"port is {port}, which cannot be had"):
            listen(port)
    with pytest.raises(InputError, match="port is 70000; allowed"):
        listen(70000)
