# Everything runs in .venv, which `make setup` makes once.
PYTHON ?= python3
JAX ?= jax[cuda12]
BIN := .venv/bin
STAMP := .venv/.installed
BENCH_STAMP := .venv/.installed-bench
DOCS_STAMP := .venv/.installed-docs

.DEFAULT_GOAL := help
.PHONY: help setup test test-long test-notebooks test-slow demo lint docs bench bench-gpu

help:
	@echo "make setup      create .venv and install sptjax with its test tools (once)"
	@echo "make demo       simulate two classes, refine them, compare with the truth"
	@echo "make test       the tests, without those marked long or slow"
	@echo "make test-long  the tests marked long: half a minute or more each"
	@echo "make test-notebooks  all notebooks, cell by cell"
	@echo "make test-slow  the tests marked slow"
	@echo "make lint       ruff and pyright"
	@echo "make docs       the pages of docs/ and a reference of all modules, in site/"
	@echo "make bench      install what the benchmarks need and list them"
	@echo "make bench-gpu  particles per second on an accelerator (installs $(JAX) if JAX sees none)"

setup: $(STAMP)

$(BIN)/python:
	$(PYTHON) -m venv .venv

$(STAMP): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	@touch $@

$(BENCH_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	@touch $@

test: setup
	$(BIN)/python -m pytest -n auto --dist loadfile -m 'not slow and not long and not gpu'

test-long: setup
	$(BIN)/python -m pytest -n auto --dist loadfile -m 'long and not slow'

test-notebooks: setup
	$(BIN)/python -m pytest -n auto tests/test_notebooks.py -m slow

test-slow: setup
	$(BIN)/python -m pytest -m 'slow and not gpu'

demo: setup
	$(BIN)/python experiments/demo.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench-gpu: setup
	@$(BIN)/python -c "import jax, sys; sys.exit(jax.default_backend() == 'cpu')" \
	  || $(BIN)/python -m pip install --quiet --disable-pip-version-check "$(JAX)"
	$(BIN)/python benchmarks/gpu.py

bench: $(BENCH_STAMP)
	@echo "Benchmarks (results and commands: benchmarks/README.md):"
	@for script in benchmarks/[a-z]*.py; do echo "  $(BIN)/python $$script"; done
