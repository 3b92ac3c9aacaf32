# `make demo` and `make test` are all a fresh machine needs; both make .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# What every package is installed as; empty for the newest of each (`make newest`).
CONSTRAINTS := constraints.txt
PIP := $(BIN)/pip install --quiet
PINNED := $(CONSTRAINTS:%=--constraint %)
PINNED_BUILD := $(CONSTRAINTS:%=--build-constraint %)
# What is tested of faults outside tests/faults, beside its subject.
FAULTS := tests/faults tests/test_whole_run_dicom.py tests/test_whole_run_ranks.py \
	tests/test_whole_run_prepare.py tests/data/prepare/test_faults.py

.PHONY: demo test newest constraints test-slow lint format docs faults bench gpu clean

$(STAMP): setup.py pyproject.toml $(CONSTRAINTS) $(wildcard csrc/cpu/*)
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade $(PINNED) "pip>=25.3" setuptools wheel
	$(PIP) $(PINNED) $(PINNED_BUILD) --editable ".[all]"
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python -m selftaught.kernels.native
	$(BIN)/selftaught demo --out demo

# Three processes of one thread for two cores, as a third of the time they wait for others of their
# own; each file in one of them: its fixtures are dear.
JOBS ?= $(shell $(PYTHON) -c "import os; print(os.cpu_count() * 3 // 2)")
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu" \
		--numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

# The tests on what PyPI gives today, then every package that is not the one in constraints.txt.
newest:
	rm -rf .venv-newest
	status=0; $(MAKE) test VENV=.venv-newest CONSTRAINTS= || status=$$?; \
	echo "Newer than in constraints.txt:"; \
	sed 's/ *;.*//' constraints.txt > .venv-newest/pinned; \
	.venv-newest/bin/pip freeze --all --exclude-editable | tr A-Z_ a-z- | \
		grep -vxFf .venv-newest/pinned; exit $$status

# Resolved for every supported Python. pip's own constraints are uv's when UV_CONSTRAINT names them.
constraints:
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(PIP) uv
	printf 'pip\nsetuptools\nwheel\n' | $(BIN)/uv pip compile --universal --python-version 3.10 \
		--no-python-downloads --upgrade --all-extras --no-annotate \
		--custom-compile-command "make constraints" --output-file constraints.txt setup.py -

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow --timeout=3600

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(STAMP)
	$(BIN)/mkdocs build --strict --quiet
	@echo site/index.html

faults: $(STAMP)
	$(BIN)/python -m pytest $(FAULTS) -v --timeout=3600

bench: $(STAMP)
	$(BIN)/python -m benchmarks.ntxent
	$(BIN)/python -m benchmarks.nearest_center
	$(BIN)/python -m benchmarks.kmeans
	$(BIN)/python -m benchmarks.neighbours
	$(BIN)/python -m benchmarks.data
	$(BIN)/python -m benchmarks.training_step
	$(BIN)/python -m benchmarks.agreement
	$(BIN)/python -m benchmarks.scaling

# Neither .venv nor network: a GPU machine's own python3, with torch, numpy and triton.
gpu:
	$(PYTHON) -m benchmarks.gpu_suite --out gpu-results

clean:
	rm -rf $(VENV) .venv-newest build dist site *.egg-info demo
