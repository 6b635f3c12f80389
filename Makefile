# Two commands: 'make demo' and 'make test'. Each sets up .venv from the locked versions first, once.
# 'make install' does that alone.
# 'make test-fast' is for every commit (2 minutes on two cores), 'make test' for every push (10 minutes),
# 'make test-all' for every night. tests/conftest.py says which tests are in which.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

.PHONY: install demo test-fast test test-all lint lock clean

install: $(VENV)/installed

demo: $(VENV)/installed
	$(BIN)/toast demo

test-fast: $(VENV)/installed lint
	$(PYTEST) -m "not e2e and not nightly and not slow and not gpu"

test: $(VENV)/installed lint
	$(PYTEST) -m "not nightly and not slow and not gpu"

test-all: $(VENV)/installed lint
	$(PYTEST) -m "not slow and not gpu"

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --editable .
	touch $@

# One lock for Python 3.10 and newer on every platform.
lock: pyproject.toml
	uv pip compile --universal --python-version 3.10 --extra dev --no-header --no-annotate --output-file requirements.lock pyproject.toml

clean:
	rm -rf $(VENV)
