"""MODEL_CARD.md: facts that stand in the run folder, and nothing of where or who."""

import hashlib
import json

import pytest

from selftaught.evaluation.card import write_card


def with_model(run, **more):
    facts = json.loads((run / "model" / "model.json").read_text())
    facts |= {
        "method": "spheres",
        "options": {"lr": 1e-4},
        "training": {"epoch": "last", "seed": 7, "preset": "quick", "training_images": 60},
        "preprocessing": {"image_size": 32, "prepared": None, "reference": "x" * 5000},
        "sha256": {"weights.safetensors": hashlib.sha256(b"w").hexdigest(), "facts": "f" * 64},
    } | more
    (run / "model" / "model.json").write_text(json.dumps(facts))


def test_card_has_figures_threshold_and_hashes_of_the_run(make_run):
    run = make_run(images=False)
    with_model(run)
    text = write_card(run).read_text()
    test = json.loads((run / "metrics.json").read_text())["test"]
    low, high = test["auroc_ci"]
    assert f"| {test['auroc']:.3f} |\n" in text and f"{low:.3f} to {high:.3f} |" in text
    model = json.loads((run / "model" / "model.json").read_text())
    assert f"above {model['calibration']['threshold']:.6g}" in text
    assert f"of {len(model['calibration']['normal_scores'])} normal" in text
    assert text.count(hashlib.sha256(b"w").hexdigest()) == 2 and "f" * 64 in text
    assert "not a diagnosis" in text and "| lr | 0.0001 |" in text and "xxx" not in text


def test_card_names_no_path_image_or_patient(make_run):
    run = make_run(images=False, edit=lambda scores: scores.assign(group="secret"))
    with_model(run)
    text = write_card(run).read_text()
    assert "secret" not in text and "images/0" not in text and str(run.parent) not in text


def test_foreign_text_stays_in_its_cell(make_run):
    run = make_run(images=False, parts=("a|b\n<script>", "HAND"))
    with_model(run)
    row = next(line for line in write_card(run).read_text().splitlines() if "script" in line)
    assert row.startswith("| a\\|b \\<script> | ")


@pytest.mark.parametrize("facts", [{}, {"sha256": None}])
def test_a_folder_without_a_model_gets_no_card(make_run, facts):
    run = make_run(images=False)
    (run / "model" / "model.json").write_text(json.dumps(facts))
    assert write_card(run) is None and not (run / "MODEL_CARD.md").exists()
