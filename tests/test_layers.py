"""Modules import only from groups to their left (design: architecture, "Layers")."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "selftaught"
GROUPS = [
    {"environment", "errors", "files", "console", "peers", "distributed", "kernels"},
    {"losses"},
    {"data", "models", "search"},
    {"detector"},
    {"training", "baselines", "evaluation"},
    {"cli", "__main__"},
]
# Generated films stand beside the rest: made of the first group, known to the commands alone.
BESIDE = "phantoms"
TORCH_DISTRIBUTED_ONLY_IN = "distributed.py"


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
        for name in imported(ast.parse(path.read_text(encoding="utf-8"))):
            pieces = name.split(".")
            if pieces[0] != "selftaught" or len(pieces) < 2:
                continue
            if not allowed(part, pieces[1]):
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not wrong


def test_every_module_belongs_to_a_group():
    for path in PACKAGE.iterdir():
        name = path.name.removesuffix(".py")
        if (path.is_dir() and name != "__pycache__") or path.suffix == ".py":
            assert name in ("__init__", BESIDE) or any(name in group for group in GROUPS), name


def test_only_one_file_calls_torch_distributed():
    callers = [
        path.name
        for path in PACKAGE.rglob("*.py")
        if any(
            name.startswith("torch.distributed")
            for name in imported(ast.parse(path.read_text(encoding="utf-8")))
        )
    ]
    assert callers == [TORCH_DISTRIBUTED_ONLY_IN]


def test_the_detector_never_imports_training():
    names = imported(ast.parse((PACKAGE / "detector.py").read_text(encoding="utf-8")))
    assert not any(name.startswith("selftaught.training") for name in names)


def test_films_are_prepared_without_torch(tmp_path):
    """Its import takes longer than a hundred films, in the command and in each of its processes."""
    (tmp_path / "a.png").write_bytes(b"no image")
    words = ["prepare", str(tmp_path), "--out", str(tmp_path / "out"), "--bad_limit", "1"]
    code = f"import sys; from selftaught.cli.main import main; main({words!r}); "
    code += "print(sorted({'torch', 'sklearn'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
