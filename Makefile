# `make demo` and `make test` are all a fresh machine needs; both make .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# What is tested of faults outside tests/faults, beside its subject.
FAULTS := tests/faults tests/test_whole_run_dicom.py tests/test_whole_run_ranks.py \
	tests/test_whole_run_prepare.py tests/data/prepare/test_faults.py

.PHONY: demo test test-slow lint format faults bench gpu clean

$(STAMP): setup.py pyproject.toml $(wildcard csrc/cpu/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade "pip>=24" "setuptools>=77" wheel
	$(BIN)/pip install --quiet --editable ".[all]"
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python -m selftaught.kernels.native
	$(BIN)/selftaught demo --out demo

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow and not gpu"

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow --timeout=3600

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

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

gpu: $(STAMP)
	$(BIN)/python -m selftaught.kernels.cuda.build
	$(BIN)/python -m pytest -m gpu
	$(BIN)/python -m benchmarks.ntxent
	$(BIN)/python -m benchmarks.nearest_center
	$(BIN)/python -m benchmarks.data
	$(BIN)/python -m benchmarks.training_step

clean:
	rm -rf $(VENV) build dist *.egg-info demo
