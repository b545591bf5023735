# Two commands set up everything: `make demo` and `make test`. The environment is .venv, installed with constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

SPEED := attach_overhead scheduler_step evaluation_prdc
RULES := "cfg:scale=3" "cfg:scale=3 + adaptive" "none" "cfg:scale=2" "cfg:scale=5" "cfg:scale=8" "cfg:scale=12" \
  "apg:scale=4" "cfg++:scale=3" "autoguidance:scale=2"

.PHONY: demo test test-all lint format types bench quality clean install

install: $(READY)

# torch first and pinned: anything that lets pip choose may pull gigabytes of another build.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt --editable ".[test,lint]"
	touch $(READY)

demo: $(READY)            ## one grid of rules on the embedded model, scored: runs/demo/index.html
	$(BIN)/pilotage demo --output runs/demo

test: $(READY)            ## the test suite, ten minutes on two cores at the most
	$(BIN)/python -m pytest -m "not full"

test-all: $(READY)        ## with the full products
	$(BIN)/python -m pytest

lint: $(READY) types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Types are checked on the installed wheel: that is what users get, and the clone maps its folders into the package.
types: $(READY)
	rm -rf build .types
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir .types/wheel .
	$(BIN)/python -m pip install --quiet --no-deps --target .types/site .types/wheel/*.whl
	cd .types/site && ../../$(BIN)/python -m mypy --config-file ../../pyproject.toml -p pilotage
	rm -rf build

bench: $(READY)           ## interleaved ratios against stock diffusers and prdc
	for name in $(SPEED); do echo "== $$name"; $(BIN)/python benchmarks/$$name.py || exit 1; done

quality: $(READY)         ## the tables of docs/results.md, an hour on two cores; what is measured already is only printed
	$(BIN)/python benchmarks/embedded_rules.py $(RULES)

clean:
	rm -rf build .types *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
