"""Settings of a run: which may change when it goes on, old folders, files for several methods."""

import pytest
import yaml

from selftaught.cli.main import main
from selftaught.cli.options import read_config
from selftaught.errors import InputError
from selftaught.files import read_yaml
from selftaught.training import folder
from selftaught.training.config import build, dump, resume_policies, settings
from tests import thin
from tests.tiny import options, write_images


def config(place, **changes):
    values = {"out": str(place)}
    for name, value in changes.items():
        group, option = name.split("__")
        values.setdefault(group, {})[option] = value
    return build(values)


@pytest.fixture
def begun(tmp_path):
    """A run folder with settings in it."""
    place = tmp_path / "run"
    place.mkdir()
    folder.write_settings(place, config(place))
    return place


def test_every_setting_has_a_policy(tmp_path):
    one = config(tmp_path)
    policies = resume_policies(one)
    assert policies.keys() == settings(one).keys()
    assert set(policies.values()) == {"", "free", "late"}


@pytest.mark.parametrize(
    ("changes", "policy"),
    [
        ({"data__workers": 7}, "free"),
        ({"data__cache_gib": 0.5}, "free"),
        ({"engine__kind": "deepspeed"}, "free"),
        ({"score__batch_size": 5}, "free"),
        ({"finetune__eta": 2.0}, "late"),
        ({"finetune__lr": 0.5}, "late"),
        ({"score__neighbours": 7}, "late"),
        ({"pretext__lr": 0.5}, ""),
        ({"pretext__method": "supcon"}, ""),
        ({"finetune__method": "selftaught.methods.spheres.Spheres"}, ""),
        ({"engine__precision": "fp64"}, ""),
        ({"data__image_size": 64}, ""),
    ],
)
def test_what_may_change_when_a_run_goes_on(begun, changes, policy):
    changed, (name,) = config(begun, **changes), changes
    assert resume_policies(changed)[name.replace("__", ".")] == policy
    (begun / "checkpoints" / "pretext").mkdir(parents=True)
    for refused in (policy == "", policy != "free"):
        if refused:
            with pytest.raises(InputError, match="holds a run with other settings") as error:
                folder.claim(changed)
            assert name.replace("__", ".") in str(error.value)
        else:
            folder.claim(changed)
        (begun / "checkpoints" / "finetune").mkdir(exist_ok=True)


# What a config.yaml from before methods had files of their own does not name.
NEW = {"pretext": ["validate_every"], "finetune": ["method"], "data": ["cache_gib"]}


def made_old(path, **more):
    """config.yaml as it was written then, without what came later and without a seal."""
    values = yaml.safe_load(path.read_text())
    for section, names in NEW.items():
        for name in names:
            values[section].pop(name, None)
    values["pretext"] |= more
    path.write_text(yaml.safe_dump(values, sort_keys=False))


def test_an_old_folder_means_the_defaults_of_what_it_does_not_name(begun):
    made_old(begun / "config.yaml")
    assert build(read_yaml(begun / "config.yaml")) == config(begun)
    folder.claim(config(begun))
    with pytest.raises(InputError, match="pretext.validate_every is 1 there and 2 here"):
        folder.claim(config(begun, pretext__validate_every=2))


def test_an_old_run_without_pretext_goes_on(tmp_path):
    manifest, run = write_images(tmp_path / "images"), tmp_path / "run"
    short = {"pretext.method": "none", "finetune.epochs": 1}
    with thin.patch():
        assert main(["pretrain", *options(manifest, run, **short)]) == 0
        # Every method then had the options of all.
        made_old(run / "config.yaml", temperature=0.2, epochs=100)
        assert main(["finetune", *options(manifest, run, **short)]) == 0
    assert (run / "model" / "model.json").is_file()
    assert "temperature" not in read_yaml(run / "config.yaml")["pretext"]


@pytest.mark.parametrize("text", ["pretext: {lr: -1}", "seed: many", "pretext: 3", "[1]", "a: ["])
def test_settings_that_are_none_are_named_by_their_file(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InputError, match="config.yaml: ") as error:
        folder.claim(config(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--finetune.centers", "1000"], "finetune.centers is 1000, but only"),
        (["--finetune.batch_size", "1"], "finetune.batch_size"),
        (["--engine.kind", "deepspeed", "--finetune.encoder", "all"], "engine.kind is 'deepspeed'"),
    ],
)
def test_what_may_change_late_is_checked_before_it_is_kept(tmp_path, capsys, words, line):
    manifest, run = write_images(tmp_path / "images"), tmp_path / "run"
    with thin.patch():
        assert main(["pretrain", *options(manifest, run, **{"pretext.method": "none"})]) == 0
        before = (run / "config.yaml").read_text()
        assert main(["run", "--out", str(run), *words]) == 2
    assert line in capsys.readouterr().err
    assert (run / "config.yaml").read_text() == before


def test_a_second_stage_that_cannot_score_is_refused_before_anything_is_trained(tmp_path, capsys):
    words = options(write_images(tmp_path / "images"), tmp_path / "run")
    at = words.index("--finetune.centers")
    del words[at : at + 2]
    with thin.patch():
        assert main(["run", *words, "--finetune.method", "ntxent"]) == 2
    assert "finetune.method is 'ntxent', which cannot score" in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()


def read(tmp_path, text, *words):
    (tmp_path / "c.yaml").write_text(text)
    return read_config("run", "", ["--config", str(tmp_path / "c.yaml"), "--out", "r", *words])


def test_a_file_may_serve_several_methods(tmp_path):
    text = "preset: eq2\npretext: {temperature: 0.1, epochs: 7}\nfinetune: {centers: 9}\n"
    assert read(tmp_path, text).pretext.temperature == 0.1
    for words in (["--pretext.method", "none"], ["--pretext.method=none"]):
        chosen = read(tmp_path, text, *words)
        assert (chosen.pretext.method, chosen.pretext.epochs, chosen.finetune.centers) == (
            *("none", 0),
            9,
        )
    with_method = text.replace("epochs: 7", "method: none")
    assert read(tmp_path, with_method).pretext.method == "none"
    assert read(tmp_path, with_method, "--pretext.method", "supcon").pretext.temperature == 0.1


@pytest.mark.parametrize("method", ["none", "ntxent"])
@pytest.mark.parametrize("key", ["temprature", "centres", "augment: {blurr"])
def test_an_unknown_key_is_refused_whatever_the_method(tmp_path, method, key):
    text = f"pretext: {{method: {method}, {key}: 0.1}}" + "}" * key.count("{")
    with pytest.raises(InputError, match="does not accept option"):
        read(tmp_path, text + "\n")


def test_settings_are_written_as_they_are_read(tmp_path):
    one = config(tmp_path, pretext__milestones=[3, 4], model__head=[16, 8])
    assert build(yaml.safe_load(dump(one))) == one


def test_an_input_norm_of_other_inputs_is_refused_in_one_line():
    model = {"input_norm": "imagenet"}
    assert build({"out": "x", "model": model}).model.encoder.input_norm == "imagenet"
    assert build({"out": "x"}).model.encoder.input_norm == "none"
    with pytest.raises(InputError, match=r"model\.input_norm is 'imagenet'; allowed: none with "):
        build({"out": "x", "model": model, "pretext": {"augment": {"mask_scale": 255}}})


def test_a_mirror_image_is_no_other_side_where_images_are_never_flipped():
    model, augment = {"mirror": True}, {"horizontal_flip": 0.0}
    assert build({"out": "x", "model": model}).model.encoder.mirror
    with pytest.raises(InputError, match=r"model\.mirror is True; allowed: false with finetune"):
        build({"out": "x", "model": model, "finetune": {"augment": augment}})
