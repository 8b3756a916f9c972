# Everything sets itself up: `make life` runs the embedded life, `make test` the suite. PYTHON=python3.12 picks another.
PYTHON ?= python3
ROOT ?= life
WORKERS ?= auto

.PHONY: help setup life test slow check clean

help:
	@echo "make life    run the embedded life to its end (5 to 7 minutes after installation)"
	@echo "make test    run the tests, offline (under 5 minutes)"
	@echo "make setup   install the base into .venv (no torch): gateway, console, store, reports"
	@echo "make slow    run the slow tests (about 15 minutes on two cores)"
	@echo "make check   format, lint, types"

setup:
	@$(PYTHON) tools/install.py base
	@echo "Next: .venv/bin/tutelage --help"

life:
	@$(PYTHON) tools/install.py train
	@.venv/bin/tutelage run recipes/starter.yaml --root $(ROOT)

test:
	@$(PYTHON) tools/install.py dev
	@OMP_NUM_THREADS=1 .venv/bin/pytest -n $(WORKERS)

slow:
	@$(PYTHON) tools/install.py dev
	@OMP_NUM_THREADS=1 .venv/bin/pytest -m slow --timeout 1200 -n $(WORKERS) --durations 15

check:
	@$(PYTHON) tools/install.py dev
	@.venv/bin/ruff format --check . && .venv/bin/ruff check . && .venv/bin/mypy

clean:
	rm -rf .venv bench/.envs life .pytest_cache .mypy_cache .ruff_cache .hypothesis
