"""The model folder: round trip, damage, hostile content."""

import hashlib
import json
import pickle
import random

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from selftaught import Detector
from selftaught.data.augment import finetune_augment
from selftaught.errors import InputError
from selftaught.methods import options
from selftaught.methods.stored import built
from selftaught.models import Bank, Calibration, Preprocessing, files, read_model, save_model
from selftaught.models.bank import COLUMNS
from tests.thin import WIDTH
from tests.tiny import spheres

pytestmark = pytest.mark.usefixtures("thin_encoder")

FILMS = Preprocessing(image_size=32, masked=True, prepared={"size": 96, "bits": "8"})
CALIBRATION = Calibration(1.2345678901234567, (1.0, 2.5, 3.0))
TRAINING = {"seed": 1, "preset": "quick", "temperature": 1e-07, "remark": "Größe"}
PARTS = FILMS, CALIBRATION, TRAINING
NAMES = ("weights.safetensors", "model.json", "bank.safetensors")


@pytest.fixture(scope="module")
def task(thin_encoder):
    return spheres(5, head=(16, 8), stem="small", batch_norm="plain")


@pytest.fixture
def folder(tmp_path, task):
    return save_model(tmp_path / "model", task, *PARTS, bank())


def bank(by="ratio"):
    rows = torch.randn(12, WIDTH, generator=torch.Generator().manual_seed(0))
    return Bank.of(rows[:9], rows[9:], by=by, neighbours=4, drawn={"of": 20, "seed": 1})


def rewrite(folder, content):
    """Replace the weights and make all checksums fit, as somebody who means harm would."""
    (folder / "weights.safetensors").write_bytes(content)
    path = folder / "model.json"
    document = json.loads(path.read_text())
    document["sha256"]["weights.safetensors"] = hashlib.sha256(content).hexdigest()
    path.write_text(json.dumps(document))


def rewrite_facts(folder, **changes):
    path = folder / "model.json"
    document = json.loads(path.read_text())
    for name, value in changes.items():
        document[name] = {**document[name], **value} if isinstance(value, dict) else value
    document["sha256"]["facts"] = files._digest(document)
    path.write_text(json.dumps(document))


def refused(folder, match=None):
    with pytest.raises(InputError, match=match) as caught:
        Detector.load(folder)
    assert "\n" not in str(caught.value)


def test_round_trip(folder, task):
    stored = read_model(folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(NAMES)
    wanted = task.state_dict()
    assert stored.state.keys() == wanted.keys()
    assert all(torch.equal(stored.state[name], wanted[name]) for name in wanted)
    assert stored.method == "spheres" and stored.options["centers"] == 5
    measured = {"width": WIDTH, "channels": 3, "least_size": 16}
    assert stored.network == {**task.network.facts(), "head": [16, 8], "measured": measured}
    assert (stored.preprocessing, stored.calibration, stored.training) == PARTS
    x = torch.rand(2, 1, 32, 32)
    loaded, live = (
        Detector.load(folder, device="cpu"),
        Detector(task, *PARTS, bank(), device="cpu"),
    )
    assert loaded.explain(x).columns[5:].tolist() == ["p_value", "model_score", *COLUMNS]
    pd.testing.assert_frame_equal(loaded.explain(x), live.explain(x))
    assert torch.equal(loaded.score(x), live.score(x)) and loaded.training == TRAINING
    assert loaded.by == "ratio" and stored.bank.facts() == bank().facts()


@pytest.mark.parametrize(
    ("name", "value"), [("width", 513), ("channels", 1), ("least_size", 15), ("width", None)]
)
def test_an_encoder_of_other_measures_is_refused_and_older_models_do_not_say(folder, name, value):
    rewrite_facts(folder, network={"measured": {name: value}})
    refused(folder, f"its encoder has {name} .*, the model's had {value}")
    rewrite_facts(folder, network={"measured": {"least_size": 32}})
    Detector.load(folder)
    rewrite_facts(folder, network={"measured": {}})
    Detector.load(folder)


def test_a_folder_without_a_bank_scores_by_the_model(folder, task):
    x = torch.rand(2, 1, 32, 32)
    own = Detector.load(folder, device="cpu").explain(x)["model_score"]
    save_model(folder, task, *PARTS)
    assert {path.name for path in folder.iterdir()} == set(NAMES[:2])
    table = Detector.load(folder, device="cpu").explain(x)
    assert table["score"].equals(own) and table["model_score"].equals(own)
    assert not set(COLUMNS) & set(table.columns)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"by": "best"}, "by is 'best'; allowed: model, ratio"),
        ({"neighbours": 0}, "bank.neighbours is 0; allowed: a whole number, 1 or more"),
        ({"normals": 10.0}, "bank.normals is 10.0; allowed"),
        ({"normals": 10}, f"normals has shape .9, {WIDTH}., the model needs .10, {WIDTH}."),
        ({"abnormal": 0}, "abnormal has shape"),
        ({"drawn": 5}, "model.json: "),
    ],
)
def test_wrong_facts_of_a_bank_are_refused(folder, changes, message):
    rewrite_facts(folder, bank=changes)
    refused(folder, match=message)


def test_all_options_come_back(tmp_path):
    made = spheres(2)
    augment = finetune_augment("paper")
    changed = options("spheres", centers=2, milestones=[3, 5], augment=augment)
    made.options = changed
    assert built(read_model(save_model(tmp_path / "other", made, *PARTS))).options == changed


def test_channels_last_half_and_shared_weights_are_stored_plainly(tmp_path):
    made = spheres(1, stem="small")
    weight = made.embedder.encoder.layers.conv1.weight.detach().clone()
    made.to(memory_format=torch.channels_last)
    name = "embedder.encoder.layers.conv1.weight"
    assert torch.equal(read_model(save_model(tmp_path / "a", made, *PARTS)).state[name], weight)
    half = read_model(save_model(tmp_path / "b", made.bfloat16(), *PARTS)).state
    assert torch.equal(half[name], weight.bfloat16().float())
    assert half["centers"].dtype == torch.float32 and half["counts"].dtype == torch.int64
    made.register_parameter("again", made.embedder.encoder.layers.conv1.weight)
    assert "again" in read_model(save_model(tmp_path / "c", made, *PARTS)).state


def test_wrong_arguments_write_nothing(tmp_path, task):
    for training in ({"f": open}, {"loss": torch.nan}):
        with pytest.raises(ValueError, match="must be JSON values"):
            save_model(tmp_path / "model", task, FILMS, CALIBRATION, training)
    nameless = spheres(1)
    nameless.options = type(nameless.options)()
    with pytest.raises(ValueError, match="task.options.method is ''"):
        save_model(tmp_path / "model", nameless, FILMS, CALIBRATION)
    broken = spheres(1)
    broken.embedder.head.layers[0].bias.data[3] = torch.nan
    with pytest.raises(ValueError, match="head.layers.0.bias holds values that are not finite"):
        save_model(tmp_path / "model", broken, FILMS, CALIBRATION)
    assert list(tmp_path.iterdir()) == []


def test_replacing_leaves_one_model_and_no_leavings(folder, task):
    save_model(folder, spheres(2), *PARTS)
    assert len(read_model(folder).state["centers"]) == 2
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    # A writer that was killed between its two renames.
    folder.rename(folder.with_name(".model.previous"))
    assert len(read_model(folder).state["centers"]) == 2


def test_a_folder_with_other_things_is_never_replaced(tmp_path, task):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    with pytest.raises(InputError, match="'chapter1.txt'; allowed: a folder with nothing but wei"):
        save_model(tmp_path / "thesis", task, *PARTS)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_cut_files_are_refused(folder, name, share):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(share * len(content))])
    refused(folder, match=name)


@pytest.mark.parametrize("name", NAMES)
def test_one_flipped_bit_is_found(folder, name):
    content, before = (folder / name).read_bytes(), read_model(folder)
    draw = random.Random(0)
    for _ in range(100 if name == "model.json" else 8):
        changed = bytearray(content)
        changed[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        (folder / name).write_bytes(changed)
        try:
            found = read_model(folder)
        except InputError as error:
            assert name in str(error) and "\n" not in str(error)
        else:
            # 1e-07 and 1E-07 are the same number.
            assert name == "model.json" and found.training == before.training
            assert found.options == before.options and found.calibration == before.calibration


@pytest.mark.parametrize("name", NAMES)
def test_trailing_bytes_and_missing_files_are_refused(folder, name):
    with (folder / name).open("ab") as handle:
        handle.write(b"}")
    refused(folder, match=name)
    (folder / name).unlink()
    refused(folder, match=name)


def test_no_folder_is_refused(tmp_path):
    refused(tmp_path / "nothing", match="nothing")


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickles_are_never_read(folder, tmp_path):
    content = pickle.dumps(Payload(tmp_path / "trace"))
    rewrite(folder, content)
    refused(folder, match="not a safetensors file")
    torch.save({"centers": torch.zeros(5, 8)}, tmp_path / "torch")
    rewrite(folder, (tmp_path / "torch").read_bytes())
    refused(folder)
    (folder / "model.json").write_bytes(content)
    refused(folder, match="not valid JSON")
    assert not (tmp_path / "trace").exists()


def test_hostile_safetensors_are_refused(folder):
    def made(header, body=b""):
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + body

    entry = {"dtype": "F32", "shape": [5, 8], "data_offsets": [0, 160]}
    hostile = [
        (1 << 63).to_bytes(8, "little") + b"{}",
        (1 << 62).to_bytes(8, "little"),
        made({"centers": entry}, bytes(161)),
        made({"centers": entry, "more": entry}, bytes(160)),
        made({"centers": {**entry, "shape": [1 << 40, 8]}}, bytes(160)),
        made({"centers": {**entry, "dtype": "F128"}}, bytes(160)),
        b"{}",
    ]
    for content in hostile:
        rewrite(folder, content)
        refused(folder, match="weights.safetensors: not a safetensors file")
    rewrite(folder, bytes(8 << 20))
    refused(folder, match="8388608 bytes, at most 1[0-9]{6} fit this model")


def test_tensors_that_do_not_fit_are_named_with_both_shapes(folder, task, tmp_path):
    path, state = tmp_path / "t.safetensors", dict(task.state_dict())
    del state["centers"]
    for tensors, message in [
        ({"centers": torch.zeros(5, 7)}, r"centers has shape \(5, 7\), the model needs \(5, 8\)"),
        ({"centers": torch.zeros(4, 8)}, r"shape \(4, 8\), the model needs \(5, 8\)"),
        ({"centres": torch.zeros(5, 8)}, "centers is missing"),
        ({"centers": torch.zeros(5, 8).half()}, "centers is torch.float16, .* needs torch.float32"),
        ({"centers": torch.full((5, 8), torch.nan)}, "centers holds values that are not finite"),
    ]:
        save_file({**state, **tensors}, path)
        rewrite(folder, path.read_bytes())
        refused(folder, match=message)


def test_weights_of_another_network_are_refused(folder, tmp_path):
    other = spheres(5, head=(16, 9), stem="small", batch_norm="plain")
    rewrite(folder, (save_model(tmp_path / "other", other, *PARTS) / NAMES[0]).read_bytes())
    refused(folder, match=r"has shape \((9|5, 9).*\), the model needs \((8|5, 8).*more diff")
    state = load_file(tmp_path / "other" / NAMES[0])
    state["embedder.head.layers.2.weight"][0, 0] = torch.inf
    save_file(state, tmp_path / "t.safetensors")
    rewrite(tmp_path / "other", (tmp_path / "t.safetensors").read_bytes())
    refused(tmp_path / "other", match="head.layers.2.weight holds values that are not finite")


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"encoder": {"architecture": "resnet50"}}, f"width 2048, the model's had {WIDTH}"),
        ({"encoder": {"architecture": "resnet50"}, "measured": None}, "has shape|bytes"),
        ({"encoder": {"architecture": "vgg"}}, "architecture='vgg': must be one of"),
        ({"encoder": {"weights": "x"}}, "cannot be built"),
        ({"encoder": None}, "cannot be built"),
        ({"head": []}, "cannot be built"),
        ({"head": [1 << 40, 8]}, "has shape|is missing|bytes|cannot be built"),
        ({"head": [1 << 62, 8]}, "has shape|bytes|cannot be built"),
        ({"head": [16.5, 8]}, "cannot be built"),
        ({"head": "wide"}, "cannot be built"),
        ({"image_size": 64}, "image_size is 64"),
        ({"depth": 3}, "cannot be built: .*depth"),
    ],
)
def test_other_networks_in_the_facts_are_refused(folder, network, message):
    rewrite_facts(folder, network=network)
    refused(folder, match=f"model.json: .*({message})|weights.safetensors: .*({message})")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"centers": 0}, "centers is 0; allowed: 1 to 65536"),
        ({"centers": 1 << 40}, "centers is 1099511627776; allowed: 1 to 65536"),
        ({"centers": 4}, r"has shape \(5.*, the model needs \(4"),
        ({"centers": "5"}, "cannot be built"),
        ({"centers": 5.5}, "cannot be built"),
        ({"temperature": 0.5}, "cannot be built: .*temperature"),
        ({"gamma": 2}, "gamma is 2; allowed: 0 to 1"),
        ({"lr": None}, "cannot be built"),
        ({"milestones": 7}, "cannot be built"),
        ({"augment": {"blur": 7}}, "blur 7: a probability"),
        ({"augment": {"sharpen": 7}}, "cannot be built: .*sharpen"),
        ({"augment": "much"}, "cannot be built: 'much'; allowed: settings"),
    ],
)
def test_other_options_in_the_facts_are_refused(folder, options, message):
    rewrite_facts(folder, options=options)
    refused(folder, match=message)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("", "method is ''; allowed: .*spheres"),
        ("ntxent", "ntxent cannot be built: .*unexpected keyword"),
        ("circles", "method is 'circles'; allowed: .*spheres"),
        ("no_such_module.Mine", "cannot be imported"),
        ("builtins.eval", "is no selftaught.methods.Task"),
        ("...", "method is .*; allowed"),
        (7, "method=7, must be a name"),
        (None, "method=None, must be a name"),
    ],
)
def test_other_methods_are_refused(folder, method, message):
    rewrite_facts(folder, method=method)
    refused(folder, match=f"model.json: .*{message}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 3}, "format 3, must be 1 or 2"),
        ({"format": "2"}, "format '2', must be 1 or 2"),
        ({"format": True}, "format True, must be"),
        ({"network": None}, "network=None, must be an object"),
        ({"options": [1]}, r"options=\[1\], must be an object"),
        ({"training": 3}, "training=3, must be an object"),
        ({"preprocessing": {"image_size": "32"}}, "image_size is '32'"),
        ({"preprocessing": {"prepared": {"carrier": "guess"}}}, "carrier is 'guess'"),
        ({"calibration": {"normal_scores": [1, "2"]}}, "normal_scores: allowed: a list"),
        ({"calibration": {"threshold": 10**400}}, "int too large"),
        ({"preprocessing": {"input_range": [0, 10**400]}}, "int too large"),
        ({"calibration": None}, "calibration=None"),
        ({"sha256": None}, "must be an object with sha256"),
    ],
)
def test_wrong_facts_are_refused(folder, changes, message):
    if "sha256" in changes:
        path = folder / "model.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    else:
        rewrite_facts(folder, **changes)
    refused(folder, match=message)


@pytest.mark.parametrize("name", ["method", "options", "network", "preprocessing", "calibration"])
def test_facts_that_are_left_out_are_named(folder, name):
    path = folder / "model.json"
    document = json.loads(path.read_text())
    del document[name]
    document["sha256"]["facts"] = files._digest(document)
    path.write_text(json.dumps(document))
    refused(folder, match=f"model.json: lacks '{name}'")
    document["sha256"] = {}
    path.write_text(json.dumps(document))
    refused(folder, match="sha256 must name weights.safetensors, bank.safetensors, facts")


@pytest.mark.parametrize("text", ["[]", "null", "[" * 100_000, '{"a": NaN', "\ufeff{}", ""])
def test_other_json_is_refused(folder, text):
    (folder / "model.json").write_text(text, encoding="utf-8")
    refused(folder, match="model.json")


def test_an_edited_threshold_is_noticed(folder):
    path = folder / "model.json"
    path.write_text(path.read_text().replace("1.2345678901234567", "0.2345678901234567"))
    refused(folder, match="damaged or edited")
