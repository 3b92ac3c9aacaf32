"""Whatever a host program has set: the same bits, and its settings are found as they were."""

import ast
import os
import pickle
import random
import subprocess
import sys
import threading
import warnings
from contextlib import contextmanager, nullcontext
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from torch.overrides import BaseTorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from selftaught import Detector, host
from selftaught.losses import mad_loss, ntxent_loss
from selftaught.models import Calibration, EncoderConfig, Preprocessing, build_embedder, save_model
from selftaught.search import kmeans, knn_score
from tests.tiny import spheres, write_images


class Passing(TorchDispatchMode):
    """Sees every operation and changes none."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@contextmanager
def changed(get, put, value):
    """A setting of the process while the context lasts."""
    before = get()
    put(value)
    try:
        yield
    finally:
        put(before)


def precision(backend, operation, value):
    """What torch.backends.BACKEND.OPERATION.fp32_precision sets."""
    get = torch._C._get_fp32_precision_getter
    put = torch._C._set_fp32_precision_setter
    return changed(lambda: get(backend, operation), lambda one: put(backend, operation, one), value)


@contextmanager
def products(value):
    """`torch.set_float32_matmul_precision`, and what it changes beside."""
    with precision("mkldnn", "matmul", "none"), precision("cuda", "matmul", "none"):
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(value)
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


def default_dtype(dtype):
    return changed(torch.get_default_dtype, torch.set_default_dtype, dtype)


def attribute(place, name, value):
    return changed(lambda: getattr(place, name), lambda one: setattr(place, name, one), value)


@contextmanager
def deterministic(**more):
    torch.use_deterministic_algorithms(True, **more)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def warnings_as_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@contextmanager
def flushed():
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


SETTINGS = {
    "nothing": nullcontext,
    "autocast bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast float16": lambda: torch.autocast("cpu", torch.float16),
    "default type float64": lambda: default_dtype(torch.float64),
    "default type bfloat16": lambda: default_dtype(torch.bfloat16),
    "default type float16": lambda: default_dtype(torch.float16),
    "default device meta": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "gradients": torch.enable_grad,
    "anomalies": torch.autograd.detect_anomaly,
    "deterministic": deterministic,
    "deterministic, warn only": lambda: deterministic(warn_only=True),
    "products medium": lambda: products("medium"),
    "products high": lambda: products("high"),
    "products bfloat16": lambda: precision("mkldnn", "matmul", "bf16"),
    "convolutions bfloat16": lambda: precision("mkldnn", "conv", "bf16"),
    "all oneDNN bfloat16": lambda: precision("mkldnn", "all", "bf16"),
    "everything bfloat16": lambda: precision("generic", "all", "bf16"),
    "no oneDNN": lambda: attribute(torch.backends.mkldnn, "enabled", False),
    "oneDNN deterministic": lambda: attribute(torch.backends.mkldnn, "deterministic", True),
    "numbers that vanish": flushed,
    "function mode": BaseTorchFunctionMode,
    "dispatch mode": Passing,
    "modules swapped": lambda: changed(
        torch.__future__.get_swap_module_params_on_conversion,
        torch.__future__.set_swap_module_params_on_conversion,
        True,
    ),
    "numpy raises": lambda: np.errstate(all="raise"),
    "warnings are errors": warnings_as_errors,
    "pandas, python strings": lambda: pd.option_context("mode.string_storage", "python"),
    "pandas, old strings": lambda: pd.option_context("future.infer_string", False),
    "opencv threads": lambda: changed(cv2.getNumThreads, cv2.setNumThreads, 3),
    "no stdout": lambda: attribute(sys, "stdout", None),
    "no stderr": lambda: attribute(sys, "stderr", None),
}


def state():
    """All of the host's that we could have changed."""
    kinds = ("generic", "all"), ("mkldnn", "all"), ("mkldnn", "matmul"), ("mkldnn", "conv")
    return {
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "defaults": (torch.get_default_dtype(), torch.get_default_device()),
        "modes": torch._C._len_torch_function_stack(),
        "precision": [torch._C._get_fp32_precision_getter(*kind) for kind in kinds],
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "oneDNN": (torch.backends.mkldnn.enabled, torch.backends.mkldnn.deterministic),
        "threads": (torch.get_num_threads(), cv2.getNumThreads()),
        "numpy": (np.geterr(), np.random.get_state()[1].tobytes()),
        "random": (random.getstate(), torch.get_rng_state().numpy().tobytes()),
        "python": (warnings.filters[:], sys.stdout, sys.stderr),
    }


class Work:
    """Everything public on the same input, as bytes."""

    def __init__(self, place):
        self.place = place
        self.task = spheres(4)
        films = Preprocessing(image_size=32)
        self.folder = save_model(place / "model", self.task, films, Calibration(2.0, (1.0, 2.0)))
        write_images(place / "images", 5)
        self.paths = sorted((place / "images").glob("*.png"))
        draw = torch.Generator().manual_seed(0)
        self.images = torch.rand(5, 1, 32, 32, generator=draw)
        self.rows = torch.randn(300, 16, generator=draw)
        self.labels = torch.arange(300) % 3 - 1

    def __call__(self):
        detector = Detector.load(self.folder, device="cpu")
        table = detector.explain(self.paths)
        results = {
            "paths": detector.score(self.paths),
            "tensor": detector.score(self.images),
            "none": detector.embed([])[0],
            **dict(zip(("h", "z"), detector.embed(self.images), strict=True)),
            **{f"explain {name}": table[name].to_numpy(float) for name in table.columns[1:]},
            **kmeans(self.rows, 7, restarts=2)._asdict(),
            "array": kmeans(self.rows.numpy(), 7).centers,
            "list": kmeans(self.rows.tolist(), 7).centers,
            "knn": knn_score(self.rows[:9], self.rows, 20),
            "weights": fresh_weights(),
            "loss": ntxent_loss(self.rows[:150], self.rows[150:]),
            "reference": mad_loss(self.rows, self.rows[:5], self.labels, backend="reference"),
            **self.losses(),
        }
        kept = save_model(self.place / "again", self.task, detector.preprocessing, Calibration())
        results["saved"] = np.frombuffer((kept / "weights.safetensors").read_bytes(), np.uint8)
        return {name: np.asarray(plain(value)).tobytes() for name, value in results.items()}

    def losses(self):
        with torch.inference_mode(False), torch.enable_grad():
            x = self.rows.clone().requires_grad_()
            found = {}
            for name, call in (
                ("ntxent", lambda: ntxent_loss(x[:150], x[150:])),
                ("mad", lambda: mad_loss(x, x[:5].detach(), self.labels)),
            ):
                found[name] = loss = call()
                (found[f"{name} gradient"],) = torch.autograd.grad(loss, x)
            return found


def fresh_weights():
    """Of a seed, where the device is not asked to be another."""
    with torch.device("cpu"):
        return next(build_embedder(EncoderConfig(), 5).parameters())


def plain(value):
    return value.detach().numpy() if isinstance(value, torch.Tensor) else value


@pytest.fixture(scope="module")
def work(thin_encoder, tmp_path_factory):
    return Work(tmp_path_factory.mktemp("host"))


@pytest.fixture(scope="module")
def wanted(work):
    return work()


def differing(results, wanted):
    assert results.keys() == wanted.keys()
    return [name for name, value in results.items() if value != wanted[name]]


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_same_bits_and_nothing_leaks(work, wanted, setting):
    np.random.seed(3)
    random.seed(3)
    outside = state()
    with SETTINGS[setting]():
        before = state()
        results = work()
        assert state() == before
    assert differing(results, wanted) == []
    assert state() == outside


def test_the_same_bits_in_a_thread_of_a_host_with_settings(work, wanted):
    """Settings of a thread do not reach the next one; those of the process do."""
    results = {}
    with default_dtype(torch.float64), products("medium"), torch.device("meta"):
        thread = threading.Thread(target=lambda: results.update(work()))
        thread.start()
        thread.join()
    assert differing(results, wanted) == []


def test_two_threads_put_a_setting_back_once():
    """The last to end puts back what the first met, whatever their order."""
    values = ["host's"]
    shared = host.Shared(lambda: values[-1], values.append, lambda _: "ours")
    shared.__enter__()
    assert values[-1] == "ours"
    shared.__enter__()
    shared.__exit__()
    assert values[-1] == "ours"
    shared.__exit__()
    assert values == ["host's", "ours", "host's"]
    with host.Shared(lambda: values[-1], values.append, lambda value: value):
        assert len(values) == 3


def test_what_only_inherits_a_precision_goes_on_to_inherit_it():
    get, put = torch._C._get_fp32_precision_getter, torch._C._set_fp32_precision_setter
    with precision("generic", "all", "bf16"):
        assert get("mkldnn", "matmul") == "bf16"
        with host.defaults():
            assert get("mkldnn", "matmul") == "ieee"
        assert get("mkldnn", "matmul") == "bf16"
        put("generic", "all", "none")
        assert get("mkldnn", "matmul") != "bf16"


def test_a_model_loaded_in_inference_mode_may_be_differentiated(work):
    with torch.inference_mode():
        detector = Detector.load(work.folder, device="cpu")
    images = work.images.clone().requires_grad_()
    detector.scorer(images)["score"].sum().backward()
    assert images.grad.abs().sum() > 0


def test_a_detector_goes_to_processes_that_are_started_anew(work, wanted):
    """Spawn and forkserver hand it over as bytes."""
    detector = pickle.loads(pickle.dumps(Detector.load(work.folder, device="cpu")))
    assert detector.score(work.paths).numpy().tobytes() == wanted["paths"]


def test_new_tensors_of_a_method_are_float32_and_on_the_cpu():
    with default_dtype(torch.float64), torch.device("meta"), host.defaults():
        for made in (torch.zeros(2), torch.ones(2), torch.rand(2), torch.linspace(0, 1, 3)):
            assert (made.dtype, made.device.type) == (torch.float32, "cpu")
        assert torch.zeros(2, dtype=torch.float64).dtype == torch.float64
        assert torch.arange(3).dtype == torch.int64


PRINTED = """
import os, sys, torch, torchvision
from tests.thin import thin_resnet18
torchvision.models.resnet18 = thin_resnet18
from selftaught import Detector
from selftaught.search import kmeans
os.mkdir("gone"); os.chdir("gone"); os.rmdir(os.getcwd())
scores = Detector.load(sys.argv[1], device="cpu").score(sys.argv[2:])
centers = kmeans(torch.eye(9), 4).centers
print(*(x.numpy().tobytes().hex() for x in (scores, centers)))
"""


def test_the_same_bits_however_python_was_started(work, wanted, tmp_path):
    """Warnings as errors, a C locale, no place for temporary files, no folder."""
    films = [tmp_path / f"Gelenk_\u00e9_{number}.png" for number in range(len(work.paths))]
    for film, path in zip(films, work.paths, strict=True):
        film.write_bytes(path.read_bytes())
    variables = {
        **{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONHASHSEED": "7"},
        "TMPDIR": "/no/such/folder",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    words = [sys.executable, "-W", "error", "-c", PRINTED, work.folder, *films]
    done = subprocess.run(
        words,
        env={**os.environ, **variables},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    scores, centers = done.stdout.split()
    assert scores == wanted["paths"].hex()
    assert centers == kmeans(torch.eye(9), 4).centers.numpy().tobytes().hex()


def test_asserts_may_be_left_out():
    """As `python -O` does: none of them does anything but ask."""
    for path in Path(host.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Assert):
                parts = list(ast.walk(node))
                calls = {ast.unparse(one.func) for one in parts if isinstance(one, ast.Call)}
                where = f"{path.name}:{node.lineno}"
                assert calls <= {"isinstance", "tensor.is_contiguous"}, where
                assert not any(isinstance(one, ast.NamedExpr) for one in parts), where


FORKED = """
import multiprocessing, os, sys, threading
import torch, torchvision
from selftaught import Detector
from selftaught.losses import mad_loss, ntxent_loss
from selftaught.search import kmeans, knn_score
from tests.thin import thin_resnet18

torchvision.models.resnet18 = thin_resnet18
torch.set_num_threads(2)
z = torch.randn(512, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
images = torch.rand(8, 1, 32, 32, generator=torch.Generator().manual_seed(0))
detector = Detector.load(sys.argv[1], device="cpu")
labels = torch.zeros(512, dtype=torch.int64)

def work():
    torch.set_grad_enabled(True)
    loss = ntxent_loss(z, z.flip(0))
    yield loss, torch.autograd.grad(loss, z)[0]
    yield ntxent_loss(z, z.flip(0), backend="reference"),
    yield torch.autograd.grad(mad_loss(z, z[:99].detach(), labels), z)
    yield detector.score(images),
    yield kmeans(z, 20, iterations=2).centers, knn_score(z[:50], z, 5)
    yield (z @ z.T).logsumexp(1),

def same():
    pairs = [pair for results in zip(work(), wanted) for pair in zip(*results)]
    return torch.get_num_threads() == 2 and all(torch.equal(*pair) for pair in pairs)

def forked(then=lambda: True):
    assert same()  # so that this thread has threads of its own to lose
    child = os.fork()
    if child == 0:
        os._exit(0 if same() and then() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

wanted = list(work())
assert forked(then=forked) and same()
child = multiprocessing.get_context("fork").Process(target=lambda: sys.exit(not same()))
child.start()
child.join()
assert child.exitcode == 0
results = []
thread = threading.Thread(target=lambda: results.append(forked()))
thread.start()
thread.join()
assert results == [True] and same()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_torchs_threads_too(work):
    """In plain torch the child waits for ever for threads that only its parent has."""
    words = [sys.executable, "-c", FORKED, work.folder]
    job = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        said = job.communicate(timeout=240)[1]
    finally:
        if job.poll() is None:
            os.killpg(job.pid, 9)
    assert job.returncode == 0, said
