# Each target sets up what it needs; `make` alone lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo train-example check format test fuzz bench clean

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name what; do printf '%-22s%s\n' "$$name" "$$what"; done

setup: $(READY) ## make .venv with the pinned packages, and plaudit itself

# torch goes in by its pinned version before the rest, so that nothing else's range picks another build of it.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "plaudit needs Python 3.11 or newer; choose one with: make PYTHON=python3.x"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test,dev]"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[deepspeed]" >$(VENV)/deepspeed.log 2>&1 \
		|| echo "DeepSpeed could not be installed ($(VENV)/deepspeed.log says why): its tests will skip"
	@touch $@

demo: $(READY) ## train, save, reload and score a tiny reward model on real text; leaves runs/demo
	$(BIN)/plaudit demo

train-example: $(READY) ## train from examples/train.yaml on a small local model and file; leaves runs/example
	$(BIN)/python examples/tiny_model.py runs/tiny-model
	$(BIN)/plaudit train --config examples/train.yaml

check: $(READY) ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY) ## put the code into the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The models of the tests are tiny: more than one thread a worker makes them slower.
test: $(READY) ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4

# Seeds are drawn anew each time and printed; FUZZ="--cases 2000 --target pairs --seed 7" runs other cases.
fuzz: $(READY) ## feed 100,000 broken records, templates, options and files, and see each refused in our words
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[fuzz]" || echo "atheris does not install here: hypothesis alone makes the cases"
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py $(FUZZ)

bench: $(READY) ## measure start-up, memory of preparation, and the demo
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/preparation_memory.py
	$(BIN)/python benchmarks/demo.py

clean: ## remove .venv, runs and caches
	rm -rf $(VENV) runs .mypy_cache .pytest_cache .ruff_cache
