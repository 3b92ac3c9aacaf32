"""`selftaught serve` as a process without torch."""

import http.client
import json
import re
import subprocess
import sys

import pytest

from selftaught.cli.main import main
from selftaught.detector import Detector
from tests import tiny

# An export compares 256 images first.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
NO_TORCH = """
import sys
sys.modules["torch"] = None
from selftaught.cli.main import main
sys.exit(main(["serve", sys.argv[1], "--port", "0"]))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory, thin_encoder):
    return tiny.write_model(tmp_path_factory.mktemp("serve") / "model")


def test_scores_are_the_detectors_and_no_torch_is_there(model, tmp_path):
    manifest = tiny.write_images(tmp_path / "set", 4)
    out = tmp_path / "model.onnx"
    assert main(["export", str(model), "--data.manifest", str(manifest), "--out", str(out)]) == 0
    films = sorted((tmp_path / "set").glob("*.png"))
    expected = Detector.load(model).explain(films)
    command = [sys.executable, "-c", NO_TORCH, str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            port = int(re.search(r":(\d+)/score", process.stdout.readline())[1])

            def ask(method, path, body=None, **headers):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                connection.request(method, path, body, headers)
                answer = connection.getresponse()
                return answer.status, answer.read()

            for film, (_, row) in zip(films, expected.iterrows(), strict=True):
                status, text = ask("POST", "/score", film.read_bytes())
                answer = json.loads(text)
                assert status == 200 and answer["score"] == pytest.approx(row["score"], rel=1e-4)
                assert answer["flagged"] == row["flagged"]
                assert answer["percentile"] == row["percentile"]
            assert ask("GET", "/healthz", Host="evil.example")[0] == 421
            evil = {"Origin": "http://evil.example"}
            assert ask("POST", "/score", films[0].read_bytes(), **evil)[0] == 403
            assert ask("POST", "/score", b"no film")[0] == 422
            assert b"selftaught_films_scored_total 4\n" in ask("GET", "/metrics")[1]
        finally:
            process.terminate()
    assert process.returncode == 143
