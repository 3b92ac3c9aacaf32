"""The model folder: round trip, atomic replacement, damage, hostile content."""

import hashlib
import json
import os
import pickle
import random

import pytest
import torch
from safetensors.torch import load_file, save_file

from selftaught.errors import InputError, MachineError
from selftaught.models import EncoderConfig, build_embedder, files, load_model, save_model

FACTS = {
    "preprocessing": {"image_size": 32, "input_range": [0.0, 1.0], "masked": True},
    "threshold": 1.2345678901234567,
    "normal_scores": [3.0, 1.0, 2.5],
    "training": {"seed": 1, "preset": "quick", "temperature": 1e-07},
    "remark": "Größe",
}
NAMES = ("encoder.safetensors", "centers.safetensors", "model.json")


@pytest.fixture(scope="module")
def embedder():
    return build_embedder(
        EncoderConfig(stem="small", batch_norm="plain"), 0, head_widths=(512, 16, 8)
    )


@pytest.fixture
def folder(tmp_path, embedder):
    torch.manual_seed(0)
    return save_model(tmp_path / "model", embedder, torch.randn(5, 8), FACTS)


def rewrite(folder, name, content):
    """Replace a file and make all checksums fit, as somebody who means harm would."""
    (folder / name).write_bytes(content)
    path = folder / "model.json"
    document = json.loads(path.read_text())
    document["sha256"][name] = hashlib.sha256(content).hexdigest()
    path.write_text(json.dumps(document))


def rewrite_facts(folder, **changes):
    path = folder / "model.json"
    document = {**json.loads(path.read_text()), **changes}
    document["sha256"]["facts"] = files._digest(document)
    path.write_text(json.dumps(document))


def refused(folder, match=None):
    with pytest.raises(InputError, match=match) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_round_trip(folder, embedder):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    loaded = load_model(folder)
    assert torch.equal(before, torch.get_rng_state())
    assert sorted(path.name for path in folder.iterdir()) == sorted(NAMES)
    wanted = embedder.state_dict()
    state = loaded.embedder.state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)
    assert loaded.embedder.encoder.config == embedder.encoder.config
    assert not loaded.embedder.training
    torch.manual_seed(0)
    assert torch.equal(loaded.centers, torch.randn(5, 8))
    assert loaded.facts == {**FACTS, "normal_scores": [1.0, 2.5, 3.0]}
    x = torch.rand(2, 1, 32, 32)
    embedder.eval()
    assert torch.equal(loaded.embedder(x)[1], embedder(x)[1])


def test_a_loaded_model_can_be_trained_and_saved_again(folder, tmp_path):
    loaded = load_model(folder)
    optimizer = torch.optim.SGD(loaded.embedder.parameters(), lr=0.1)
    loaded.embedder.train()(torch.rand(2, 1, 32, 32))[1].sum().backward()
    optimizer.step()
    loaded.centers.add_(1)
    save_model(tmp_path / "again", loaded.embedder, loaded.centers, loaded.facts)
    again = load_model(tmp_path / "again")
    assert torch.equal(again.centers, loaded.centers) and again.facts == loaded.facts
    load_model(folder)


def test_channels_last_and_half_weights_are_stored_plainly(tmp_path):
    made = build_embedder(EncoderConfig(stem="small"), 0)
    weight = made.encoder.layers.conv1.weight.detach().clone()
    made.to(memory_format=torch.channels_last)
    save_model(tmp_path / "last", made, torch.zeros(1, 128), FACTS)
    assert torch.equal(load_model(tmp_path / "last").embedder.encoder.layers.conv1.weight, weight)
    save_model(tmp_path / "half", made.bfloat16(), torch.zeros(1, 128).half(), FACTS)
    half = load_model(tmp_path / "half")
    assert torch.equal(half.embedder.encoder.layers.conv1.weight, weight.bfloat16().float())
    assert half.centers.dtype == torch.float32


def test_missing_facts_get_defaults(tmp_path, embedder):
    facts = {"preprocessing": {"image_size": 8, "input_range": (0, 1)}}
    save_model(tmp_path / "model", embedder, torch.zeros(1, 8), facts)
    loaded = load_model(tmp_path / "model").facts
    assert loaded["threshold"] is None and loaded["normal_scores"] == [] == [*loaded["training"]]


@pytest.mark.parametrize(
    ("centers", "facts", "message"),
    [
        (torch.zeros(2, 9), {}, r"centers: shape \(2, 9\), must be \(K >= 1, 8\)"),
        (torch.zeros(0, 8), {}, "centers: shape"),
        (torch.full((1, 8), torch.inf), {}, "centers holds values that are not finite"),
        (torch.zeros(1, 8), {"preprocessing": None}, "preprocessing=None"),
        (torch.zeros(1, 8), {"preprocessing": {"image_size": 0}}, "image_size=0"),
        (torch.zeros(1, 8), {"preprocessing": {"image_size": 8}}, "input_range=None"),
        (torch.zeros(1, 8), {"threshold": "high"}, "threshold='high'"),
        (torch.zeros(1, 8), {"threshold": torch.nan}, "facts: must be JSON values"),
        (torch.zeros(1, 8), {"training": {"f": open}}, "facts: must be JSON values"),
        (torch.zeros(1, 8), {"sha256": {}}, "'sha256' is written by save_model"),
    ],
)
def test_wrong_arguments_write_nothing(tmp_path, embedder, centers, facts, message):
    with pytest.raises(ValueError, match=message):
        save_model(tmp_path / "model", embedder, centers, {**FACTS, **facts})
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite_are_not_written(tmp_path):
    broken = build_embedder(EncoderConfig(stem="small"), 0)
    broken.head.layers[0].bias.data[3] = torch.nan
    with pytest.raises(ValueError, match="head.layers.0.bias"):
        save_model(tmp_path / "model", broken, torch.zeros(1, 128), FACTS)
    assert list(tmp_path.iterdir()) == []


def test_replacing_leaves_one_model_and_no_leavings(folder, embedder):
    save_model(folder, embedder, torch.ones(2, 8), FACTS)
    assert load_model(folder).centers.shape == (2, 8)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.mark.parametrize("at", range(1, 9))
def test_killed_at_any_operation_a_whole_model_remains(folder, embedder, monkeypatch, at):
    """Stop before the at-th write, fsync or rename, without any clean-up, then go on."""
    calls = 0

    def counted(original):
        def function(*arguments):
            nonlocal calls
            calls += 1
            if calls == at:
                raise Killed
            return original(*arguments)

        return function

    with monkeypatch.context() as patch:
        for name in ("fsync_file", "fsync_folder"):
            patch.setattr(files, name, counted(getattr(files, name)))
        patch.setattr(files.os, "replace", counted(os.replace))
        remove = files.shutil.rmtree
        # A killed process does not clean up.
        patch.setattr(
            files.shutil, "rmtree", lambda *a, **k: None if calls >= at else remove(*a, **k)
        )
        try:
            save_model(folder, embedder, torch.ones(2, 8), FACTS)
        except Killed:
            assert calls == at
        else:
            assert calls < at, "a kill was swallowed"
    assert load_model(folder).centers.shape in [(5, 8), (2, 8)]
    save_model(folder, embedder, torch.ones(3, 8), FACTS)
    assert load_model(folder).centers.shape == (3, 8)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_full_disk_keeps_the_earlier_model(folder, embedder, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "fsync_file", full)
        with pytest.raises(MachineError, match="disk full"):
            save_model(folder, embedder, torch.ones(2, 8), FACTS)
    assert load_model(folder).centers.shape == (5, 8)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_folder_with_other_things_is_never_replaced(tmp_path, embedder):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    with pytest.raises(InputError, match="'chapter1.txt', must be absent, empty or a model folder"):
        save_model(tmp_path / "thesis", embedder, torch.zeros(1, 8), FACTS)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        save_model(tmp_path / "file", embedder, torch.zeros(1, 8), FACTS)
    assert (tmp_path / "thesis" / "chapter1.txt").read_text() == "years of work"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_cut_files_are_refused(folder, name, share):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(share * len(content))])
    refused(folder, match=name)


@pytest.mark.parametrize("name", NAMES)
def test_one_flipped_bit_is_found(folder, name):
    content = (folder / name).read_bytes()
    before = load_model(folder).facts
    draw = random.Random(0)
    for _ in range(8 if name == "encoder.safetensors" else 100):
        changed = bytearray(content)
        changed[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        (folder / name).write_bytes(changed)
        try:
            facts = load_model(folder).facts
        except InputError as error:
            assert name in str(error) and "\n" not in str(error)
        else:
            # 1e-07 and 1E-07 are the same number.
            assert name == "model.json" and facts == before


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
    for name in NAMES[:2]:
        kept = (folder / name).read_bytes()
        rewrite(folder, name, content)
        refused(folder, match="not a safetensors file")
        rewrite(folder, name, kept)
    torch.save({"centers": torch.zeros(5, 8)}, tmp_path / "torch")
    rewrite(folder, "centers.safetensors", (tmp_path / "torch").read_bytes())
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
        rewrite(folder, "centers.safetensors", content)
        refused(folder, match="centers.safetensors: not a safetensors file")
    rewrite(folder, "centers.safetensors", bytes(3 << 20))
    refused(folder, match="at most")


def test_tensors_that_do_not_fit_are_named_with_both_shapes(folder, tmp_path):
    path = tmp_path / "t.safetensors"
    for tensors, message in [
        ({"centers": torch.zeros(5, 7)}, r"centers has shape \(5, 7\), the model needs \(5, 8\)"),
        ({"centers": torch.zeros(4, 8)}, r"shape \(4, 8\), the model needs \(5, 8\)"),
        ({"centres": torch.zeros(5, 8)}, "centers is missing"),
        ({"centers": torch.zeros(5, 8).half()}, "centers is torch.float16, .* needs torch.float32"),
        ({"centers": torch.full((5, 8), torch.nan)}, "centers holds values that are not finite"),
    ]:
        save_file(tensors, path)
        rewrite(folder, "centers.safetensors", path.read_bytes())
        refused(folder, match=message)


def test_weights_of_another_architecture_are_refused(folder, tmp_path):
    other = build_embedder(
        EncoderConfig(stem="small", batch_norm="plain"), 0, head_widths=(512, 16, 9)
    )
    save_model(tmp_path / "other", other, torch.zeros(1, 9), FACTS)
    rewrite(folder, "encoder.safetensors", (tmp_path / "other" / NAMES[0]).read_bytes())
    refused(folder, match=r"head.layers.2.* has shape \(9,.*\), the model needs \(8,.*more diff")
    state = load_file(tmp_path / "other" / NAMES[0])
    state["head.layers.2.weight"][0, 0] = torch.inf
    save_file(state, tmp_path / "t.safetensors")
    rewrite(tmp_path / "other", "encoder.safetensors", (tmp_path / "t.safetensors").read_bytes())
    refused(tmp_path / "other", match="head.layers.2.weight holds values that are not finite")


@pytest.mark.parametrize(
    ("encoder", "widths", "message"),
    [
        ({"architecture": "resnet50"}, [2048, 16, 8], "has shape|bytes"),
        ({"architecture": "vgg"}, [512, 16, 8], "architecture='vgg': must be one of"),
        ({"architecture": "resnet18", "weights": "x"}, [512, 16, 8], "cannot be built"),
        ({}, [511, 16, 8], "the first must be 512"),
        ({}, [512, 1 << 40, 8], "has shape|is missing|bytes|cannot be built"),
        ({}, [512, 1 << 62, 8], "has shape|bytes|cannot be built"),
        ({}, "wide", "cannot be built"),
        (None, [512, 16, 8], "cannot be built"),
    ],
)
def test_other_architectures_in_the_facts_are_refused(folder, encoder, widths, message):
    stored = {"encoder": encoder, "head_widths": widths, "centers": 5}
    rewrite_facts(folder, architecture=stored)
    refused(folder, match=message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format 2, must be 1"),
        ({"architecture": None}, "cannot be built"),
        ({"preprocessing": {"image_size": "32"}}, "image_size='32'"),
        ({"normal_scores": [1, "2"]}, "normal_scores must be a list"),
        ({"sha256": {}}, "sha256 must name"),
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


@pytest.mark.parametrize("text", ["[]", "null", "[" * 100_000, '{"a": NaN', "\ufeff{}", ""])
def test_other_json_is_refused(folder, text):
    (folder / "model.json").write_text(text, encoding="utf-8")
    refused(folder, match="model.json")


def test_an_edited_threshold_is_noticed(folder):
    path = folder / "model.json"
    path.write_text(path.read_text().replace("1.2345678901234567", "0.2345678901234567"))
    refused(folder, match="damaged or edited")
