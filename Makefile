# make demo   see the whole platform work on this machine (installs what it needs)
# make test   lint, types, layers and all tests
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0
# PyTorch's index of CPU builds; what pip finds by itself is the newest CUDA build, several gigabytes larger.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
HAS_GPU := $(shell nvidia-smi -L >/dev/null 2>&1 && echo yes)
EXTRAS := train,$(if $(HAS_GPU),gpu,cpu),dev
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq

.PHONY: help install demo test lint format bench chaos clean

help:  ## show what there is
	@awk -F ':.*## ' '/^[a-z]+:.*##/ { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/installed  ## make .venv and install the platform with all it needs

$(VENV)/installed: pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Heliostat needs Python 3.11 or newer; set PYTHON=…" >&2; exit 2; }
	@echo "installing into $(VENV) (about 2 GB; takes some minutes the first time)"
	@$(PYTHON) -m venv $(VENV)
ifeq ($(HAS_GPU),yes)
	@$(PIP) $(TORCH)
else
	@$(PIP) --index-url $(TORCH_INDEX) --timeout 5 --retries 0 $(TORCH) 2>/dev/null || $(PIP) $(TORCH)
endif
	@$(PIP) --constraint constraints.txt --editable ".[$(EXTRAS)]"
	@touch $@

demo: install  ## ingest, pre-train, evaluate and report on real images, in minutes
	@$(BIN)/heliostat demo

lint: install  ## ruff, mypy (strict) and import-linter
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports

test: lint  ## lint and all tests
	$(BIN)/python -m pytest -m "not alone" --numprocesses 2 --dist loadfile
	$(BIN)/python -m pytest -m alone

format: install  ## put the code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install  ## run all benchmarks and write tests/benchmarks/RESULTS.md
	$(BIN)/python tests/benchmarks/run_all.py

chaos: install  ## break storage, processes and images under running jobs; CHAOS_SEED and CHAOS_FAULTS choose how
	@PYTHONPATH=$(CURDIR)/tests $(BIN)/python -m faults.chaos $(ROWS)

clean:  ## remove what make made
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
