# The commands of the project; each is one line that can also be typed.
.DEFAULT_GOAL := help
.PHONY: help setup panel demo test lint format lab screenshots bench soak cluster-test cluster-soak clean

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell scripts/find-python 3.11 || scripts/find-python 3.12 || scripts/find-python 3.13)
PYTEST_ARGS ?=
BENCH_ARGS ?=
# In two processes, since most of the time is waiting; in the order of their folders, since those that take long come first.
BESIDE := -n 2 --dist loadfile --no-loadscope-reorder
# Jupyter wants to be told that root is meant.
LAB_ARGS ?= $(if $(filter 0,$(shell id -u)),--allow-root)

help:  ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 22

# Made anew only when the dependencies may have changed.
$(VENV)/.installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or later was found; install one, or say where: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "setup: $(VENV) with $(PYTHON) ..."
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input --editable '.[dev]'
	@touch $@

setup: panel  ## Make .venv, the side panel for JupyterLab, and the kernels' environments in .venvs
	@$(BIN)/python scripts/kernel_envs.py

panel: $(VENV)/.installed  ## The side panel for JupyterLab, if it has changed and Node.js is there
	@$(BIN)/python scripts/labextension.py

demo: $(VENV)/.installed  ## The complete example in a real Jupyter kernel, on local pods, its logs live
	@$(BIN)/python scripts/demo.py

test: setup  ## All tests (PYTEST_ARGS="-k name" for some)
	@$(BIN)/python -m pytest $(BESIDE) $(PYTEST_ARGS)

lint: $(VENV)/.installed  ## ruff, mypy, the direction of imports; of the side panel types, eslint, prettier
	@status=0; \
	for check in "ruff check ." "ruff format --check --quiet ." "mypy" "lint-imports --no-logo" "python scripts/labextension.py lint"; do \
		$(BIN)/$$check || { echo "$$check: failed" >&2; status=1; }; \
	done; \
	exit $$status

format: $(VENV)/.installed  ## Put the code into its form
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format --quiet .

lab: panel  ## JupyterLab in notebooks/
	@cd notebooks && ../$(BIN)/jupyter lab $(LAB_ARGS)

screenshots: panel  ## The pictures in docs/images (needs Chromium on this machine)
	@$(BIN)/python scripts/screenshots.py

soak: setup  ## The tests that take long
	@$(BIN)/python -m pytest -m "soak and not cluster" --timeout 3600 $(PYTEST_ARGS)

bench: $(VENV)/.installed  ## How fast it is, beside limits and peers of the same run (BENCH_ARGS="W2 W3" for some)
	@$(BIN)/python -m benchmarks --peers $(BENCH_ARGS)

cluster-test: setup  ## Tests on a Kubernetes cluster: the kubeconfig's, or one of the program that KT_TEST_CLUSTER names
	@$(BIN)/python -m pytest -m "cluster and not soak" --timeout 300 $(PYTEST_ARGS)

cluster-soak: setup  ## Those of them that take long
	@$(BIN)/python -m pytest -m "cluster and soak" --timeout 600 $(PYTEST_ARGS)

clean:  ## Remove what the other commands made
	rm -rf $(VENV) .venvs kubetorch_jupyter/_labextension labextension/lib labextension/node_modules labextension/.yarn
	rm -rf .cache/benchmarks dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
