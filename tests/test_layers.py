"""Modules import only from groups to their left (design: architecture, "Layers")."""

import ast
import functools
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

from selftaught import methods
from tests.tiny import write_images, write_model

PACKAGE = Path(__file__).resolve().parents[1] / "selftaught"
GROUPS = [
    {"environment", "errors", "files", "console", "workers", "peers", "distributed", "kernels"}
    | {"arguments", "host", "semi_labels", "sent"},
    {"losses"},
    {"data", "models", "search"},
    {"methods"},
    {"detector", "export", "maps", "dicom"},
    {"training", "evaluation", "monitoring"},
    {"table1", "web"},
    {"cli", "__main__"},
]
# Generated films stand beside the rest: made of the first group, known to the commands alone.
BESIDE = "phantoms"
TORCH_DISTRIBUTED_ONLY_IN = "distributed.py"
# What works with any method, and so names none.
KNOW_NO_METHOD = ("training", "detector.py", "evaluation", "monitoring", "table1", "cli")
# Names of methods that are values of other options too: a stem, and no carrier, mask or masks.
WORDS = {"imagenet", "none"}


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def level(part: str) -> int:
    return next((number for number, group in enumerate(GROUPS) if part in group), 0)


def allowed(part: str, other: str) -> bool:
    """Whether a module of one part of the package may import from another part."""
    if other == BESIDE:
        return part in {BESIDE, *GROUPS[-1]}
    return level(other) <= level(part)


def imported(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_modules_import_only_to_their_left():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part == "__init__":
            continue
        for name in imported(parsed(path)):
            pieces = name.split(".")
            if pieces[0] != "selftaught" or len(pieces) < 2:
                continue
            if not allowed(part, pieces[1]):
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not wrong


def files_of(parts):
    for part in parts:
        path = PACKAGE / part
        yield from [path] if path.is_file() else path.rglob("*.py")


def test_nothing_but_methods_names_a_method():
    wrong = []
    for path in files_of(KNOW_NO_METHOD):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Constant) and node.value in set(methods.names()) - WORDS:
                wrong.append(f"{path.relative_to(PACKAGE)}:{node.lineno} says {node.value!r}")
            if isinstance(node, ast.Compare) and asks_for_a_method(node):
                wrong.append(f"{path.relative_to(PACKAGE)}:{node.lineno} asks which method it is")
    assert not wrong


def test_a_method_is_read_in_one_sitting():
    """One file each, below 250 lines; what two of them need has a file of its own."""
    for path in (PACKAGE / "methods").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        if "\nTASKS = " in text:
            assert text.count("\n") < 250, path.name


def asks_for_a_method(node):
    """Whether a comparison is one of `something.method`, or of `method`, with a given name."""
    sides = [node.left, *node.comparators]
    asked = [getattr(side, "attr", getattr(side, "id", "")) for side in sides]
    constants = [one for side in sides for one in ast.walk(side) if isinstance(one, ast.Constant)]
    return "method" in asked and any(one.value in methods.names() for one in constants)


def imported_at_once(tree: ast.AST):
    """Names that are imported as soon as a module is, not in a function or for types alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from imported_at_once(node)


def test_no_modules_import_each_other_in_a_circle():
    files = {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path
        for path in PACKAGE.rglob("*.py")
    }
    modules = {name.removesuffix(".__init__"): path for name, path in files.items()}
    graph = {}
    for name, path in modules.items():
        asked = set(imported_at_once(parsed(path)))
        # A name is a module of its own, or one of the module before its last dot.
        asked = {one if one in modules else one.rpartition(".")[0] for one in asked}
        graph[name] = {one for one in asked if one in modules and one != name}
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        raise AssertionError(" <- ".join(error.args[1])) from None


def test_every_module_belongs_to_a_group():
    for path in PACKAGE.iterdir():
        name = path.name.removesuffix(".py")
        if (path.is_dir() and name != "__pycache__") or path.suffix == ".py":
            assert name in ("__init__", BESIDE) or any(name in group for group in GROUPS), name


def test_only_one_file_calls_torch_distributed():
    callers = [
        path.name
        for path in PACKAGE.rglob("*.py")
        if any(name.startswith("torch.distributed") for name in imported(parsed(path)))
    ]
    assert callers == [TORCH_DISTRIBUTED_ONLY_IN]


def test_the_detector_never_imports_training():
    names = imported(parsed(PACKAGE / "detector.py"))
    assert not any(name.startswith("selftaught.training") for name in names)


IMPORTS = """
import sys

def loaded(*names):
    print([name for name in names if name in sys.modules])

from selftaught.losses import MADLoss, NTXentLoss
import selftaught.losses.compat
import torch
z, y = torch.randn(4, 8, requires_grad=True), torch.zeros(4, dtype=torch.int64)
(NTXentLoss()(z, z) + MADLoss(torch.randn(3, 8))(z, y)).backward()
loaded("triton", "deepspeed", "faiss", "nvidia.dali", "cv2", "pydicom", "matplotlib", "onnx",
       "pandas", "sklearn", "scipy", "torchvision", "torch._dynamo")
print(torch.cuda.is_initialized())
import selftaught.search
loaded("faiss")
import torchvision
from selftaught import Detector
from tests.thin import thin_resnet18
torchvision.models.resnet18 = thin_resnet18
Detector.load(sys.argv[1], device="cpu").explain([sys.argv[2]])
loaded("selftaught.training", "selftaught.evaluation", "deepspeed", "faiss", "pytorch_lightning",
       "sklearn", "matplotlib", "nvidia.dali", "onnx")
"""


@pytest.mark.usefixtures("thin_encoder")
def test_losses_search_and_scores_load_nothing_that_they_do_not_need(tmp_path):
    """Losses load torch and nothing heavier, and leave CUDA alone; scores load no training."""
    model = write_model(tmp_path / "model")
    film = write_images(tmp_path / "images", 1).with_name("000.png")
    words = [sys.executable, "-c", IMPORTS, model, film]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["[]", "False", "[]", "[]"], done.stderr


def test_films_are_prepared_without_torch(tmp_path):
    """Its import takes longer than a hundred films, in the command and in each of its processes."""
    (tmp_path / "a.png").write_bytes(b"no image")
    words = ["prepare", str(tmp_path), "--out", str(tmp_path / "out"), "--bad_limit", "1"]
    code = f"import sys; from selftaught.cli.main import main; main({words!r}); "
    code += "print(sorted({'torch', 'sklearn'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
