# Everything runs in .venv, which `make` builds and keeps up to date with pyproject.toml.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo test lint format bench clean
setup: $(READY)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "deepres needs Python 3.11 or newer, and $(PYTHON) is %d.%d; call make PYTHON=python3.12" % sys.version_info[:2])'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

# The main job: plain and residual networks of 20 and 56 layers on handwritten digits, and a report.
demo: $(READY)
	$(BIN)/deepres degrade

# One process a core, one thread each: two workers with all threads would take turns on the same cores. Takes about ten minutes on
# two cores. make test TEST_OPTIONS="tests/data -k tar" runs some.
TEST_OPTIONS ?=
WORKERS ?= auto
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal $(TEST_OPTIONS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Side by side with torchvision and others; takes three quarters of an hour and writes benchmarks/results/.
bench: $(READY)
	$(BIN)/python -m benchmarks.inference
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.monitor
	$(BIN)/python -m benchmarks.paper
	$(BIN)/python -m benchmarks.tell

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
