# Two commands: 'make demo' and 'make test'. Each sets up .venv from the locked versions first, once.
# 'make install' does that alone.
# 'make test-fast' is for every commit (2 minutes on two cores), 'make test' for every push (10 minutes),
# 'make test-all' for every night. tests/conftest.py says which tests are in which.
VENV ?= .venv
ifeq ($(OS),Windows_NT)  # run make in Git Bash: recipes are written for a POSIX shell
PYTHON ?= python
BIN := $(VENV)/Scripts
else
PYTHON ?= python3
BIN := $(VENV)/bin
endif

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

.PHONY: install demo test-fast test test-all test-trackers test-lm-eval test-trl lint hooks docs docs-serve dist lock clean

install: $(VENV)/installed

demo: $(VENV)/installed
	$(BIN)/toast demo

test-fast: $(VENV)/installed lint
	$(PYTEST) -m "not e2e and not nightly and not slow and not gpu"

test: $(VENV)/installed lint
	$(PYTEST) -m "not nightly and not slow and not gpu"

test-all: $(VENV)/installed lint
	$(PYTEST) -m "not slow and not gpu"

# The trackers with their libraries, each in its offline mode, in an environment of their own: the lock has none of them.
test-trackers:
	$(MAKE) install VENV=$(VENV)-trackers
	$(subst $(VENV),$(VENV)-trackers,$(BIN))/python -m pip install --quiet --editable ".[trackers]"
	$(subst $(VENV),$(VENV)-trackers,$(PYTEST)) -rs tests/unit/training/test_trackers.py

# TRL on an exported folder, in an environment of its own: nothing else needs it.
test-trl:
	$(MAKE) install VENV=$(VENV)-trl
	$(subst $(VENV),$(VENV)-trl,$(BIN))/python -m pip install --quiet "trl>=1.16"
	$(subst $(VENV),$(VENV)-trl,$(PYTEST)) -rs -m nightly tests/slow/test_trl.py

# lm-evaluation-harness in an environment of its own: it needs an older python-dateutil than the lock has.
test-lm-eval:
	$(MAKE) install VENV=$(VENV)-lm-eval
	$(subst $(VENV),$(VENV)-lm-eval,$(BIN))/python -m pip install --quiet --editable ".[lm-eval]"
	$(subst $(VENV),$(VENV)-lm-eval,$(PYTEST)) -rs -m "" tests/cli/test_lm_eval.py

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, in build/site. A dead link or anchor, a page missing from nav, or any other warning is an error.
docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --dev-addr 127.0.0.1:8000

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	touch $@

# Check every file as a commit does; 'pre-commit install' in the environment does it at each commit.
hooks: $(VENV)/installed
	$(BIN)/pre-commit run --all-files

# What a release uploads: dist/*.whl and dist/*.tar.gz.
dist: $(VENV)/installed
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

$(VENV)/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

# One lock for Python 3.11 and newer on every platform.
lock: pyproject.toml
	uv pip compile --universal --python-version 3.11 --extra dev --no-header --no-annotate --output-file requirements.lock pyproject.toml

clean:
	rm -rf $(VENV) $(VENV)-trackers $(VENV)-lm-eval $(VENV)-trl
