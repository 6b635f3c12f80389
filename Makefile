# Two commands: 'make demo' and 'make test'. Each sets up .venv from the locked versions first, once.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint lock clean

demo: $(VENV)/installed
	$(BIN)/toast demo

test: $(VENV)/installed lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

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
