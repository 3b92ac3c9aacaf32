"""Heat maps of a run: films that fix their scale, films that are shown, the report's part."""

import cv2
import numpy as np
import pandas as pd
import pytest

from selftaught.errors import InputError
from selftaught.evaluation.heat import heat_cards, normal_validation, stand_out
from selftaught.evaluation.report import write_report
from selftaught.evaluation.run_files import read_run


def test_normal_validation_films_fix_the_scale(make_run):
    run = make_run(images=False)
    with pytest.raises(InputError, match="no longer there"):
        normal_validation(run)
    (run.parent / "set").mkdir()
    rows, root = normal_validation(run)
    scores = pd.read_csv(run / "scores.csv").set_index("path")
    chosen = scores.loc[rows["path"]]
    assert root == run.parent / "set" and len(rows) > 5
    assert set(chosen["split"]) == {"val"} and set(chosen["label"]) == {0}
    assert len(rows) == ((scores["split"] == "val") & (scores["label"] == 0)).sum()


def test_films_to_show_are_the_highest_and_calm_normal_ones(make_run):
    run = make_run()
    rows, _, digest = stand_out(run)
    test = pd.read_csv(run / "scores.csv").query("split == 'test'").set_index("path")
    high, calm = list(rows["path"][:6]), list(rows["path"][6:])
    assert test["score"][high].min() >= test["score"].drop(high).max()
    assert len(calm) == 2 and set(test["label"][calm]) == {0}
    normal = test[test["label"] == 0]["score"]
    assert normal.rank(pct=True)[calm].between(0.3, 0.7).all()
    assert stand_out(run)[2] == digest


@pytest.mark.usefixtures("no_pictures")
def test_the_report_shows_what_was_made(make_run):
    run = make_run()
    assert heat_cards(read_run(run)) == []
    assert "<code>selftaught maps</code>" in write_report(run).read_text()
    paths = list(stand_out(run)[0]["path"])
    (run / "maps").mkdir()
    (run / "secret.png").write_bytes(cv2.imencode(".png", np.zeros((9, 9), np.uint8))[1].tobytes())
    picture = np.full((30, 20, 3), (0, 0, 255), np.uint8)  # red, in OpenCV's order
    cv2.imwrite(str(run / "maps" / "000000.png"), picture)
    names = ["000000.png", "../secret.png", "", *[""] * (len(paths) - 3)]
    table = pd.DataFrame({"path": [*paths, "unknown.png"], "map": [*names, "000000.png"]})
    table.to_csv(run / "maps" / "maps.csv", index=False)
    cards = heat_cards(read_run(run))
    assert [card.path for card in cards] == paths
    assert [card.thumbnail is not None for card in cards] == [True] + [False] * (len(paths) - 1)
    text = write_report(run).read_text()
    assert text.count("Test image with heat map") == 1
