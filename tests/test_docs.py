"""What README, CONTRIBUTING and docs name is there: paths, links, commands, settings, a table."""

import re
from pathlib import Path

import pytest

from benchmarks import scaling
from selftaught import methods
from selftaught.models.encoder import EncoderConfig
from selftaught.models.heads import build_embedder
from selftaught.table1.rows import place
from selftaught.training.config import Config, resume_policies

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
TOP = ("selftaught", "tests", "docs", "benchmarks", "launch", "csrc")
PACKAGES = tuple(path.parent.name for path in (ROOT / "selftaught").glob("*/__init__.py"))
SOURCE = re.compile(r"[\w*]+\.(?:py|cpp|cu|sh|sbatch)")
# `pack/images/NAME` and the like are files of a run or a set, not of the repository.
PATH = re.compile(rf"(?:{'|'.join((*TOP, *PACKAGES))})/[\w./*-]*")
# Written on a machine with a GPU only.
ELSEWHERE = re.compile(r"\w+_cuda\.(?:csv|png)$")
IDS = [page.name for page in PAGES]


def prose(page):
    return page.read_text(encoding="utf-8")


def there(name):
    """Whether a path, which may have stars, is one of the repository or of the package."""
    name = name.rstrip("/.")
    return any(any(place.glob(name)) for place in (ROOT, ROOT / "selftaught"))


def named_paths(text):
    """What looks like a path of the repository, in backticks, in commands or bare."""
    quoted = re.findall(r"`([^`\n]+)`", text)
    words = [word.split("::")[0] for one in quoted for word in one.split()]
    found = {word for word in words if PATH.fullmatch(word)}
    found |= set(re.findall(rf"(?<![\w./-])(?:{'|'.join(TOP)})/[\w./*-]*[\w*/]", text))
    return {name for name in found if not ELSEWHERE.search(name)}


def test_what_counts_as_a_path():
    text = "`tests/a.py`, `kernels/b.py`, `pack/images/NAME`, in tests/c/d.py, `x -k e csrc/f::g`."
    found = {"tests/a.py", "kernels/b.py", "tests/c/d.py", "csrc/f"}
    assert named_paths(text + " ../benchmarks/results/data_cuda.csv /shared/tests/x") == found
    assert there("kernels/reference") and there("tests/test_*.py") and not there("tests/gone.py")


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_paths_exist(page):
    text = prose(page)
    missing = {name for name in named_paths(text) if not there(name)}
    quoted = {word for one in re.findall(r"`([^`\n]+)`", text) for word in one.split()}
    for name in (word for word in quoted if SOURCE.fullmatch(word)):
        if not any(any((ROOT / top).rglob(name)) for top in TOP) and not (ROOT / name).exists():
            missing.add(name)
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    files = [target.partition("#") for target in targets if "://" not in target]
    assert not [name for name, _, _ in files if name and not (page.parent / name).exists()]
    for name, _, anchor in files:
        other = prose(page.parent / name if name else page) if anchor else ""
        heads = re.findall(r"^#+ (.+)$", other, re.M)
        anchors = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}
        assert not anchor or anchor in anchors or f'<a id="{anchor}">' in other, f"{name}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_modules_that_are_run_exist(page):
    for name in re.findall(r"\bbenchmarks\.(\w+)", prose(page)):
        assert (ROOT / "benchmarks" / f"{name}.py").exists() or name == "NAME", name


def test_every_benchmark_has_its_command_in_the_docs():
    pages = "".join(map(prose, PAGES))
    for path in (ROOT / "benchmarks").glob("*.py"):
        if '__name__ == "__main__"' in path.read_text(encoding="utf-8"):
            assert f"benchmarks.{path.stem}" in pages, f"{path.stem}: docs say nothing of it"


def test_make_faults_runs_files_that_exist():
    faults = re.search(r"^FAULTS := ((?:.*\\\n)*.*)$", (ROOT / "Makefile").read_text(), re.M)
    names = faults[1].replace("\\", "").split()
    assert len(names) == 5 and all((ROOT / name).exists() for name in names)
    contributing = prose(ROOT / "CONTRIBUTING.md")
    assert all(f"`{name}`" in contributing for name in names)


def test_settings_that_may_change_on_resume_are_listed():
    text = prose(ROOT / "docs" / "files.md")
    listed = text[text.index("A second run in a folder") : text.index("**Checkpoints** hold")]
    policies = resume_policies(Config(out="run"))
    names = {name for name, policy in policies.items() if policy == "free"} - {"out"}
    assert names <= set(re.findall(r"`([^`]+)`", listed))


def test_every_method_is_described():
    text = prose(ROOT / "docs" / "method.md")
    table = text[text.index("| method | stage |") : text.index("How to add one")]
    cells = [line.split(" | ")[0] for line in table.splitlines()[2:]]
    listed = [name for cell in cells for name in re.findall(r"`([\w-]+)`", cell)]
    assert sorted(listed) == methods.names()


def test_every_system_is_described_in_the_tables_order():
    text = prose(ROOT / "docs" / "table1.md")
    table = text[text.index("| row | title |") : text.index("`imagenet`, `frozen-knn`,")]
    systems = methods.systems()
    expected = []
    for name in sorted(systems, key=place):
        one = systems[name]
        pair = f"`{one.pretext}`, `{one.finetune}`"
        set_ = "".join(f", {option} {value}" for option, value in one.changes.items())
        expected.append([f"`{name}`", one.title, pair + set_])
    rows = [line.strip("| ").split(" | ") for line in table.strip().splitlines()[2:]]
    assert [row[:3] for row in rows] == expected
    assert all(len(row) == 5 and row[4] for row in rows)
    kinds = text[text.index("| labels used | |") : text.index("| row | title |")]
    assert {row[3] for row in rows} <= set(re.findall(r"^\| ([\w ]+) \| ", kinds, re.M))
    reads_weights = {name for name, one in systems.items() if one.pretext == "imagenet"}
    after = text[text.index("`imagenet`, `frozen-knn`,") :].partition(" read an ImageNet")[0]
    assert set(re.findall(r"`([\w-]+)`", after)) == reads_weights


def test_the_table_of_scaling_is_what_the_formula_gives():
    text = prose(ROOT / "docs" / "scaling.md")
    table = text[text.index("| B | GPUs |") : text.index("**First bottleneck.**")]
    rows = [line for line in table.splitlines() if re.match(r"\| \d", line)]
    assert rows == [scaling.paper_row(*case) for case in scaling.ON_PAPER]
    # By hand: 128 / 2200 s, 2 x 7/8 x 45.36 MB / 370 GB/s, 40 x 20 us, 2 x 1024 x 512 B / 370 GB/s.
    assert rows[1] == "| 1,024 | 8 | 128 | 58.2 | 0.2 | 0.8 | 0.0 | 59.2 | 17,300 | 98 % |"
    embedder = build_embedder(EncoderConfig(), 1)
    assert sum(p.numel() for p in embedder.parameters()) * 4 == scaling.GRADIENT
