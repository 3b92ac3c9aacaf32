"""The reader of exported files: what it refuses, what it verifies, and that it needs no torch."""

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from selftaught.errors import InputError
from selftaught.export import contents, runtime

OUTPUTS = ("score", "percentile", "flagged")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A file as `selftaught export` writes it, of a model that scores the weighted mean level."""
    nodes = [
        helper.make_node("Cast", ["films"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["levels", "axes"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "weight"], ["score"]),
        helper.make_node("Identity", ["score"], ["percentile"]),
        helper.make_node("Cast", ["bits"], ["flagged"], to=TensorProto.INT64),
    ]
    kinds = (TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.INT64)
    graph = helper.make_graph(
        nodes,
        "mean",
        [
            helper.make_tensor_value_info("films", TensorProto.UINT16, ["n", "h", "w"]),
            helper.make_tensor_value_info("bits", TensorProto.INT64, ["n"]),
        ],
        [helper.make_tensor_value_info(*one, ["n"]) for one in zip(OUTPUTS, kinds, strict=True)],
        [
            onnx.numpy_helper.from_array(np.array([1, 2]), "axes"),
            onnx.numpy_helper.from_array(np.array([0.37], np.float32), "weight"),
        ],
    )
    imports = [helper.make_opsetid("", 20)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    path = tmp_path_factory.mktemp("file") / "model.onnx"
    facts = {
        **{"format": contents.FORMAT, "version": "0", "method": "mean", "model": "0" * 64},
        **{"inputs": ["films", "bits"], "outputs": list(OUTPUTS), "spread": 1.0, "golden": []},
        "preprocessing": {"known": True, "prepared": None},
        "calibration": {"threshold": 1.0, "normal_scores": [1.0]},
    }
    write(model, path, facts)
    exported = runtime.Exported.load(path)
    for film in (np.eye(9, dtype=np.uint8), np.eye(8, 5, dtype=np.uint16) * 999):
        golden = {"film": contents.packed(film), "outputs": exported.score([film])[0]}
        facts["golden"].append(golden)
    write(model, path, facts)
    return path


def write(model, path, facts):
    """Save a model with its facts, and checksums that fit both."""
    onnx.save(model, path)
    digest = contents.split(path, path.read_bytes())[0]
    helper.set_model_props(model, {contents.KEY: json.dumps(contents.sealed(facts, digest))})
    onnx.save(model, path)


def test_a_float_film_is_one_of_16_bits(file):
    exported = runtime.Exported.load(file)
    film = np.random.default_rng(0).integers(0, 65536, (40, 50)).astype(np.uint16)
    made, wanted = exported.score([film / 65535.0]), exported.score([film])
    assert made == wanted


@pytest.mark.parametrize(
    ("film", "text"),
    [
        (np.zeros((4, 5, 3), np.uint8), "shape"),
        (np.eye(4, dtype=np.int32), "int32"),
        (np.eye(4) * 2, "0 to 1"),
        (np.full((4, 5), 7, np.uint8), "shows nothing"),
    ],
)
def test_films_that_are_none_are_refused(file, film, text):
    with pytest.raises(InputError, match=text):
        runtime.Exported.load(file).score([film])


def altered(path, change, seal=False):
    """A copy of a file with one change; `seal`: with checksums that fit it."""
    model, copy = onnx.load(path), path.with_name("altered.onnx")
    change(model)
    if seal:
        write(model, copy, json.loads(model.metadata_props[0].value))
    else:
        onnx.save(model, copy)
    return copy


def weights(factor):
    def change(model):
        kernel = next(one for one in model.graph.initializer if one.name == "weight")
        values = onnx.numpy_helper.to_array(kernel).copy()
        values.flat[0] *= factor
        kernel.CopyFrom(onnx.numpy_helper.from_array(values, kernel.name))

    return change


def threshold(model):
    facts = json.loads(model.metadata_props[0].value)
    facts["calibration"]["threshold"] += 1
    model.metadata_props[0].value = json.dumps(facts)


def test_one_altered_weight_is_refused(file):
    with pytest.raises(InputError, match="graph or weights"):
        runtime.verify(altered(file, weights(1 + 1e-6)))


def test_altered_facts_are_refused(file):
    with pytest.raises(InputError, match="facts do not match"):
        runtime.verify(altered(file, threshold))


def test_other_scores_are_refused_even_where_the_checksums_fit(file):
    with pytest.raises(InputError, match="golden film"):
        runtime.verify(altered(file, weights(1.001), seal=True))


def test_saved_again_by_onnx_it_is_the_same(file):
    assert runtime.verify(altered(file, lambda model: None))["films"] == 2


def test_truncated_and_foreign_files_are_refused(file, tmp_path):
    content = file.read_bytes()
    for number, part in enumerate((content[:-5], content[:100], b"", b"no model at all")):
        path = tmp_path / f"{number}.onnx"
        path.write_bytes(part)
        with pytest.raises(InputError):
            runtime.Exported.load(path)


def test_it_is_read_without_torch(file):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from selftaught.cli.main import main\n"
        f"sys.exit(main(['verify', {str(file)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 golden films" in done.stdout


def test_films_that_need_preparation_or_masks_are_refused_without():
    prepared = {"known": True, "prepared": {"carrier": "always", "size": 512}}
    facts = {"preprocessing": prepared, "inputs": ["films", "bits", "masks"], "outputs": []}
    exported = runtime.Exported("f.onnx", facts, lambda films, bits, masks: {})
    film = np.eye(4, dtype=np.uint8)
    with pytest.raises(InputError, match="selftaught prepare --carrier always"):
        exported.score([film])
    with pytest.raises(InputError, match="masks: none are given"):
        exported.score([film], prepared=True)
    with pytest.raises(InputError, match="mask 0"):
        exported.score([film], [np.ones((3, 3), bool)], prepared=True)
