"""A plan is only added to; lines with the same settings share a run."""

import dataclasses
import json

import pytest

from selftaught.errors import InputError
from selftaught.table1.plan import claim_table, extend, read_plan, settings_of
from tests.table1.tables import FORK, make, rows


def add(out, names, seeds=(1,), draws=1, **values):
    made = rows(names, **values)
    return extend(out, made, seeds=seeds, label_draws=draws, manifest="m")


def test_rows_that_differ_in_their_score_alone_share_their_runs(tmp_path):
    _, cells = make(tmp_path, ["ours", "uni-modal", "pretext-100nn"], [1, 11])
    runs = {(cell.row, cell.seed): cell.run for cell in cells}
    assert runs["pretext-100nn", 11] == runs["ours", 11] != runs["uni-modal", 11]
    assert {cell.row: cell.score for cell in cells}["pretext-100nn"] == "pretext_knn_score"


def test_donors_are_of_the_same_seed_and_budget(tmp_path):
    _, cells = make(tmp_path, seeds=[1, 11], budgets=(0.025, 0.05))
    for cell in cells:
        expected = f"cells/ours/{cell.name.split('/', 1)[1]}" if cell.row == "uni-modal" else ""
        assert cell.donor == expected


def test_a_first_stage_with_other_settings_is_not_shared(tmp_path):
    out, _ = make(tmp_path, ["ours"], [1])
    (cell,) = [one for one in add(out, ["uni-modal"], pretext={"epochs": 7}) if one.donor == ""][1:]
    assert cell.row == "uni-modal"


def test_cells_are_added_and_those_there_stay(tmp_path):
    out, before = make(tmp_path, ["ours"], [1])
    after = add(out, ["supcon", "ours"], [1, 11])
    assert after[0] == before[0] and len(after) == 4
    assert read_plan(out) == after == add(out, ["ours"], [11])


def test_other_settings_of_a_cell_are_refused(tmp_path):
    out, before = make(tmp_path, ["ours"], [1])
    with pytest.raises(InputError, match=r"finetune.epochs 150, now 2; choose another folder"):
        add(out, ["ours"], finetune={"epochs": 2})
    assert read_plan(out) == before


def test_how_fast_something_is_read_may_change(tmp_path):
    out, before = make(tmp_path, ["ours"], [1])
    assert add(out, ["ours"], data={"manifest": "m.csv", "workers": 3}) == before
    assert settings_of(out, before[0]).data.workers == 3


def test_settings_that_all_cells_share_are_refused_for_new_cells_too(tmp_path):
    out, _ = make(tmp_path, ["ours"], [1])
    other = rows(["supcon"], data={"image_size": 64})["supcon"].config
    with pytest.raises(InputError, match=r"data.image_size 512, now 64"):
        claim_table(out, other, "m")
    with pytest.raises(InputError, match="another list of images"):
        claim_table(out, rows(["ours"])["ours"].config, "n")


def test_another_preset_is_refused_for_new_cells_too(tmp_path):
    out, before = make(tmp_path, ["ours"], [1])
    found = rows(["supcon"])
    quick = dataclasses.replace(found["supcon"].config, preset="eq2-quick")
    found["supcon"] = dataclasses.replace(found["supcon"], config=quick)
    with pytest.raises(InputError, match="begun with preset eq2, now eq2-quick"):
        extend(out, found, seeds=[1], label_draws=1, manifest="m")
    assert read_plan(out) == before


def test_a_table_from_before_a_setting_existed_goes_on_with_its_default(tmp_path):
    out, _ = make(tmp_path, ["ours"], [1])
    mark = json.loads((out / "table1.json").read_text())
    del mark["settings"]["data.image_size"]
    (out / "table1.json").write_text(json.dumps(mark))
    claim_table(out, rows(["ours"])["ours"].config, "m")
    with pytest.raises(InputError, match="of another version"):
        claim_table(out, rows(["ours"], data={"image_size": 64})["ours"].config, "m")


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match="holds files that are not a table"):
        claim_table(tmp_path, rows(["ours"])["ours"].config, "m")


def test_label_draws_go_along_with_the_seeds(tmp_path):
    out, _ = make(tmp_path, ["ours"], [1])
    cells = add(out, ["ours"], [1, 11, 111, 1111], draws=2)
    assert [cell.split_seed for cell in cells] == [42, 43, 42, 43]
    assert [cell.name.split("/")[2] for cell in cells] == [
        "s0001",
        "s0011-d43",
        "s0111",
        "s1111-d43",
    ]
    assert [settings_of(out, cell).split.seed for cell in cells] == [42, 43, 42, 43]


@pytest.mark.parametrize(("share", "name"), [(0.025, "b025"), (0.1, "b100"), (0.0333, "b33.3")])
def test_a_budget_in_a_folders_name(tmp_path, share, name):
    _, (cell,) = make(tmp_path, ["ours"], [1], budgets=(share,))
    assert cell.run == f"cells/ours/{name}/s0001" and cell.known_abnormal == share


def test_a_damaged_plan_is_named(tmp_path):
    out, _ = make(tmp_path, ["ours"], [1])
    (out / "plan.csv").write_text("row,title\nours\n")
    with pytest.raises(InputError, match=r"plan.csv: is damaged"):
        read_plan(out)


def test_another_draw_of_the_split_is_another_run(tmp_path):
    out, (first,) = make(tmp_path, ["ours"], [1])
    cells = add(out, ["ours"], split={"seed": 43})
    assert [cell.run for cell in cells] == [first.run, f"{first.run}-d43"]
    assert [settings_of(out, cell).split.seed for cell in cells] == [42, 43]
    assert add(out, ["ours"], split={"seed": 43}) == cells


def test_a_cell_that_stands_twice_in_the_plan_is_refused(tmp_path):
    """As after two plans were joined: a replicate would count twice."""
    out, _ = make(tmp_path, ["ours"], [1])
    lines = (out / "plan.csv").read_text().splitlines(keepends=True)
    (out / "plan.csv").write_text("".join([*lines, lines[-1]]))
    with pytest.raises(InputError, match="ours/b050/s0001 stands there twice"):
        read_plan(out)


def test_settings_that_were_edited_are_refused(tmp_path):
    out, (cell,) = make(tmp_path, ["ours"], [1])
    path = out / "settings" / f"{cell.digest}.yaml"
    path.write_text(path.read_text().replace("centers: 100", "centers: 10"))
    with pytest.raises(InputError, match=f"{cell.digest}.yaml: was edited"):
        settings_of(out, cell)


def test_workers_that_begin_a_table_in_the_same_moment_all_do(tmp_path):
    config = rows(["ours"])["ours"].config
    for number in range(3):
        barrier = FORK.Barrier(8)
        many = [
            FORK.Process(target=begin, args=(tmp_path / str(number), config, barrier))
            for _ in range(8)
        ]
        for one in many:
            one.start()
        for one in many:
            one.join(60)
        assert [one.exitcode for one in many] == [0] * 8
        assert not list((tmp_path / str(number)).glob("*.tmp"))


def begin(out, config, barrier):
    barrier.wait()
    claim_table(out, config, "m")


def test_each_fold_is_a_run_with_a_split_and_a_first_stage_of_its_own(tmp_path):
    out, cells = make(tmp_path, ["ours", "uni-modal"], [1, 11], split={"folds": 3})
    assert [cell.name for cell in cells[:4]] == [
        "ours/b050/s0001-f0", "ours/b050/s0001-f1", "ours/b050/s0001-f2", "ours/b050/s0011-f0",
    ]  # fmt: skip
    assert len({cell.run for cell in cells}) == len(cells) == 12
    for cell in cells:
        split = settings_of(out, cell).split
        assert (split.folds, split.fold) == (cell.folds, cell.fold) == (3, int(cell.run[-1]))
        # The same images train in the same fold alone.
        expected = "" if cell.row == "ours" else f"cells/ours/{cell.name.split('/', 1)[1]}"
        assert cell.donor == expected
    assert read_plan(out) == cells == add(out, ["ours"], [1], split={"folds": 3})
    base = rows(["ours"])["ours"].config
    with pytest.raises(InputError, match="split.folds 3, now 0"):
        claim_table(out, base, "m")


def test_crossed_seeds_have_every_draw(tmp_path):
    out, _ = make(tmp_path, ["ours"], [1])
    cells = extend(out, rows(["ours"]), seeds=[1, 11], label_draws=3, manifest="m", crossed=True)
    pairs = [(cell.seed, cell.split_seed) for cell in cells]
    assert pairs == [(seed, draw) for seed in (1, 11) for draw in (42, 43, 44)]


def test_a_budget_may_be_a_number_of_images(tmp_path):
    _, (cell,) = make(tmp_path, ["ours"], [1], budgets=(20,))
    assert cell.run == "cells/ours/n020/s0001" and cell.known_abnormal == 20


def test_a_plan_from_before_folds_is_read(tmp_path):
    out, cells = make(tmp_path, ["ours"], [1, 11])
    lines = (out / "plan.csv").read_text().splitlines()
    assert lines[0].endswith("problem,folds,fold")
    (out / "plan.csv").write_text("\n".join(line.rsplit(",", 2)[0] for line in lines) + "\n")
    assert read_plan(out) == cells
