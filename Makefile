# Everything a person or CI runs. `make demo` and `make test` share one set-up, done once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-fast check peers format clean

demo: $(VENV)/.done  ## the whole story, offline, in minutes: data, training, evaluation, library, search, report
	$(BIN)/antiphon demo --out demo

test: $(VENV)/.done  ## all tests, in two processes; a file's tests stay together
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

test-fast: $(VENV)/.done  ## without the slow ones
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow"

check: $(VENV)/.done  ## what CI runs: format, lint, types, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) test

peers: $(VENV)/.done .venv-peers/.done  ## our embeddings against the peers' own code (laion_clap, msclap, panns_inference)
	ANTIPHON_PEERS=$(CURDIR)/.venv-peers/bin/python $(BIN)/python -m pytest -q -m peer

.venv-peers/.done: tests/parity/requirements.txt constraints.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	.venv-peers/bin/pip install --quiet --disable-pip-version-check --no-deps --constraint constraints.txt --requirement tests/parity/requirements.txt
	touch $@

format: $(VENV)/.done  ## mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch first and alone: whatever asks for it afterwards finds the pinned one.
$(VENV)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[all,dev]"
	touch $@

clean:  ## what set-up, demo and tests made
	rm -rf $(VENV) .venv-peers demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
