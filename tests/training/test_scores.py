"""What is the score, by `score.by`: validation, scores.csv, both models and what they mean."""

import json
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from selftaught.cli.main import main
from selftaught.cli.options import read_config
from selftaught.detector import Detector
from selftaught.evaluation.metrics import auroc
from selftaught.models import read_model
from selftaught.models.bank import COLUMNS, Bank
from selftaught.training import stage
from selftaught.training.run import PARTS, run
from tests import thin
from tests.methods import runs
from tests.ranks import run_ranks
from tests.tiny import options, write_images

ALL = ("model_score", *COLUMNS)
BY = ("model", "ratio", "knn", "normality")
EXACT = {"engine.precision": "fp64", "finetune.optimizer": "sgd", "score.by": "ratio"}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


def small(manifest, out, **more):
    given = {"pretext.method": "none", "score.ratio_neighbours": 2, "score.bank_limit": 9}
    given["finetune.epochs"] = 2
    words = options(manifest, out, **(given | more))
    for name in ("pretext.epochs", "pretext.batch_size"):
        at = words.index(f"--{name}")
        del words[at : at + 2]
    return words


def work(manifest, out, parts=PARTS[:-1], on_event=lambda event, **facts: None, **more):
    """A run without a report in a fresh folder; its folder."""
    with thin.patch():
        return run(read_config("run", "", small(manifest, out, **more)), parts, on_event)


@pytest.fixture(scope="module", params=BY)
def finished(request, manifest, tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp(request.param) / "run"
    return request.param, work(manifest, out, **{"score.by": request.param})


def validated(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [one["val_auroc"] for one in lines if "val_auroc" in one]


def test_the_score_is_the_one_asked_for_everywhere(finished):
    by, folder = finished
    table = pd.read_csv(folder / "scores.csv")
    assert table["score"].equals(table[f"{by}_score"])
    assert table[list(ALL)].notna().all(axis=None)
    assert len({tuple(table[name].rank()) for name in ALL}) == len(ALL)
    normal = table[(table["split"] == "val") & (table["label"] == 0)]["score"].to_numpy()
    share = [(normal <= score).mean() * 100 for score in table["score"]]
    np.testing.assert_allclose(table["percentile"], share)
    val = table[table["split"] == "val"]
    area = roc_auc_score(val["label"], val["score"])
    metrics = json.loads((folder / "metrics.json").read_text())["val"]
    assert metrics["auroc"] == pytest.approx(area)
    for name in ALL:
        assert metrics[name]["auroc"] == pytest.approx(roc_auc_score(val["label"], val[name]))
    # The last epoch's model is the one that scores, with a bank of its own features.
    assert validated(folder)[-1] == pytest.approx(area)


def test_a_detector_gives_the_runs_scores(finished, manifest):
    by, folder = finished
    table = pd.read_csv(folder / "scores.csv")
    paths = [manifest.parent / name for name in table["path"]]
    with thin.patch():
        detector = Detector.load(folder, device="cpu")
        score, explained = detector.score(paths), detector.explain(paths, batch_size=7)
        gone = detector.explain([manifest.parent / "gone.png", *paths[:2]], bad_files="skip")
    assert detector.by == by
    np.testing.assert_allclose(score, table["score"], rtol=1e-5, atol=1e-6)
    for name in ("score", *ALL):
        np.testing.assert_allclose(explained[name], table[name], rtol=1e-5, atol=1e-6)
    # The threshold is the score of an image, which rounding moves to either side of it.
    clear = ~np.isclose(table["score"], detector.calibration.threshold, rtol=1e-5, atol=1e-6)
    assert clear.sum() > 30 and (explained["flagged"] == table["flagged"])[clear].all()
    assert gone[list(ALL)].isna().all(axis=1).tolist() == [True, False, False]


@pytest.mark.parametrize("method", ["classifier", "logistic", "knn"])
def test_both_sides_of_a_film_count_in_kept_features_as_in_a_detector(manifest, tmp_path, method):
    torch.set_num_threads(1)
    weights = runs.write(tmp_path) / "weights.pt"
    given = {"finetune.method": method, "model.mirror": True, "score.by": "model"}
    if method == "classifier":
        given |= {"finetune.encoder": "head", "finetune.epochs": 1, "finetune.batch_size": 8}
    words = ["--preset=eq2-quick", f"--data.manifest={manifest}", f"--out={tmp_path / 'run'}"]
    # Batch statistics of fresh weights would be those of both sides.
    given |= {"pretext.method": "imagenet", "model.weights": weights}
    given |= {"data.image_size": 32, "data.workers": 0}
    words += [f"--{name}={value}" for name, value in given.items()]

    def work(*more):
        return run(read_config("run", "", [*words, *more]), PARTS[:-1], lambda event, **facts: None)

    with thin.patch():
        folder = work()
        if method != "knn":  # one side at a time is learnt from
            one = work("--model.mirror=false", f"--out={tmp_path / 'one side'}")
            same = [read_model(place / "model").state for place in (folder, one)]
            differ = [key for key, value in same[0].items() if not torch.equal(value, same[1][key])]
            assert not differ
        table = pd.read_csv(folder / "scores.csv")
        score = Detector.load(folder, device="cpu").score(
            [manifest.parent / name for name in table["path"]]
        )
    np.testing.assert_allclose(score, table["score"], rtol=1e-5, atol=1e-6)


def test_the_best_model_is_of_the_epoch_that_this_score_was_best_in(finished, manifest):
    by, folder = finished
    curve, table = validated(folder), pd.read_csv(folder / "scores.csv")
    val = table[table["split"] == "val"]
    with thin.patch():
        detector = Detector.load(folder / "model-best", device="cpu")
        scores = detector.score([manifest.parent / name for name in val["path"]])
    assert roc_auc_score(val["label"], scores) == pytest.approx(max(curve))
    normal = np.sort(scores.numpy()[val["label"] == 0])
    np.testing.assert_allclose(detector.calibration.normal_scores, normal, rtol=1e-5, atol=1e-6)


def test_what_is_remembered_is_bounded_and_named(finished):
    _, folder = finished
    split = pd.read_csv(folder / "split.csv")
    train = split[split["split"] == "train"]["semi_label"]
    for name in ("model", "model-best"):
        facts = read_model(folder / name).bank.facts()
        assert facts["normals"] == 9 < (train != -1).sum() == facts["drawn"]["of"]
        assert facts["abnormal"] == (train == -1).sum() > 0
        assert facts["drawn"]["seed"] == 3


def test_only_the_scores_table_asks_for_all_columns(manifest, tmp_path):
    asked, forward = [], Bank.forward

    def hear(self, h, names=COLUMNS):
        asked.append(tuple(names))
        return forward(self, h, names)

    with mock.patch.object(Bank, "forward", hear):
        work(manifest, tmp_path, PARTS[:4], **{"score.by": "knn"})
    # Two validations, scores.csv, and model-best's normal validation images.
    assert asked == [("knn_score",), ("knn_score",), COLUMNS, ("knn_score",)]


@pytest.mark.parametrize(("by", "warned"), [("ratio", True), ("model", False)])
def test_a_score_that_nothing_learnt_can_change_is_warned_of(
    manifest, tmp_path, capsys, by, warned
):
    more = {"score.by": by, "finetune.encoder": "head", "finetune.epochs": 1}
    work(manifest, tmp_path, PARTS[:3], **more)
    assert ("nothing that it learns changes the score" in capsys.readouterr().err) == warned


@pytest.mark.parametrize("finished", ["ratio"], indirect=True)
def test_models_are_written_without_scores_too(manifest, tmp_path, finished):
    by, folder = finished
    short = work(manifest, tmp_path / "run", PARTS[:3], **{"score.by": by})
    for name in ("model", "model-best"):
        ours, theirs = read_model(short / name), read_model(folder / name)
        for key, values in theirs.bank.state_dict().items():
            torch.testing.assert_close(ours.bank.state_dict()[key], values, rtol=1e-4, atol=1e-5)
        assert ours.bank.by == by
        np.testing.assert_allclose(
            ours.calibration.normal_scores, theirs.calibration.normal_scores, rtol=1e-5, atol=1e-6
        )


@pytest.fixture(scope="module")
def exact(manifest, tmp_path_factory):
    """A run in float64 that nothing interrupted."""
    torch.set_num_threads(1)
    return work(manifest, tmp_path_factory.mktemp("exact") / "run", **EXACT)


class Killed(Exception):
    pass


def test_a_run_killed_in_validation_goes_on_with_the_same_scores(manifest, exact, tmp_path):
    seen = []

    def kill(event, **facts):
        seen.append(event == "batch" and facts["name"] == "validation")
        if sum(seen) == 2:
            raise Killed

    with pytest.raises(Killed):
        work(manifest, tmp_path / "killed", on_event=kill, **EXACT)
    again = work(manifest, tmp_path / "killed", **EXACT)
    for name in ("scores.csv", "model/bank.safetensors", "model-best/bank.safetensors"):
        assert (again / name).read_bytes() == (exact / name).read_bytes()
    assert validated(again) == validated(exact)


def test_two_ranks_have_the_scores_of_one(manifest, exact, tmp_path):
    seen = run_ranks(2, _on_a_rank, manifest, tmp_path / "two")
    ours, theirs = (pd.read_csv(place / "scores.csv") for place in (tmp_path / "two", exact))
    for name in ("score", "percentile", *ALL):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-6, atol=1e-6, err_msg=name)
    # Every rank has the same scores, not the one alone that computes and writes them.
    assert seen[0] == seen[1] == validated(tmp_path / "two") == pytest.approx(validated(exact))


def _on_a_rank(manifest, out):
    seen = []
    with mock.patch.object(stage, "auroc", lambda *given: seen.append(auroc(*given)) or seen[-1]):
        work(manifest, out, **EXACT)
    return seen


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({"score.by": "best"}, "score.by"),
        ({"score.ratio_neighbours": 0}, "score.ratio_neighbours is 0; allowed: 1 or more"),
        ({"score.bank_limit": 0}, "score.bank_limit is 0; allowed: 1 or more"),
        (
            {"score.by": "ratio", "finetune.method": "gan"},
            "score.by is 'ratio', but method 'gan' has no features to compare; allowed: model",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    manifest, tmp_path, capsys, more, line
):
    words = small(manifest, tmp_path / "run", **more)
    if "finetune.method" in more:
        at = words.index("--finetune.centers")
        del words[at : at + 2]
    assert main(["run", *words]) == 2
    said = capsys.readouterr().err.strip()
    assert line in said and "\n" not in said
    assert not (tmp_path / "run").exists()
