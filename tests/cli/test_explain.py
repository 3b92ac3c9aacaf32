"""What is said of a wrong option: which, what was found, what is allowed; in every command."""

import re

import pytest

from selftaught.cli.main import main
from selftaught.cli.options import read_config
from selftaught.errors import InputError


def line(capsys, *arguments):
    assert main([str(word) for word in arguments]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert not re.search(r"\bclass\b", said) and "typing" not in said and "Parser" not in said
    return said.removeprefix("selftaught: ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("synth --out x --images three", "images is 'three'; allowed: a whole number"),
        ("synth --out x --images 3 --formats bmp", "formats is 'bmp'; allowed: a list in brackets"),
        ("split m.csv --out s.csv --split.seed 1.5", "split.seed is '1.5'; allowed: a whole"),
        ("run --data.allow_outside 3", "data.allow_outside is '3'; allowed: true or false"),
        ("run --data.workers all", "data.workers is 'all'; allowed: a whole number or auto"),
        ("run --data.prepare soon", "data.prepare is 'soon'; allowed: auto, always, never"),
        ("run --pretext.lr nan", "pretext.lr is 'nan'; allowed: a finite number"),
        ("run --pretext.augment.scale 1", "pretext.augment.scale is '1'; allowed: values in"),
        ("run --finetune.augment.scale [2,1]", "finetune.augment.scale (2, 1): allowed low <="),
        ("split m.csv", "--out: missing, but needed"),
        ("score", "model: missing, but needed"),
        ("demo --config none.yaml", "config: File does not exist: "),
    ],
)
def test_the_option_the_value_and_what_is_allowed(capsys, arguments, said):
    assert line(capsys, *arguments.split()).startswith(said)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ("demo --image 300", "--images"),
        ("synth --out x --image 3", "--images"),
        ("prepare raw --out x --carier none", "--carrier"),
        ("run --pretext.epoch=3", "--pretext.epochs"),
    ],
)
def test_a_misspelt_option_is_compared_with_those_of_its_command(capsys, arguments, hint):
    assert f"did you mean {hint}?" in line(capsys, *arguments.split())


def test_a_misspelt_line_of_a_file_has_a_hint(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("image: 300\n")
    said = line(capsys, "demo", "--config", tmp_path / "c.yaml")
    assert said.startswith("Option 'image' is not accepted; did you mean --images?")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("pretext: 3", "pretext is 3"),
        ("pretext: null", "pretext is None"),
        ("data: [1]", r"data is \[1\]"),
        ("pretext: {augment: 3}", "pretext.augment is 3"),
        ("seed: null", "seed is empty"),
        ("data: {workers: null}", "data.workers is empty"),
    ],
)
def test_a_file_cannot_leave_an_option_empty(tmp_path, content, said):
    """Nor give one value to a group: its options would be silently left at their defaults."""
    (tmp_path / "c.yaml").write_text(content + "\n")
    with pytest.raises(InputError, match=said):
        read_config("run", "", ["--config", str(tmp_path / "c.yaml"), "--out", "x"])


@pytest.mark.parametrize(
    ("command", "content", "option"),
    [
        ("run --out x", "pretext: {epochz: 3}", "epochz"),
        ("run --out x", "pretext: {lr: -1}", "pretext.lr is -1"),
        ("run --out x", "data: {image_size: many}", "data.image_size is 'many'"),
        ("run --out x", "pretext: {augment: {scal: [1, 1]}}", "scal"),
        ("run --out x", "pretext: {method: moco2}", "pretext.method"),
        ("run --out x", "finetune: {centers: null}", "finetune.centers is empty"),
        ("run --out x", "preset: fast", "preset is 'fast'"),
        ("run", "{out: x, data: {worker: 1}}", "worker"),
        ("split m.csv --out s.csv", "split: {seeds: 3}", "seeds"),
        ("synth --out x --images 3", "clutter: perhaps", "clutter is 'perhaps'"),
    ],
)
def test_a_wrong_line_of_a_file_is_said_with_the_file(tmp_path, capsys, command, content, option):
    (tmp_path / "my.yaml").write_text(content + "\n")
    said = line(capsys, *command.split(), "--config", tmp_path / "my.yaml")
    assert option in said and said.endswith(f"; the file is {tmp_path / 'my.yaml'}")


@pytest.mark.parametrize(
    "words", ["--pretext.lr -1", "--pretext.epochs=many", "--pretext.epochz 3", "--preset fast"]
)
def test_a_wrong_word_is_not_blamed_on_the_file(tmp_path, capsys, words):
    (tmp_path / "my.yaml").write_text("{out: x, pretext: {lr: 0.1, epochs: 3}}\n")
    said = line(capsys, "run", "--config", tmp_path / "my.yaml", *words.split())
    assert "my.yaml" not in said
